"""Whether a training fits this machine: in full with a probe, or at once from counts alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from safetensors import safe_open

from afs_mlx.core.errors import RefusedError
from afs_mlx.core.files import read_json
from afs_mlx.core.memory import Memory
from afs_mlx.engine.bases.loading import QUANTIZATION_KEYS, check_weights
from afs_mlx.engine.metal import metal_device
from afs_mlx.engine.training.planning.calibration import PROCESS_BYTES, Calibration, Probe
from afs_mlx.engine.training.planning.costs import held
from afs_mlx.engine.training.planning.forecast import MARGIN, Forecast, Job, gigabytes
from afs_mlx.engine.training.planning.probe import Probing, probe, process_beside_arrays, resident_bytes
from afs_mlx.engine.training.planning.proposals import changed, plan, planned
from afs_mlx.engine.training.planning.reading import RowShapes, model_shape
from afs_mlx.engine.training.planning.room import Room, process_bytes
from afs_mlx.engine.training.planning.shapes import BatchShape, Columns, ModelShape
from afs_mlx.engine.training.rows import Row
from afs_mlx.schema.base import Base
from afs_mlx.schema.recipe import Recipe

UNCALIBRATED = Calibration({}, {})


@dataclass(frozen=True)
class Foresight:
    """A forecast and what it was calibrated on; `probe` without steps where not even the smallest batch would fit."""

    forecast: Forecast
    probe: Probe
    optimizer_steps: int

    @property
    def calibrated(self) -> bool:
        return bool(self.probe.steps)


def room_before(folder: Path, *, force: bool = False) -> Room:
    """What this process may hold; to be asked before the base in `folder` is loaded.

    Raises RefusedError for a base whose weights alone are more than memory and swap, unless `force`.
    """
    device = metal_device()
    room = Room.here(Memory.here(), device[0] if device else None, process_bytes())
    needed = loaded_bytes(folder) + PROCESS_BYTES
    most = room.available_bytes + room.swap_bytes
    if needed > most and not force:
        raise RefusedError(
            f"the base alone takes {gigabytes(needed)} in memory, this machine can give {gigabytes(most)}",
            str(folder),
            "take a smaller base or its 4-bit variant (--base), or another machine, or --force",
        )
    return room


def loaded_bytes(folder: Path) -> int:
    """What a base's weights take once they are loaded, from the headers of its files: on a CPU all become float32."""
    shards = check_weights(folder)
    if mx.default_device() != mx.cpu:
        return sum(shard.stat().st_size for shard in shards)
    config = read_json(folder / "config.json", "the base's config.json")
    quantised: dict[str, Any] = next(
        (config[key] for key in QUANTIZATION_KEYS if isinstance(config.get(key), dict)), {}
    )
    packed = 32 // int(quantised.get("bits", 32))  # weights in an integer
    count = 0
    for shard in shards:
        with safe_open(shard, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                part = file.get_slice(name)
                size = 1
                for side in part.get_shape():
                    size *= int(side)
                count += size * (packed if part.get_dtype() == "U32" else 1)
    return 4 * count


def check_memory(
    model: nn.Module,
    recipe: Recipe,
    train: Sequence[Row],
    valid: Sequence[Row],
    room: Room,
    *,
    smaller_base: str = "",
    force: bool = False,
) -> str:
    """A notice for a training that would be tight or swap here, empty where it fits; nothing is run for it.

    `model` has its adapters, `room` is that from before it was loaded. Raises RefusedError, with settings that would
    fit, where even `MARGIN` less would be more than memory and swap, unless `force`.
    """
    shape = model_shape(model, smaller_base)
    job = Job(shape, _counted(model, recipe), room, RowShapes(model, shape, train, valid))
    found = planned(job, recipe, UNCALIBRATED)
    most = room.available_bytes + room.swap_bytes
    if found.needed_bytes > MARGIN * most and not force:
        raise found.refuse()
    return notice(found)


def notice(found: Forecast) -> str:
    """What to tell a person of a forecast; empty where it fits."""
    words = {
        "fits": "",
        "tight": "it is tight, close other programs",
        "swaps": "it will swap and be many times slower",
        "impossible": "it may well be ended for lack of memory",
    }
    if not words[found.verdict]:
        return ""
    other = f"; lighter: {found.proposals[0].settings}" if found.proposals else ""
    return f"{found.lack}: {words[found.verdict]}{other}"


def foresee(
    model: nn.Module,
    recipe: Recipe,
    train: Sequence[Row],
    valid: Sequence[Row],
    room: Room,
    on_event: Callable[[Probing], None],
    *,
    smaller_base: str = "",
) -> Foresight:
    """The forecast of a training, calibrated by a probe; `model` has its adapters and is left as it was."""
    shape = model_shape(model, smaller_base)
    rows = RowShapes(model, shape, train, valid)
    job = Job(shape, _counted(model, recipe), room, rows)
    limit = room.fitting_bytes - job.probe.process_bytes - job.probe.resident_bytes
    steps = sum(-(-len(epoch) // recipe.accumulation) for epoch in rows(recipe).train)
    tried = recipe
    if _least(rows(recipe).every_train, shape, recipe) > limit:
        counted = planned(job, recipe, UNCALIBRATED)
        # With the adapters that are attached: what a lighter setting takes tells what this one would.
        lighter = [p.changes for p in counted.proposals if not p.alters_learning]
        if not lighter:
            return Foresight(counted, job.probe, steps)
        tried = changed(recipe, lighter[0])
    probed = probe(model, shape, tried, rows, limit / MARGIN, on_event)
    return Foresight(plan(Job(shape, probed, room, rows), recipe), probed, steps)


def _counted(model: nn.Module, recipe: Recipe) -> Probe:
    """What is known before anything is run."""
    resident, copies = resident_bytes(model, recipe)
    return Probe(recipe, resident, (), process_bytes=process_beside_arrays(), copies=copies)


def _least(batches: Sequence[BatchShape], shape: ModelShape, recipe: Recipe) -> float:
    """Counted bytes of the smallest batch."""
    applied = shape.applied(recipe)
    parts = held(Columns.of(batches, applied), shape, applied, training=True)
    return float(np.min(sum(parts.values())))


def smaller_base(base_id: str, bases: Mapping[str, Base]) -> str:
    """The catalogued base of the same lineage that is trained in 4 bits; empty where this is it, or none is known."""
    for name, base in bases.items():
        if name != base_id and base_id.lower() in base.lineage and "4bit" in base.hub.lower():
            return name
    return ""
