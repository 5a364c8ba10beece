"""Foresees a training: base + rows + recipe → memory, time and settings that fit. Trains and writes nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from afs_mlx.core.memory import Memory
from afs_mlx.schema.base import Base
from afs_mlx.schema.example import Example
from afs_mlx.schema.recipe import Recipe

if TYPE_CHECKING:
    from afs_mlx.engine.training.planning.forecast import Forecast
    from afs_mlx.engine.training.planning.probe import Probing


@dataclass(frozen=True)
class PlanConfig:
    """The training that is thought about; `force` loads also a base that alone is more than this machine has."""

    system: str
    recipe: Recipe
    base: str
    own_base: str
    bases: Mapping[str, Base]
    train: list[Example]
    valid: list[Example]
    force: bool = False


@dataclass(frozen=True)
class PlanResult:
    """`forecast` says what would be taken and proposes; without `calibrated` its time is unknown.

    `memory` is this machine's before the base was loaded, `probed` the number of batches that were measured.
    """

    base: str
    demo: bool
    notice: str
    forecast: "Forecast"
    calibrated: bool
    probed: int
    optimizer_steps: int
    memory: Memory


def plan(config: PlanConfig, on_event: Callable[["Probing"], None]) -> PlanResult:
    """Load the base, attach the adapters, measure a few batches and reckon the rest.

    Raises AfsError as `train` does for a base, rows or a recipe that cannot be trained; a training that does not fit
    is no error here but a verdict, other than a base that cannot even be loaded.
    """
    from afs_mlx.engine.bases.loading import load_base
    from afs_mlx.engine.bases.location import choose_base
    from afs_mlx.engine.metal import set_memory_limits
    from afs_mlx.engine.training import lora
    from afs_mlx.engine.training.planning.checking import foresee, room_before, smaller_base
    from afs_mlx.engine.training.rows import tokenise

    memory = Memory.here()
    base = choose_base(config.base, config.own_base, config.bases)
    room = room_before(base.folder, force=config.force)
    set_memory_limits()
    loaded = load_base(base.folder)
    train, valid = (
        tokenise([e.with_system(config.system) for e in rows], loaded.tokenizer, config.recipe, f"{name} rows").rows
        for name, rows in (("training", config.train), ("validation", config.valid))
    )
    lora.attach(loaded.model, config.recipe)
    smaller = smaller_base(base.id, config.bases)
    found = foresee(loaded.model, config.recipe, train, valid, room, on_event, smaller_base=smaller)
    return PlanResult(
        base=base.id,
        demo=base.demo,
        notice=base.notice,
        forecast=found.forecast,
        calibrated=found.calibrated,
        probed=sum(step.training for step in found.probe.steps),
        optimizer_steps=found.optimizer_steps,
        memory=memory,
    )
