"""Fused and quantised: mlx-lm's own grid and config from a plain base; from a quantised one, the update survives."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_unflatten
from mlx_lm import load
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.utils import load_adapters, load_model, quantize_model, save_config, save_model

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.adapters.attaching import load_with_adapter
from afs_mlx.engine.adapters.format import AdapterConfig, LoraParameters, write_adapter
from afs_mlx.engine.fusing.fusion import Fused, fuse
from afs_mlx.engine.fusing.options import StorageOptions

TOKENS = mx.array([[641, 72, 101, 260, 17, 300, 410, 9, 55, 640, 599, 128]])
SHAPES = {"self_attn.q_proj": (64, 64), "mlp.up_proj": (192, 64), "mlp.down_proj": (64, 192)}  # (out, in)
PATHS = [f"model.layers.{block}.{key}" for block in (2, 3) for key in SHAPES]
RANK = 4


def adapter(folder: Path, base: Path, share: float, kind: str = "lora") -> Path:
    """ΔW is `share` of its weight's size."""
    rng = np.random.default_rng(7)
    weights = mx.load(str(base / "model.safetensors"))
    tensors = {}
    for path in PATHS:
        outputs, inputs = SHAPES[path.split(".", 3)[3]]
        plain = np.array(weights[f"{path}.weight"].astype(mx.float32))
        a, b = rng.normal(size=(inputs, RANK)), rng.normal(size=(RANK, outputs))
        b *= share * plain.std() / (a @ b).std()
        tensors |= {f"{path}.lora_a": a, f"{path}.lora_b": b}
        if kind == "dora":
            tensors[f"{path}.m"] = np.linalg.norm(plain, axis=1) * rng.uniform(0.9, 1.1, outputs)
    config = AdapterConfig(
        fine_tune_type=kind,  # type: ignore[arg-type]
        num_layers=2,
        lora_parameters=LoraParameters(rank=RANK, scale=1.0, dropout=0.0, keys=tuple(SHAPES)),
    )
    write_adapter(folder, {name: array.astype(np.float32) for name, array in tensors.items()}, config)
    return folder


def quantised(base: Path, folder: Path, bits: int, group_size: int = 64) -> Path:
    """What mlx_lm.convert makes of it."""
    shutil.copytree(base, folder)
    model, config = quantize_model(*load_model(base), group_size=group_size, bits=bits)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    return folder


@pytest.fixture(scope="module")
def small(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter(tmp_path_factory.mktemp("small") / "run", tiny_base, 0.02)


@pytest.fixture(scope="module")
def four_bits(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantised(tiny_base, tmp_path_factory.mktemp("four") / "tiny-4bit", 4)


def fused(base: Path, run: Path, target: Path, **options: Any) -> Fused:
    target.mkdir()
    return fuse(base, run, target, StorageOptions(**options))


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text()))


def weights_of(folder: Path) -> dict[str, mx.array]:
    return {name: array for file in folder.glob("model*.safetensors") for name, array in mx.load(str(file)).items()}


def plain(folder: Path, path: str) -> np.ndarray:
    """A weight as float32, dequantised by its own entry in config.json."""
    weights, config = weights_of(folder), config_of(folder).get("quantization", {})
    weight = weights[f"{path}.weight"]
    if weight.dtype != mx.uint32:
        return np.array(weight.astype(mx.float32))
    form = config.get(path, config)
    scales, biases = (weights[f"{path}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
    return np.array(mx.dequantize(weight, scales, biases, form["group_size"], form["bits"]))


def delta(run: Path, path: str) -> np.ndarray:
    tensors = mx.load(str(run / "adapters.safetensors"))
    return np.array((tensors[f"{path}.lora_a"] @ tensors[f"{path}.lora_b"]).T)


def survival(base: Path, run: Path, found: Path, path: str) -> float:
    wanted = delta(run, path)
    return float(((plain(found, path) - plain(base, path)) * wanted).sum() / (wanted**2).sum())


def logits(folder: Path) -> np.ndarray:
    model, _ = load(str(folder))
    return np.array(model(TOKENS).astype(mx.float32))


# From a plain base


@pytest.mark.parametrize("bits", ["4", "8"])
def test_every_layer_is_mlx_s_own_quantisation_of_the_float32_sum(
    tiny_base: Path, small: Path, tmp_path: Path, bits: str
) -> None:
    done = fused(tiny_base, small, tmp_path / "out", quantize=bits)
    assert (done.layers, done.dequantised, done.kept) == (6, False, 0)
    found = weights_of(tmp_path / "out")
    for path in [*PATHS, "model.layers.0.mlp.up_proj", "model.embed_tokens"]:
        wanted = plain(tiny_base, path) + (delta(small, path) if path in PATHS else 0)
        parts = mx.quantize(mx.array(wanted), 64, int(bits))
        for name, part in zip(("weight", "scales", "biases"), parts, strict=True):
            same = mx.equal(found[f"{path}.{name}"], part).mean().item()
            assert same > 0.999, (path, name)  # a sum rounded another way may lie on the border
    assert config_of(tmp_path / "out")["quantization"] == {"group_size": 64, "bits": int(bits), "mode": "affine"}
    assert logits(tmp_path / "out").shape == (1, 12, 704)


@pytest.mark.parametrize("recipe", ["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"])
def test_a_mixture_is_mlx_lm_s(tiny_base: Path, small: Path, tmp_path: Path, recipe: Any) -> None:
    fused(tiny_base, small, tmp_path / "out", quantize=recipe)
    model, config = load_model(tiny_base)
    choose = mixed_quant_predicate_builder(recipe, model, 64)
    wanted = quantize_model(model, config, 64, 4, quant_predicate=choose)[1]["quantization"]
    found = config_of(tmp_path / "out")["quantization"]
    bits = {path: found.get(path, found)["bits"] for path, form in wanted.items() if isinstance(form, dict)}
    assert bits == {path: form["bits"] for path, form in wanted.items() if isinstance(form, dict)}
    assert len(set(bits.values())) == 2
    assert np.isfinite(logits(tmp_path / "out")).all()


def test_rows_that_no_group_divides_stay_plain(tiny_base: Path, small: Path, tmp_path: Path) -> None:
    done = fused(tiny_base, small, tmp_path / "out", quantize="4", group_size=128)
    assert set(done.changed_bits.values()) == {32}, "64 and 192 are no multiples of 128"
    assert np.allclose(
        plain(tmp_path / "out", PATHS[0]), plain(tiny_base, PATHS[0]) + delta(small, PATHS[0]), atol=1e-6
    )
    assert np.isfinite(logits(tmp_path / "out")).all()


def test_a_tiny_update_survives_a_bfloat16_base(tiny_base: Path, tmp_path: Path) -> None:
    """To the nearest number it would lose half, for the base lies on bfloat16's numbers already."""
    half = tmp_path / "half"
    shutil.copytree(tiny_base, half)
    model, _ = load_model(tiny_base)
    model.set_dtype(mx.bfloat16)
    save_model(half, model)
    run = adapter(tmp_path / "run", tiny_base, 0.0005)
    done = fused(half, run, tmp_path / "out")
    assert done.dtype == "bfloat16"
    for path in PATHS:
        wanted = delta(run, path)
        nearest = np.array((mx.array(plain(half, path) + wanted)).astype(mx.bfloat16).astype(mx.float32))
        assert ((nearest - plain(half, path)) * wanted).sum() / (wanted**2).sum() < 0.6
        assert survival(half, run, tmp_path / "out", path) > 0.9
        assert done.survival[path] == pytest.approx(survival(half, run, tmp_path / "out", path), abs=1e-3)


# From a quantised base


def test_what_is_not_changed_stays_bit_for_bit_and_what_is_gets_eight_bits(
    four_bits: Path, small: Path, tmp_path: Path
) -> None:
    done = fused(four_bits, small, tmp_path / "out", quantize="4")
    before, after = weights_of(four_bits), weights_of(tmp_path / "out")
    assert before.keys() == after.keys()
    for name in before:
        if name.rpartition(".")[0] not in PATHS:
            assert mx.array_equal(before[name], after[name]), name
    assert set(done.changed_bits.values()) == {8}
    assert (done.layers, done.kept, done.dequantised) == (6, 23, True)  # 4 blocks of 7, and the embedding
    assert done.extra_bytes == sum(after[f"{p}.weight"].nbytes - before[f"{p}.weight"].nbytes for p in PATHS)
    quantisation = config_of(tmp_path / "out")["quantization"]
    assert (quantisation["bits"], {quantisation[path]["bits"] for path in PATHS}) == (4, {8})
    for path in PATHS:
        assert survival(four_bits, small, tmp_path / "out", path) == pytest.approx(1, abs=0.05)
        assert done.survival[path] == pytest.approx(survival(four_bits, small, tmp_path / "out", path), abs=1e-3)
    reference = load_with_adapter(four_bits, small)
    wanted = np.array(reference.model(TOKENS))
    assert np.abs(logits(tmp_path / "out") - wanted).max() < 0.05 * np.abs(wanted).max()


def stock(base: Path, run: Path, target: Path) -> Path:
    """mlx_lm.fuse's way."""
    model, config = load_model(base)
    load_adapters(model, str(run))
    layers = [(name, module.fuse()) for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    model.update_modules(tree_unflatten(layers))
    target.mkdir()
    save_model(target, model)
    save_config(config, target / "config.json")
    return target


def test_the_same_four_bits_hold_what_mlx_lm_s_own_fusing_loses(four_bits: Path, small: Path, tmp_path: Path) -> None:
    done = fused(four_bits, small, tmp_path / "out", quantize="4", changed="same")
    assert set(done.changed_bits.values()) == {4}
    assert done.extra_bytes == 0
    assert config_of(tmp_path / "out")["quantization"] == {"group_size": 64, "bits": 4, "mode": "affine"}
    theirs = stock(four_bits, small, tmp_path / "stock")
    ours = np.median([survival(four_bits, small, tmp_path / "out", path) for path in PATHS])
    lost = np.median([survival(four_bits, small, theirs, path) for path in PATHS])
    assert ours > 0.85
    assert lost < 0.4
    before, after = weights_of(four_bits), weights_of(tmp_path / "out")
    moved = [mx.not_equal(before[f"{path}.scales"], after[f"{path}.scales"]).mean().item() for path in PATHS]
    assert max(moved) < 0.2, "the grid stays, but where the update leaves it"


def test_changed_layers_in_sixteen_bits(four_bits: Path, small: Path, tmp_path: Path) -> None:
    done = fused(four_bits, small, tmp_path / "out", quantize="4", changed="16")
    after = weights_of(tmp_path / "out")
    assert {after[f"{path}.weight"].dtype for path in PATHS} == {mx.bfloat16}
    assert min(done.survival.values()) > 0.98
    model, _ = load(str(tmp_path / "out"))
    assert isinstance(model.layers[3].mlp.up_proj, nn.Linear)
    assert isinstance(model.layers[0].mlp.up_proj, nn.QuantizedLinear)


def test_a_base_of_more_bits_than_asked_is_quantised_anew(tiny_base: Path, small: Path, tmp_path: Path) -> None:
    eight = quantised(tiny_base, tmp_path / "eight", 8, group_size=32)
    done = fused(eight, small, tmp_path / "out", quantize="4")
    assert done.kept == 0
    assert config_of(tmp_path / "out")["quantization"]["bits"] == 4
    assert config_of(tmp_path / "out")["quantization"]["group_size"] == 32
    assert set(done.changed_bits.values()) == {8}
    error = plain(tmp_path / "out", "model.layers.0.mlp.up_proj") - plain(eight, "model.layers.0.mlp.up_proj")
    assert np.abs(error).max() < 0.1 * np.abs(plain(eight, "model.layers.0.mlp.up_proj")).max()


def test_a_base_of_another_kind_of_grid_is_kept_and_added_to(tiny_base: Path, small: Path, tmp_path: Path) -> None:
    base = tmp_path / "mxfp4"
    shutil.copytree(tiny_base, base)
    model, config = quantize_model(*load_model(tiny_base), 32, 4, mode="mxfp4")
    save_model(base, model)
    save_config(config, base / "config.json")
    done = fused(base, small, tmp_path / "out", quantize="4")
    assert done.kept == 23
    assert min(done.survival.values()) > 0.9
    wanted = np.array(load_with_adapter(base, small).model(TOKENS))
    assert np.abs(logits(tmp_path / "out") - wanted).max() < 0.05 * np.abs(wanted).max()


# Other adapters, and what cannot be stored


def test_a_dora_adapter_is_fused_with_its_magnitudes(tiny_base: Path, tmp_path: Path) -> None:
    run = adapter(tmp_path / "run", tiny_base, 0.3, "dora")
    fused(tiny_base, run, tmp_path / "out")
    wanted = np.array(load_with_adapter(tiny_base, run).model(TOKENS))
    assert np.abs(logits(tmp_path / "out") - wanted).max() < 2e-5 * np.abs(wanted).max()
    assert np.abs(logits(tiny_base) - wanted).max() > 0.1 * np.abs(wanted).max()


def test_a_dora_adapter_survives_a_quantised_base(four_bits: Path, tiny_base: Path, tmp_path: Path) -> None:
    run = adapter(tmp_path / "run", tiny_base, 0.02, "dora")
    for changed, least in (("8", 0.97), ("same", 0.85)):
        done = fused(four_bits, run, tmp_path / changed, quantize="4", changed=changed)
        assert np.median(list(done.survival.values())) > least


def test_whole_weights_take_the_base_s_place(tiny_base: Path, tmp_path: Path) -> None:
    """A folder that mlx-lm calls full: matrices and vectors by their names."""
    rng = np.random.default_rng(2)
    tensors = {
        "model.layers.3.mlp.up_proj.weight": rng.normal(0, 0.1, (192, 64)).astype(np.float32),
        "model.layers.3.self_attn.q_proj.bias": rng.normal(0, 0.1, 64).astype(np.float32),
        "model.norm.weight": rng.uniform(0.5, 1.5, 64).astype(np.float32),
    }
    run = tmp_path / "run"
    run.mkdir()
    mx.save_safetensors(str(run / "adapters.safetensors"), {name: mx.array(array) for name, array in tensors.items()})
    parameters = {"rank": 1, "scale": 1.0, "dropout": 0.0}
    config = {"fine_tune_type": "full", "num_layers": 1, "lora_parameters": parameters}
    (run / "adapter_config.json").write_text(json.dumps(config))
    done = fused(tiny_base, run, tmp_path / "out")
    found = weights_of(tmp_path / "out")
    for name, array in tensors.items():
        assert np.array_equal(np.array(found[name]), array), name
    assert list(done.survival) == ["model.layers.3.mlp.up_proj"]


def test_layers_that_the_adapter_holds_but_leaves_alone_are_not_changed(tiny_base: Path, tmp_path: Path) -> None:
    run = adapter(tmp_path / "run", tiny_base, 0.1)
    tensors = dict(mx.load(str(run / "adapters.safetensors")))
    for name in tensors:
        if "layers.2." in name:
            tensors[name] = mx.zeros_like(tensors[name])
    mx.save_safetensors(str(run / "adapters.safetensors"), tensors)
    assert fused(tiny_base, run, tmp_path / "out").layers == 3
    for name in tensors:
        tensors[name] = mx.zeros_like(tensors[name])
    mx.save_safetensors(str(run / "adapters.safetensors"), tensors)
    with pytest.raises(AfsError, match="changes no layer"):
        fused(tiny_base, run, tmp_path / "none")


def test_what_the_type_cannot_hold_is_refused_with_every_layer(tiny_base: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(tiny_base, half)
    model, _ = load_model(tiny_base)
    model.set_dtype(mx.float16)
    save_model(half, model)
    run = adapter(tmp_path / "run", tiny_base, 1e8)
    with pytest.raises(AfsError, match=r"\(6 problems\)[\s\S]*beyond what float16 can hold"):
        fused(half, run, tmp_path / "out")


def test_shards_with_an_index(tiny_base: Path, small: Path, tmp_path: Path) -> None:
    fused(tiny_base, small, tmp_path / "whole")
    fused(tiny_base, small, tmp_path / "out", shard_bytes=300_000)
    files = sorted(path.name for path in (tmp_path / "out").glob("model*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert np.array_equal(logits(tmp_path / "out"), logits(tmp_path / "whole"))
    parts = [json.loads((tmp_path / name / "model.safetensors.index.json").read_text()) for name in ("whole", "out")]
    assert parts[0]["metadata"] == parts[1]["metadata"]
    assert parts[0]["metadata"]["total_parameters"] == sum(array.size for array in weights_of(tiny_base).values())
