"""Trains an expert's adapter: base + rows + recipe → a run folder that mlx-lm loads as it is."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from afs_mlx.core.errors import AfsError
from afs_mlx.core.files import write_json
from afs_mlx.core.manifest import now, provenance
from afs_mlx.core.paths import Workspace
from afs_mlx.engine.training.events import Stepped, TrainingEvent, Validated
from afs_mlx.runs.folder import Metrics, create, new_run_name
from afs_mlx.schema.base import Base
from afs_mlx.schema.example import Example
from afs_mlx.schema.recipe import Recipe


@dataclass(frozen=True)
class TrainConfig:
    """What to train. `out` overrides adapters/<expert>/<new run>; `stop` is set by whoever wants to end it early."""

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
    out: Path | None = None
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
    improved: bool


def train(config: TrainConfig, on_event: Callable[[TrainEvent], None]) -> TrainResult:
    """Train and write the run. An interrupted run keeps its best weights so far and is marked as such.

    Raises AfsError for a base that is missing, rows over the limit, a recipe that does not fit the base, a loss that
    is not finite, a disk that is full; the run folder then says `failed` and earlier runs are untouched.
    """
    from afs_mlx.engine.bases.loading import load_base
    from afs_mlx.engine.bases.location import choose_base
    from afs_mlx.engine.training import lora, trainer
    from afs_mlx.engine.training.rows import tokenise

    base = choose_base(config.base, config.own_base, config.bases)
    on_event(BaseChosen(base.id, base.demo, base.notice))
    loaded = load_base(base.folder)
    train_set, valid_set = (
        tokenise([e.with_system(config.system) for e in rows], loaded.tokenizer, config.recipe, f"{name} rows")
        for name, rows in (("training", config.train), ("validation", config.valid))
    )
    keys = lora.attach(loaded.model, config.recipe)
    record: dict[str, Any] = {
        **provenance("train"),
        "expert": config.expert,
        "version": config.version,
        "status": "running",
        "demo": base.demo,
        "started_at": now(),
        "base": base.identity,
        "recipe": config.recipe.model_dump(mode="json"),
        "system": config.system,
        "data": config.data_record,
    }
    run_name = new_run_name(config.version, base.id)
    path = create(config.out or config.workspace.adapters / config.expert / run_name, record)
    on_event(RunCreated(path))
    recorder = _Recorder(Metrics(path / "metrics.jsonl"), on_event)
    try:
        trained = trainer.train(loaded.model, config.recipe, train_set, valid_set, recorder, config.stop.is_set)
        lora.write(path, loaded.model, config.recipe, keys, base.identity, base.folder, config.expert)
        summary = asdict(trained)
        del summary["weights"]
        # Step 0 is the base itself: such an adapter must not be taken for a trained one.
        improved = trained.best_step > 0
        status = ("interrupted" if trained.interrupted else "finished") if improved else "untrained"
        write_json(path / "run.json", {**record, "status": status, "finished_at": now(), "metrics": summary})
    except BaseException as error:
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
        improved=improved,
    )


class _Recorder:
    """Writes each event's figures under the field's names, then passes it on."""

    def __init__(self, metrics: Metrics, on_event: Callable[[TrainEvent], None]) -> None:
        self._metrics, self._on_event = metrics, on_event

    def __call__(self, event: TrainingEvent) -> None:
        if isinstance(event, Stepped):
            self._metrics.write(
                **{
                    "step": event.step,
                    "epoch": event.epoch,
                    "train/loss": event.loss,
                    "learning_rate": event.learning_rate,
                    "grad_norm": event.grad_norm,
                    "supervised_tokens": event.supervised_tokens,
                    "tokens_per_s": round(event.tokens_per_s, 3),
                    "peak_memory_gb": round(event.peak_memory_gb, 4),
                    "elapsed_s": round(event.elapsed_s, 3),
                }
            )
        elif isinstance(event, Validated):
            elapsed_s = round(event.elapsed_s, 3)
            self._metrics.write(**{"step": event.step, "valid/loss": event.loss, "elapsed_s": elapsed_s})
        self._on_event(event)


def _mark_failed(path: Path, record: dict[str, Any], error: BaseException) -> None:
    """Leave a run folder that nobody takes for a whole one; a full disk must not hide the first error."""
    try:
        write_json(path / "run.json", {**record, "status": "failed", "finished_at": now(), "error": str(error)})
    except AfsError as second:
        error.add_note(f"run.json could not be updated either: {second}")
