"""A recipe's peak memory and time from a calibration."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from afs_mlx.core.errors import RefusedError
from afs_mlx.engine.training.planning.calibration import Calibration, Probe, frozen_seconds, summed, weighed
from afs_mlx.engine.training.planning.costs import held, work
from afs_mlx.engine.training.planning.room import Room
from afs_mlx.engine.training.planning.shapes import Columns, ModelShape, Shapes
from afs_mlx.schema.recipe import Recipe

ALLOCATED = 0.05  # of what comes and goes, what the allocator takes beside it
MARGIN = 1.15  # how far a forecast may be off: what fits without it is tight

type Verdict = Literal["fits", "tight", "swaps", "impossible"]
type Change = str | int | float | bool


@dataclass(frozen=True)
class Job:
    """A training that is thought about. `shapes_for` groups its rows as a recipe asks for."""

    model: ModelShape
    probe: Probe
    room: Room
    shapes_for: Callable[[Recipe], Shapes]


@dataclass(frozen=True)
class Proposal:
    """Other settings, by dotted recipe key, and what they would take.

    The key `base` is no recipe key: another variant of the base. `alters_learning` says that another adapter comes out,
    beyond rounding and the order of rows.
    """

    changes: Mapping[str, Change]
    peak_bytes: int
    needed_bytes: int
    time_s: float
    verdict: Verdict
    alters_learning: bool

    @property
    def settings(self) -> str:
        """As a person would type it."""
        shown = {key: str(value).lower() if isinstance(value, bool) else value for key, value in self.changes.items()}
        return " ".join(f"--{key} {value}" if key == "base" else f"--set {key}={value}" for key, value in shown.items())


@dataclass(frozen=True)
class Forecast:
    """`peak_bytes` is of mlx's arrays, as mx.get_peak_memory counts them; `needed_bytes` of the whole process.

    `disk_bytes` is the file of kept frozen outputs. Without a probe `time_s` is no time, but tells recipes apart.
    """

    peak_bytes: int
    needed_bytes: int
    time_s: float
    memory_parts: Mapping[str, int]
    time_parts: Mapping[str, float]
    room: Room
    verdict: Verdict
    disk_bytes: int = 0
    proposals: tuple[Proposal, ...] = ()

    @property
    def fits(self) -> bool:
        return self.verdict in ("fits", "tight")

    @property
    def lack(self) -> str:
        """What is needed beside what is here."""
        room = self.room
        swap = f" and {gigabytes(room.swap_bytes)} of swap" if room.swap_bytes else ""
        return (
            f"the training needs about {gigabytes(self.needed_bytes)}, this machine can give "
            f"{gigabytes(room.fitting_bytes)}{swap}"
        )

    def remedies(self) -> list[str]:
        """The proposals as text to type, with what each takes."""
        return [f"{p.settings}  ({gigabytes(p.needed_bytes)}, {self._beside(p)})" for p in self.proposals]

    def refuse(self) -> RefusedError:
        """The error for a training that cannot run here."""
        nothing = "nothing in the recipe brings it down far enough: take a smaller base, shorter rows, another machine"
        fix = "\n     ".join([*(self.remedies() or [nothing]), "or --force"])
        return RefusedError(self.lack, "memory", fix)

    def _beside(self, proposal: Proposal) -> str:
        return f"{proposal.time_s / self.time_s:.1f} × the time" if self.time_s else "no other time"


def forecast(job: Job, recipe: Recipe, calibration: Calibration, shapes: Shapes | None = None) -> Forecast:
    """What `recipe` would take. `shapes` saves grouping the rows again."""
    recipe = job.model.applied(recipe)
    shapes = job.shapes_for(recipe) if shapes is None else shapes
    memory = _memory(job, recipe, calibration, shapes)
    time = _time(job, recipe, calibration, shapes)
    peak = math.ceil(sum(memory.values()))
    needed = peak + job.probe.process_bytes + round(ALLOCATED * (peak - memory["resident"]))
    return Forecast(
        peak_bytes=peak,
        needed_bytes=needed,
        time_s=sum(time.values()),
        memory_parts={name: round(size) for name, size in memory.items()},
        time_parts=time,
        room=job.room,
        verdict=verdict(needed, job.room),
        disk_bytes=round(_kept(job, recipe, shapes).disk_bytes),
    )


def verdict(needed_bytes: int, room: Room) -> Verdict:
    """Whether so much can be had: with a margin, without it, only by swapping, or not at all."""
    if needed_bytes > room.available_bytes + room.swap_bytes:
        return "impossible"
    if needed_bytes > room.fitting_bytes:
        return "swaps"
    return "tight" if needed_bytes * MARGIN > room.fitting_bytes else "fits"


def _memory(job: Job, recipe: Recipe, calibration: Calibration, shapes: Shapes) -> dict[str, float]:
    """Bytes by part at the worst batch of training, of validation and of the frozen blocks' pass."""
    model, probe = job.model, job.probe
    worst: dict[str, float] = {}
    for batches, training in ((shapes.every_train, True), (shapes.valid, False), (shapes.frozen, False)):
        if batches:
            parts = held(Columns.of(batches, recipe), model, recipe, training=training)
            sized = {name: column * calibration.bytes.get(name, 1.0) for name, column in parts.items()}
            at = int(np.argmax(sum(sized.values())))
            here = {name: float(column[at]) for name, column in sized.items()}
            worst = max(worst, here, key=lambda found: sum(found.values()))
    # While the optimizer updates: the gradient, the clipped one, new weights and a new state beside the old.
    update = {"gradients": 4 * model.trained_parameters(recipe) * (2 + (probe.copies - 1) / 2)}
    worst = max(worst, update, key=lambda found: sum(found.values()))
    adapter = 4 * probe.copies * (model.trained_parameters(recipe) - model.trained_parameters(probe.recipe))
    return {
        "resident": probe.resident_bytes + adapter,
        "kept outputs": _kept(job, recipe, shapes).memory_bytes,
        **worst,
    }


def _time(job: Job, recipe: Recipe, calibration: Calibration, shapes: Shapes) -> dict[str, float]:
    """Seconds by part over the whole training, if it does not stop early."""
    model, probe = job.model, job.probe
    steps = Columns.of(shapes.every_train, recipe)
    parts = weighed(summed(work(steps, model, recipe, training=True)), calibration.seconds)
    valid = Columns.of(shapes.valid, recipe)
    validation = weighed(summed(work(valid, model, recipe, training=False)), calibration.seconds)
    updates = [math.ceil(len(epoch) / recipe.accumulation) for epoch in shapes.train]
    validations = 1 + sum(_validations(count, recipe) for count in updates)
    return {
        "frozen blocks": _frozen(job, recipe, calibration, shapes, validations),
        **parts,
        "updates": sum(updates) * probe.update_s,
        "validation": validations * sum(validation.values()),
        "samples": _samples(probe, recipe, shapes, validations),
        "checkpoints": (1 + sum(updates) // recipe.checkpoint_steps) * probe.checkpoint_s,
    }


def _validations(steps: int, recipe: Recipe) -> int:
    """As the trainer places them in an epoch of so many optimizer steps."""
    every = max(1, math.ceil(steps / recipe.validations_per_epoch))
    return math.ceil(steps / every)


def _frozen(job: Job, recipe: Recipe, calibration: Calibration, shapes: Shapes, validations: int) -> float:
    """Running the frozen blocks: once over all rows, and in every pass over those that are not kept."""
    if not recipe.speed.keep_frozen:
        return 0.0
    kept = _kept(job, recipe, shapes)
    once = frozen_seconds(shapes.frozen, job.model, recipe, job.probe, calibration)
    trained, valid = (sum(s.tokens for s in each) for each in (shapes.every_train, shapes.valid))
    return once * (1 - kept.missing + kept.missing * (trained + validations * valid) / max(1, shapes.kept_tokens))


def _samples(probe: Probe, recipe: Recipe, shapes: Shapes, validations: int) -> float:
    """The base goes on to the limit; what has been trained ends about where the row's answer does."""
    count = min(recipe.samples, len(shapes.answer_tokens))
    later = sum(min(recipe.sample_tokens, tokens) for tokens in shapes.answer_tokens[:count])
    tokens = count * recipe.sample_tokens + (validations - 1) * later
    return validations * count * probe.prompt_s + tokens * probe.sample_token_s


@dataclass(frozen=True)
class _Kept:
    """Of the frozen blocks' outputs: what lies in memory or on disk, and the share that is made again every time."""

    memory_bytes: float = 0.0
    disk_bytes: float = 0.0
    missing: float = 0.0


def _kept(job: Job, recipe: Recipe, shapes: Shapes) -> _Kept:
    """As the trainer decides: all in memory, else in a file, else in memory what fits."""
    speed, every = recipe.speed, float(shapes.kept_tokens * job.model.width * job.model.activation_bytes)
    if not speed.keep_frozen or job.model.adapted_blocks(recipe) == job.model.blocks or not every:
        return _Kept()
    memory, disk = speed.memory_gb * 1e9, speed.disk_gb * 1e9
    if every <= memory:
        return _Kept(memory_bytes=every)
    if disk > memory:
        return _Kept(disk_bytes=min(every, disk), missing=max(0.0, 1 - disk / every))
    return _Kept(memory_bytes=memory, missing=1 - memory / every)


def gigabytes(size_bytes: float) -> str:
    """`1.7 GB`."""
    return f"{size_bytes / 1e9:.1f} GB"
