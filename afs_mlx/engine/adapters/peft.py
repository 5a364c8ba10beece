"""PEFT LoRA → MLX adapter: A and B transposed, one rank, one scale, zeros where a block of the range was not trained.

The base is read for its shapes; whether its lineage is right is the caller's question (`base_name` in the report).
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from afs_mlx.core.errors import AfsError, MissingError, problems
from afs_mlx.engine.adapters.format import (
    BLOCK,
    CONFIG,
    WEIGHTS,
    AdapterBase,
    AdapterConfig,
    AdapterFacts,
    LoraParameters,
    fit_problems,
    write_adapter,
)
from afs_mlx.engine.adapters.linears import BaseLinears, base_linears, wrong_base
from afs_mlx.engine.adapters.peft_config import PeftLora, read_peft_config
from afs_mlx.engine.adapters.tensors import FloatArray, Tensor, read_tensors

PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_PICKLE = "adapter_model.bin"
FIX = "copy or download the adapter's folder again"
# Saved by save_pretrained without, from a raw state dict with the adapter's name before `.weight`.
KEY = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
KNOWN_STRANGERS = {
    "lora_magnitude_vector": "DoRA's magnitudes",
    "lora_embedding_": "a LoRA on embeddings",
    "modules_to_save": "a whole module trained beside the LoRA",
    "embed_tokens": "whole embeddings saved beside the LoRA",
    "lm_head.weight": "a whole output layer saved beside the LoRA",
    ".bias": "a bias",
}


@dataclass(frozen=True)
class ConvertReport:
    """What was converted. `targets` are paths within a block, `layers` the blocks that were trained.

    `zero_filled` counts layers inside the range mlx-lm wraps that PEFT did not train; `largest_delta` is the largest
    |scale · B·A| of any weight, in `largest_delta_at`.
    """

    rank: int
    alpha: float
    scale: float
    rslora: bool
    dropout: float
    targets: tuple[str, ...]
    layers: tuple[int, ...]
    base_layers: int
    tensors: int
    parameters: int
    zero_filled: int
    dtypes: tuple[str, ...]
    base_name: str
    peft_version: str
    largest_delta: float
    largest_delta_at: str


def convert_peft(
    peft_folder: Path, base_folder: Path, out: Path, *, base: AdapterBase | None = None, expert: str = ""
) -> ConvertReport:
    """Convert a PEFT LoRA folder into an MLX adapter folder for the model in `base_folder`.

    `base` is what the caller knows of that model (id, lineage, hash), noted in the adapter with its sizes.
    Raises AfsError listing every problem of the config or of the weights; nothing is written then.
    """
    if any((out / name).exists() for name in (CONFIG, WEIGHTS)):
        raise AfsError("an adapter is already there", str(out), "give another folder, or remove that one")
    settings = read_peft_config(peft_folder)
    path = peft_folder / PEFT_WEIGHTS
    tensors = _read_weights(peft_folder)
    linears = base_linears(base_folder)
    sides = _sides(tensors, settings, path)
    shapes = {name: (b.shape[0], a.shape[1]) for name, (a, b) in sides.items()}
    if found := [*fit_problems(shapes, linears), *_coverage_problems(set(sides), settings, linears)]:
        raise wrong_base(found, "the adapter does not fit this base", path, linears)

    converted, config = _converted(sides, settings, linears)
    known = base or AdapterBase(id=base_folder.name)
    facts = AdapterFacts(
        base=known.model_copy(update={"shapes": linears.identity}),
        alpha=settings.alpha,
        expert=expert,
        origin=f"PEFT {settings.peft_version}".strip(),
    )
    largest, largest_at = _largest_delta(sides)
    write_adapter(out, converted, config.model_copy(update={"afs": facts}))
    blocks = [block for name in sides if (block := BLOCK.fullmatch(name))]
    return ConvertReport(
        rank=settings.rank,
        alpha=settings.alpha,
        scale=settings.scale,
        rslora=settings.rslora,
        dropout=settings.dropout,
        targets=config.lora_parameters.keys or (),
        layers=tuple(sorted({int(block["layer"]) for block in blocks})),
        base_layers=linears.layers,
        tensors=len(tensors),
        parameters=sum(tensor.size for tensor in tensors.values()),
        zero_filled=len(converted) // 2 - len(sides),
        dtypes=tuple(sorted({tensor.dtype for tensor in tensors.values()})),
        base_name=settings.base_name,
        peft_version=settings.peft_version,
        largest_delta=largest * abs(settings.scale),
        largest_delta_at=largest_at,
    )


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if (folder / PEFT_PICKLE).exists() and not (folder / PEFT_WEIGHTS).exists():
        raise AfsError(
            "the weights are a pickle, which can run any program when it is opened",
            str(folder / PEFT_PICKLE),
            "where you trust it, load it with PEFT and call save_pretrained(folder, safe_serialization=True)",
        )
    if not (folder / PEFT_WEIGHTS).exists():
        partial = sorted(file.name for file in folder.glob("*") if file.suffix in (".incomplete", ".part", ".tmp"))
        found = f"half a download: only {', '.join(partial)}" if partial else f"it has no {PEFT_WEIGHTS}"
        raise MissingError(found, str(folder), FIX)
    return read_tensors(folder / PEFT_WEIGHTS, FIX)


type Sides = dict[str, tuple[FloatArray, FloatArray]]


def _sides(tensors: dict[str, Tensor], settings: PeftLora, where: Path) -> Sides:
    """Each adapted layer's A (r, in) and B (out, r) as float32, by its path in the model; raises with every problem."""
    named: dict[str, dict[str, Tensor]] = {}
    adapters = set()
    found = [] if tensors else ["it holds no tensors"]
    for name, tensor in tensors.items():
        match = KEY.fullmatch(name)
        if match is None:
            reason = next((reason for part, reason in KNOWN_STRANGERS.items() if part in name), "not a LoRA weight")
            found.append(f"{name}: unknown key, {reason}")
            continue
        if problem := tensor.problem():
            found.append(f"{name}: {problem}")
        adapters.add(match["adapter"] or "(no name)")
        named.setdefault(match["path"], {})[match["side"]] = tensor
    if len(adapters) > 1:
        found.append(f"several adapters in one file: {', '.join(sorted(adapters))}; save one of them alone")
    for path, sides in named.items():
        found += _side_problems(path, sides, settings.rank)
    if found:
        raise problems(
            found, "these weights cannot be converted", str(where), f"save it again as a plain LoRA, or {FIX}"
        )
    return {path: (sides["A"].floats(), sides["B"].floats()) for path, sides in named.items()}


def _side_problems(path: str, sides: dict[str, Tensor], rank: int) -> list[str]:
    """A pair must be complete, two-dimensional and of the config's rank."""
    if len(sides) != 2:
        (side,) = sides
        return [f"{path}: only lora_{side}, half a download"]
    a, b = sides["A"].shape, sides["B"].shape
    if len(a) == 2 and len(b) == 2 and a[0] == rank and b[1] == rank:
        return []
    return [f"{path}: lora_A {list(a)} and lora_B {list(b)} are not ({rank}, in) and (out, {rank}), r being {rank}"]


def _coverage_problems(paths: set[str], settings: PeftLora, base: BaseLinears) -> list[str]:
    """Where the file and the config's targets disagree in this base; a regex or exclusions leave it to the file."""
    if settings.excludes or (isinstance(settings.targets, str) and settings.targets != "all-linear"):
        return []
    targets = {path for path in base.shapes if _is_target(path, settings)}
    return [
        *(f"{path}: a target by the config, and not in the file" for path in base.shapes if path in targets - paths),
        *(f"{path}: no target by the config, PEFT would ignore it" for path in base.shapes if path in paths - targets),
    ]


def _is_target(path: str, settings: PeftLora) -> bool:
    """PEFT's rule for names: a whole path, or its end in the listed blocks; "all-linear" omits the output layer."""
    block = BLOCK.fullmatch(path)
    if isinstance(settings.targets, str):
        return path != "lm_head"
    if path in settings.targets:
        return True
    if settings.layers is not None and (block is None or int(block["layer"]) not in settings.layers):
        return False
    return any(path.endswith(f".{target}") for target in settings.targets)


def _converted(sides: Sides, settings: PeftLora, base: BaseLinears) -> tuple[dict[str, FloatArray], AdapterConfig]:
    """MLX's tensors and config.

    mlx-lm wraps every key in each of the last `num_layers` blocks. What was not trained there gets zero a and b, which
    also have no gradient, so that it stays untrained if training goes on.
    """
    blocks = {path: block for path in sides if (block := BLOCK.fullmatch(path))}
    keys = sorted({block["key"] for block in blocks.values()})
    first = min((int(block["layer"]) for block in blocks.values()), default=base.layers - 1)
    tensors: dict[str, FloatArray] = {}
    for path, (outputs, inputs) in base.shapes.items():
        block = BLOCK.fullmatch(path)
        if path in sides:
            a, b = sides[path]
            tensors |= {f"{path}.lora_a": a.T, f"{path}.lora_b": b.T}
        elif block and block["key"] in keys and int(block["layer"]) >= first:
            tensors[f"{path}.lora_a"] = np.zeros((inputs, settings.rank), np.float32)
            tensors[f"{path}.lora_b"] = np.zeros((settings.rank, outputs), np.float32)
    parameters = LoraParameters(
        rank=settings.rank,
        scale=settings.scale,
        dropout=settings.dropout,
        keys=tuple(keys + sorted(path for path in sides if path not in blocks)),
    )
    return tensors, AdapterConfig(num_layers=base.layers - first, lora_parameters=parameters)


def _largest_delta(sides: Sides) -> tuple[float, str]:
    """The largest |B·A| of all layers, A (r, in) and B (out, r), and its layer.

    |B·A| at (i, j) is at most ‖B_i‖·‖A_j‖. One good candidate from each layer rules out nearly all rows and columns, so
    that a 7B adapter takes a second; 256 rows at a time, so that no whole weight is ever held.
    """
    norms = {path: (np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=1)) for path, (a, b) in sides.items()}
    best, best_at = 0.0, min(sides)
    for path, (a, b) in sides.items():
        columns, rows = norms[path]
        candidate = max(float(np.abs(b[rows.argmax()] @ a).max()), float(np.abs(b @ a[:, columns.argmax()]).max()))
        best, best_at = max((best, best_at), (candidate, path))
    for path, (a, b) in sides.items():
        columns, rows = norms[path]
        a, b = a[:, columns * rows.max() > best], b[rows * columns.max() > best]  # noqa: PLW2901  # what is left of them
        for row in range(0, len(b) if a.size else 0, 256):
            product = b[row : row + 256] @ a
            best, best_at = max((best, best_at), (max(float(product.max()), -float(product.min())), path))
    return best, best_at
