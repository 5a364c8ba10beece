"""Base and adapter in one model: the same logits, the base's own type, biases and companions kept."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import load
from mlx_lm.utils import load_model, quantize_model, save_config, save_model
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoTokenizer

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.files import folder_size_bytes
from afs_mlx.engine.adapters.format import AdapterConfig, LoraParameters, write_adapter
from afs_mlx.engine.fusing.fusion import fuse

TOKENS = mx.array([[641, 72, 101, 260, 17, 300, 410, 9, 55, 640, 599, 128]])
RANK, SCALE = 4, 1.5
WIDTHS = {"self_attn.q_proj": (64, 64), "self_attn.v_proj": (64, 32), "mlp.down_proj": (192, 64)}  # (in, out)


def adapter(folder: Path, widths: dict[str, tuple[int, int]] = WIDTHS, blocks: tuple[int, ...] = (2, 3)) -> Path:
    """Noise of a size that moves the logits."""
    rng = np.random.default_rng(5)
    tensors = {}
    for block in blocks:
        for key, (inputs, outputs) in widths.items():
            path = f"model.layers.{block}.{key}"
            tensors[f"{path}.lora_a"] = rng.normal(0, 0.1, (inputs, RANK)).astype(np.float32)
            tensors[f"{path}.lora_b"] = rng.normal(0, 0.2, (RANK, outputs)).astype(np.float32)
    parameters = LoraParameters(rank=RANK, scale=SCALE, dropout=0.1, keys=tuple(widths))
    write_adapter(folder, tensors, AdapterConfig(num_layers=2, lora_parameters=parameters))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter(tmp_path_factory.mktemp("adapter") / "run")


def stored(base: Path, target: Path, change: Callable[[Any, dict[str, Any]], tuple[Any, dict[str, Any]]]) -> Path:
    """The base, its weights stored in another way."""
    shutil.copytree(base, target)
    model, config = load_model(base)
    model, config = change(model, config)
    save_model(target, model)
    save_config(config, target / "config.json")
    return target


@pytest.fixture(scope="module")
def half_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def change(model: Any, config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        model.set_dtype(mx.bfloat16)
        return model, {**config, "torch_dtype": "bfloat16"}

    return stored(tiny_base, tmp_path_factory.mktemp("half") / "tiny-bf16", change)


@pytest.fixture(scope="module", params=[32, 64])
def quantised_base(request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(
        tiny_base,
        tmp_path_factory.mktemp("quantised") / "tiny-8bit",
        lambda model, config: quantize_model(model, config, group_size=request.param, bits=8),
    )


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "fused"
    folder.mkdir()
    return folder


def logits(folder: Path, adapter: Path | None = None) -> np.ndarray:
    model, _ = load(str(folder), adapter_path=str(adapter) if adapter else None)
    model.eval()
    return np.array(model(TOKENS).astype(mx.float32))


def delta(adapter: Path, path: str) -> np.ndarray:
    """What the adapter adds to a weight (out, in), in float64."""
    tensors = load_file(adapter / "adapters.safetensors")
    a, b = (tensors[f"{path}.lora_{which}"].astype(np.float64) for which in "ab")
    return SCALE * (a @ b).T


def test_fused_logits_are_those_of_base_and_adapter(tiny_base: Path, trained: Path, target: Path) -> None:
    done = fuse(tiny_base, trained, target)
    expected = logits(tiny_base, trained)
    assert np.abs(logits(target) - expected).max() < 2e-5 * np.abs(expected).max()
    assert np.abs(logits(tiny_base) - expected).max() > 0.1 * np.abs(expected).max(), "the adapter does nothing"
    assert (done.layers, done.dequantised, done.dtype) == (6, False, "float32")
    assert done.size_bytes == folder_size_bytes(target)


def test_only_what_is_adapted_changes_and_biases_stay(tiny_base: Path, trained: Path, target: Path) -> None:
    fuse(tiny_base, trained, target)
    before, after = load_file(tiny_base / "model.safetensors"), load_file(target / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {f"model.layers.{block}.{key}.weight" for block in (2, 3) for key in WIDTHS}
    assert "model.layers.3.self_attn.q_proj.bias" in after
    for name in changed:
        expected = before[name] + delta(trained, name.removesuffix(".weight"))
        assert np.abs(after[name] - expected).max() < 1e-6


def test_the_folder_is_whole(tiny_base: Path, trained: Path, target: Path) -> None:
    (tiny_base / "manifest.json").write_text("{}")  # the base's own, which must not pass for the fused model's
    try:
        fuse(tiny_base, trained, target)
    finally:
        (tiny_base / "manifest.json").unlink()
    config = AutoConfig.from_pretrained(target)
    assert (config.model_type, config.num_hidden_layers, config.vocab_size) == ("qwen2", 4, 704)
    tokenizer = AutoTokenizer.from_pretrained(target)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "lda #$00"}], tokenize=False)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token == "<|im_end|>"
    assert (target / "generation_config.json").read_bytes() == (tiny_base / "generation_config.json").read_bytes()
    assert not (target / "manifest.json").exists()
    assert not (target / "adapter_config.json").exists()


def test_a_half_precision_base_keeps_its_type_and_rounds_once(half_base: Path, trained: Path, target: Path) -> None:
    assert fuse(half_base, trained, target).dtype == "bfloat16"
    before, after = mx.load(str(half_base / "model.safetensors")), mx.load(str(target / "model.safetensors"))
    assert {str(array.dtype) for array in after.values()} == {"mlx.core.bfloat16"}
    path = "model.layers.3.self_attn.v_proj"
    exact = np.array(before[f"{path}.weight"].astype(mx.float32)) + delta(trained, path)
    found = np.array(after[f"{path}.weight"].astype(mx.float32))
    # bfloat16 has 8 significant bits: one rounding is off by half a unit at most, 2^-8 of the number or less.
    assert (np.abs(found - exact) <= np.abs(exact) * 2.0**-8 + 1e-7).all()
    assert (np.abs(found - exact) > 0).any()


def test_a_quantised_base_is_dequantised(quantised_base: Path, trained: Path, target: Path) -> None:
    assert "quantization" in json.loads((quantised_base / "config.json").read_text())
    done = fuse(quantised_base, trained, target)
    assert (done.layers, done.dequantised, done.dtype) == (6, True, "bfloat16")
    config = json.loads((target / "config.json").read_text())
    assert "quantization" not in config
    assert "quantization_config" not in config
    tensors = mx.load(str(target / "model.safetensors"))
    assert not [name for name in tensors if name.endswith((".scales", ".biases"))]
    assert tensors["model.embed_tokens.weight"].shape == (704, 64)
    assert tensors["model.layers.0.mlp.down_proj.weight"].shape == (64, 192)
    assert tensors["model.layers.0.self_attn.q_proj.bias"].shape == (64,)

    expected = logits(quantised_base, trained)
    assert np.abs(logits(target) - expected).max() < 0.05 * np.abs(expected).max()


def test_the_update_survives_a_quantised_base(quantised_base: Path, trained: Path, target: Path) -> None:
    """Rounded once to bfloat16 on top of what the quantised base stands for; its grid would swallow most of it."""
    fuse(quantised_base, trained, target)
    base = mx.load(str(quantised_base / "model.safetensors"))
    group = json.loads((quantised_base / "config.json").read_text())["quantization"]["group_size"]
    path = "model.layers.2.mlp.down_proj"
    plain = mx.dequantize(*(base[f"{path}.{part}"] for part in ("weight", "scales", "biases")), group, 8)
    plain = np.array(plain.astype(mx.float32))
    found = np.array(mx.load(str(target / "model.safetensors"))[f"{path}.weight"].astype(mx.float32))
    wanted = delta(trained, path)
    kept = ((found - plain) * wanted).sum() / (wanted**2).sum()
    assert kept == pytest.approx(1, abs=0.01)


def test_an_adapter_of_another_shape_is_refused(tiny_base: Path, tmp_path: Path, target: Path) -> None:
    wide = adapter(tmp_path / "wide", {"self_attn.q_proj": (128, 64)})
    with pytest.raises(AfsError, match=r"does not fit this base[\s\S]*self_attn\.q_proj"):
        fuse(tiny_base, wide, target)
    assert list(target.iterdir()) == []


def test_an_adapter_for_more_blocks_is_refused(tiny_base: Path, tmp_path: Path, target: Path) -> None:
    deep = adapter(tmp_path / "deep", blocks=(3, 4))
    with pytest.raises(AfsError, match="the base has 4 blocks"):
        fuse(tiny_base, deep, target)


def test_a_missing_adapter_is_told(tiny_base: Path, tmp_path: Path, target: Path) -> None:
    with pytest.raises(MissingError, match="no such adapter folder"):
        fuse(tiny_base, tmp_path / "nowhere", target)


def test_a_damaged_base_is_told_before_anything_is_written(
    tiny_base: Path, tmp_path: Path, trained: Path, target: Path
) -> None:
    base = tmp_path / "damaged"
    shutil.copytree(tiny_base, base)
    whole = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AfsError, match=r"safetensors"):
        fuse(base, trained, target)
    assert list(target.iterdir()) == []
