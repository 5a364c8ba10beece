"""Where adapters plug into a model: one slot around each linear layer that any of them changes, one pointer for all.

A slot looks up the adapter that is active now and computes with that adapter's own rank and scale, in mlx-lm's order of
operations. Nothing is padded: mlx builds its graph anew for each token, so no shape has to stay the same, and a layer
that the adapter leaves alone is the bare base's. Knows no files.
"""

import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from afs_mlx.core.errors import problems


@dataclass(frozen=True)
class Factors:
    """What one adapter does to one layer: scale · x·a·b is added, a (in, rank), b (rank, out).

    With DoRA each output is then multiplied by `row_scale` (out,), the magnitude over the length of the adapted row.
    """

    a: mx.array
    b: mx.array
    scale: float
    row_scale: mx.array | None = None

    @property
    def size_bytes(self) -> int:
        """What it holds in memory."""
        return int(self.a.nbytes + self.b.nbytes + (0 if self.row_scale is None else self.row_scale.nbytes))


type LayerFactors = Mapping[str, Factors]  # by the layer's path in the model

NOTHING: LayerFactors = {}


class SlotTable:
    """The slots of one model; one thread computes with it at a time."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._slots: dict[str, nn.Module] = {}  # the layers as they were
        self._growing = threading.Lock()
        self.active: LayerFactors = NOTHING

    def __len__(self) -> int:
        return len(self._slots)

    def linears(self) -> dict[str, nn.Module]:
        """The base's own linear layers by path, those inside slots too."""
        found = {path: m for path, m in self._model.named_modules() if isinstance(m, nn.Linear | nn.QuantizedLinear)}
        return found | self._slots

    def attach(self, paths: Iterable[str]) -> None:
        """Put slots around further layers; those that are there stay. Raises AfsError naming what is no linear layer.

        An answer that is being computed meanwhile does not change: its adapter has nothing for the new slots.
        """
        with self._growing:
            new = [path for path in paths if path not in self._slots]
            if not new:
                return
            linears = self.linears()
            if wrong := [path for path in new if path not in linears]:
                found = [f"{path}: the loaded model has no such linear layer" for path in wrong]
                raise problems(found, "the adapter does not fit the base", "adapter", "give the base it was made on")
            slots = [(path, AdapterSlot(linears[path], path, self)) for path in new]
            self._model.update_modules(tree_unflatten(slots))
            self._slots |= {path: linears[path] for path in new}

    @contextmanager
    def using(self, factors: LayerFactors) -> Iterator[None]:
        """Compute with an adapter; outside, the model is the bare base."""
        self.active = factors
        try:
            yield
        finally:
            self.active = NOTHING


class AdapterSlot(nn.Module):
    """A linear layer that adds what the active adapter has for it."""

    def __init__(self, linear: nn.Module, path: str, table: SlotTable) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.linear = linear
        self._path = path
        self._table = table

    def __call__(self, x: mx.array) -> mx.array:
        factors = self._table.active.get(self._path)
        if factors is None:
            unchanged: mx.array = self.linear(x)
            return unchanged
        z = (x @ factors.a) @ factors.b
        if factors.scale != 1:
            z = factors.scale * z
        z = z.astype(x.dtype)
        if factors.row_scale is None:
            added: mx.array = self.linear(x) + z
            return added
        out = factors.row_scale.astype(x.dtype) * (_without_bias(self.linear, x) + z)
        return out + self.linear.bias if "bias" in self.linear else out


def fold_scale(a: mx.array, b: mx.array, scale: float) -> Factors:
    """Factors whose scale is 1 where that changes no bit: for a power of two, which α / rank nearly always is."""
    if scale > 1 and math.frexp(scale)[0] == 0.5:
        folded = b * scale
        if mx.isfinite(folded).all().item():
            return Factors(a, folded, 1.0)
    return Factors(a, b, scale)


def row_scale(linear: nn.Module, a: mx.array, b: mx.array, scale: float, magnitude: mx.array) -> mx.array:
    """DoRA's factor for each output, computed once: m / ‖W + scale · (a·b)ᵀ‖, (out,). mlx-lm does it at every token."""
    weight = linear.weight
    if isinstance(linear, nn.QuantizedLinear):
        weight = mx.dequantize(
            weight, linear.scales, linear.get("biases"), linear.group_size, linear.bits, mode=linear.mode
        )
    adapted = weight + (scale * b.T) @ a.T
    factor = magnitude / mx.linalg.norm(adapted, axis=1)
    mx.eval(factor)  # one layer's weight at a time in memory
    return factor


def _without_bias(linear: nn.Module, x: mx.array) -> mx.array:
    """x·Wᵀ alone: DoRA scales that, and not the bias."""
    if isinstance(linear, nn.QuantizedLinear):
        return mx.quantized_matmul(
            x,
            linear.weight,
            scales=linear.scales,
            biases=linear.get("biases"),
            transpose=True,
            group_size=linear.group_size,
            bits=linear.bits,
            mode=linear.mode,
        )
    product: mx.array = x @ linear.weight.T
    return product
