"""PEFT LoRA or DoRA → MLX adapter: A and B transposed, one rank, one scale, zeros where a block was not trained.

The base is read for its shapes; whether its lineage is right is the caller's question (`base_name` in the report).
Tensors pass one at a time: the memory it takes is that of the largest one.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from afs_mlx.core.errors import AfsError, problems
from afs_mlx.engine.adapters.format import (
    BLOCK,
    CONFIG,
    WEIGHTS,
    AdapterBase,
    AdapterConfig,
    AdapterFacts,
    LoraParameters,
    dora_problems,
    fit_problems,
    stream_adapter,
)
from afs_mlx.engine.adapters.layouts import LEAVES, Layout, layout_of
from afs_mlx.engine.adapters.linears import BaseLinears, base_linears, wrong_base
from afs_mlx.engine.adapters.peft_files import FIX
from afs_mlx.engine.adapters.peft_reading import PeftAdapter, PeftLayer, attempt, merged, read_peft
from afs_mlx.engine.adapters.peft_targets import is_all_linear, target_paths
from afs_mlx.engine.adapters.tensors import FloatArray, not_finite
from afs_mlx.engine.adapters.whole_weights import carry_problems, needs_whole_weights, whole_arrays, whole_weights


@dataclass(frozen=True)
class ConvertReport:
    """What was converted. `targets` are paths within a block, `layers` the blocks that were trained.

    `zero_filled` counts layers inside the range mlx-lm wraps that PEFT did not train, `folded` those whose own rank was
    padded with zeros or whose own scale went into b. `others` are adapters of the same folder that were not meant.
    """

    kind: str
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
    folded: int
    dtypes: tuple[str, ...]
    base_name: str
    peft_version: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    """What is written: the config, each layer by its path in mlx-lm (None: zeros), each tensor's shape by name."""

    config: AdapterConfig
    layers: dict[str, PeftLayer | None]
    shapes: dict[str, tuple[int, ...]]
    folded: int


def convert_peft(
    peft_folder: Path,
    base_folder: Path,
    out: Path,
    *,
    base: AdapterBase | None = None,
    expert: str = "",
    adapter: str = "",
) -> ConvertReport:
    """Convert a PEFT folder into an MLX adapter folder for the model in `base_folder`.

    `base` is what the caller knows of that model (id, lineage, hash), noted in the result with its sizes; `adapter`
    names one of several. Raises AfsError listing every problem of config and weights; nothing is written then.
    """
    if any((out / name).exists() for name in (CONFIG, WEIGHTS)):
        raise AfsError("an adapter is already there", str(out), "give another folder, or remove that one")
    errors: list[AfsError] = []
    linears = attempt(lambda: base_linears(base_folder), errors)
    source = attempt(lambda: read_peft(peft_folder, adapter), errors)
    if linears is None or source is None:
        raise merged(errors)
    layout = layout_of(str(linears.identity["model_type"]), str(base_folder))
    if found := _fit_problems(source, linears, layout):
        raise wrong_base(found + source.bad_numbers(), "the adapter does not fit this base", source.folder, linears)
    plan = _plan(source, linears, layout)
    shapes, arrays, kind = _output(source, linears, layout, plan)
    known = base or AdapterBase(id=base_folder.name)
    uniform = not plan.folded
    facts = AdapterFacts(
        base=known.model_copy(update={"shapes": linears.identity}),
        alpha=_alpha(source) if uniform else plan.config.lora_parameters.scale * plan.config.lora_parameters.rank,
        rslora=source.settings.rslora and uniform,
        expert=expert,
        origin=f"PEFT {source.settings.peft_version}".strip(),
    )
    config = plan.config.model_copy(update={"afs": facts, "fine_tune_type": kind})
    existed = out.exists()
    try:
        stream_adapter(out, shapes, arrays, config)
    except BaseException:
        if not existed and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        raise
    return _report(source, linears, config, plan)


def _output(
    source: PeftAdapter, base: BaseLinears, layout: Layout, plan: _Plan
) -> tuple[dict[str, tuple[int, ...]], Iterator[FloatArray], str]:
    """The shapes and the numbers to write, and the kind of folder: factors, or whole weights where it takes those."""
    if needs_whole_weights(source):
        weights = whole_weights(source, base, layout)
        return {name: weight.shape for name, weight in weights.items()}, whole_arrays(weights, source.folder), "full"
    return plan.shapes, _arrays(plan, source.folder), plan.config.fine_tune_type


def _fit_problems(source: PeftAdapter, base: BaseLinears, layout: Layout) -> list[str]:
    """What keeps the adapter from this base: strange layers and shapes, and targets that the file does not cover."""
    strange = [path for path in source.layers if not layout.is_linear(layout.to_mlx(path))]
    known = {layout.to_mlx(path): layer for path, layer in source.layers.items() if path not in strange}
    found = [f"{path}: no linear layer of models of type {base.identity['model_type']}" for path in strange]
    found += fit_problems({path: layer.shape for path, layer in known.items()}, base)
    if needs_whole_weights(source):
        found += carry_problems(source, base, layout) if not found else []
    elif source.settings.dora:
        found += dora_problems(known, base)
    names = [layout.to_peft(path) for path in (*base.shapes, *layout.embeddings)]
    targets = target_paths(source.settings, names, source.folder) - _embeddings_of_all(source, layout)
    adapted = source.layers.keys() | source.embeddings.keys()
    for path in names:
        if path in targets and path not in adapted:
            found.append(f"{path}: a target by the config, and not in the file")
        elif path in adapted and path not in targets:
            found.append(f"{path}: no target by the config, PEFT would ignore it")
    return found


def _embeddings_of_all(source: PeftAdapter, layout: Layout) -> set[str]:
    """The embeddings where the targets are all linear layers, of which they are none."""
    return set(map(layout.to_peft, layout.embeddings)) if is_all_linear(source.settings) else set()


def _plan(source: PeftAdapter, base: BaseLinears, layout: Layout) -> _Plan:
    """MLX's tensors and config.

    mlx-lm wraps every key in each of the last `num_layers` blocks. What was not trained there gets zero a and b, which
    also have no gradient, so that it stays untrained if training goes on. Its one scale is that of most layers.
    """
    trained = {layout.to_mlx(path): layer for path, layer in source.layers.items()}
    blocks = {path: block for path in trained if (block := BLOCK.fullmatch(path))}
    keys = sorted({block["key"] for block in blocks.values()})
    first = min((int(block["layer"]) for block in blocks.values()), default=base.layers - 1)
    rank = max((layer.rank for layer in trained.values()), default=source.settings.rank)
    scales = Counter(layer.scale for layer in trained.values()) or {source.settings.scale: 1}
    scale = max(scales, key=lambda scale: scales[scale])
    layers: dict[str, PeftLayer | None] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path, (outputs, inputs) in base.shapes.items():
        block = BLOCK.fullmatch(path)
        if path in trained or (block and block["key"] in keys and int(block["layer"]) >= first):
            layer = layers[path] = trained.get(path)
            sizes = {"lora_a": (inputs, rank), "lora_b": (rank, outputs), "m": (outputs,)}
            # Without an m, mlx-lm takes the base's own lengths.
            leaves = [leaf.mlx for leaf in LEAVES if leaf.mlx != "m" or (layer and layer.magnitude)]
            shapes |= {f"{path}.{leaf}": sizes[leaf] for leaf in leaves}
    parameters = LoraParameters(
        rank=rank,
        scale=scale,
        dropout=source.settings.dropout,
        keys=tuple(keys + sorted(path for path in trained if path not in blocks)),
    )
    config = AdapterConfig(
        fine_tune_type="dora" if source.settings.dora else "lora",
        num_layers=base.layers - first,
        lora_parameters=parameters,
    )
    return _Plan(config, layers, shapes, sum((x.rank, x.scale) != (rank, scale) for x in trained.values()))


def _arrays(plan: _Plan, where: Path) -> Iterator[FloatArray]:
    """Each tensor in the order of `plan.shapes`; raises after the last one if any holds NaN or infinities."""
    scale = plan.config.lora_parameters.scale
    found = []
    for name, shape in plan.shapes.items():
        path, _, leaf = name.rpartition(".")
        layer = plan.layers[path]
        if layer is None:
            yield np.zeros(shape, np.float32)
            continue
        tensor = {"lora_a": layer.a, "lora_b": layer.b, "m": layer.magnitude}[leaf]
        assert tensor is not None
        array = tensor.floats()
        if leaf == "lora_b" and layer.scale != scale:
            with np.errstate(over="ignore"):
                array = array * np.float32(layer.scale / scale)
        if problem := not_finite(array):
            found.append(f"{path}.{leaf}: {problem}")
        yield _padded(array.T, shape)
    if found:
        raise problems(found, "these weights cannot be converted", str(where), FIX)


def _padded(array: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """The array in the corner of zeros, where its own rank is smaller."""
    if array.shape == shape:
        return array
    padded = np.zeros(shape, np.float32)
    padded[tuple(slice(side) for side in array.shape)] = array
    return padded


def _alpha(source: PeftAdapter) -> float:
    """The alpha of all layers, where all have the same rank and scale."""
    return next((layer.alpha for layer in source.layers.values()), source.settings.alpha)


def _report(source: PeftAdapter, base: BaseLinears, config: AdapterConfig, plan: _Plan) -> ConvertReport:
    settings, parameters = source.settings, config.lora_parameters
    blocks = [block for path in source.layers if (block := BLOCK.fullmatch(path))]
    return ConvertReport(
        kind=config.fine_tune_type,
        rank=parameters.rank,
        alpha=config.alpha,
        scale=parameters.scale,
        rslora=settings.rslora,
        dropout=settings.dropout,
        targets=parameters.keys or (),
        layers=tuple(sorted({int(block["layer"]) for block in blocks})),
        base_layers=base.layers,
        tensors=len(source.tensors),
        parameters=sum(tensor.size for tensor in source.tensors),
        zero_filled=sum(layer is None for layer in plan.layers.values()),
        folded=plan.folded,
        dtypes=tuple(sorted({tensor.dtype for tensor in source.tensors})),
        base_name=settings.base_name,
        peft_version=settings.peft_version,
        others=source.others,
    )
