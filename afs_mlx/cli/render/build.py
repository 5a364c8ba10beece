"""The build's stages while they run, and the report at its end."""

import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afs_mlx.cli.errors import remembered_interrupt, stoppable
from afs_mlx.cli.render.console import duration, err, notice, out, size, step
from afs_mlx.cli.render.export import ChecksView
from afs_mlx.cli.render.progress import count_progress
from afs_mlx.cli.render.training import TrainingView
from afs_mlx.core.paths import Workspace
from afs_mlx.engine.bases.location import BaseFolder
from afs_mlx.experts.catalog import ChosenExpert
from afs_mlx.flows.build import BuildEvent, BuildResult, StageStarted, TensorWritten
from afs_mlx.pipelines.evaluate import CaseDone, EvaluateResult
from afs_mlx.pipelines.train import BaseChosen, RunCreated
from afs_mlx.schema.verification import Check

WORDS = {
    "data": "read, check and split the rows",
    "base score": "ask the suite of the bare base",
    "train": "train the adapter",
    "score": "ask the suite of the trained expert",
    "fuse": "add the adapter to the base",
    "export": "write GGUF and Modelfile, hold them against llama.cpp",
}


class BuildView:
    """One heading a stage; within it the stage's own progress."""

    def __init__(self, workspace: Workspace, stages: int, stop: threading.Event, title: str) -> None:
        self._workspace, self._stages, self._stop, self._title = workspace, stages, stop, title
        self._stage, self._all = ExitStack(), ExitStack()
        self._check_interrupt: Callable[[], None] = lambda: None
        self._training: TrainingView | None = None
        self._checks = ChecksView("quick")
        self._count: Callable[[int, int, str], None] = lambda done, total, words: None

    def __enter__(self) -> "BuildView":
        self._check_interrupt = self._all.enter_context(remembered_interrupt())
        return self

    def __exit__(self, *_: object) -> None:
        self._stage.close()
        self._all.close()

    def __call__(self, event: BuildEvent) -> None:
        self._check_interrupt()
        if isinstance(event, StageStarted):
            self._stage.close()
            step(f"[{event.number}/{self._stages}] {event.name}: {WORDS[event.name]}")
            self._begin(event.name)
        elif isinstance(event, CaseDone):
            words = {True: "passed", False: "failed", None: "not verified"}[event.result.passed]
            self._count(event.done, event.total, f"{event.result.id} {words}")
        elif isinstance(event, TensorWritten):
            self._count(event.done, event.total, "")
        elif isinstance(event, Check):
            self._stage.close()
            self._checks(event)
        elif isinstance(event, RunCreated):
            err().print(f"  run {self._workspace.shown(event.path)}", markup=False)
        elif not isinstance(event, BaseChosen) and self._training:
            self._training(event)

    def _begin(self, stage: str) -> None:
        """The stage's own display. Only training can end early with something to keep; elsewhere Ctrl-C is Ctrl-C."""
        if stage == "train":
            self._stage.enter_context(stoppable("the adapter", self._stop))
            self._training = self._stage.enter_context(TrainingView(self._title))
        elif stage in ("base score", "score", "export"):
            self._count = self._stage.enter_context(count_progress("  answers" if "score" in stage else "  tensors"))


@dataclass(frozen=True)
class Report:
    """The lines for a person and the record for a program."""

    lines: list[str]
    record: dict[str, Any]
    demo_hint: str

    def show(self) -> None:
        """Print to stdout; the hint about the demo goes to stderr with the other notices."""
        console = out()
        console.print()
        for line in self.lines:
            console.print(line, markup=False)
        if self.demo_hint:
            notice(self.demo_hint)


def report(
    result: BuildResult, expert: ChosenExpert, base: BaseFolder, workspace: Workspace, elapsed_s: float
) -> Report:
    """Before and after with intervals, sizes, where things are, and the command to chat."""
    trained, after = result.trained, result.after
    rows: list[tuple[str, str]] = [
        ("expert", f"{expert.label} on {base.id}" + (" (demo)" if base.demo else "")),
        ("rows", f"{len(result.data.train)} trained, {len(result.data.valid)} held out"),
        ("valid loss", f"{trained.base_valid_loss:.3f} → {trained.best_valid_loss:.3f} (step {trained.best_step})"),
    ]
    if result.before:
        rows.append(("score before", _score_text(result.before)))
    if after:
        rows.append(("score after", _score_text(after)))
        rows.append(("", f"{after.measures}; {after.limits}" if after.limits else after.measures))
        rows.append(("gate", ("passed: " if after.verdict.passed else "not passed: ") + after.verdict.reason))
    elif not trained.interrupted:
        rows.append(("score", "not verified: this version's suite is not written yet"))
    rows.append(
        ("adapter", f"{workspace.shown(trained.path)} ({size(_file_size(trained.path / 'adapters.safetensors'))})")
    )
    if result.fused:
        rows.append(("fused", f"{workspace.shown(result.fused.path)} ({size(result.fused.size_bytes)})"))
    if result.exported:
        rows.append(("GGUF", f"{workspace.shown(result.exported.gguf)} ({size(result.exported.size_bytes)})"))
        rows.append(("Modelfile", workspace.shown(result.exported.modelfile)))
    rows.append(("time", duration(elapsed_s)))
    command = workspace.shown(Path(sys.argv[0]).absolute()) if Path(sys.argv[0]).name == "afs-mlx" else "afs-mlx"
    rows.append(("chat", f"{command} chat --expert {expert.label} --run {trained.path.name}"))
    record: dict[str, Any] = {
        "expert": expert.label,
        "base": base.id,
        "demo": base.demo,
        "run": str(trained.path),
        "interrupted": trained.interrupted,
        "valid_loss_before": trained.base_valid_loss,
        "valid_loss_after": trained.best_valid_loss,
        "score_before": _score_record(result.before),
        "score_after": _score_record(after),
        "gate": after.verdict.model_dump() if after else None,
        "fused": str(result.fused.path) if result.fused else "",
        "gguf": str(result.exported.gguf) if result.exported else "",
        "elapsed_s": round(elapsed_s, 1),
    }
    own = expert.version.base if expert.version else ""
    hint = f"this is a demo on {base.id}; for the real thing: afs-mlx pull {own}, then build again" if base.demo else ""
    return Report([f"{name:<13}{text}" for name, text in rows], record, hint)


def _score_text(result: EvaluateResult) -> str:
    if result.score is None:
        return f"{result.suite}: {result.why_unverified}"
    checks = ", ".join(f"{name} {score.value:.2f}" for name, score in result.checks.items())
    return f"{result.suite} {result.score} ({checks})"


def _score_record(result: EvaluateResult | None) -> dict[str, Any] | None:
    return result.score.model_dump() if result and result.score else None


def _file_size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
