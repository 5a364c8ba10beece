"""What an adapter makes of a weight, in float32. Knows nothing of bits and files."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear
from mlx_lm.utils import load_adapters

from afs_mlx.core.errors import problems
from afs_mlx.engine.adapters.format import FIX, WEIGHTS, AdapterConfig
from afs_mlx.engine.adapters.tensors import NUMPY_FLOATS, Tensor, read_tensors

type Floats = np.ndarray[Any, np.dtype[np.float32]]

KNOWN = (LoRALinear, DoRALinear, LoRAEmbedding, DoRAEmbedding)


class Change(Protocol):
    """What becomes of one weight (out, in). `directions` (in, r), orthonormal, are the inputs that ΔW reads.

    `low_rank` says whether ΔW reads nothing else.
    """

    @property
    def is_zero(self) -> bool: ...
    @property
    def low_rank(self) -> bool: ...
    @property
    def directions(self) -> Floats: ...
    def added(self, weight: Floats, rows: slice) -> Floats: ...


@dataclass(frozen=True)
class Update:
    """`left` (out, r) · `right` (r, in), with DoRA also the `magnitude` (out,) that each row is brought to."""

    left: Floats
    right: Floats
    magnitude: Floats | None = None

    @property
    def is_zero(self) -> bool:
        """Whether the weight stays as it is; converted adapters hold such layers."""
        return self.magnitude is None and not (self.left.any() and self.right.any())

    @property
    def low_rank(self) -> bool:
        """DoRA changes the length of whole rows."""
        return self.magnitude is None

    @property
    def directions(self) -> Floats:
        """By QR of the factor that meets the inputs."""
        return np.ascontiguousarray(np.linalg.qr(self.right.T)[0], dtype=np.float32)

    def added(self, weight: Floats, rows: slice) -> Floats:
        """The chosen rows of the new weight: W + ΔW, with DoRA m · (W + ΔW) / ‖W + ΔW‖ by row (Liu et al. 2024)."""
        total = weight + self.left[rows] @ self.right
        if self.magnitude is not None:
            with np.errstate(divide="ignore", invalid="ignore"):  # a row of zeros: found as NaN later
                total *= (self.magnitude[rows] / np.linalg.norm(total, axis=1))[:, None]
        return total


@dataclass(frozen=True)
class Whole:
    """A weight that was trained whole, read when it is needed."""

    tensor: Tensor
    is_zero: bool = False
    low_rank: bool = False

    @property
    def directions(self) -> Floats:
        """None are known."""
        return np.zeros((self.tensor.shape[-1], 0), np.float32)

    def added(self, weight: Floats, rows: slice) -> Floats:
        """The chosen rows, whatever the base's are."""
        start, stop, _ = rows.indices(self.tensor.shape[0])
        columns = self.tensor.shape[1]
        offset = self.tensor.offset + start * columns * np.dtype(NUMPY_FLOATS[self.tensor.dtype]).itemsize
        return replace(self.tensor, shape=(stop - start, columns), offset=offset).floats()


def changes(model: nn.Module, adapter: Path) -> tuple[dict[str, Change], dict[str, Tensor]]:
    """What a checked adapter folder makes of a model: changed weights by their layer's path, and whole vectors by name.

    The model is left as it is. Raises AfsError that lists the layers of a kind that is not fused.
    """
    config = AdapterConfig.read(adapter, full=True)
    if config.fine_tune_type == "full":
        tensors = read_tensors(adapter / WEIGHTS, FIX)
        matrices = {n: t for n, t in tensors.items() if n.endswith(".weight") and len(t.shape) == 2}
        whole: dict[str, Change] = {name.removesuffix(".weight"): Whole(t) for name, t in matrices.items()}
        return whole, {name: tensor for name, tensor in tensors.items() if name not in matrices}
    load_adapters(model, str(adapter))
    wrapped = {path: module for path, module in model.named_modules() if hasattr(module, "fuse")}
    if strange := [f"{path}: {type(m).__name__}" for path, m in wrapped.items() if not isinstance(m, KNOWN)]:
        raise problems(strange, "layers of a kind that is not fused", str(adapter), "use the adapter beside its base")
    updates: dict[str, Change] = {path: _update(module) for path, module in wrapped.items()}
    model.update_modules(tree_unflatten([(path, _inner(module)) for path, module in wrapped.items()]))
    return updates, {}


def _update(module: nn.Module) -> Update:
    a, b = (np.array(module[name].astype(mx.float32)) for name in ("lora_a", "lora_b"))
    left, right = (a, b) if isinstance(module, LoRAEmbedding | DoRAEmbedding) else (b.T, a.T)
    magnitude = np.array(module["m"].astype(mx.float32)) if "m" in module else None
    return Update(np.float32(module.scale) * left, right, magnitude)


def _inner(module: nn.Module) -> nn.Module:
    inner: nn.Module = module["linear"] if "linear" in module else module["embedding"]
    return inner
