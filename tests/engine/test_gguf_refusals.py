"""What is not exported to GGUF: each problem is named, and no file is left."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_models import edit
from safetensors.numpy import load_file, save_file

from afs_mlx.core.errors import AfsError, MissingError, UsageError
from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2
from afs_mlx.engine.gguf import FileType, export_gguf
from afs_mlx.engine.gguf.mixes import KINDS
from afs_mlx.engine.gguf.shape import read_shape


@pytest.fixture
def own_qwen2(tmp_path: Path) -> Path:
    """A folder that a test may damage."""
    build_tiny_qwen2(tmp_path / "model")
    return tmp_path / "model"


def change_weights(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def refusal(folder: Path, file_type: FileType = "f16") -> str:
    """The error of an export that has to fail, and leave nothing behind."""
    out = folder.parent / "out" / "model.gguf"
    out.parent.mkdir()
    with pytest.raises(AfsError) as caught:
        export_gguf(folder, out, file_type, name="tiny")
    assert list(out.parent.iterdir()) == []
    return str(caught.value)


@pytest.mark.parametrize("model_type", ["mamba", "mistral", "qwen3_moe", "qwen2_vl", "gemma3", None])
def test_an_unknown_model_type_is_named(own_qwen2: Path, model_type: str | None) -> None:
    edit(own_qwen2 / "config.json", lambda config: config.update(model_type=model_type))
    text = refusal(own_qwen2)
    assert f"model_type {model_type!r} is not exported" in text
    assert "known: llama, qwen2, qwen3" in text


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_theta": None}, "rope_theta: missing"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "kind 'longrope' is not exported"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "only default, linear, yarn"),
        ({"rope_scaling": {"rope_type": "linear", "type": "yarn"}}, "'linear' and 'yarn', expected one kind"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor is missing or out of range"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "original_max_position_embeddings is missing"),
        ({"rope_scaling": YARN | {"factor": 0.5}}, "rope_scaling: factor is missing or out of range"),
        ({"rope_scaling": YARN | {"attention_factor": 1.2}}, "attention_factor 1.2 is not exported, only None"),
        ({"rope_scaling": YARN | {"truncate": False}}, "truncate False is not exported, only True"),
        ({"rope_scaling": YARN | {"beta_fast": 8.0}}, "beta_fast 8.0 is not exported, only 32"),
        ({"rope_scaling": YARN | {"mscale": "1"}}, "rope_scaling: mscale is missing or out of range"),
        ({"rope_scaling": [4.0]}, "rope_scaling or rope_parameters: not an object"),
        ({"rope_scaling": {"type": "llama3", "factor": 4.0}}, "kind 'llama3' is not exported"),
        ({"rope_parameters": {"rope_theta": 10000.0}}, "rope_theta: 10000.0 and 1000000.0"),
        ({"use_sliding_window": True}, "use_sliding_window: True is not exported"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not exported"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3"),
        ({"hidden_size": "64"}, "hidden_size: '64' is not a positive whole number"),
        ({"vocab_size": 640}, "token ids beyond vocab_size 640"),
        ({"num_hidden_layers": 3}, "model.layers.3.mlp.up_proj.weight: no such tensor"),
        ({"intermediate_size": 200}, "model.layers.0.mlp.up_proj.weight: shape [192, 64], expected [200, 64]"),
        ({"tie_word_embeddings": False}, "lm_head.weight: missing"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised by 'awq'"),
    ],
)
def test_a_configuration_that_cannot_be_kept(own_qwen2: Path, change: dict[str, Any], message: str) -> None:
    edit(own_qwen2 / "config.json", lambda config: config.update(change))
    assert message in refusal(own_qwen2)


def test_the_newer_spelling_of_the_rotation(own_qwen2: Path) -> None:
    config = json.loads((own_qwen2 / "config.json").read_text())
    del config["rope_theta"]
    config["rope_parameters"] = {"rope_theta": 5e5, "rope_type": "default"}
    assert read_shape(config, own_qwen2, scaled=False).rope_theta == 5e5


def test_all_unknown_and_missing_tensors_are_listed(own_qwen2: Path) -> None:
    def change(weights: dict[str, np.ndarray]) -> None:
        weights["model.layers.0.self_attn.q_norm.weight"] = np.ones(16, np.float32)
        weights["vision.patch.weight"] = np.ones((2, 2), np.float32)
        del weights["model.layers.1.self_attn.k_proj.bias"]

    change_weights(own_qwen2, change)
    text = refusal(own_qwen2)
    assert "model.layers.0.self_attn.q_norm.weight: no such tensor in a qwen2 model" in text
    assert "vision.patch.weight: no such tensor" in text
    assert "model.layers.1.self_attn.k_proj.bias: missing" in text


def test_what_every_loader_drops_is_dropped(own_qwen2: Path, tmp_path: Path) -> None:
    before = export_gguf(own_qwen2, tmp_path / "before.gguf", "f16", name="tiny")
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    extra["lm_head.weight"] = np.ones((704, 64), np.float32)  # tied
    change_weights(own_qwen2, lambda weights: weights.update(extra))
    assert export_gguf(own_qwen2, tmp_path / "after.gguf", "f16", name="tiny").sha256 == before.sha256


@pytest.mark.parametrize("file_type", KINDS)
def test_nan_and_infinite_weights_are_named(own_qwen2: Path, file_type: FileType) -> None:
    def change(weights: dict[str, np.ndarray]) -> None:
        weights["model.layers.2.mlp.up_proj.weight"][5, 7] = np.nan
        weights["model.layers.3.self_attn.q_proj.bias"][1] = np.inf

    change_weights(own_qwen2, change)
    text = refusal(own_qwen2, file_type)
    assert "model.layers.2.mlp.up_proj.weight: 1 of 12288 numbers are NaN or infinite" in text
    assert "model.layers.3.self_attn.q_proj.bias: 1 of 64 numbers" in text


def test_a_weight_beyond_f16_is_named_with_the_remedy(own_qwen2: Path, tmp_path: Path) -> None:
    def change(weights: dict[str, np.ndarray]) -> None:
        weights["model.layers.2.mlp.up_proj.weight"][5, 7] = -70000
        weights["model.norm.weight"][0] = 70000  # a vector stays float32

    change_weights(own_qwen2, change)
    text = refusal(own_qwen2)
    assert "model.layers.2.mlp.up_proj.weight: 70000 is beyond 65504, the range of F16" in text
    assert "model.norm.weight" not in text
    assert "q8_0 or f32" in text
    assert export_gguf(own_qwen2, tmp_path / "model.gguf", "q8_0", name="tiny").tensors > 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rules: rules["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\s+"), "is in no table"),
        (lambda rules: rules.update(pre_tokenizer=METASPACE), "('Metaspace',) is in no table"),
        (lambda rules: rules["model"].update(ignore_merges=True), "is in no table"),
        (lambda rules: rules.update(normalizer={"type": "Lowercase"}), "normalizer: Lowercase"),
        (lambda rules: rules["model"].update(byte_fallback=True), "model.byte_fallback"),
        (lambda rules: rules["added_tokens"][0].update(lstrip=True), "added token '<|endoftext|>': lstrip"),
        (lambda rules: rules["model"].update(type="WordPiece"), "type 'WordPiece' is not exported"),
        (lambda rules: rules["model"].update(merges=[]), "the tokenizer has no merges"),
        (lambda rules: rules["model"].pop("merges"), "the tokenizer has no merges"),
        (lambda rules: rules["model"]["vocab"].update({"[PAD703]": 5}), "a token has the name of a padding token"),
    ],
)
def test_a_tokenizer_that_llama_cpp_cannot_imitate(own_qwen2: Path, change: Any, message: str) -> None:
    edit(own_qwen2 / "tokenizer.json", change)
    assert message in refusal(own_qwen2)


def test_a_model_that_would_never_stop(own_qwen2: Path) -> None:
    edit(own_qwen2 / "tokenizer_config.json", lambda settings: settings.pop("eos_token"))
    edit(own_qwen2 / "config.json", lambda config: config.pop("eos_token_id"))
    (own_qwen2 / "generation_config.json").unlink()
    assert "generation would never stop" in refusal(own_qwen2)


def test_an_output_of_its_own_that_config_json_does_not_mention(own_qwen2: Path) -> None:
    edit(own_qwen2 / "config.json", lambda config: config.pop("tie_word_embeddings"))
    change_weights(own_qwen2, lambda weights: weights.update({"lm_head.weight": np.ones((704, 64), np.float32)}))
    assert "tie_word_embeddings is missing" in refusal(own_qwen2)


def test_missing_files(own_qwen2: Path, tmp_path: Path) -> None:
    (own_qwen2 / "model.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(MissingError, match="no weights here"):
        export_gguf(own_qwen2, tmp_path / "model.gguf", "f16", name="tiny")
    (own_qwen2 / "tokenizer.json").unlink()
    with pytest.raises(MissingError, match="tokenizer is missing"):
        export_gguf(own_qwen2, tmp_path / "model.gguf", "f16", name="tiny")
    with pytest.raises(AfsError, match="configuration is missing"):
        export_gguf(tmp_path, tmp_path / "model.gguf", "f16", name="tiny")
    with pytest.raises(UsageError, match="this is a folder"):
        export_gguf(own_qwen2, tmp_path, "f16", name="tiny")


def test_an_index_that_points_outside(own_qwen2: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (own_qwen2 / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "points outside the folder" in refusal(own_qwen2)


# Well-formed JSON of another form than the file has: an error with the place, never a crash


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"model_type": ["qwen2"]}, r"model_type \['qwen2'\] is not exported"),
        ("config.json", {"layer_types": 5}, "layer_types: 5 is not exported"),
        ("config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers: 1000000000 is beyond 1024"),
        ("config.json", {"rope_theta": [1]}, r"rope_theta: \[1\], expected one number"),
        ("config.json", {"rope_scaling": {"type": ["yarn"]}}, "is not exported for this model_type"),
        ("config.json", {"quantization_config": "int4"}, "quantised by 'int4'"),
        ("tokenizer.json", {"added_tokens": [{"id": "x"}]}, "the tokenizer cannot be read"),
        ("tokenizer.json", {"added_tokens": None}, "the tokenizer cannot be read"),
        ("tokenizer.json", {"normalizer": ["NFC"]}, r"normalizer: \['NFC'\]|the tokenizer cannot be read"),
        ("tokenizer.json", {"model": []}, "a tokenizer of type None"),
    ],
)
def test_a_value_of_another_form(own_qwen2: Path, file: str, change: dict[str, Any], message: str) -> None:
    edit(own_qwen2 / file, lambda values: values.update(change))
    assert re.search(message, refusal(own_qwen2))


@pytest.mark.parametrize("change", [{"vocab": [["a", 1]]}, {"vocab": {"a": "1"}}, {"merges": [[1, 2]]}])
def test_a_vocabulary_of_another_form(own_qwen2: Path, change: dict[str, Any]) -> None:
    edit(own_qwen2 / "tokenizer.json", lambda rules: rules["model"].update(change))
    assert "the tokenizer cannot be read" in refusal(own_qwen2)
