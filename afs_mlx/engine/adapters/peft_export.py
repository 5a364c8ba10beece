"""MLX adapter → PEFT folder: a and b transposed back, one type for each kind of tensor, targets that match exactly.

Nothing is rounded: what PEFT saved in 16 bits and `convert` widened is written in the same 16 bits again. The config
holds only what PEFT has known for long: an older PEFT stops at keys it does not know, a newer one needs no others.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from afs_mlx.core.errors import problems
from afs_mlx.core.files import atomic_path, write_json
from afs_mlx.engine.adapters.format import CONFIG
from afs_mlx.engine.adapters.inspection import Adapter, Layer, place
from afs_mlx.engine.adapters.layouts import LAYOUTS, LEAVES, PEFT_PREFIX, Layout, layout_of
from afs_mlx.engine.adapters.tensors import FloatArray

PEFT_WEIGHTS = "adapter_model.safetensors"
KINDS = tuple(leaf.peft for leaf in LEAVES)  # A, B and DoRA's magnitudes: how PEFT's keys end
WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}


@dataclass(frozen=True)
class ExportReport:
    """What was written. `layers` is how many were adapted; `left_out` those that are zero and need no tensor in PEFT.

    `blocks` is None where the targets alone say which blocks are adapted.
    """

    rank: int
    alpha: float
    scale: float
    rslora: bool
    dora: bool
    targets: tuple[str, ...]
    blocks: tuple[int, ...] | None
    layers: int
    left_out: int
    parameters: int
    dtypes: tuple[str, ...]


def export_peft(adapter: Adapter, out: Path, base_name: str) -> ExportReport:
    """Write an MLX adapter as adapter_config.json and adapter_model.safetensors into the folder `out`.

    Raises AfsError that lists every layer PEFT cannot hold; nothing is written then.
    """
    layout = _layout(adapter)
    layers, dtypes = _kept(adapter)
    alpha, rslora = _alpha(adapter)
    targets, blocks = _targets(adapter, list(layers), layout)
    config: dict[str, Any] = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base_name or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None if blocks is None else "layers",
        "layers_to_transform": None if blocks is None else list(blocks),
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": adapter.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": adapter.rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": list(targets),
        "task_type": "CAUSAL_LM",
        "use_dora": adapter.dora,
        "use_rslora": rslora,
    }
    # Nested, so that both are complete before either gets its name.
    with atomic_path(out / CONFIG) as config_path, atomic_path(out / PEFT_WEIGHTS) as weights_path:
        write_json(config_path, config)
        _write(weights_path, {layout.to_peft(path): layer for path, layer in layers.items()}, dtypes)
    return ExportReport(
        rank=adapter.rank,
        alpha=alpha,
        scale=adapter.scale,
        rslora=rslora,
        dora=adapter.dora,
        targets=targets,
        blocks=blocks,
        layers=len(layers),
        left_out=len(adapter.layers) - len(layers),
        parameters=sum(math.prod(shape) for layer in layers.values() for shape in _shapes(layer).values()),
        dtypes=tuple(sorted(set(dtypes.values()))),
    )


def _layout(adapter: Adapter) -> Layout:
    """The table of the base's family: by its recorded type, else by the layers' names, which then must all be known."""
    model_type = adapter.base.shapes.get("model_type")
    known = [layout_of(str(model_type), str(adapter.folder))] if model_type else LAYOUTS
    strangers = [[path for path in adapter.layers if not layout.is_linear(path)] for layout in known]
    best, found = min(zip(known, strangers, strict=True), key=lambda pair: len(pair[1]))
    if found:
        lines = [f"{path}: no linear layer of {', '.join(best.model_types)} models" for path in found]
        fix = "train it without these, or add their names to afs_mlx/engine/adapters/layouts.py"
        raise problems(lines, "this adapter cannot be written for PEFT", str(adapter.folder), fix)
    return best


def _kept(adapter: Adapter) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers to write, and for each kind of tensor the narrowest type that holds all its numbers exactly.

    Left out is what `convert` filled in or nothing ever touched: a and b zero, with DoRA no magnitudes of its own.
    """
    fits = {kind: dict.fromkeys(WIDTHS, True) for kind in KINDS}
    kept: dict[str, Layer] = {}
    found = [] if adapter.scale else ["scale is 0: the adapter changes nothing"]
    for path, layer in adapter.layers.items():
        arrays = _arrays(layer)
        if not any(array.any() for array in arrays.values()):
            continue
        if adapter.dora and layer.magnitude is None:
            if arrays["lora_B.weight"].any():
                found.append(f"{path}: its magnitudes are missing")
            continue
        kept[path] = layer
        for kind, array in arrays.items():
            fits[kind]["BF16"] &= not (array.view(np.uint32) & 0xFFFF).any()
            with np.errstate(over="ignore"):
                fits[kind]["F16"] &= np.array_equal(array, array.astype(np.float16).astype(np.float32))
    if not kept and not found:
        found.append("every layer is zero: nothing was trained")
    if found:
        raise problems(found, "this adapter cannot be written for PEFT", str(adapter.folder), "train another adapter")
    kinds = KINDS if adapter.dora else KINDS[:2]
    return kept, {kind: next(dtype for dtype in WIDTHS if fits[kind][dtype]) for kind in kinds}


def _alpha(adapter: Adapter) -> tuple[float, bool]:
    """alpha and rsLoRA so that PEFT computes the adapter's scale, as they were noted where that is so."""
    divisor = math.sqrt(adapter.rank) if adapter.rslora else adapter.rank
    guess = adapter.alpha if math.isclose(adapter.alpha / divisor, adapter.scale, rel_tol=1e-9) else math.nan
    product = adapter.scale * divisor
    near = (
        guess,
        float(round(product)),
        product,
        math.nextafter(product, -math.inf),
        math.nextafter(product, math.inf),
    )
    exact = next((alpha for alpha in near if alpha / divisor == adapter.scale), product)
    return exact, adapter.rslora


def _targets(adapter: Adapter, paths: list[str], layout: Layout) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """target_modules and layers_to_transform that match `paths` and nothing else in the model.

    Where every adapted block has the same layers these are their names; else, and outside the blocks, whole paths.
    """
    by_block: dict[int, set[str]] = {}
    outside = []
    for path in paths:
        block, name = place(path)
        if block is None:
            outside.append(layout.to_peft(path))
        else:
            by_block.setdefault(block, set()).add(name)
    names = set().union(*by_block.values())
    if any(found != names for found in by_block.values()):
        return tuple(layout.to_peft(path) for path in paths), None
    blocks = tuple(sorted(by_block))
    all_blocks = len(blocks) in (0, _block_count(adapter))
    return (*sorted(_short(name, layout) for name in names), *outside), None if all_blocks else blocks


def _short(name: str, layout: Layout) -> str:
    """A layer's last name, as people write targets, where no other layer of a block ends in it."""
    last = name.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in layout.linears) == 1 else name


def _block_count(adapter: Adapter) -> int:
    """The model's, as far as the adapter tells: mlx-lm always wraps up to the last block."""
    noted = adapter.base.shapes.get("num_hidden_layers")
    return max(noted if isinstance(noted, int) else 0, max(adapter.blocks, default=-1) + 1)


def _arrays(layer: Layer) -> dict[str, FloatArray]:
    """By the end of PEFT's key, contiguous: the memory is written as it lies."""
    update = layer.read()
    arrays = dict(zip(KINDS, (update.a, update.b, update.magnitude), strict=True))
    return {kind: np.ascontiguousarray(array) for kind, array in arrays.items() if array is not None}


def _shapes(layer: Layer) -> dict[str, tuple[int, ...]]:
    out, inputs = layer.shape
    shapes: dict[str, tuple[int, ...]] = {KINDS[0]: (layer.rank, inputs), KINDS[1]: (out, layer.rank)}
    return shapes if layer.magnitude is None else shapes | {KINDS[2]: (out,)}


def _write(path: Path, layers: dict[str, Layer], dtypes: dict[str, str]) -> None:
    """Safetensors, one layer in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, layer in layers.items():
        for kind, shape in _shapes(layer).items():
            start, end = end, end + math.prod(shape) * WIDTHS[dtypes[kind]]
            key = f"{PEFT_PREFIX}{name}.{kind}"
            header[key] = {"dtype": dtypes[kind], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers start aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in _encoded(layers, dtypes):
            file.write(part)


def _encoded(layers: dict[str, Layer], dtypes: dict[str, str]) -> Iterator[bytes]:
    for layer in layers.values():
        for kind, array in _arrays(layer).items():
            if dtypes[kind] == "BF16":
                yield (array.view(np.uint32) >> 16).astype("<u2").tobytes()
            else:
                yield array.astype("<f2" if dtypes[kind] == "F16" else "<f4", copy=False).tobytes()
