"""Bases load in float32 on a CPU, and damaged or hostile folders are refused before mlx sees them."""

import json
import shutil
import socket
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load as mlx_lm_load
from mlx_lm.utils import quantize_model, save
from safetensors.numpy import load_file, save_file

from afs_mlx.core.errors import AfsError, ExitCode
from afs_mlx.engine.bases.loading import (
    WrongAnswerError,
    check_weights,
    greedy,
    greedy_tokens,
    load_base,
    verify_base,
)
from afs_mlx.engine.bases.tiny_qwen2 import LAYERS, build_tiny_qwen2

CPU = mx.default_device() == mx.cpu


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "tiny-qwen2"
    build_tiny_qwen2(folder)
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.fixture(scope="module")
def quantised(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base in 8 bits with bfloat16 scales, as mlx-lm's own converter writes it."""
    folder = tmp_path_factory.mktemp("bases") / "tiny-8bit"
    model, tokenizer, config = mlx_lm_load(str(tiny), return_config=True)
    model.apply(lambda weight: weight.astype(mx.bfloat16))
    model, config = quantize_model(model, config, group_size=64, bits=8)
    save(folder, str(tiny), model, tokenizer, config)
    return folder


def change_config(folder: Path, name: str = "config.json", **values: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def split_shards(folder: Path) -> dict[str, str]:
    """Split the weights into two shards with an index; returns the index's weight map."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, names in enumerate((sorted(weights)[::2], sorted(weights)[1::2]), start=1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: weights[name] for name in names}, folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def refused(folder: Path, match: str, code: ExitCode = ExitCode.ERROR) -> None:
    with pytest.raises(AfsError, match=match) as caught:
        load_base(folder)
    assert caught.value.code == code
    assert caught.value.fix
    assert caught.value.where


def test_loads_without_touching_the_network(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*arguments: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    base = load_base(tiny)
    assert len(base.model.layers) == LAYERS
    assert base.folder == tiny
    assert base.config["model_type"] == "qwen2"
    assert base.tokenizer.has_tool_calling
    assert not base.model.training


def test_greedy_follows_the_most_probable_token(tiny: Path) -> None:
    base = load_base(tiny)
    ids = base.tokenizer.encode("LDA #$10\n", add_special_tokens=False)
    found = greedy_tokens(base, ids, 6)
    assert len(found) == 6
    for token in found:
        assert token == mx.argmax(base.model(mx.array([ids]))[0, -1]).item()
        ids.append(token)
    assert greedy(base, "LDA #$10\n", 6) == base.tokenizer.decode(found)


def test_greedy_stops_at_an_end_token(tiny: Path) -> None:
    base = load_base(tiny)
    ids = base.tokenizer.encode("LDA #$10\n", add_special_tokens=False)
    found = greedy_tokens(base, ids, 6)
    base.tokenizer.eos_token_ids = {found[2]}
    first = found.index(found[2])
    assert greedy_tokens(base, ids, 6) == found[: first + 1]
    assert greedy(base, "LDA #$10\n", 6) == base.tokenizer.decode(found[:first])


@pytest.mark.skipif(not CPU, reason="on Metal a quantised base stays quantised")
def test_a_quantised_base_becomes_float32_on_a_cpu(tiny: Path, quantised: Path) -> None:
    assert json.loads((quantised / "config.json").read_text())["quantization"]["bits"] == 8
    base = load_base(quantised)
    kinds = {type(module) for _, module in base.model.named_modules()}
    assert not kinds & {nn.QuantizedLinear, nn.QuantizedEmbedding}
    assert {weight.dtype for _, weight in tree_flatten(base.model.parameters())} == {mx.float32}
    assert "quantization" not in base.config
    assert "quantization_config" not in base.config
    ids = mx.array([base.tokenizer.encode("LDA #$10", add_special_tokens=False)])
    exact, rough = load_base(tiny).model(ids), base.model(ids)
    assert 0 < mx.abs(exact - rough).max().item() < 0.5
    assert mx.abs(exact).max().item() > 3


def test_shards_with_an_index_load_like_one_file(tiny: Path, copy: Path) -> None:
    split_shards(copy)
    assert len(check_weights(copy)) == 2
    ids = mx.array([[1, 2, 3]])
    assert mx.array_equal(load_base(copy).model(ids), load_base(tiny).model(ids))


def test_what_is_not_there_is_named(tmp_path: Path, copy: Path) -> None:
    refused(tmp_path / "nowhere", "no model folder", ExitCode.MISSING)
    (copy / "model.safetensors").unlink()
    refused(copy, "holds no model", ExitCode.MISSING)
    (copy / "config.json").unlink()
    refused(copy, r"config\.json is missing")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "model.safetensors: not a whole safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 976120\n", "not a whole safetensors file"),
        (b"\xff" * 64, "not a whole safetensors file"),
        (b"\x02\0\0\0\0\0\0\0{}", "holds no tensors"),
    ],
)
def test_malformed_weights_never_reach_mlx(copy: Path, content: bytes, match: str) -> None:
    (copy / "model.safetensors").write_bytes(content)
    refused(copy, match)


def test_half_a_weight_file_is_refused(copy: Path) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(copy, "not a whole safetensors file")


def test_every_fault_of_the_shards_is_listed_at_once(copy: Path) -> None:
    weight_map = split_shards(copy)
    (copy / "model-00002-of-00002.safetensors").unlink()
    shutil.copy(copy / "model-00001-of-00002.safetensors", copy / "model-stray.safetensors")
    weight_map["model.extra.weight"] = "model-00001-of-00002.safetensors"
    weight_map["model.elsewhere.weight"] = "../elsewhere.safetensors"
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(AfsError) as caught:
        load_base(copy)
    for part in (
        "model-00002-of-00002.safetensors: named in",
        "extra.weight is missing",
        "../elsewhere",
        "model-stray",
    ):
        assert part in caught.value.what


def test_a_tensor_that_is_missing_or_misshapen_is_an_error(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    lost = weights.pop("model.layers.1.self_attn.q_proj.bias")
    save_file(weights, copy / "model.safetensors")
    refused(copy, "Missing 1 parameters")
    save_file(weights | {"model.layers.1.self_attn.q_proj.bias": lost[:-1].copy()}, copy / "model.safetensors")
    refused(copy, "mlx-lm cannot load this base.*shape")


def test_code_in_the_folder_is_never_run(copy: Path) -> None:
    trap = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n"
    (copy / "evil.py").write_text(trap)
    change_config(copy, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    change_config(copy, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Slow", "evil.Fast"]})
    load_base(copy)
    change_config(copy, model_file="evil.py")
    refused(copy, "brings its own code", ExitCode.REFUSED)
    assert not (copy / "ran").exists()


def test_an_unknown_architecture_is_named(copy: Path) -> None:
    change_config(copy, model_type="perceptron")
    refused(copy, "perceptron")
    change_config(copy, model_type=None)
    refused(copy, "model_type is missing")


def test_only_a_wrong_answer_is_a_wrong_answer(copy: Path) -> None:
    """A base that cannot be loaded is another matter: it may be whole, and the machine at fault."""
    with pytest.raises(WrongAnswerError, match="does not answer as it should"):
        verify_base(copy)
    change_config(copy, model_type="unheard-of")
    with pytest.raises(AfsError) as caught:
        verify_base(copy)
    assert not isinstance(caught.value, WrongAnswerError)
