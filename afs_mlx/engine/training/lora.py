"""LoRA and DoRA into a model: targets by name, blocks from the top, every mismatch an error before the first step."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from afs_mlx.core.errors import AfsError, problems
from afs_mlx.engine.adapters.format import AdapterBase, AdapterConfig, AdapterFacts, LoraParameters, write_adapter
from afs_mlx.engine.adapters.linears import base_identity
from afs_mlx.schema.recipe import Recipe


def attach(model: nn.Module, recipe: Recipe) -> list[str]:
    """Freeze `model` and put LoRA or DoRA on the recipe's targets; returns their keys within a block.

    The matrices a are seeded by `recipe.seed`; b starts at zero and DoRA's m at the lengths of the base's rows, so the
    model answers as before. Raises one AfsError with everything that keeps the recipe from fitting this base.
    """
    keys, found = _targets(model, recipe)
    found += _broken_weights(model)
    if recipe.layers > len(model.layers):
        what = f"the recipe adapts {recipe.layers} layers, the base has {len(model.layers)}"
        found.insert(0, AfsError(what, "layers", f"--set layers={len(model.layers)}"))
    if found:
        raise _together(found)
    model.freeze()
    mx.random.seed(recipe.seed)
    parameters = {"rank": recipe.rank, "scale": recipe.scale, "dropout": recipe.dropout, "keys": set(keys)}
    linear_to_lora_layers(model, recipe.layers, parameters, use_dora=recipe.method == "dora")
    mx.eval(model.trainable_parameters())
    return keys


def _targets(model: nn.Module, recipe: Recipe) -> tuple[list[str], list[AfsError]]:
    """Keys, and what is wrong with targets and rank, over all blocks that are adapted: they need not be alike."""
    linears: dict[str, nn.Module] = {}
    for block in model.layers[-max(recipe.layers, 0) :]:
        for path, module in block.named_modules():
            if isinstance(module, nn.Linear | nn.QuantizedLinear):
                linears.setdefault(path, module)
    leaf = {path: path.rsplit(".")[-1] for path in linears}
    keys = sorted(p for p in linears if not recipe.targets or p in recipe.targets or leaf[p] in recipe.targets)
    matched = {*keys, *(leaf[path] for path in keys)}
    found: list[AfsError] = []
    if missing := [target for target in recipe.targets if target not in matched]:
        fix = f"linear layers here: {', '.join(sorted(set(leaf.values())))}"
        found.append(AfsError(f"targets match no linear layer: {', '.join(missing)}", "targets", fix))
    elif not keys:
        found.append(AfsError("the blocks of this base have no linear layer", "targets", "use another base"))
    if keys:
        path = min(keys, key=lambda key: min(_shape(linears[key])))
        side = min(_shape(linears[path]))
        if recipe.rank > side:
            what = f"rank {recipe.rank} is above the smallest target matrix's side, {side} ({path})"
            found.append(AfsError(what, "rank", f"--set rank={side}"))
    if recipe.method == "dora" and (odd := [path for path in keys if not _dora_can(linears[path])]):
        what = f"mlx-lm has no DoRA on {linears[odd[0]].bits}-bit weights: {', '.join(odd)}"
        fix = "use the original, a 4-bit or an 8-bit base, or --set method=lora"
        found.append(AfsError(what, "method", fix))
    return keys, found


def _dora_can(linear: nn.Module) -> bool:
    """Whether mlx-lm's DoRALinear knows these weights' inputs: it counts 32 // bits to each packed integer."""
    return not isinstance(linear, nn.QuantizedLinear) or 32 % linear.bits == 0


def _broken_weights(model: nn.Module) -> list[AfsError]:
    """Tensors of the base that hold NaN or infinity: one sum each, and a closer look where that is not finite."""
    weights: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    sums = {n: mx.isfinite(mx.sum(array)) for n, array in weights.items() if mx.issubdtype(array.dtype, mx.floating)}
    mx.eval(sums)
    # A float16 sum overflows where no number has.
    broken = [
        name for name, finite in sums.items() if not finite.item() and not mx.isfinite(weights[name]).all().item()
    ]
    if not broken:
        return []
    names = ", ".join(broken[:10]) + (f" and {len(broken) - 10} more" if len(broken) > 10 else "")
    fix = "the base's files are damaged: pull or build it again, or name another with --base"
    return [AfsError(f"NaN or infinity stands in the base's {names}", "base", fix)]


def _together(found: list[AfsError]) -> AfsError:
    """One error for all: itself where it is alone, else a list with each one's remedy."""
    if len(found) == 1:
        return found[0]
    lines = [f"{error.where}: {error.what} ({error.fix})" for error in found]
    return problems(lines, "the recipe does not fit this base", "recipe and base", "mend these, all at once or in turn")


def adapter_weights(model: nn.Module) -> dict[str, mx.array]:
    """The trained arrays by name: `model.layers.N.….lora_a` (in, r), `lora_b` (r, out), with DoRA `m` (out,)."""
    return dict(tree_flatten(model.trainable_parameters()))


def _shape(linear: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer, counted in weights also where several are packed into one integer."""
    out, columns = linear.weight.shape
    return out, columns * 32 // linear.bits if isinstance(linear, nn.QuantizedLinear) else columns


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
        fine_tune_type=recipe.method,
        num_layers=recipe.layers,
        lora_parameters=LoraParameters(rank=recipe.rank, scale=recipe.scale, dropout=recipe.dropout, keys=tuple(keys)),
        afs=AdapterFacts(
            base=AdapterBase(
                id=base["id"], lineage=base["id"], sha256=base["weights_sha256"], shapes=base_identity(base_folder)
            ),
            alpha=recipe.alpha,
            rslora=recipe.rslora,
            expert=expert,
            origin="train",
        ),
    )
    tensors = {name: np.array(array.astype(mx.float32)) for name, array in adapter_weights(model).items()}
    write_adapter(folder, tensors, config)
