"""Two adapters side by side: settings, layers that only one has, and how far the shared layers' updates lie apart.

What is compared is ΔW = scale · B·A and, with DoRA, the magnitudes; the factors of one ΔW are not unique.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from afs_mlx.core.errors import problems
from afs_mlx.engine.adapters.inspection import Adapter, place
from afs_mlx.engine.adapters.updates import Update, frobenius, relate

SAME = 1e-6  # of ‖ΔW‖: what float32 rounding of the factors makes of one and the same update


@dataclass(frozen=True)
class LayerDifference:
    """A layer that both have. `relative` is ‖ΔW_A - ΔW_B‖ / ‖ΔW_A‖, None where A's is zero and B's is not.

    `cosine` is None where one is zero; `magnitude` is the relative difference of DoRA's magnitudes, infinite where
    only one has them, None where none has.
    """

    path: str
    block: int | None
    target: str
    norm_a: float
    norm_b: float
    relative: float | None
    cosine: float | None
    magnitude: float | None
    bit_equal: bool

    @property
    def same(self) -> bool:
        return self.relative is not None and self.relative <= SAME and (self.magnitude or 0) <= SAME


@dataclass(frozen=True)
class Comparison:
    """`settings` is name → (A, B) where they differ; `only_a` and `only_b` are path → ‖ΔW‖, zero layers included.

    `relative` and `cosine` are over all layers together, a layer that one lacks counted as zero there.
    """

    settings: dict[str, tuple[Any, Any]]
    only_a: dict[str, float]
    only_b: dict[str, float]
    layers: list[LayerDifference]
    relative: float | None
    cosine: float | None

    @property
    def bit_equal(self) -> bool:
        """The same numbers in the same layers; the folders' layouts and types may differ."""
        return not (self.only_a or self.only_b) and all(layer.bit_equal for layer in self.layers)

    @property
    def same(self) -> bool:
        """The same change to the model, up to float32 rounding."""
        others = [*self.only_a.values(), *self.only_b.values()]
        return not any(others) and all(layer.same for layer in self.layers)


def compare(first: Adapter, second: Adapter) -> Comparison:
    """Compare two adapters. Raises AfsError when layers of one name differ in size: they are of different models."""
    shared = [path for path in first.layers if path in second.layers]
    sizes = [(path, first.layers[path].shape, second.layers[path].shape) for path in shared]
    where = f"{first.folder} and {second.folder}"
    if found := [f"{path}: (out, in) = {one} and {other}" for path, one, other in sizes if one != other]:
        raise problems(found, "the adapters belong to bases of other sizes", where, "compare adapters of one base")
    layers = [_layer(path, first.layers[path].read(), second.layers[path].read()) for path in shared]
    only_a, only_b = _only(first, shared), _only(second, shared)
    norm_a = math.hypot(*(layer.norm_a for layer in layers), *only_a.values())
    norm_b = math.hypot(*(layer.norm_b for layer in layers), *only_b.values())
    apart = math.hypot(*(_apart(layer) for layer in layers), *only_a.values(), *only_b.values())
    inner = math.fsum(layer.cosine * layer.norm_a * layer.norm_b for layer in layers if layer.cosine is not None)
    return Comparison(
        settings=_settings(first, second),
        only_a=only_a,
        only_b=only_b,
        layers=layers,
        relative=_ratio(apart, norm_a),
        cosine=inner / (norm_a * norm_b) if norm_a and norm_b else None,
    )


def _layer(path: str, first: Update, second: Update) -> LayerDifference:
    relation, magnitude = relate(first, second), _magnitude(first, second)
    norm_a, norm_b = relation.norms
    equal = first.scale == second.scale and np.array_equal(first.a, second.a) and np.array_equal(first.b, second.b)
    return LayerDifference(
        path,
        *place(path),
        norm_a,
        norm_b,
        relative=0.0 if equal else _ratio(relation.distance, norm_a),
        cosine=_clipped(relation.inner_product / norm_a / norm_b) if norm_a and norm_b else None,
        magnitude=magnitude,
        bit_equal=equal and not magnitude,
    )


def _settings(first: Adapter, second: Adapter) -> dict[str, tuple[Any, Any]]:
    """By the name a person knows, where the two differ; kind and place are no settings."""
    named = ("rank", "alpha", "scale", "rslora", "dora", "dropout", "targets", "blocks")
    pairs = {name: (getattr(first, name), getattr(second, name)) for name in named}
    pairs["base"] = first.base.lineage or first.base.id, second.base.lineage or second.base.id
    pairs["base weights"] = first.base.sha256, second.base.sha256
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _magnitude(first: Update, second: Update) -> float | None:
    one, other = first.magnitude, second.magnitude
    if one is None or other is None:
        return None if one is other else math.inf
    relative = _ratio(float(np.linalg.norm(one - other)), float(np.linalg.norm(one)))
    return math.inf if relative is None else relative


def _only(adapter: Adapter, shared: list[str]) -> dict[str, float]:
    known = set(shared)
    paths = [path for path in adapter.layers if path not in known]
    return {path: frobenius(adapter.layers[path].read().singular_values()) for path in paths}


def _apart(layer: LayerDifference) -> float:
    return layer.norm_b if layer.relative is None else layer.relative * layer.norm_a


def _ratio(part: float, whole: float) -> float | None:
    if not whole:
        return None if part else 0.0
    return part / whole


def _clipped(cosine: float) -> float:
    return max(-1.0, min(1.0, cosine))
