"""PEFT adapters that trained whole tensors beside the LoRA → an mlx-lm folder of whole weights (fine_tune_type "full").

A folder of factors cannot hold them: mlx-lm 0.32.2 loads lora_a, lora_b and m there and refuses any other name. So each
adapted weight is merged in float32 and stays float32. Only the tensor at work is in memory.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from afs_mlx.core.errors import problems
from afs_mlx.engine.adapters.format import whole_problems
from afs_mlx.engine.adapters.layouts import Layout
from afs_mlx.engine.adapters.linears import BaseLinears, base_tensors
from afs_mlx.engine.adapters.peft_files import FIX
from afs_mlx.engine.adapters.peft_reading import PeftAdapter, PeftLayer
from afs_mlx.engine.adapters.tensors import FloatArray, Header, Tensor, not_finite


@dataclass(frozen=True)
class WholeWeight:
    """One tensor to write: its shape, and how to get its numbers."""

    shape: tuple[int, ...]
    read: Callable[[], FloatArray]


def needs_whole_weights(source: PeftAdapter) -> bool:
    """Whether it holds more than an mlx-lm folder of factors can."""
    return bool(source.whole or source.b_biases or source.embeddings or source.rows)


def carry_problems(source: PeftAdapter, base: BaseLinears, layout: Layout) -> list[str]:
    """Why this base cannot take whole weights; empty if it can."""
    wanted: dict[str, Header] = {layout.to_mlx(name): tensor for name, tensor in source.whole.items()}
    wanted |= {f"{layout.to_mlx(path)}.bias": tensor for path, tensor in source.b_biases.items()}
    for path, layer in source.layers.items():
        wanted[f"{layout.to_mlx(path)}.weight"] = Header("F32", layer.shape)
    embeddings = {f"{layout.to_mlx(path)}.weight": layer for path, layer in source.embeddings.items()}
    wanted |= {name: Header("F32", layer.shape[::-1]) for name, layer in embeddings.items()}
    found = whole_problems(wanted, base)
    for path, (tensor, tokens) in source.rows.items():
        name = f"{layout.to_mlx(path)}.weight"
        own = base.parameters.get(name)
        if own is None or not own.is_float:
            found.append(
                f"{name}: {'quantised in' if own else 'not in'} this base; token rows need the unquantised one"
            )
        elif own.shape[1:] != tensor.shape[1:] or max(tokens) >= own.shape[0]:
            found.append(f"{name}: rows {list(tokens)[:5]} of {list(tensor.shape)}, the base has {list(own.shape)}")
    if base.tied:
        found += [
            f"{name}: tied in this base, so that mlx-lm would take it for the output too, where PEFT keeps the old one"
            for name in wanted
            if name.rpartition(".")[0] in layout.embeddings
        ]
    return found


def whole_weights(source: PeftAdapter, base: BaseLinears, layout: Layout) -> dict[str, WholeWeight]:
    """Every tensor of the folder by its name in mlx-lm."""
    own = base_tensors(base.folder)
    weights = {layout.to_mlx(name): WholeWeight(tensor.shape, tensor.floats) for name, tensor in source.whole.items()}
    for path, layer in source.layers.items():
        name = f"{layout.to_mlx(path)}.weight"
        weights[name] = WholeWeight(layer.shape, _merging(own[name], layer))
    for path, layer in source.embeddings.items():
        name = f"{layout.to_mlx(path)}.weight"
        weights[name] = WholeWeight(layer.shape[::-1], _merging(own[name], layer, transposed=True))
    for path, (tensor, tokens) in source.rows.items():
        name = f"{layout.to_mlx(path)}.weight"
        before = weights[name].read if name in weights else own[name].floats
        weights[name] = WholeWeight(own[name].shape, _with_rows(before, tensor, tokens))
    for path, tensor in source.b_biases.items():
        name = f"{layout.to_mlx(path)}.bias"
        base_bias = weights[name].read if name in weights else own[name].floats
        weights[name] = WholeWeight(tensor.shape, _adding(base_bias, tensor, source.layers[path].scale))
    return weights


def whole_arrays(weights: dict[str, WholeWeight], where: Path) -> Iterator[FloatArray]:
    """Each tensor in order; raises after the last one if any holds NaN or infinities."""
    found = []
    for name, weight in weights.items():
        array = weight.read()
        if problem := not_finite(array):
            found.append(f"{name}: {problem}")
        yield array
    if found:
        raise problems(found, "these weights cannot be converted", str(where), FIX)


def _merging(base: Tensor, layer: PeftLayer, *, transposed: bool = False) -> Callable[[], FloatArray]:
    """W + scale · B·A, its rows brought to DoRA's lengths; (out, in), of embeddings the transpose."""

    def read() -> FloatArray:
        delta = np.float32(layer.scale) * (layer.b.floats() @ layer.a.floats())
        weight: FloatArray = base.floats() + (delta.T if transposed else delta)
        if layer.magnitude is None:
            return weight
        factors: FloatArray = layer.magnitude.floats() / np.sqrt(np.einsum("ij,ij->i", weight, weight))
        return weight * factors[:, None]

    return read


def _with_rows(base: Callable[[], FloatArray], rows: Tensor, tokens: tuple[int, ...]) -> Callable[[], FloatArray]:
    """The embeddings (vocabulary, size) with these tokens' own in their place."""

    def read() -> FloatArray:
        weight = base().copy()
        weight[list(tokens)] = rows.floats()
        return weight

    return read


def _adding(base: Callable[[], FloatArray], bias: Tensor, scale: float) -> Callable[[], FloatArray]:
    """The bias plus what a bias of lora_B adds; (out,)."""
    return lambda: base() + np.float32(scale) * bias.floats()
