"""PEFT adapters give PyTorch's logits in mlx; what cannot be converted is refused by name, before mlx."""

import hashlib
import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.engine.adapters.format import (
    AdapterBase,
    AdapterConfig,
    AdapterFacts,
    LoraParameters,
    check_adapter_folder,
    write_adapter,
)
from afs_mlx.engine.adapters.linears import base_identity, base_linears
from afs_mlx.engine.adapters.peft import convert_peft
from afs_mlx.engine.adapters.tensors import read_tensors
from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2

GOLDEN = Path(__file__).parents[1] / "golden" / "peft"
META = json.loads((GOLDEN / "meta.json").read_text())
TOLERANCE = 1e-4

Editor = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny-qwen2"
    build_tiny_qwen2(folder, seed=0)
    if hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() != META["base_sha256"]:
        sums = {k: float(np.abs(v).sum(dtype=np.float64)) for k, v in load_file(folder / "model.safetensors").items()}
        assert sums == pytest.approx(META["base_sums"], rel=1e-6), (
            "build_tiny_qwen2(seed=0) makes another base than the goldens were made from: "
            "run tests/golden/peft/make_golden.py again, its docstring says how"
        )
    return folder


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "logits.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def copy(tmp_path: Path) -> Callable[..., Path]:
    """A golden adapter with its config and its tensors edited."""

    def make(name: str = "qv-r4", config: Editor | None = None, tensors: Editor | None = None) -> Path:
        folder = tmp_path / "peft"
        shutil.copytree(GOLDEN / name, folder)
        if config:
            value = json.loads((folder / "adapter_config.json").read_text())
            config(value)
            (folder / "adapter_config.json").write_text(json.dumps(value))
        if tensors:
            arrays = load_file(folder / "adapter_model.safetensors")
            tensors(arrays)
            save_file(arrays, folder / "adapter_model.safetensors")
        return folder

    return make


def mlx_logits(base: Path, adapter: Path | None, tokens: np.ndarray) -> np.ndarray:
    """What mlx-lm itself makes of base and adapter, in float32."""
    import mlx.core as mx
    from mlx_lm import load

    model, _ = load(str(base), adapter_path=str(adapter) if adapter else None)
    return np.array(model(mx.array(tokens)[None])[0].astype(mx.float32))


def refused(folder: Path, base: Path, tmp_path: Path) -> str:
    """The message of a refusal that leaves nothing behind."""
    with pytest.raises(AfsError) as caught:
        convert_peft(folder, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return str(caught.value)


# What comes out is what PyTorch computes


def test_base_gives_the_logits_of_pytorch(base: Path, golden: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(mlx_logits(base, None, golden["tokens"]), golden["base"], rtol=0, atol=TOLERANCE)


def test_converted_adapter_loads_on_a_quantised_base(base: Path, tmp_path: Path) -> None:
    from mlx_lm import convert

    convert(str(base), mlx_path=str(tmp_path / "q8"), quantize=True, q_bits=8, q_group_size=32)
    assert base_linears(tmp_path / "q8").shapes == base_linears(base).shapes
    assert base_identity(tmp_path / "q8") == base_identity(base)
    convert_peft(GOLDEN / "seven-r8-rslora", tmp_path / "q8", tmp_path / "out")
    tokens = np.arange(8)
    exact = mlx_logits(base, tmp_path / "out", tokens)
    quantised = mlx_logits(tmp_path / "q8", tmp_path / "out", tokens)
    assert np.abs(exact - quantised).max() < 0.1 * np.abs(exact).max()


def test_report_says_what_was_converted(base: Path, tmp_path: Path) -> None:
    report = convert_peft(GOLDEN / "seven-r8-rslora", base, tmp_path / "out")
    assert (report.rank, report.alpha, report.rslora) == (8, 12, True)
    assert report.scale == pytest.approx(12 / math.sqrt(8))
    assert report.targets == tuple(
        sorted([*(f"self_attn.{x}_proj" for x in "qkvo"), *(f"mlp.{x}_proj" for x in ("gate", "up", "down"))])
    )
    assert (report.layers, report.base_layers, report.tensors, report.zero_filled) == ((0, 1, 2, 3), 4, 56, 0)
    assert (report.dtypes, report.base_name, report.peft_version) == (("F32",), "golden/tiny-qwen2", "0.21.2")
    assert (report.kind, report.folded, report.others) == ("lora", 0, ())
    source = load_file(GOLDEN / "seven-r8-rslora" / "adapter_model.safetensors")
    assert report.parameters == sum(array.size for array in source.values())


def test_gaps_in_the_range_are_explicit_zeros(base: Path, tmp_path: Path) -> None:
    report = convert_peft(GOLDEN / "layers-1-3-bf16", base, tmp_path / "out")
    config = AdapterConfig.read(tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "adapters.safetensors")
    assert (report.layers, report.zero_filled, report.dtypes) == ((1, 3), 2, ("BF16",))
    assert config.num_layers == 3
    for key in ("self_attn.o_proj", "mlp.down_proj"):
        assert not tensors[f"model.layers.2.{key}.lora_a"].any()
        assert not tensors[f"model.layers.2.{key}.lora_b"].any()
        assert tensors[f"model.layers.1.{key}.lora_b"].any()
    assert not any(".0." in name for name in tensors)


def test_facts_are_noted_and_read_again(base: Path, tmp_path: Path) -> None:
    known = AdapterBase(id="built/tiny", lineage="tiny-qwen2", sha256="ab")
    convert_peft(GOLDEN / "qv-r4", base, tmp_path / "out", base=known, expert="din")
    config = AdapterConfig.read(tmp_path / "out")
    assert (config.alpha, config.lora_parameters.scale, config.lora_parameters.dropout) == (8, 2, 0.05)
    assert (config.afs.base.id, config.afs.base.lineage, config.afs.base.sha256) == ("built/tiny", "tiny-qwen2", "ab")
    assert config.afs.base.shapes == base_identity(base)
    assert (config.afs.expert, config.afs.origin) == ("din", "PEFT 0.21.2")


def test_keys_of_a_raw_state_dict_are_read_too(base: Path, copy: Callable[..., Path], tmp_path: Path) -> None:
    def rename(arrays: dict[str, Any]) -> None:
        for name in list(arrays):
            arrays[name.replace(".weight", ".default.weight")] = arrays.pop(name)

    convert_peft(copy(tensors=rename), base, tmp_path / "renamed")
    convert_peft(GOLDEN / "qv-r4", base, tmp_path / "plain")
    renamed, plain = (load_file(tmp_path / name / "adapters.safetensors") for name in ("renamed", "plain"))
    assert renamed.keys() == plain.keys()
    assert all(np.array_equal(renamed[name], plain[name]) for name in plain)


def test_output_layer_of_an_untied_base_is_converted(base: Path, tmp_path: Path) -> None:
    untied = tmp_path / "untied"
    shutil.copytree(base, untied)
    config = json.loads((base / "config.json").read_text())
    (untied / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    weights = load_file(base / "model.safetensors")
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 64), np.float32), rng.standard_normal((704, 2), np.float32)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    save_file(weights, untied / "model.safetensors", metadata={"format": "pt"})
    peft = tmp_path / "peft"
    peft.mkdir()
    (peft / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["lm_head"]})
    )
    prefix = "base_model.model.lm_head"
    save_file({f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}, peft / "adapter_model.safetensors")
    convert_peft(peft, untied, tmp_path / "out")
    weights["lm_head.weight"] += b @ a
    merged = tmp_path / "merged"
    shutil.copytree(untied, merged)
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    tokens = np.arange(6)
    np.testing.assert_allclose(
        mlx_logits(untied, tmp_path / "out", tokens), mlx_logits(merged, None, tokens), rtol=0, atol=5e-4
    )
    assert "no such linear layer" in refused(peft, base, tmp_path / "no")


def test_target_names_must_be_covered_in_every_listed_block(
    base: Path, copy: Callable[..., Path], tmp_path: Path
) -> None:
    def lose_block_2(arrays: dict[str, Any]) -> None:
        for name in [name for name in arrays if ".layers.2." in name]:
            del arrays[name]

    message = refused(copy(tensors=lose_block_2), base, tmp_path)
    assert "(2 problems)" in message
    assert "model.layers.2.self_attn.q_proj: a target by the config, and not in the file" in message


def test_weights_that_peft_would_ignore_are_refused(base: Path, copy: Callable[..., Path], tmp_path: Path) -> None:
    message = refused(copy(config=lambda value: value.update(layers_to_transform=[0, 1, 2])), base, tmp_path)
    assert "model.layers.3.v_proj" not in message
    assert "model.layers.3.self_attn.v_proj: no target by the config" in message


# Refusals by the config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank_pattern": ["q_proj"]}, "rank_pattern: ['q_proj'] is not a table"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.q_proj: 0 is not a positive whole number"),
        ({"alpha_pattern": {"q_proj": math.nan}}, "alpha_pattern.q_proj: nan is not a number other than 0"),
        ({"modules_to_save": "lm_head"}, "modules_to_save: 'lm_head' is not a list of names"),
        ({"bias": "some"}, "bias: 'some' is none of"),
        ({"exclude_modules": 3}, "exclude_modules: 3 is neither names nor a pattern"),
        ({"layers_pattern": "h"}, "layers_pattern: 'h', the blocks of the bases we know are in 'layers'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out: Conv1D"),
        ({"trainable_token_indices": [1, 1]}, "trainable_token_indices: embed_tokens has no list of different token"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: 'pissa_niter_4' changes the base's own weights"),
        ({"layer_replication": [[0, 2]]}, "layer_replication: replicated layers"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens: activated LoRA"),
        ({"peft_type": "LOHA"}, "peft_type: 'LOHA', only LORA"),
        ({"task_type": "SEQ_CLS"}, "task_type: 'SEQ_CLS', only CAUSAL_LM"),
        ({"use_newest_idea": 3}, "use_newest_idea: unknown setting 3"),
        ({"r": 0}, "r: 0 is not a positive whole number"),
        ({"r": True}, "r: True is not a positive whole number"),
        ({"lora_alpha": None}, "lora_alpha: None is not a number other than 0"),
        ({"lora_alpha": math.nan}, "lora_alpha: nan is not a number other than 0"),
        ({"lora_alpha": 10**400}, "is not a number other than 0"),
        ({"lora_dropout": 1.5}, "lora_dropout: 1.5 is not in [0, 1)"),
        ({"target_modules": None}, "target_modules: None is neither names nor a pattern"),
        ({"layers_to_transform": ["1"]}, "layers_to_transform: ['1'] is not a list of block numbers"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path: not text"),
    ],
)
def test_config_is_refused_by_name(
    change: dict[str, Any], message: str, base: Path, copy: Callable[..., Path], tmp_path: Path
) -> None:
    assert message in refused(copy(config=lambda value: value.update(change)), base, tmp_path)


def test_all_problems_of_a_config_are_listed_together(base: Path, copy: Callable[..., Path], tmp_path: Path) -> None:
    change = {"use_qalora": True, "bias": "most", "r": -1}
    message = refused(copy(config=lambda value: value.update(change)), base, tmp_path)
    assert "(3 problems)" in message


def test_empty_values_of_unknown_settings_are_harmless(base: Path, copy: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy(config=lambda value: value.update(newest_config=None, use_newest=False, init_lora_weights=None))
    assert convert_peft(folder, base, tmp_path / "out").rank == 4


def test_config_that_is_not_peft(base: Path, copy: Callable[..., Path], tmp_path: Path) -> None:
    convert_peft(GOLDEN / "qv-r4", base, tmp_path / "mlx")
    assert "it looks like an MLX adapter" in refused(tmp_path / "mlx", base, tmp_path)
    folder = copy()
    (folder / "adapter_config.json").write_text("{")
    assert "not valid JSON" in refused(folder, base, tmp_path)
    (folder / "adapter_config.json").unlink()
    assert "it has no adapter_config.json" in refused(folder, base, tmp_path)
    assert "there is no such adapter folder" in refused(tmp_path / "nowhere", base, tmp_path)


# Refusals by the weights


def test_unknown_keys_are_all_listed(base: Path, copy: Callable[..., Path], tmp_path: Path) -> None:
    def add(arrays: dict[str, Any]) -> None:
        q = "base_model.model.model.layers.0.self_attn.q_proj"
        for name in (
            f"{q}.lora_magnitude_vector.weight",
            "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
            "base_model.model.lm_head.weight",
            f"{q}.lora_B.bias",
            "something.else",
        ):
            arrays[name] = np.ones(4, np.float32)

    message = refused(copy(tensors=add), base, tmp_path)
    assert "q_proj: lora_magnitude_vector, use_dora being false" in message
    for key, reason in (
        ("lm_head.weight", "a tensor of the base that the config names neither in modules_to_save nor by bias"),
        ("q_proj.lora_B.bias", "not a LoRA weight"),
        ("something.else", "not a LoRA weight"),
        ("embed_tokens.token_adapter.trainable_tokens_delta", "trained token rows that the config does not name"),
    ):
        assert f"{key}: unknown key, {reason}" in message


def test_nan_rank_and_halves_are_listed_together(base: Path, copy: Callable[..., Path], tmp_path: Path) -> None:
    prefix = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"

    def spoil(arrays: dict[str, Any]) -> None:
        arrays[prefix.format(0, "A")][1, 2] = np.nan
        arrays[prefix.format(1, "B")][0, 0] = np.inf
        arrays[prefix.format(2, "A")] = np.ones((5, 64), np.float32)
        arrays[prefix.format(3, "A")] = np.ones((4, 64), np.int32)
        del arrays[prefix.format(3, "B")]

    message = refused(copy(tensors=spoil), base, tmp_path)
    assert "(5 problems)" in message
    assert message.count("1 of 256 numbers are NaN or infinite") == 2
    assert "layers.2.self_attn.q_proj: lora_A [5, 64] and lora_B [64, 4] are not (4, in) and (out, 4)" in message
    assert "layers.3.self_attn.q_proj: no lora_B, half a download" in message
    assert "type I32, expected BF16" in message


def test_rank_of_the_config_must_be_that_of_the_weights(base: Path, copy: Callable[..., Path], tmp_path: Path) -> None:
    assert "r being 16" in refused(copy(config=lambda value: value.update(r=16)), base, tmp_path)


def test_wrong_base_names_both_sides(base: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    shutil.copytree(base, small)
    config = json.loads((base / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2, "hidden_size": 32}))
    weights = {
        name: np.ascontiguousarray(array[..., :32])
        for name, array in load_file(base / "model.safetensors").items()
        if ".layers.2." not in name and ".layers.3." not in name
    }
    save_file(weights, small / "model.safetensors")
    message = refused(GOLDEN / "qv-r4", small, tmp_path)
    assert "the adapter does not fit this base (8 problems)" in message
    assert "model.layers.0.self_attn.q_proj: made for (out, in) = (64, 64), the base has (64, 32)" in message
    assert "model.layers.3.self_attn.q_proj: the base has 2 blocks" in message
    assert "hidden_size 32" in message


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors.incomplete", ""])
def test_missing_weights(name: str, base: Path, copy: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy()
    (folder / "adapter_model.safetensors").unlink()
    if name:
        (folder / name).write_bytes(b"x")
    message = refused(folder, base, tmp_path)
    expected = {"adapter_model.bin": "safe_serialization=True", "": "it has no adapter_model.safetensors"}
    assert expected.get(name, "half a download: only adapter_model.safetensors.incomplete") in message


def test_base_that_is_missing_or_half_a_download(base: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no config\.json"):
        convert_peft(GOLDEN / "qv-r4", tmp_path, tmp_path / "out")
    half = tmp_path / "half"
    shutil.copytree(base, half)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (half / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(MissingError, match=r"half a download: model-00002-of-00002\.safetensors missing"):
        convert_peft(GOLDEN / "qv-r4", half, tmp_path / "out")


def test_adapter_that_is_there_is_not_overwritten(base: Path, copy: Callable[..., Path]) -> None:
    folder = copy()
    with pytest.raises(AfsError, match="an adapter is already there"):
        convert_peft(folder, base, folder)
    assert load_file(folder / "adapter_model.safetensors")


# Malformed safetensors


def safetensors_bytes(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def f32(shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


MALFORMED = {
    "empty": b"",
    "short": b"\x08\0\0",
    "no JSON": struct.pack("<Q", 4) + b"{{{{",
    "header beyond the file": struct.pack("<Q", 2**62) + b"{}",
    "truncated": safetensors_bytes({"a": f32([4], 0, 16)}, bytes(8)),
    "overlapping": safetensors_bytes({"a": f32([4], 0, 16), "b": f32([4], 8, 24)}, bytes(24)),
    "gapped": safetensors_bytes({"a": f32([2], 0, 8), "b": f32([2], 16, 24)}, bytes(24)),
    "negative": safetensors_bytes({"a": f32([-2, -2], 0, 16)}, bytes(16)),
    "overflowing": safetensors_bytes({"a": f32([2**33, 2**33], 0, 16)}, bytes(16)),
    "wrong size": safetensors_bytes({"a": f32([5], 0, 16)}, bytes(16)),
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_file_is_refused_before_mlx(
    content: bytes, base: Path, copy: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy()
    (folder / "adapter_model.safetensors").write_bytes(content)
    expected = "git-lfs pointer" if b"lfs" in content else "not a complete safetensors file" if content else "is empty"
    assert expected in refused(folder, base, tmp_path)

    convert_peft(GOLDEN / "qv-r4", base, tmp_path / "mlx")
    (tmp_path / "mlx" / "adapters.safetensors").write_bytes(content)
    with pytest.raises(AfsError, match=expected):
        check_adapter_folder(tmp_path / "mlx")


def test_bfloat16_is_read_exactly(tmp_path: Path) -> None:
    data = struct.pack("<4H", 0x3F80, 0xC000, 0x0001, 0x7F80)  # 1, -2, the smallest, infinity
    header = {"a": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(header, data))
    tensor = read_tensors(tmp_path / "a.safetensors", "")["a"]
    assert tensor.floats().tolist() == [[1, -2], [2.0**-133, math.inf]]
    assert tensor.problem() == "1 of 4 numbers are NaN or infinite"


# The MLX folder


def small_config(**changes: Any) -> AdapterConfig:
    parameters = LoraParameters(rank=2, scale=1.5, dropout=0.0, keys=("self_attn.q_proj",))
    return AdapterConfig(**{"num_layers": 4, "lora_parameters": parameters, **changes})


def small_tensors() -> dict[str, np.ndarray]:
    path = "model.layers.3.self_attn.q_proj"
    return {f"{path}.lora_a": np.ones((2, 64)).T, f"{path}.lora_b": np.arange(128.0).reshape(2, 64)}


def test_written_adapter_is_float32_and_keeps_its_neighbours(base: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    write_adapter(tmp_path, small_tensors(), small_config(afs=AdapterFacts(expert="din", newer="kept")))
    written = load_file(tmp_path / "adapters.safetensors")
    assert {array.dtype for array in written.values()} == {np.dtype(np.float32)}
    assert all(np.array_equal(written[name], array) for name, array in small_tensors().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapters.safetensors",
        "run.json",
    ]
    config = AdapterConfig.read(tmp_path)
    assert (config.alpha, config.afs.expert, config.afs.model_extra) == (3.0, "din", {"newer": "kept"})
    check_adapter_folder(tmp_path, base)
    assert np.isfinite(mlx_logits(base, tmp_path, np.arange(3))).all()


def test_adapter_with_nan_is_never_written(tmp_path: Path) -> None:
    tensors = small_tensors()
    tensors["model.layers.3.self_attn.q_proj.lora_b"][0, 0] = np.nan
    with pytest.raises(AfsError, match=r"lora_b: 1 of 128 numbers are NaN"):
        write_adapter(tmp_path / "out", tensors, small_config())
    assert not (tmp_path / "out").exists()


def test_failed_write_leaves_the_old_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_adapter(tmp_path, small_tensors(), small_config())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("afs_mlx.engine.tensor_files.save_file", full_disk)
    with pytest.raises(AfsError, match="the disk is full"):
        write_adapter(tmp_path, small_tensors(), small_config(num_layers=1))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("model.layers.3.self_attn.q_proj.m", np.ones(4), "not a LoRA tensor"),
        ("model.layers.2.self_attn.q_proj.lora_a", np.ones((64, 2)), "lora_a stands alone"),
        ("model.layers.3.self_attn.q_proj.lora_a", np.ones((64, 3)), r"not \(in, 2\) and \(2, out\)"),
    ],
)
def test_names_and_ranks_of_the_folder(name: str, array: np.ndarray, message: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, small_tensors(), small_config())
    save_file(small_tensors() | {name: array}, tmp_path / "adapters.safetensors")
    with pytest.raises(AfsError, match=message):
        check_adapter_folder(tmp_path)


def test_folder_must_fit_its_config_and_its_base(base: Path, tmp_path: Path) -> None:
    path = "model.layers.0.self_attn.k_proj"
    tensors = small_tensors() | {f"{path}.lora_a": np.ones((64, 2)), f"{path}.lora_b": np.ones((2, 64))}
    with pytest.raises(AfsError, match=r"k_proj: not among lora_parameters\.keys"):
        write_adapter(tmp_path, tensors, small_config())
    parameters = LoraParameters(rank=2, scale=1.5, dropout=0.0)
    write_adapter(tmp_path, tensors, small_config(lora_parameters=parameters, num_layers=2))
    check_adapter_folder(tmp_path)
    with pytest.raises(AfsError) as caught:
        check_adapter_folder(tmp_path, base)
    assert "k_proj: made for (out, in) = (64, 64), the base has (32, 64)" in str(caught.value)
    assert "k_proj: below the last 2 blocks" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"fine_tune_type": "dora"}, "q_proj: m is missing"),
        ({"fine_tune_type": "prefix"}, "fine_tune_type"),
        ({"peft_type": "LORA"}, "run: afs-mlx convert"),
        ({"lora_parameters": {"rank": 2, "alpha": 4, "dropout": 0}}, r"lora_parameters\.scale: Field required"),
        ({"num_layers": "all"}, "num_layers"),
    ],
)
def test_config_that_mlx_lm_could_not_load(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_adapter(tmp_path, small_tensors(), small_config())
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(AfsError, match=message):
        check_adapter_folder(tmp_path)


def test_config_of_mlx_lm_itself_is_read(tmp_path: Path) -> None:
    """With the arguments of its command line around it, as `mlx_lm.lora` writes it."""
    write_adapter(tmp_path, small_tensors(), small_config())
    parameters = {"rank": 2, "scale": 20.0, "dropout": 0.0}
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"model": "x", "num_layers": -1, "lora_parameters": parameters, "lr_schedule": None, "seed": 0})
    )
    check_adapter_folder(tmp_path)
    assert AdapterConfig.read(tmp_path).alpha == 40
