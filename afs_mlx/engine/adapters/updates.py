"""What one adapted layer adds to its weight, ΔW = scale · B·A, measured through its factors and never formed.

Knows nothing of files. With DoRA, ΔW is the low-rank part alone: what the magnitudes add depends on the base's weight.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from afs_mlx.engine.adapters.tensors import FloatArray

type DoubleArray = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Update:
    """One layer's factors, a (r, in) and b (out, r) as PEFT lays them out, and the magnitudes (out,) of a DoRA."""

    a: FloatArray
    b: FloatArray
    scale: float
    magnitude: FloatArray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight it belongs to."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def is_zero(self) -> bool:
        """Whether it adds nothing."""
        return not (self.scale and self.a.any() and self.b.any())

    def singular_values(self) -> DoubleArray:
        """Of ΔW, falling; at most r of them can differ from zero."""
        return _product_singular_values(self.a.astype(np.float64), self.b.astype(np.float64) * self.scale)


def effective_rank(singular_values: DoubleArray) -> float:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007): from 1 to r, 0 for no update."""
    total = singular_values.sum()
    if not total:
        return 0.0
    shares = singular_values[singular_values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def frobenius(singular_values: DoubleArray) -> float:
    """‖ΔW‖."""
    return float(np.linalg.norm(singular_values))


@dataclass(frozen=True)
class Relation:
    """Two updates of one weight: ‖ΔW₁‖, ‖ΔW₂‖, ⟨ΔW₁, ΔW₂⟩ and ‖ΔW₁ - ΔW₂‖."""

    norms: tuple[float, float]
    inner_product: float
    distance: float


def relate(first: Update, second: Update) -> Relation:
    """Compare two updates of one shape.

    One QR decomposition of both factors side by side gives both in one small basis, where they can be subtracted: from
    norms and inner product alone, the distance of near equals would cancel.
    """
    rank = len(first.a)
    triangle_a = np.linalg.qr(np.concatenate([first.a, second.a]).T.astype(np.float64), mode="r")
    sides = (side.b.astype(np.float64) * side.scale for side in (first, second))
    triangle_b = np.linalg.qr(np.concatenate(list(sides), axis=1), mode="r")
    one = triangle_b[:, :rank] @ triangle_a[:, :rank].T
    other = triangle_b[:, rank:] @ triangle_a[:, rank:].T
    norms = float(np.linalg.norm(one)), float(np.linalg.norm(other))
    return Relation(norms, float((one * other).sum()), float(np.linalg.norm(one - other)))


def _product_singular_values(a: DoubleArray, b: DoubleArray) -> DoubleArray:
    """Of b·a, from the triangles of their QR decompositions: b·a = Q_b (R_b R_aᵀ) Q_aᵀ."""
    triangle_a = np.linalg.qr(a.T, mode="r")
    triangle_b = np.linalg.qr(b, mode="r")
    values: DoubleArray = np.linalg.svd(triangle_b @ triangle_a.T, compute_uv=False)
    return values
