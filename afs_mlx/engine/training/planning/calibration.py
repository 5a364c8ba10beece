"""What a probe measured, and the factors that follow from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.training.planning.costs import Parts, frozen_work, held, work
from afs_mlx.engine.training.planning.fitting import MEMORY_DOUBT, TIME_DOUBT, fitted
from afs_mlx.engine.training.planning.shapes import BatchShape, Columns, ModelShape
from afs_mlx.schema.recipe import Recipe

PROCESS_BYTES = 400_000_000  # Python and the libraries; measured by the probe


@dataclass(frozen=True)
class Measured:
    """One micro-batch, second time round (the first makes buffers and compiles).

    `extra_bytes` is the peak during it minus what was held before it. `training` false is a forward pass alone.
    """

    batch: BatchShape
    seconds: float
    extra_bytes: int
    training: bool = True


@dataclass(frozen=True)
class FrozenPass:
    """The frozen blocks run over some groups of rows, and the time."""

    groups: tuple[BatchShape, ...]
    seconds: float


@dataclass(frozen=True)
class Probe:
    """Measurements of one recipe.

    `resident_bytes` is what stays between steps: weights, adapters, optimizer state, best weights and the last good
    state, and nothing that is kept of frozen blocks; it holds `copies` of the adapter in all. `process_bytes` is what
    the process takes beside mlx's arrays. `prompt_s` is the time of a question before a sample answer's first token,
    `sample_token_s` of a further token, `checkpoint_s` of saving a checkpoint, `update_s` of an optimizer update.
    """

    recipe: Recipe
    resident_bytes: int
    steps: tuple[Measured, ...]
    frozen: FrozenPass | None = None
    process_bytes: int = PROCESS_BYTES
    copies: float = 7.0
    prompt_s: float = 0.0
    sample_token_s: float = 0.0
    checkpoint_s: float = 0.0
    update_s: float = 0.0


@dataclass(frozen=True)
class Calibration:
    """Seconds per counted operation and bytes per counted byte, by part."""

    seconds: dict[str, float]
    bytes: dict[str, float]


def calibrate(model: ModelShape, probe: Probe) -> Calibration:
    """Fit the counts to the probe. Raises AfsError when it holds no step, or one that took no time."""
    probe = replace(probe, recipe=model.applied(probe.recipe))
    if not probe.steps or any(not 0 < step.seconds < math.inf for step in probe.steps):
        raise AfsError("the probe measured nothing", "--plan", "run it again, with rows that can be trained")
    counted = [_at(step, model, probe.recipe) for step in probe.steps]
    # One speed for all first, the geometric mean: then each part's factor says how far it is from that.
    ratios = [step.seconds / sum(parts.values()) for step, (parts, _) in zip(probe.steps, counted, strict=True)]
    speed = math.exp(sum(map(math.log, ratios)) / len(ratios))
    scaled = [{name: amount * speed for name, amount in parts.items()} for parts, _ in counted]
    factors = fitted(scaled, [step.seconds for step in probe.steps], TIME_DOUBT)
    sized = [
        (parts, step.extra_bytes) for step, (_, parts) in zip(probe.steps, counted, strict=True) if step.extra_bytes > 0
    ]
    sizes = fitted([parts for parts, _ in sized], [size for _, size in sized], MEMORY_DOUBT) if sized else {}
    return Calibration({name: factor * speed for name, factor in factors.items()}, sizes)


def _at(step: Measured, model: ModelShape, recipe: Recipe) -> tuple[dict[str, float], dict[str, float]]:
    columns = Columns.of([step.batch], recipe)
    counts = work(columns, model, recipe, training=step.training), held(columns, model, recipe, training=step.training)
    times, sizes = ({name: float(column[0]) for name, column in parts.items()} for parts in counts)
    return times, sizes


def weighed(parts: dict[str, float], factors: dict[str, float]) -> dict[str, float]:
    """Counts times factors; a part that nobody measured keeps its count."""
    return {name: amount * factors.get(name, 1.0) for name, amount in parts.items()}


def frozen_seconds(
    groups: Sequence[BatchShape], model: ModelShape, recipe: Recipe, probe: Probe, calibration: Calibration
) -> float:
    """The time of running the blocks below the adapted ones once over `groups`."""
    factor = 1.0
    if probe.frozen:
        foreseen = _frozen_sum(probe.frozen.groups, model, model.applied(probe.recipe), calibration)
        factor = probe.frozen.seconds / foreseen if foreseen else 1.0
    return factor * _frozen_sum(groups, model, recipe, calibration)


def _frozen_sum(groups: Sequence[BatchShape], model: ModelShape, recipe: Recipe, calibration: Calibration) -> float:
    parts = summed(frozen_work(Columns.of(groups, recipe), model, recipe))
    return sum(weighed(parts, calibration.seconds).values())


def summed(parts: Parts) -> dict[str, float]:
    """Each part over all batches."""
    return {name: float(column.sum()) for name, column in parts.items()}
