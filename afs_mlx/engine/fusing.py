"""A base and an adapter made one model: added in float32, stored in the base's own precision."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.utils import load_adapters, load_model, save_config, save_model

from afs_mlx.core.errors import AfsError
from afs_mlx.core.files import folder_size_bytes
from afs_mlx.engine.adapters.format import check_adapter_folder
from afs_mlx.engine.bases.loading import check_weights

# Everything a model folder needs beside its weights and config.
COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*")


@dataclass(frozen=True)
class Fused:
    """What fusing left: how many layers were changed and how large the model is."""

    layers: int
    size_bytes: int
    dequantised: bool
    dtype: str


def fuse(base_folder: Path, adapter: Path, target: Path) -> Fused:
    """Write base + ΔW to the folder `target` (which exists) as a complete mlx-lm model.

    ΔW = scale · (a·b)ᵀ is added in float32 and rounded once, to the base's own type; a quantised base is dequantised
    and kept in bfloat16: its grid would swallow the update. Raises AfsError for an adapter that does not fit.
    """
    check_adapter_folder(adapter, base_folder)
    check_weights(base_folder)
    model, config = load_model(base_folder, lazy=True)
    load_adapters(model, str(adapter))
    dequantised = any(isinstance(m, nn.QuantizedLinear | nn.QuantizedEmbedding) for m in model.modules())
    dtype = mx.bfloat16 if dequantised else _floating_dtype(model)
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    if not layers:
        raise AfsError("the adapter changes no layer", str(adapter), "train or convert it again")
    model.update_modules(tree_unflatten([(name, _fused(module, dtype)) for name, module in layers]))
    model.update_modules(tree_unflatten(list(_dequantised(model, dtype))))
    for key in ("quantization", "quantization_config"):
        config.pop(key, None)
    for pattern in COMPANIONS:
        for file in base_folder.glob(pattern):
            if file.name != "model.safetensors.index.json" and file.name != "manifest.json":
                shutil.copyfile(file, target / file.name)
    save_model(target, model, donate_model=True)
    save_config(config, config_path=target / "config.json")
    return Fused(len(layers), folder_size_bytes(target), dequantised, str(dtype).removeprefix("mlx.core."))


def _fused(module: LoRALinear, dtype: mx.Dtype) -> nn.Linear:
    """One linear layer with the update added; `weight` is (out, in)."""
    linear = module.linear
    weight = _weight(linear)
    delta = module.scale * (module.lora_a.astype(mx.float32) @ module.lora_b.astype(mx.float32)).T
    return _linear((weight + delta).astype(dtype), linear)


def _dequantised(model: nn.Module, dtype: mx.Dtype) -> Iterator[tuple[str, nn.Module]]:
    """The quantised layers that the adapter left alone, as plain ones."""
    for name, module in model.named_modules():
        if isinstance(module, nn.QuantizedLinear):
            yield name, _linear(_weight(module).astype(dtype), module)
        elif isinstance(module, nn.QuantizedEmbedding):
            embedding = nn.Embedding(1, 1)
            embedding.weight = _weight(module).astype(dtype)
            yield name, embedding


def _linear(weight: mx.array, source: nn.Module) -> nn.Linear:
    linear = nn.Linear(1, 1, bias="bias" in source)
    linear.weight = weight
    if "bias" in source:
        linear.bias = source.bias
    return linear


def _weight(module: nn.Module) -> mx.array:
    """The (out, in) matrix in float32, quantised or not."""
    if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
        biases = module.get("biases")
        weight = mx.dequantize(module.weight, module.scales, biases, module.group_size, module.bits, module.mode)
        return weight.astype(mx.float32)
    plain: mx.array = module.weight
    return plain.astype(mx.float32)


def _floating_dtype(model: nn.Module) -> mx.Dtype:
    """The type of the base's largest array."""
    arrays: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    return max((array for name, array in arrays.items() if "lora_" not in name), key=lambda array: array.size).dtype
