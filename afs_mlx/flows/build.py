"""The main job: data → evaluate the base → train → evaluate → gate → fuse → export."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from afs_mlx.answering import Answerer
from afs_mlx.core.errors import AfsError, RefusedError
from afs_mlx.core.paths import Workspace
from afs_mlx.engine.bases.location import choose_base
from afs_mlx.experts.catalog import Catalog, ChosenExpert
from afs_mlx.pipelines.evaluate import CaseDone, EvaluateResult, config_for, evaluate
from afs_mlx.pipelines.export import ExportConfig, ExportResult, GgufType, export
from afs_mlx.pipelines.fuse import FuseConfig, FuseResult, fuse
from afs_mlx.pipelines.prepare import PrepareConfig, PrepareResult, prepare
from afs_mlx.pipelines.train import TrainConfig, TrainEvent, TrainResult, train
from afs_mlx.runs.folder import Run
from afs_mlx.schema.recipe import Recipe
from afs_mlx.schema.verification import Check

STAGES = ("data", "base score", "train", "score", "fuse", "export")


@dataclass(frozen=True)
class BuildConfig:
    """`base` is resolved already; `force` ships what the gate holds back.

    `resume` is an unfinished training to go on with; `stop` ends the training early.
    """

    expert: ChosenExpert
    recipe: Recipe
    data: Path
    suite: Path | None
    base: str
    threshold: float
    file_type: GgufType
    catalog: Catalog
    workspace: Workspace
    force: bool = False
    resume: Run | None = None
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class StageStarted:
    """One of STAGES begins."""

    name: str
    number: int


@dataclass(frozen=True)
class TensorWritten:
    """The export has come this far."""

    done: int
    total: int


type BuildEvent = StageStarted | CaseDone | TrainEvent | TensorWritten | Check


@dataclass(frozen=True)
class BuildResult:
    """Everything the report shows; stages that an interruption cut off are None."""

    data: PrepareResult
    before: EvaluateResult | None
    trained: TrainResult
    after: EvaluateResult | None
    fused: FuseResult | None
    exported: ExportResult | None


def build(config: BuildConfig, on_event: Callable[[BuildEvent], None]) -> BuildResult:
    """Run the chain. Every stage leaves a whole artifact, so what is done stays when a later stage fails.

    Raises RefusedError (exit 4) when the gate holds the model back and `force` is not set.
    """

    def stage(name: str) -> None:
        on_event(StageStarted(name, STAGES.index(name) + 1))

    stage("data")
    expert, workspace = config.expert, config.workspace
    data = prepare(PrepareConfig(config.data, workspace, config.suite, config.recipe.seed))
    stage("base score")
    before = _score(config, None, None, on_event)
    stage("train")
    trained = _train(config, data, on_event)
    if not trained.improved and not trained.interrupted:
        raise AfsError(
            "no step was better than the base on the validation rows, so there is nothing to ship",
            str(trained.path),
            "lower learning_rate (--set learning_rate=…), bring more rows, or train longer (--set epochs=…)",
        )
    if trained.interrupted:
        return BuildResult(data, before, trained, None, None, None)
    run = Run.read(trained.path)
    stage("score")
    after = _score(config, run, before.path if before else None, on_event)
    if after and after.score is not None and not after.verdict.passed and not config.force:
        raise RefusedError(
            f"the gate holds {run.name} back: {after.verdict.reason}",
            str(after.path),
            "train again with another recipe or more rows; --force ships it all the same. The adapter stays",
        )
    stage("fuse")
    fused = fuse(FuseConfig(run, config.catalog.bases, workspace))
    stage("export")
    exported = export(
        ExportConfig(
            model_folder=fused.path,
            name=f"{expert.name}-{expert.version_name}",
            file_type=config.file_type,
            system=expert.system,
            sampling=expert.sampling,
        ),
        lambda done, total: on_event(TensorWritten(done, total)),
        on_event,
    )
    return BuildResult(data, before, trained, after, fused, exported)


def _train(config: BuildConfig, data: PrepareResult, on_event: Callable[[BuildEvent], None]) -> TrainResult:
    return train(
        TrainConfig(
            expert=config.expert.name,
            version=config.expert.version_name,
            system=config.expert.system,
            recipe=config.recipe,
            base=config.base,
            own_base=config.base,
            bases=config.catalog.bases,
            train=data.train,
            valid=data.valid,
            data_record=data.record,
            workspace=config.workspace,
            asked={"base": config.base, "data": str(config.data.absolute())},
            resume=config.resume,
            force=config.force,
            stop=config.stop,
        ),
        on_event,
    )


def _score(
    config: BuildConfig, run: Run | None, before: Path | None, on_event: Callable[[BuildEvent], None]
) -> EvaluateResult | None:
    """Ask the suite of the bare base under the expert's prompt, or of a run; None where no suite is written yet."""
    if config.suite is None:
        return None
    base = choose_base(config.base, config.base, config.catalog.bases)
    asked = config_for(Answerer(config.expert, base, run, "", ()), config.suite, config.workspace)
    return evaluate(replace(asked, before=before, threshold=config.threshold), on_event)
