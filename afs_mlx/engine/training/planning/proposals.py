"""Other settings of a training: what makes it fit, or faster where there is room."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product

from afs_mlx.engine.training.planning.calibration import Calibration, calibrate
from afs_mlx.engine.training.planning.forecast import Change, Forecast, Job, Proposal, forecast
from afs_mlx.engine.training.planning.shapes import Shapes
from afs_mlx.schema.recipe import Recipe

SHOWN = 5
FOUR_BIT = 4.5  # bits of a weight in mlx's 4-bit groups of 64, scale and bias included
WORTH = 0.9  # a proposal that only saves time must bring it below this share

type Changes = dict[str, Change]


def plan(job: Job, recipe: Recipe) -> Forecast:
    """The forecast of `recipe`, with proposals: settings that fit where it does not, or faster ones that fit as well.

    Raises AfsError when the probe measured nothing.
    """
    return planned(job, recipe, calibrate(job.model, job.probe))


def planned(job: Job, recipe: Recipe, calibration: Calibration) -> Forecast:
    """Likewise, with a calibration that is there already."""
    asked = forecast(job, recipe, calibration)
    if asked.verdict == "fits":
        return replace(asked, proposals=tuple(_faster(job, recipe, calibration, asked)))
    return replace(asked, proposals=tuple(_smaller(job, recipe, calibration, asked)))


def _faster(job: Job, recipe: Recipe, calibration: Calibration, asked: Forecast) -> Iterator[Proposal]:
    """Checkpointing costs time; where there is room it need not be."""
    if recipe.grad_checkpoint:
        changes: Changes = {"grad_checkpoint": False}
        found = forecast(job, changed(recipe, changes), calibration)
        if found.verdict == "fits" and found.time_s < WORTH * asked.time_s:
            yield _proposal(changes, found)


def _smaller(job: Job, recipe: Recipe, calibration: Calibration, asked: Forecast) -> list[Proposal]:
    """The smallest sets of changes that fit, best first: those that leave the learning alone, then the fastest.

    What fits with a margin comes before what is tight; a tight forecast is proposed something only if that is better.
    """
    wanted = ("fits",) if asked.verdict == "tight" else ("fits", "tight")
    grouped: dict[tuple[int, int], Shapes] = {}
    found: list[Proposal] = []
    for changes in _combinations(job, recipe):
        other = changed(recipe, changes)
        key = other.batch_tokens, other.max_seq_tokens
        if key not in grouped:
            grouped[key] = job.shapes_for(other)
        seen = forecast(_on_base(job, changes), other, calibration, grouped[key])
        if seen.verdict in wanted:
            found.append(_proposal(changes, seen))
    least = [p for p in found if not any(_part_of(other, p) for other in found)]
    least.sort(key=lambda p: (p.alters_learning, p.verdict != "fits", p.time_s, len(p.changes)))
    return least[:SHOWN]


def changed(recipe: Recipe, changes: Mapping[str, Change]) -> Recipe:
    """The recipe with dotted keys replaced."""
    data = recipe.model_dump()
    for key, value in changes.items():
        if key != "base":
            *parents, last = key.split(".")
            table = data
            for parent in parents:
                table = table[parent]
            table[last] = value
    return Recipe.model_validate(data)


def _combinations(job: Job, recipe: Recipe) -> Iterator[Changes]:
    """Every combination of one choice, or none, for each setting that memory depends on."""
    for chosen in product(*_choices(job, recipe)):
        changes = {key: value for choice in chosen for key, value in choice.items()}
        if changes:
            yield changes


def _choices(job: Job, recipe: Recipe) -> list[list[Changes]]:
    model, speed = job.model, recipe.speed
    adapted = model.adapted_blocks(recipe)
    can_pick = model.applied(changed(recipe, {"speed.supervised_head": True})).speed.supervised_head
    # Into the file; without room on disk they would be made again in every epoch.
    moves = speed.memory_gb and speed.disk_gb and speed.keep_frozen and adapted < model.blocks
    every = job.shapes_for(recipe).every_train
    longest = max((shape.longest + shape.shared for shape in every), default=1)
    # As many tokens to an optimizer step as before; a batch below the longest row would be no smaller.
    batches: list[Changes] = [
        {"batch_tokens": recipe.batch_tokens // part, "accumulation": recipe.accumulation * part}
        for part in (2, 4, 8, 16)
        if recipe.batch_tokens // part >= longest
    ]
    chunk = speed.head_chunk or 1024
    chunks: list[Changes] = [{"speed.head_chunk": chunk // part} for part in (4, 16) if chunk >= part]
    layers: list[Changes] = [{"layers": adapted // part} for part in (2, 4) if adapted >= part]
    return [
        [{}, *batches],
        [{}] if recipe.grad_checkpoint else [{}, {"grad_checkpoint": True}],
        [{}] + ([] if speed.supervised_head or not can_pick else [{"speed.supervised_head": True}]),
        [{}, *chunks],
        [{}, {"speed.memory_gb": 0.0}] if moves else [{}],
        [{}, *layers],
        [{}, {"base": model.smaller_base}] if model.smaller_base and model.weight_bits > FOUR_BIT else [{}],
    ]


def _on_base(job: Job, changes: Changes) -> Job:
    """The job on a base of 4 bits, if that is among the changes."""
    if "base" not in changes:
        return job
    saved = round(job.model.weight_bytes * (1 - FOUR_BIT / job.model.weight_bits))
    return replace(job, probe=replace(job.probe, resident_bytes=job.probe.resident_bytes - saved))


def _proposal(changes: Changes, seen: Forecast) -> Proposal:
    alters = bool(changes.keys() & {"layers", "base"})
    return Proposal(changes, seen.peak_bytes, seen.needed_bytes, seen.time_s, seen.verdict, alters)


def _part_of(other: Proposal, whole: Proposal) -> bool:
    """Whether `other` gets there with some of the changes of `whole`, or with gentler ones of the same keys."""
    if other is whole or not other.changes.keys() <= whole.changes.keys() or other.verdict != whole.verdict:
        return False
    gentler = all(
        other.changes[key] == value or _gentler(key, other.changes[key], value)
        for key, value in whole.changes.items()
        if key in other.changes
    )
    return gentler and other.changes != whole.changes


def _gentler(key: str, one: Change, other: Change) -> bool:
    """Whether the value is nearer to what was asked for; all choices go downwards but accumulation."""
    if isinstance(one, str) or isinstance(other, str):
        return False
    return one < other if key == "accumulation" else one > other
