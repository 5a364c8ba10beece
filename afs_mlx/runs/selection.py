"""Which adapter of an expert is taken when none is named: the best that passed its gate, else the latest."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.files import read_json
from afs_mlx.core.paths import Workspace
from afs_mlx.runs.folder import Run, find_run, runs_of


@dataclass(frozen=True)
class Selection:
    """The chosen run and why it was chosen."""

    run: Run
    reason: str


def usable_run(workspace: Workspace, expert: str, name: str) -> Run:
    """A run by name, whatever its base; raises MissingError when it is not there or holds no finished adapter."""
    run = find_run(workspace, expert, name)
    if not run.usable:
        what = f"run {name!r} holds no finished adapter ({run.status})"
        raise MissingError(what, str(run.path), "name another run")
    return run


def select(workspace: Workspace, expert: str, version: str, base: str) -> Selection | None:
    """The run of `expert` at `version` that fits the base id `base`; None when there is no adapter."""
    fitting = [
        run for run in runs_of(workspace, expert) if run.usable and run.base == base and _is_version(run, version)
    ]
    if not fitting:
        return None
    scores = {run.name: _passed_score(workspace, expert, run) for run in fitting}
    passed = [run for run in fitting if scores[run.name] is not None]
    if passed:
        # The newest of equals: `max` keeps the first, so look from the end.
        best = max(reversed(passed), key=lambda run: scores[run.name] or 0.0)
        return Selection(best, f"best that passed its gate, {scores[best.name]:.2f}")
    return Selection(fitting[-1], "latest; none has passed its gate")


def results_folder(workspace: Workspace, expert: str, run: str) -> Path:
    """Where the evaluation results of a run lie."""
    return workspace.results / expert / run


def _is_version(run: Run, version: str) -> bool:
    return not version or run.record.get("version") in ("", None, version)


class _Value(BaseModel):
    value: float = Field(ge=0, le=1)


class _Gate(BaseModel):
    passed: bool


class _Result(BaseModel):
    """What the choice needs of a result file."""

    score: _Value
    gate: _Gate


def _passed_score(workspace: Workspace, expert: str, run: Run) -> float | None:
    """The lowest score over the suites the run was evaluated on; None unless it passed each.

    A result that cannot be read passes nothing, and keeps no one from chatting.
    """
    lowest: float | None = None
    for path in results_folder(workspace, expert, run.name).glob("*.json"):
        if path.name.startswith("."):
            continue
        try:
            result = _Result.model_validate(read_json(path, "an evaluation result"))
        except (AfsError, ValidationError):
            return None
        if not result.gate.passed:
            return None
        lowest = min(result.score.value, 1.0 if lowest is None else lowest)
    return lowest
