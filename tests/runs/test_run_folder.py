"""Run folders: made, found, listed, and their metrics."""

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.paths import Workspace
from afs_mlx.runs.folder import WEIGHTS, Metrics, Run, create, find_run, new_run_name, runs_of

RECORD: dict[str, Any] = {"expert": "din", "version": "v2", "status": "finished", "base": {"id": "tiny-qwen2"}}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "ws")


def run(workspace: Workspace, name: str, weights: bool = True, **values: Any) -> Run:
    path = create(workspace.adapters / "din" / name, {**RECORD, **values})
    if weights:
        (path / WEIGHTS).write_bytes(b"x")
    return Run.read(path)


def test_what_a_run_says_of_itself(workspace: Workspace) -> None:
    made = run(workspace, "r1")
    assert (made.name, made.expert, made.base, made.status) == ("r1", "din", "tiny-qwen2", "finished")


@pytest.mark.parametrize("record", [{}, {"base": None}, {"base": "smollm2"}, {"base": []}])
def test_a_record_that_says_nothing_is_no_crash(tmp_path: Path, record: dict[str, Any]) -> None:
    made = Run(tmp_path, record)
    assert (made.expert, made.base, made.status, made.usable) == ("", "", "unknown", False)


@pytest.mark.parametrize(
    ("status", "weights", "usable"),
    [
        ("finished", True, True),
        ("interrupted", True, True),
        ("imported", True, True),
        ("running", True, False),
        ("failed", True, False),
        ("Finished", True, False),
        ("", True, False),
        ("finished", False, False),
    ],
)
def test_which_runs_hold_an_adapter(workspace: Workspace, status: str, weights: bool, usable: bool) -> None:
    assert run(workspace, "r", weights, status=status).usable is usable


def test_names_sort_by_time_and_say_version_and_base(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(r"v2-tiny-qwen2-\d{8}-\d{6}", new_run_name("v2", "tiny-qwen2"))
    monkeypatch.setattr("afs_mlx.runs.folder.now", lambda: "2026-11-23T14:15:03Z")
    assert new_run_name("v2", "smollm2-135m") == "v2-smollm2-135m-20261123-141503"
    assert new_run_name("", "/models/My Base") == "my base-20261123-141503"


def test_a_name_that_is_taken_gets_a_number(workspace: Workspace) -> None:
    folder = workspace.adapters / "din" / "r"
    assert [create(folder, {"n": n}).name for n in range(3)] == ["r", "r-2", "r-3"]
    assert json.loads((folder / "run.json").read_text()) == {"n": 0}
    assert json.loads((folder.with_name("r-3") / "run.json").read_text()) == {"n": 2}


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AfsError, match="cannot write"):
        create(tmp_path / "file" / "r", {})


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(AfsError, match=r"the folder holds no run\.json"):
        Run.read(tmp_path)


def test_runs_come_oldest_first(workspace: Workspace) -> None:
    assert runs_of(workspace, "din") == []
    run(workspace, "a", started_at="2026-03-01T00:00:00Z")
    run(workspace, "b", started_at="2026-01-01T00:00:00Z")
    run(workspace, "d", started_at="2026-02-01T00:00:00Z")
    run(workspace, "c", started_at="2026-02-01T00:00:00Z")
    assert [found.name for found in runs_of(workspace, "din")] == ["b", "c", "d", "a"]
    assert runs_of(workspace, "nayru") == []


def test_what_is_no_run_is_passed_over(workspace: Workspace) -> None:
    run(workspace, "good")
    folder = workspace.adapters / "din"
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("x")
    broken = folder / "broken"
    broken.mkdir()
    (broken / "run.json").write_text('{"expert": "di')
    assert [found.name for found in runs_of(workspace, "din")] == ["good"]
    with pytest.raises(AfsError, match=r"run\.json is not valid JSON"):
        find_run(workspace, "din", "broken")


def test_a_run_by_name(workspace: Workspace) -> None:
    run(workspace, "r1")
    run(workspace, "r2")
    assert find_run(workspace, "din", "r2").name == "r2"
    with pytest.raises(MissingError, match="din has no run 'r3'") as caught:
        find_run(workspace, "din", "r3")
    assert caught.value.fix == "runs: r1, r2"
    with pytest.raises(MissingError, match="nayru has no run") as caught:
        find_run(workspace, "nayru", "r1")
    assert caught.value.fix == "runs: none"


def test_metrics_are_lines_that_are_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    metrics.write(step=1, **{"train/loss": 2.5})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1, "train/loss": 2.5}]
    Metrics(path).write(step=2, note="é", none=None)
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[1]) == {"step": 2, "note": "é", "none": None}


def test_metrics_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AfsError, match="the disk is full"):
        Metrics(tmp_path / "metrics.jsonl").write(step=1)
