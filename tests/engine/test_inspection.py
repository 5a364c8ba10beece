"""What is said of an adapter is what its dense ΔW says, whichever layout it has; two adapters are compared alike."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.adapters.comparison import compare
from afs_mlx.engine.adapters.inspection import Adapter, layer_facts, place, read_adapter
from afs_mlx.engine.adapters.peft import convert_peft
from afs_mlx.engine.adapters.updates import Update, effective_rank, frobenius, relate

GOLDEN = Path(__file__).parents[1] / "golden" / "peft"
NAMES = ["qv-r4", "seven-r8-rslora", "layers-1-3-bf16", "regex-f16"]
FILE = "adapter_model.safetensors"


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """A golden PEFT adapter with its config and its tensors edited."""

    def make(name: str = "qv-r4", config: Any = None, tensors: Any = None, to: str = "edited") -> Path:
        folder = tmp_path / to
        shutil.copytree(GOLDEN / name, folder)
        if config:
            value = json.loads((folder / "adapter_config.json").read_text())
            config(value)
            (folder / "adapter_config.json").write_text(json.dumps(value))
        if tensors:
            arrays = load_file(folder / FILE)
            tensors(arrays)
            save_file(arrays, folder / FILE)
        return folder

    return make


def dense(adapter: Adapter, path: str) -> np.ndarray[Any, Any]:
    update = adapter.layers[path].read()
    return update.scale * update.b.astype(np.float64) @ update.a.astype(np.float64)


# Numbers


@pytest.mark.parametrize("name", NAMES)
def test_norm_and_effective_rank_are_those_of_the_dense_update(name: str) -> None:
    adapter = read_adapter(GOLDEN / name)
    for layer in layer_facts(adapter):
        full = dense(adapter, layer.path)
        values = np.linalg.svd(full, compute_uv=False)
        shares = values[: adapter.rank] / values.sum()
        assert layer.shape == full.shape
        assert layer.norm == pytest.approx(np.linalg.norm(full), rel=1e-9)
        assert layer.largest == pytest.approx(values[0], rel=1e-9)
        assert layer.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)


def test_effective_rank_counts_directions() -> None:
    assert effective_rank(np.array([3.0, 0.0, 0.0])) == 1
    assert effective_rank(np.array([2.0, 2.0, 2.0, 2.0])) == pytest.approx(4)
    assert 1 < effective_rank(np.array([3.0, 1.0])) < 2
    assert effective_rank(np.zeros(3)) == 0


def test_a_rank_above_the_weight_s_own_is_no_obstacle() -> None:
    rng = np.random.default_rng(3)
    update = Update(rng.standard_normal((9, 4), np.float32), rng.standard_normal((6, 9), np.float32), 0.5)
    assert frobenius(update.singular_values()) == pytest.approx(np.linalg.norm(0.5 * update.b @ update.a), rel=1e-6)


def test_inner_product_and_distance_are_those_of_the_dense_updates() -> None:
    rng = np.random.default_rng(4)
    one = Update(rng.standard_normal((3, 20), np.float32), rng.standard_normal((30, 3), np.float32), 2.0)
    other = Update(rng.standard_normal((5, 20), np.float32), rng.standard_normal((30, 5), np.float32), -0.5)
    first, second = 2.0 * one.b @ one.a, -0.5 * other.b @ other.a
    found = relate(one, other)
    assert found.norms == pytest.approx((np.linalg.norm(first), np.linalg.norm(second)), rel=1e-6)
    assert found.inner_product == pytest.approx((first * second).sum(), rel=1e-4)
    assert found.distance == pytest.approx(np.linalg.norm(first - second), rel=1e-6)


def test_distance_of_near_equals_does_not_cancel() -> None:
    rng = np.random.default_rng(5)
    one = Update(rng.standard_normal((4, 50), np.float32), rng.standard_normal((60, 4), np.float32), 1.0)
    near = replace(one, scale=1 + 1e-10)
    relative = relate(one, near).distance / frobenius(one.singular_values())
    assert relative == pytest.approx(1e-10, rel=1e-3)


# Reading


@pytest.mark.parametrize("name", NAMES)
def test_both_layouts_of_one_adapter_say_the_same(name: str, tiny_base: Path, tmp_path: Path) -> None:
    convert_peft(GOLDEN / name, tiny_base, tmp_path / "mlx")
    peft, mlx = read_adapter(GOLDEN / name), read_adapter(tmp_path / "mlx")
    assert (peft.kind, mlx.kind) == ("PEFT", "MLX")
    for key in ("rank", "alpha", "scale", "rslora", "dropout", "dora", "targets"):
        assert getattr(peft, key) == getattr(mlx, key), key
    trained = {layer.path: layer for layer in layer_facts(mlx) if not layer.zero}
    assert list(trained) == list(peft.layers)
    assert list(trained.values()) == layer_facts(peft)
    assert mlx.base.shapes["model_type"] == "qwen2"
    assert peft.base.id == "golden/tiny-qwen2"


def test_layers_that_were_filled_in_are_zero(tiny_base: Path, tmp_path: Path) -> None:
    convert_peft(GOLDEN / "layers-1-3-bf16", tiny_base, tmp_path / "mlx")
    zero = [layer for layer in layer_facts(read_adapter(tmp_path / "mlx")) if layer.zero]
    assert [layer.path for layer in zero] == ["model.layers.2.mlp.down_proj", "model.layers.2.self_attn.o_proj"]
    assert [(layer.norm, layer.effective_rank, layer.block) for layer in zero] == [(0, 0, 2)] * 2


def test_patterns_give_each_layer_its_rank_and_scale(edited: Callable[..., Path]) -> None:
    def config(value: dict[str, Any]) -> None:
        value |= {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 20}}

    def tensors(arrays: dict[str, Any]) -> None:
        prefix = "base_model.model.model.layers.1.self_attn.q_proj"
        arrays[f"{prefix}.lora_A.weight"] = arrays[f"{prefix}.lora_A.weight"][:2].copy()
        arrays[f"{prefix}.lora_B.weight"] = arrays[f"{prefix}.lora_B.weight"][:, :2].copy()

    layers = read_adapter(edited(config=config, tensors=tensors)).layers
    numbers = {path: (layer.rank, layer.scale) for path, layer in layers.items()}
    assert numbers["model.layers.0.self_attn.q_proj"] == (4, 2)
    assert numbers["model.layers.1.self_attn.q_proj"] == (2, 4)
    assert numbers["model.layers.3.self_attn.v_proj"] == (4, 5)


def test_blocks_come_in_the_order_of_the_model(edited: Callable[..., Path]) -> None:
    def rename(arrays: dict[str, Any]) -> None:
        for name in [name for name in arrays if ".layers.1." in name]:
            arrays[name.replace(".layers.1.", ".layers.10.")] = arrays.pop(name)

    assert read_adapter(edited(tensors=rename)).blocks == (0, 2, 3, 10)
    blocks = [layer.block for layer in layer_facts(read_adapter(edited(tensors=rename, to="again")))]
    assert blocks == [0, 0, 2, 2, 3, 3, 10, 10]


def test_what_was_trained_beside_the_lora_is_named(edited: Callable[..., Path]) -> None:
    folder = edited(
        config=lambda value: value.update(modules_to_save=["lm_head"]),
        tensors=lambda arrays: arrays.update({"base_model.model.lm_head.weight": np.ones((4, 4), np.float32)}),
    )
    adapter = read_adapter(folder)
    assert list(adapter.beside) == ["lm_head.weight"]
    assert len(adapter.layers) == 8


def test_all_problems_of_a_peft_folder_are_listed(edited: Callable[..., Path]) -> None:
    prefix = "base_model.model.model.layers"

    def spoil(arrays: dict[str, Any]) -> None:
        del arrays[f"{prefix}.0.self_attn.q_proj.lora_B.weight"]
        arrays[f"{prefix}.1.self_attn.q_proj.lora_A.weight"][0, 0] = np.nan
        arrays[f"{prefix}.2.self_attn.q_proj.lora_A.weight"] = np.ones((5, 64), np.float32)
        arrays["stranger"] = np.ones(3, np.float32)

    with pytest.raises(AfsError) as caught:
        read_adapter(edited(tensors=spoil))
    message = str(caught.value)
    assert "(4 problems)" in message
    for part in (
        "layers.0.self_attn.q_proj: no lora_B",
        "layers.1.self_attn.q_proj.lora_A.weight: 1 of 256 numbers are NaN or infinite",
        "layers.2.self_attn.q_proj: lora_A [5, 64] and lora_B [64, 4] are not (4, in) and (out, 4)",
        "stranger: unknown key",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / FILE).write_bytes(b"\x08\0\0\0\0\0\0\0{}"), "not a complete safetensors file"),
        (lambda folder: (folder / FILE).unlink(), "it has no adapter_model.safetensors"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "it has no adapter_config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "not valid JSON"),
        (shutil.rmtree, "no such adapter folder"),
    ],
    ids=["weights", "no weights", "no config", "config", "no folder"],
)
def test_broken_folder_is_refused(spoil: Callable[[Path], object], message: str, edited: Callable[..., Path]) -> None:
    folder = edited()
    spoil(folder)
    with pytest.raises(AfsError, match=message):
        read_adapter(folder)


def test_name_of_the_base_that_mlx_lm_keeps_is_read(tiny_base: Path, tmp_path: Path) -> None:
    convert_peft(GOLDEN / "qv-r4", tiny_base, tmp_path / "mlx")
    path = tmp_path / "mlx" / "adapter_config.json"
    value = json.loads(path.read_text())
    del value["afs"]
    path.write_text(json.dumps(value | {"model": "mlx-community/Some-Model-4bit", "iters": 100}))
    adapter = read_adapter(tmp_path / "mlx")
    assert (adapter.base.id, adapter.base.lineage, adapter.alpha) == ("mlx-community/Some-Model-4bit", "", 8)


def test_block_number_of_thousands_of_digits_is_no_block() -> None:
    path = f"model.layers.{'9' * 5000}.self_attn.q_proj"
    assert place(path) == (None, path)
    assert place("model.layers.12.self_attn.q_proj") == (12, "self_attn.q_proj")


def test_scale_out_of_range_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    convert_peft(GOLDEN / "qv-r4", tiny_base, tmp_path / "mlx")
    path = tmp_path / "mlx" / "adapter_config.json"
    value = json.loads(path.read_text())
    value["lora_parameters"]["scale"] = 1e300
    path.write_text(json.dumps(value))
    with pytest.raises(AfsError, match="scale 1e\\+300 is out of any range"):
        read_adapter(tmp_path / "mlx")


def test_whole_weights_are_no_updates(tiny_base: Path, tmp_path: Path) -> None:
    convert_peft(GOLDEN / "qv-r4", tiny_base, tmp_path / "mlx")
    path = tmp_path / "mlx" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fine_tune_type": "full"}))
    with pytest.raises(AfsError, match="holds whole weights"):
        read_adapter(tmp_path / "mlx")


# Comparing


def test_an_adapter_is_identical_to_itself_in_the_other_layout(tiny_base: Path, tmp_path: Path) -> None:
    convert_peft(GOLDEN / "qv-r4", tiny_base, tmp_path / "mlx")
    found = compare(read_adapter(GOLDEN / "qv-r4"), read_adapter(tmp_path / "mlx"))
    assert found.bit_equal
    assert found.same
    assert set(found.settings) == {"base"}
    assert (found.only_a, found.only_b) == ({}, {})
    assert found.cosine == pytest.approx(1)
    assert found.relative == pytest.approx(0, abs=1e-12)


def test_layers_filled_with_zeros_are_no_other_change(tiny_base: Path, tmp_path: Path) -> None:
    convert_peft(GOLDEN / "layers-1-3-bf16", tiny_base, tmp_path / "mlx")
    found = compare(read_adapter(GOLDEN / "layers-1-3-bf16"), read_adapter(tmp_path / "mlx"))
    assert found.only_b == {"model.layers.2.mlp.down_proj": 0, "model.layers.2.self_attn.o_proj": 0}
    assert found.same
    assert not found.bit_equal


def test_other_factors_of_the_same_update_are_the_same_change(edited: Callable[..., Path]) -> None:
    def shift(arrays: dict[str, Any]) -> None:
        for name in arrays:
            arrays[name] *= np.float32(3 if "lora_A" in name else 1 / 3)

    found = compare(read_adapter(GOLDEN / "qv-r4"), read_adapter(edited(tensors=shift)))
    assert found.same
    assert not found.bit_equal
    assert not found.settings


def test_differences_are_those_of_the_dense_updates(edited: Callable[..., Path]) -> None:
    def change(arrays: dict[str, Any]) -> None:
        rng = np.random.default_rng(6)
        for name in arrays:
            arrays[name] += np.float32(0.05) * rng.standard_normal(arrays[name].shape, np.float32)

    one = read_adapter(GOLDEN / "qv-r4")
    other = read_adapter(edited(tensors=change, config=lambda value: value.update(lora_alpha=10)))
    found = compare(one, other)
    assert found.settings == {"alpha": (8, 10), "scale": (2, 2.5)}
    assert not found.same
    whole, apart = 0.0, 0.0
    for layer in found.layers:
        first, second = dense(one, layer.path), dense(other, layer.path)
        cosine = (first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second)
        assert layer.relative == pytest.approx(np.linalg.norm(first - second) / np.linalg.norm(first), rel=1e-9)
        assert layer.cosine == pytest.approx(cosine, rel=1e-9)
        whole, apart = whole + (first**2).sum(), apart + ((first - second) ** 2).sum()
    assert found.relative == pytest.approx(math.sqrt(apart / whole), rel=1e-9)


def test_layers_that_only_one_has_count_as_zero_in_the_other() -> None:
    one, other = read_adapter(GOLDEN / "qv-r4"), read_adapter(GOLDEN / "layers-1-3-bf16")
    found = compare(one, other)
    assert (len(found.only_a), len(found.only_b), found.layers) == (8, 4, [])
    norms = [math.hypot(*(layer.norm for layer in layer_facts(adapter))) for adapter in (one, other)]
    assert found.relative == pytest.approx(math.hypot(*norms) / norms[0])
    assert found.cosine == 0


def test_zero_update_has_no_direction(edited: Callable[..., Path]) -> None:
    def zero(arrays: dict[str, Any]) -> None:
        for name in arrays:
            arrays[name] *= "lora_A" in name

    silent, trained = read_adapter(edited(tensors=zero)), read_adapter(GOLDEN / "qv-r4")
    assert {layer.relative for layer in compare(silent, trained).layers} == {None}
    assert {layer.cosine for layer in compare(silent, trained).layers} == {None}
    assert [layer.relative for layer in compare(trained, silent).layers] == pytest.approx([1.0] * 8)
    assert compare(silent, silent).bit_equal


def test_magnitudes_are_compared(edited: Callable[..., Path]) -> None:
    def dora(factor: float) -> Path:
        def add(arrays: dict[str, Any]) -> None:
            for name in [name for name in arrays if "lora_B" in name]:
                key = name.replace("lora_B.weight", "lora_magnitude_vector")
                arrays[key] = np.full(len(arrays[name]), factor, np.float32)

        return edited(config=lambda value: value.update(use_dora=True), tensors=add, to=f"dora-{factor}")

    one, other = read_adapter(dora(1.0)), read_adapter(dora(1.5))
    assert one.dora
    found = compare(one, other)
    assert {layer.magnitude for layer in found.layers} == {0.5}
    assert not found.same
    assert {layer.magnitude for layer in compare(one, read_adapter(GOLDEN / "qv-r4")).layers} == {math.inf}
    assert compare(one, one).bit_equal


def test_adapters_of_bases_of_other_sizes_are_not_compared(edited: Callable[..., Path]) -> None:
    def widen(arrays: dict[str, Any]) -> None:
        for name in [name for name in arrays if "lora_A" in name]:
            arrays[name] = np.tile(arrays[name], (1, 2))

    with pytest.raises(AfsError) as caught:
        compare(read_adapter(GOLDEN / "qv-r4"), read_adapter(edited(tensors=widen)))
    assert "(8 problems)" in str(caught.value)
    assert "model.layers.0.self_attn.q_proj: (out, in) = (64, 64) and (64, 128)" in str(caught.value)
