"""Which run goes on when a person asks to resume, and whether it can."""

from pathlib import Path

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.paths import Workspace
from afs_mlx.runs.folder import Run, runs_of
from afs_mlx.runs.overview import state

CHECKPOINTS = "checkpoints"
UNFINISHED = ("crashed", "interrupted", "failed")


def checkpoint_names(run: Run) -> list[str]:
    """The run's checkpoints, oldest first."""
    return sorted(path.name for path in (run.path / CHECKPOINTS).glob("step-*") if path.is_dir())


def resumable(workspace: Workspace, expert: str, version: str, out: Path | None) -> Run:
    """The run in `out`, else the newest unfinished one of `expert` at `version` that has a checkpoint.

    Raises AfsError for a run that still runs, has finished, belongs to another expert or has no checkpoint.
    """
    if out is not None:
        run = Run.read(out)
        if run.expert != expert or run.record.get("version") != version:
            theirs = f"{run.expert}@{run.record.get('version', '')}"
            raise AfsError(f"this is a run of {theirs}, not of {expert}@{version}", str(out), f"name {theirs}")
        _check(run)
        return run
    runs = [run for run in runs_of(workspace, expert) if run.record.get("version") == version]
    for run in reversed(runs):
        if _unfinished(run) and checkpoint_names(run):
            return run
    if runs:
        _check(runs[-1])
    raise MissingError(
        f"{expert}@{version} has no run to resume", str(workspace.adapters / expert), "start one without --resume"
    )


def _unfinished(run: Run) -> bool:
    found = state(run)
    metrics = run.record.get("metrics")
    # Stopped before any step was better than the base.
    early = found == "untrained" and isinstance(metrics, dict) and metrics.get("interrupted") is True
    return early or found in UNFINISHED


def _check(run: Run) -> None:
    found = state(run)
    if found == "running":
        process = run.record.get("process")
        pid = process.get("pid") if isinstance(process, dict) else "?"
        raise AfsError(f"this run is still training (process {pid})", str(run.path), "wait for it, or stop it first")
    if not _unfinished(run):
        raise AfsError(f"this run has nothing to resume: it is {found}", str(run.path), "start one without --resume")
    if not checkpoint_names(run):
        raise AfsError("this run has no checkpoint", str(run.path), "start one without --resume")
