"""Which run goes on: the newest unfinished one that has a checkpoint, or the one that is named, or none and why."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from afs_mlx.core.errors import AfsError, ExitCode, MissingError
from afs_mlx.core.paths import Workspace
from afs_mlx.runs.folder import Metrics
from afs_mlx.runs.resuming import checkpoint_names, resumable


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def make(name: str, status: str, checkpoints: tuple[int, ...] = (3, 6), pid: int | None = None, **record: Any) -> Path:
    folder = Workspace.find().adapters / "din" / name
    folder.mkdir(parents=True)
    process = {"pid": pid, "host": platform.node()} if pid is not None else None
    given = {"expert": "din", "version": "v2", "status": status, "process": process, "started_at": f"2026-{name}"}
    (folder / "run.json").write_text(json.dumps({**given, **record}))
    for step in checkpoints:
        (folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    return folder


def found(out: Path | None = None, version: str = "v2") -> Path:
    return resumable(Workspace.find(), "din", version, out).path


def test_the_newest_unfinished_one_goes_on(gone: int) -> None:
    make("01", "interrupted")
    newer = make("02", "running", pid=gone)
    make("03", "finished")
    assert found() == newer
    newest = make("04", "failed")
    assert found() == newest


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_one_that_says_it_is_unfinished_goes_on(status: str) -> None:
    run = make("01", status)
    assert found() == found(run) == run


def test_one_whose_process_is_gone_goes_on(gone: int) -> None:
    run = make("01", "running", pid=gone)
    assert found() == found(run) == run


def test_one_that_was_stopped_before_it_was_better_than_the_base_goes_on() -> None:
    run = make("01", "untrained", metrics={"interrupted": True})
    assert found() == found(run) == run


@pytest.mark.parametrize("metrics", [{"interrupted": False}, {"interrupted": "yes"}, {}, None, "?"])
def test_one_that_ended_and_learnt_nothing_has_ended(metrics: Any) -> None:
    run = make("01", "untrained", metrics=metrics)
    for out in (None, run):
        with pytest.raises(AfsError, match="nothing to resume: it is untrained"):
            found(out)


@pytest.mark.parametrize("status", ["finished", "imported", "unheard of"])
def test_one_that_has_ended_is_refused(status: str) -> None:
    run = make("01", status)
    for out in (None, run):
        with pytest.raises(AfsError, match=f"this run has nothing to resume: it is {status}") as caught:
            found(out)
        assert caught.value.where == str(run)
        assert "without --resume" in caught.value.fix


def test_one_that_still_runs_is_refused() -> None:
    run = make("01", "running", pid=os.getpid())
    for out in (None, run):
        with pytest.raises(AfsError, match=rf"this run is still training \(process {os.getpid()}\)") as caught:
            found(out)
        assert "wait for it" in caught.value.fix


def test_one_that_runs_on_another_machine_is_taken_for_running() -> None:
    """Whether its process lives cannot be told from here."""
    run = make("01", "running", process={"pid": 4, "host": "elsewhere"})
    with pytest.raises(AfsError, match="still training"):
        found(run)


def test_an_older_one_goes_on_while_a_newer_one_runs(gone: int) -> None:
    older = make("01", "running", pid=gone)
    make("02", "running", pid=os.getpid())
    assert found() == older


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(gone: int) -> None:
    older = make("01", "interrupted")
    run = make("02", "running", checkpoints=(), pid=gone)
    assert found() == older, "the newest that can"
    with pytest.raises(AfsError, match="this run has no checkpoint") as caught:
        found(run)
    assert "without --resume" in caught.value.fix


def test_half_written_checkpoints_do_not_count(gone: int) -> None:
    run = make("01", "running", checkpoints=(), pid=gone)
    (run / "checkpoints" / ".step-00000003.x1y2z3").mkdir(parents=True)
    (run / "checkpoints" / "step-00000006").write_text("a file")
    with pytest.raises(AfsError, match="this run has no checkpoint"):
        found()


def test_checkpoints_are_listed_oldest_first() -> None:
    make("01", "interrupted", checkpoints=(9, 10, 3))
    run = resumable(Workspace.find(), "din", "v2", None)
    assert checkpoint_names(run) == ["step-00000003", "step-00000009", "step-00000010"]


def test_there_is_no_run_at_all() -> None:
    with pytest.raises(MissingError, match="din@v2 has no run to resume") as caught:
        found()
    assert caught.value.code == ExitCode.MISSING
    assert "without --resume" in caught.value.fix


def test_another_version_is_another_run() -> None:
    run = make("01", "interrupted", version="v1")
    with pytest.raises(MissingError, match="din@v2 has no run to resume"):
        found()
    assert found(version="v1") == run
    with pytest.raises(AfsError, match="this is a run of din@v1, not of din@v2") as caught:
        found(run)
    assert "name din@v1" in caught.value.fix


def test_another_experts_run_is_refused() -> None:
    run = make("01", "interrupted", expert="veran")
    with pytest.raises(AfsError, match="this is a run of veran@v2, not of din@v2"):
        found(run)


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AfsError, match=r"holds no run\.json"):
        found(tmp_path / "nowhere")


def test_one_broken_record_keeps_no_other_from_going_on() -> None:
    run = make("01", "interrupted")
    (make("02", "interrupted") / "run.json").write_text("{")
    assert found() == run


# metrics.jsonl of a run that goes on


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, '{"step": 4}\n'),
        ("", '{"step": 4}\n'),
        ('{"step": 3}\n', '{"step": 3}\n{"step": 4}\n'),
        ('{"step": 3}\n{"st', '{"step": 3}\n{"st\n{"step": 4}\n'),
        ('{"text": "ü', '{"text": "ü\n{"step": 4}\n'),
    ],
)
def test_a_torn_last_line_is_ended_before_the_next(tmp_path: Path, before: str | None, after: str) -> None:
    path = tmp_path / "metrics.jsonl"
    if before is not None:
        path.write_text(before, encoding="utf-8")
    metrics = Metrics(path)
    metrics.write(step=4)
    assert path.read_text(encoding="utf-8") == after
    metrics.write(step=5)
    assert path.read_text(encoding="utf-8") == after + '{"step": 5}\n', "ended once"
