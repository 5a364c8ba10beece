"""LoRA modules into a model: targets by name, blocks from the top, every mismatch an error before the first step."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.adapters.format import AdapterBase, AdapterConfig, AdapterFacts, LoraParameters, write_adapter
from afs_mlx.engine.adapters.linears import base_identity
from afs_mlx.schema.recipe import Recipe


def attach(model: nn.Module, recipe: Recipe) -> list[str]:
    """Freeze `model` and put LoRA on the recipe's targets; returns their keys within a block.

    The matrices a are seeded by `recipe.seed`; b starts at zero, so the model answers as before.
    """
    blocks = model.layers
    if recipe.layers > len(blocks):
        raise AfsError(
            f"the recipe adapts {recipe.layers} layers, the base has {len(blocks)}",
            "layers",
            f"--set layers={len(blocks)}",
        )
    keys = target_keys(model, recipe)
    model.freeze()
    mx.random.seed(recipe.seed)
    parameters = {"rank": recipe.rank, "scale": recipe.scale, "dropout": recipe.dropout, "keys": set(keys)}
    linear_to_lora_layers(model, recipe.layers, parameters)
    mx.eval(model.trainable_parameters())
    return keys


def target_keys(model: nn.Module, recipe: Recipe) -> list[str]:
    """The recipe's targets as paths within a block (`self_attn.q_proj`). Raises AfsError when one matches nothing."""
    linears = {
        path: module
        for path, module in model.layers[-1].named_modules()
        if isinstance(module, nn.Linear | nn.QuantizedLinear)
    }
    found = [p for p in linears if not recipe.targets or p in recipe.targets or p.rsplit(".")[-1] in recipe.targets]
    names = set(found) | {p.rsplit(".")[-1] for p in found}
    missing = [target for target in recipe.targets if target not in names]
    if missing:
        known = ", ".join(sorted(p.rsplit(".")[-1] for p in linears))
        raise AfsError(
            f"targets match no linear layer: {', '.join(missing)}", "targets", f"linear layers here: {known}"
        )
    smallest = min(min(_shape(linears[path])) for path in found)
    if recipe.rank > smallest:
        raise AfsError(
            f"rank {recipe.rank} is above the smallest target matrix's side, {smallest}",
            "rank",
            f"--set rank={smallest}",
        )
    return sorted(found)


def adapter_weights(model: nn.Module) -> dict[str, mx.array]:
    """The trained arrays by name: `model.layers.N.….lora_a` (in, r) and `lora_b` (r, out)."""
    return dict(tree_flatten(model.trainable_parameters()))


def _shape(linear: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer, counted in weights also where several are packed into one integer."""
    out, columns = linear.weight.shape
    packed = 32 // linear.bits if isinstance(linear, nn.QuantizedLinear) else 1
    return out, columns * packed


def write(
    folder: Path,
    model: nn.Module,
    recipe: Recipe,
    keys: list[str],
    base: dict[str, str],
    base_folder: Path,
    expert: str,
) -> None:
    """Write the adapter as mlx-lm loads it: adapters.safetensors (float32) and adapter_config.json.

    Raises AfsError for weights that are not finite and for a disk that is full.
    """
    config = AdapterConfig(
        num_layers=recipe.layers,
        lora_parameters=LoraParameters(rank=recipe.rank, scale=recipe.scale, dropout=recipe.dropout, keys=tuple(keys)),
        afs=AdapterFacts(
            base=AdapterBase(
                id=base["id"], lineage=base["id"], sha256=base["weights_sha256"], shapes=base_identity(base_folder)
            ),
            alpha=recipe.alpha,
            expert=expert,
            origin="train",
        ),
    )
    tensors = {name: np.array(array.astype(mx.float32)) for name, array in adapter_weights(model).items()}
    write_adapter(folder, tensors, config)
