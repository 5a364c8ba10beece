"""What is written for PEFT is what real PEFT loaded and computed, and comes back bit for bit."""

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import deserialize
from safetensors.numpy import load_file, save_file

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.adapters.comparison import compare
from afs_mlx.engine.adapters.format import AdapterConfig, check_adapter_folder
from afs_mlx.engine.adapters.inspection import read_adapter
from afs_mlx.engine.adapters.peft import convert_peft
from afs_mlx.engine.adapters.peft_export import ExportReport, export_peft
from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2

GOLDEN = Path(__file__).parents[1] / "golden"
META = json.loads((GOLDEN / "peft_export" / "meta.json").read_text())["adapters"]
SCRIPT = runpy.run_path(str(GOLDEN / "peft_export" / "make_golden.py"))
PEFT_ADAPTERS = ["qv-r4", "seven-r8-rslora", "layers-1-3-bf16", "regex-f16"]
BLOCK_0_Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny-qwen2"
    build_tiny_qwen2(folder, seed=0)
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """The MLX adapter of a golden case, with its config and tensors edited."""

    def make(name: str = "plain-mlx-lm", config: Any = None, tensors: Any = None) -> Path:
        folder = tmp_path / "mlx"
        SCRIPT["make_adapter"](name, base, folder)
        if config:
            value = json.loads((folder / "adapter_config.json").read_text())
            config(value)
            (folder / "adapter_config.json").write_text(json.dumps(value))
        if tensors:
            arrays = load_file(folder / "adapters.safetensors")
            tensors(arrays)
            save_file(arrays, folder / "adapters.safetensors", metadata={"format": "mlx"})
        return folder

    return make


def exported(folder: Path, out: Path) -> ExportReport:
    return export_peft(read_adapter(folder), out, "golden/tiny-qwen2")


def tensors_of(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Names, types, shapes and bytes."""
    return {name: (e["dtype"], tuple(e["shape"]), bytes(e["data"])) for name, e in deserialize(path.read_bytes())}


def config_of(folder: Path) -> dict[str, Any]:
    value = json.loads((folder / "adapter_config.json").read_text())
    assert isinstance(value, dict)
    return value


# What real PEFT said


@pytest.mark.parametrize("name", sorted(META))
def test_the_files_are_those_that_peft_loaded(name: str, adapter: Callable[..., Path], tmp_path: Path) -> None:
    report = exported(adapter(name), tmp_path / "out")
    found, config = META[name], config_of(tmp_path / "out")
    assert SCRIPT["tensors_hash"](tmp_path / "out") == found["tensors_sha256"], (
        "the export has changed: make the golden files again, tests/golden/peft_export/make_golden.py says how"
    )
    assert sorted(config["target_modules"]) == found["target_modules"]
    assert config["layers_to_transform"] == found["layers_to_transform"]
    assert report.scale == pytest.approx(found["scaling"], rel=1e-15)
    assert report.layers == found["layers"]
    assert found["effect_on_logits"] > 0.3


@pytest.mark.parametrize("name", sorted(META))
def test_mlx_computes_the_logits_of_peft(name: str, adapter: Callable[..., Path], base: Path) -> None:
    import mlx.core as mx
    from mlx_lm import load

    model, _ = load(str(base), adapter_path=str(adapter(name)))
    with np.load(GOLDEN / "peft_export" / "logits.npz") as golden:
        found = np.array(model(mx.array(golden["tokens"])[None])[0].astype(mx.float32))
        np.testing.assert_allclose(found, golden[name], rtol=0, atol=1e-4)


# There and back


@pytest.mark.parametrize("name", PEFT_ADAPTERS)
def test_peft_to_mlx_to_peft_is_bit_equal(name: str, base: Path, tmp_path: Path) -> None:
    convert_peft(GOLDEN / "peft" / name, base, tmp_path / "mlx")
    exported(tmp_path / "mlx", tmp_path / "out")
    file = "adapter_model.safetensors"
    assert tensors_of(tmp_path / "out" / file) == tensors_of(GOLDEN / "peft" / name / file)
    before, after = config_of(GOLDEN / "peft" / name), config_of(tmp_path / "out")
    assert after.keys() <= before.keys()
    differ = {key for key in after if after[key] != before[key]}
    # The names may come in another order, a regex as paths, the pattern of the blocks beside their list.
    assert differ <= {"target_modules", "layers_pattern"}
    if name != "regex-f16":
        assert sorted(after["target_modules"]) == sorted(before["target_modules"])


def test_a_regex_comes_back_as_the_paths_it_matched(base: Path, tmp_path: Path) -> None:
    convert_peft(GOLDEN / "peft" / "regex-f16", base, tmp_path / "mlx")
    exported(tmp_path / "mlx", tmp_path / "out")
    assert config_of(tmp_path / "out")["target_modules"] == [
        "model.layers.1.self_attn.k_proj",
        "model.layers.2.mlp.gate_proj",
        "model.layers.3.mlp.gate_proj",
    ]


@pytest.mark.parametrize("name", sorted(META))
def test_mlx_to_peft_to_mlx_is_bit_equal(name: str, adapter: Callable[..., Path], base: Path, tmp_path: Path) -> None:
    source = adapter(name)
    exported(source, tmp_path / "out")
    convert_peft(tmp_path / "out", base, tmp_path / "back")
    before, after = (tensors_of(folder / "adapters.safetensors") for folder in (source, tmp_path / "back"))
    assert after == before
    one, other = (AdapterConfig.read(folder) for folder in (source, tmp_path / "back"))
    assert set(one.lora_parameters.keys or ()) == set(other.lora_parameters.keys or ())
    assert (one.num_layers, one.fine_tune_type) == (other.num_layers, other.fine_tune_type)
    for key in ("rank", "scale", "dropout"):
        assert getattr(one.lora_parameters, key) == getattr(other.lora_parameters, key)
    check_adapter_folder(tmp_path / "back", base)


def test_ranks_and_alphas_by_layer_come_back_as_the_same_update(base: Path, tmp_path: Path) -> None:
    """PEFT's patterns become one rank and one scale: B is rounded once, to float32."""
    source = tmp_path / "patterns"
    shutil.copytree(GOLDEN / "peft" / "seven-r8-rslora", source)
    file = source / "adapter_model.safetensors"
    arrays = load_file(file)
    for name in arrays:
        if "q_proj.lora_A" in name:
            arrays[name] = arrays[name][:3].copy()
        elif "q_proj.lora_B" in name:
            arrays[name] = arrays[name][:, :3].copy()
    save_file(arrays, file)
    patterns = {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 5, "layers.2.mlp.up_proj": 7}}
    (source / "adapter_config.json").write_text(json.dumps(config_of(source) | patterns))
    convert_peft(source, base, tmp_path / "mlx")
    report = exported(tmp_path / "mlx", tmp_path / "out")
    found = compare(read_adapter(source), read_adapter(tmp_path / "out"))
    assert (report.rank, report.rslora, report.layers, len(found.layers)) == (8, False, 28, 28)
    assert not found.bit_equal
    assert max(layer.relative or 0 for layer in found.layers) < 1e-7
    assert (found.only_a, found.only_b) == ({}, {})


def test_what_peft_leaves_at_its_default_is_not_written(adapter: Callable[..., Path], tmp_path: Path) -> None:
    exported(adapter(), tmp_path / "out")
    ours, theirs = config_of(tmp_path / "out"), config_of(GOLDEN / "peft" / "qv-r4")
    left_out = {key: value for key, value in theirs.items() if key not in ours}
    harmless = {"megatron_core": "megatron.core", "peft_version": "0.21.2", "qalora_group_size": 16}
    assert {key: value for key, value in left_out.items() if value} == harmless


# Settings


@pytest.mark.parametrize(
    ("rank", "scale", "facts", "alpha", "rslora"),
    [
        (8, 20.0, {}, 160, False),
        (8, 2.0, {"alpha": 16.0}, 16, False),
        (8, 16 / 8**0.5, {"alpha": 16.0, "rslora": True}, 16, True),
        (8, 16 / 8**0.5, {"alpha": 16.0}, 16, True),
        (8, 3.0, {"alpha": 16.0}, 24, False),  # a note that does not make this scale
        (3, 7 / 3, {}, 7, False),
        (3, 0.1, {}, 0.1 * 3, False),
        (4, -0.5, {}, -2, False),
    ],
)
def test_alpha_makes_the_scale(
    rank: int, scale: float, facts: dict[str, Any], alpha: float, rslora: bool, adapter: Callable[..., Path]
) -> None:
    def edit(value: dict[str, Any]) -> None:
        value["lora_parameters"] |= {"rank": rank, "scale": scale}
        value["afs"] = facts

    def cut(arrays: dict[str, Any]) -> None:
        for name, array in arrays.items():
            wide = np.concatenate([array, array, array], axis=1 if name.endswith("a") else 0)
            arrays[name] = np.ascontiguousarray(wide[:, :rank] if name.endswith("a") else wide[:rank])

    folder = adapter(config=edit, tensors=cut)
    report = exported(folder, folder / "out")
    config = config_of(folder / "out")
    assert (report.alpha, report.rslora) == (pytest.approx(alpha, rel=1e-15), rslora)
    assert (config["lora_alpha"], config["use_rslora"]) == (report.alpha, rslora)
    assert isinstance(config["lora_alpha"], int) == (alpha == int(alpha))
    assert report.alpha / (rank**0.5 if rslora else rank) == pytest.approx(scale, rel=1e-15)


def test_the_narrowest_exact_type_is_taken_for_each_kind(adapter: Callable[..., Path], tmp_path: Path) -> None:
    def narrow(arrays: dict[str, Any]) -> None:
        for name, array in arrays.items():
            if name.endswith("lora_a"):
                arrays[name] = array.astype(np.float16).astype(np.float32)

    report = exported(adapter(tensors=narrow), tmp_path / "out")
    types = {
        name.split(".")[-2]: e[0] for name, e in tensors_of(tmp_path / "out" / "adapter_model.safetensors").items()
    }
    assert types == {"lora_A": "F16", "lora_B": "F32"}
    assert report.dtypes == ("F16", "F32")


def test_blocks_are_listed_when_the_base_is_known_to_have_more(adapter: Callable[..., Path], tmp_path: Path) -> None:
    facts = {"base": {"shapes": {"model_type": "qwen2", "num_hidden_layers": 9}}}
    report = exported(adapter(config=lambda value: value.update(afs=facts)), tmp_path / "out")
    assert report.blocks == (0, 1, 2, 3)
    assert config_of(tmp_path / "out")["layers_to_transform"] == [0, 1, 2, 3]


# Refusals


def refused(folder: Path, tmp_path: Path) -> str:
    with pytest.raises(AfsError) as caught:
        exported(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_layers_that_no_table_names_are_all_listed(adapter: Callable[..., Path], tmp_path: Path) -> None:
    def rename(arrays: dict[str, Any]) -> None:
        for name in [name for name in arrays if "q_proj" in name]:
            arrays[name.replace("q_proj", "qkv_proj")] = arrays.pop(name)

    folder = adapter(tensors=rename, config=lambda value: value["lora_parameters"].pop("keys"))
    message = refused(folder, tmp_path)
    assert "(4 problems)" in message
    assert "model.layers.3.self_attn.qkv_proj: no linear layer of qwen2, qwen3, llama, mistral models" in message


def test_base_of_an_unknown_family_is_refused(adapter: Callable[..., Path], tmp_path: Path) -> None:
    facts = {"base": {"shapes": {"model_type": "mamba"}}}
    message = refused(adapter(config=lambda value: value.update(afs=facts)), tmp_path)
    assert "no table of layer names for models of type 'mamba'" in message


def test_adapter_that_changes_nothing_is_refused(adapter: Callable[..., Path], tmp_path: Path) -> None:
    def zero(arrays: dict[str, Any]) -> None:
        for name in arrays:
            arrays[name] *= 0

    assert "every layer is zero" in refused(adapter(tensors=zero), tmp_path)
    silent = adapter(config=lambda value: value["lora_parameters"].update(scale=0.0))
    assert "scale is 0" in refused(silent, tmp_path)


def test_numbers_that_are_not_finite_are_refused(adapter: Callable[..., Path], tmp_path: Path) -> None:
    def spoil(arrays: dict[str, Any]) -> None:
        arrays[f"{BLOCK_0_Q}.lora_a"][0, 0] = np.nan
        arrays[f"{BLOCK_0_Q}.lora_b"][0, 0] = np.inf

    message = refused(adapter(tensors=spoil), tmp_path)
    assert "(2 problems)" in message
    assert f"{BLOCK_0_Q}.lora_b: 1 of 256 numbers are NaN or infinite" in message


def test_a_failed_write_leaves_nothing(
    adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("afs_mlx.engine.adapters.peft_export._write", fail)
    with pytest.raises(AfsError, match="the disk is full"):
        exported(adapter(), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    shutil.rmtree(tmp_path / "out")
