"""Which adapter answers for an expert: explicit, else pinned, else the best that passed its gate, else the latest."""

from dataclasses import dataclass
from pathlib import Path

from afs_mlx.core.errors import MissingError
from afs_mlx.core.files import read_json
from afs_mlx.core.paths import Workspace
from afs_mlx.runs.folder import Run, find_run, runs_of


@dataclass(frozen=True)
class Selection:
    """The chosen run and why it was chosen."""

    run: Run
    reason: str


def select(
    workspace: Workspace, expert: str, version: str, base: str, *, explicit: str = "", pinned: str = ""
) -> Selection | None:
    """The run of `expert` at `version` that fits the base id `base`; None when there is no adapter.

    An explicit or pinned run is taken whatever its base: the caller checks that it fits. Raises MissingError
    for a named run that is not there or holds no adapter.
    """
    for name, reason in ((explicit, "named"), (pinned, "pinned")):
        if name:
            run = find_run(workspace, expert, name)
            if not run.usable:
                raise MissingError(
                    f"run {name!r} holds no finished adapter ({run.status})", str(run.path), "name another run"
                )
            return Selection(run, reason)
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


def _passed_score(workspace: Workspace, expert: str, run: Run) -> float | None:
    """The lowest score over the suites the run was evaluated on; None unless it passed each."""
    files = sorted(results_folder(workspace, expert, run.name).glob("*.json"))
    results = [read_json(path, "an evaluation result") for path in files]
    if not results or not all((result.get("gate") or {}).get("passed") for result in results):
        return None
    return min(float(result["score"]["value"]) for result in results)
