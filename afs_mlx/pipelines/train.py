"""Trains an expert's adapter: base + rows + recipe → a run folder that mlx-lm loads as it is."""

import hashlib
import os
import platform
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afs_mlx.core.errors import AfsError
from afs_mlx.core.files import write_json
from afs_mlx.core.manifest import now, provenance
from afs_mlx.core.paths import Workspace, cache_folder
from afs_mlx.core.power import AwakeClock, MachineWatch, keep_awake
from afs_mlx.engine.training.events import Planned, TrainingEvent, Warned
from afs_mlx.runs.folder import Metrics, Run, create, new_run_name
from afs_mlx.runs.resuming import CHECKPOINTS
from afs_mlx.schema.base import Base
from afs_mlx.schema.example import Example
from afs_mlx.schema.recipe import Recipe

if TYPE_CHECKING:
    from afs_mlx.engine.bases.loading import LoadedBase
    from afs_mlx.engine.bases.location import BaseFolder
    from afs_mlx.engine.training.distributed import World
    from afs_mlx.engine.training.rows import TokenisedSet

# What a resumed run may change: none of it reaches the weights.
HOUSEKEEPING = ("keep_checkpoints", "samples", "sample_tokens")


@dataclass(frozen=True)
class TrainConfig:
    """What to train. `out` overrides adapters/<expert>/<new run>; `resume` goes on with a run instead.

    `asked` is what the person named, for a resume to find again; `force` trains also what this machine has no memory
    for; `stop` is set by whoever wants to end it early.
    """

    expert: str
    version: str
    system: str
    recipe: Recipe
    base: str
    own_base: str
    bases: Mapping[str, Base]
    train: list[Example]
    valid: list[Example]
    data_record: dict[str, Any]
    workspace: Workspace
    asked: Mapping[str, str] = field(default_factory=dict)
    out: Path | None = None
    resume: Run | None = None
    force: bool = False
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class BaseChosen:
    """The base that is used; `notice` says why when it is not the expert's own."""

    id: str
    demo: bool
    notice: str


@dataclass(frozen=True)
class RunCreated:
    """The folder that now fills."""

    path: Path


type TrainEvent = BaseChosen | RunCreated | TrainingEvent


@dataclass(frozen=True)
class TrainResult:
    """A finished or interrupted run."""

    path: Path
    base: str
    demo: bool
    steps: int
    total_steps: int
    base_valid_loss: float
    best_valid_loss: float
    best_step: int
    elapsed_s: float
    peak_memory_gb: float
    interrupted: bool
    stopped_early: bool
    improved: bool


def train(config: TrainConfig, on_event: Callable[[TrainEvent], None]) -> TrainResult:
    """Train and write the run. An interrupted run keeps its best weights so far and is marked as such.

    Where the environment names several ranks they train as one, and rank 0 writes. Raises AfsError for a base that is
    missing, rows over the limit, a recipe that does not fit the base, a loss that stays not finite, a checkpoint of
    another base, recipe or data, a disk that is full; the run folder then says `failed`, its checkpoints and earlier
    runs are untouched. Raises RefusedError for what this machine's memory cannot hold.
    """
    from afs_mlx.engine.bases.loading import load_base
    from afs_mlx.engine.bases.location import choose_base
    from afs_mlx.engine.metal import set_memory_limits
    from afs_mlx.engine.training import lora
    from afs_mlx.engine.training.checkpoints import Checkpoints
    from afs_mlx.engine.training.distributed import World
    from afs_mlx.engine.training.planning.checking import check_memory, room_before, smaller_base

    world = World.join()
    base = choose_base(config.base, config.own_base, config.bases)
    on_event(BaseChosen(base.id, base.demo, base.notice))
    room = room_before(base.folder, force=config.force)
    set_memory_limits()
    loaded = load_base(base.folder)
    train_set, valid_set = tokenised(config, loaded)
    keys = lora.attach(loaded.model, config.recipe)
    rows, smaller = (train_set.rows, valid_set.rows), smaller_base(base.id, config.bases)
    tight = check_memory(loaded.model, config.recipe, *rows, room, smaller_base=smaller, force=config.force)
    if tight:
        on_event(Warned(tight))
    identity = _identity(config.recipe, base, train_set, valid_set)
    if world.first and config.resume is not None:
        # Before the run is touched: one that is refused stays what it was.
        Checkpoints(config.resume.path / CHECKPOINTS, identity, config.recipe.keep_checkpoints).latest()
    path, record = _folder(config, base) if world.first else (Path(), {})
    if world.first:
        on_event(RunCreated(path))
    with keep_awake() as awake:
        if not awake.works and platform.system() == "Darwin":
            on_event(Warned(awake.text))
        try:
            trained = _run(config, loaded, train_set, valid_set, base, identity, path, record, world, on_event)
            # Step 0 is the base itself: such an adapter must not be taken for a trained one.
            improved = trained.best_step > 0
            if world.first:
                lora.write(path, loaded.model, config.recipe, keys, base.identity, base.folder, config.expert)
                summary = asdict(trained)
                del summary["weights"]
                status = ("interrupted" if trained.interrupted else "finished") if improved else "untrained"
                write_json(path / "run.json", {**record, "status": status, "finished_at": now(), "metrics": summary})
        except BaseException as error:
            if world.first:
                _mark_failed(path, record, error)
            raise
    return TrainResult(
        path=path,
        base=base.id,
        demo=base.demo,
        steps=trained.steps,
        total_steps=trained.total_steps,
        base_valid_loss=trained.base_valid_loss,
        best_valid_loss=trained.best_valid_loss,
        best_step=trained.best_step,
        elapsed_s=trained.elapsed_s,
        peak_memory_gb=trained.peak_memory_gb,
        interrupted=trained.interrupted,
        stopped_early=trained.stopped_early,
        improved=improved,
    )


def tokenised(config: TrainConfig, loaded: "LoadedBase") -> tuple["TokenisedSet", "TokenisedSet"]:
    """The training and the validation rows under the expert's prompt, as tokens."""
    from afs_mlx.engine.training.rows import tokenise

    train_set, valid_set = (
        tokenise([e.with_system(config.system) for e in rows], loaded.tokenizer, config.recipe, f"{name} rows")
        for name, rows in (("training", config.train), ("validation", config.valid))
    )
    return train_set, valid_set


def _run(
    config: TrainConfig,
    loaded: "LoadedBase",
    train_set: "TokenisedSet",
    valid_set: "TokenisedSet",
    base: "BaseFolder",
    identity: dict[str, str],
    path: Path,
    record: dict[str, Any],
    world: "World",
    on_event: Callable[[TrainEvent], None],
) -> Any:
    from afs_mlx.core.ranks import beat
    from afs_mlx.engine.training import trainer
    from afs_mlx.engine.training.checkpoints import Checkpoints
    from afs_mlx.engine.training.metrics import metrics_line
    from afs_mlx.engine.training.samples import sampler

    recipe, clock = config.recipe, AwakeClock()
    metrics = Metrics(path / "metrics.jsonl") if world.first else None
    watch = MachineWatch(path, clock) if world.first else None
    questions = [_question(config.valid[number]) for number in valid_set.numbers]
    sample = sampler(loaded.model, loaded.tokenizer, valid_set.rows, questions, recipe.samples, recipe.sample_tokens)

    def report(event: TrainingEvent) -> None:
        beat()
        if metrics and isinstance(event, Planned):
            record["total_steps"] = event.total_steps
            write_json(path / "run.json", record)
        if metrics and (line := metrics_line(event)):
            metrics.write(**line)
        on_event(event)

    around = trainer.Surroundings(
        checkpoints=Checkpoints(path / CHECKPOINTS, identity, recipe.keep_checkpoints) if world.first else None,
        sample=sample if recipe.samples else None,
        watch=watch.new_warnings if watch else None,
        clock=clock.elapsed_s,
        frozen_folder=cache_folder() / "frozen",
        base_sha256=base.identity["weights_sha256"],
        identity=identity,
        world=world,
    )
    stop = config.stop.is_set
    resume = config.resume is not None
    return trainer.train(loaded.model, recipe, train_set, valid_set, report, stop, around, resume=resume)


def _folder(config: TrainConfig, base: "BaseFolder") -> tuple[Path, dict[str, Any]]:
    """A new run's folder, or the one that goes on, and its record."""
    process = {"pid": os.getpid(), "host": platform.node()}
    if config.resume is not None:
        dropped = ("finished_at", "metrics", "error")
        before = {key: value for key, value in config.resume.record.items() if key not in dropped}
        resumed = [*before.get("resumed_at", []), now()]
        record = {**before, "status": "running", "process": process, "resumed_at": resumed}
        write_json(config.resume.path / "run.json", record)
        return config.resume.path, record
    record = {
        **provenance("train"),
        "expert": config.expert,
        "version": config.version,
        "status": "running",
        "process": process,
        "demo": base.demo,
        "started_at": now(),
        "base": base.identity,
        "recipe": config.recipe.model_dump(mode="json"),
        "system": config.system,
        "data": config.data_record,
        "asked": dict(config.asked),
    }
    run_name = new_run_name(config.version, base.id)
    return create(config.out or config.workspace.adapters / config.expert / run_name, record), record


def _identity(
    recipe: Recipe, base: "BaseFolder", train_set: "TokenisedSet", valid_set: "TokenisedSet"
) -> dict[str, str]:
    """What a checkpoint belongs to, and what all ranks must have."""
    from afs_mlx.engine.training.compute.frozen import rows_hash

    weighty = recipe.model_dump_json(exclude=set(HOUSEKEEPING))
    return {
        "base": base.identity["weights_sha256"],
        "recipe": hashlib.sha256(weighty.encode()).hexdigest(),
        "data": rows_hash([*train_set.rows, *valid_set.rows]),
    }


def _question(example: Example) -> str:
    """What the person says before the first answer."""
    texts: list[str] = []
    for message in example.messages:
        if message.role == "assistant":
            break
        if message.role == "user":
            texts.append(message.content)
    return "\n".join(texts)


def _mark_failed(path: Path, record: dict[str, Any], error: BaseException) -> None:
    """Leave a run folder that nobody takes for a whole one; a full disk must not hide the first error."""
    try:
        write_json(path / "run.json", {**record, "status": "failed", "finished_at": now(), "error": str(error)})
    except AfsError as second:
        error.add_note(f"run.json could not be updated either: {second}")
