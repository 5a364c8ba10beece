"""Which runs there are, which is meant, whether one still trains, and what it came to."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from afs_mlx.core.errors import AfsError, MissingError, UsageError
from afs_mlx.core.paths import Workspace
from afs_mlx.runs.folder import Run
from afs_mlx.runs.history import History, parse_history
from afs_mlx.runs.overview import Overview, all_runs, figures, find, label, resume_command, state


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "ws")


def run(workspace: Workspace, name: str, expert: str = "din", **record: Any) -> Run:
    folder = workspace.adapters / expert / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"expert": expert, "version": "v2", **record}))
    return Run.read(folder)


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def process(pid: object, host: object = platform.node()) -> dict[str, Any]:
    return {"status": "running", "process": {"pid": pid, "host": host}}


def test_runs_newest_first_and_broken_ones_named(workspace: Workspace) -> None:
    run(workspace, "a", started_at="2026-01-01T00:00:00Z")
    run(workspace, "b", "veran", started_at="2026-03-01T00:00:00Z")
    run(workspace, "c", made_at="2026-02-01T00:00:00Z")
    broken = workspace.adapters / "din" / "broken"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    runs, failed = all_runs(workspace)
    assert [found.name for found in runs] == ["b", "c", "a"]
    assert [Path(error.where).parent.name for error in failed] == ["broken"]
    assert [found.name for found in all_runs(workspace, "veran")[0]] == ["b"]
    assert all_runs(Workspace(workspace.root / "nowhere")) == ([], [])


def test_a_run_is_found_by_folder_full_name_name_and_part(workspace: Workspace, tmp_path: Path) -> None:
    wanted = run(workspace, "v2-smollm2-135m-20260101-100000")
    run(workspace, "v2-smollm2-135m-20260102-100000")
    for name in (str(wanted.path), "din/v2-smollm2-135m-20260101-100000", wanted.name, "20260101"):
        assert find(workspace, name).path == wanted.path
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "run.json").write_text("{}")
    assert find(workspace, str(elsewhere)).path == elsewhere


def test_an_ambiguous_name_lists_what_it_may_mean(workspace: Workspace) -> None:
    run(workspace, "same")
    run(workspace, "same", "veran")
    with pytest.raises(UsageError, match="'same' may mean 2 runs") as caught:
        find(workspace, "same")
    assert caught.value.fix == "name one: veran/same, din/same"
    assert find(workspace, "veran/same").expert == "veran"


def test_a_whole_name_is_no_part_of_a_longer_one(workspace: Workspace) -> None:
    wanted = run(workspace, "r")
    run(workspace, "r-2")
    assert find(workspace, "r").path == wanted.path


def test_an_unknown_name_gets_the_near_ones(workspace: Workspace) -> None:
    with pytest.raises(MissingError, match="there is no run 'x'") as caught:
        find(workspace, "x")
    assert "afs-mlx train" in caught.value.fix
    run(workspace, "first-try")
    run(workspace, "zzzz")
    with pytest.raises(MissingError) as caught:
        find(workspace, "frist-try")
    assert caught.value.fix == "did you mean din/first-try?"
    with pytest.raises(MissingError) as caught:
        find(workspace, "nothing like it")
    assert caught.value.fix == "afs-mlx runs list shows them: din/first-try, din/zzzz"


def test_a_broken_run_that_is_named_is_an_error(workspace: Workspace) -> None:
    folder = workspace.adapters / "din" / "broken"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{")
    with pytest.raises(AfsError, match="not valid JSON"):
        find(workspace, "broken")


def test_a_running_run_whose_process_is_gone_has_crashed(workspace: Workspace, gone: int) -> None:
    crashed = run(workspace, "r 1", **process(gone))
    assert state(crashed) == "crashed"
    assert resume_command(crashed) == f"afs-mlx train din@v2 --resume --out '{crashed.path}'"
    assert state(run(workspace, "finished", **process(gone) | {"status": "finished"})) == "finished"


def test_a_running_run_whose_process_lives_is_running(workspace: Workspace) -> None:
    assert state(run(workspace, "r", **process(os.getpid()))) == "running"
    assert state(run(workspace, "lan", **process(os.getpid(), f"{platform.node().partition('.')[0].upper()}.lan"))) == (
        "running"
    )


def test_a_process_number_that_another_program_has_now(workspace: Workspace) -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        assert state(run(workspace, "r", **process(other.pid))) == "crashed"
    finally:
        other.kill()
        other.wait()


def test_of_another_machine_nothing_can_be_told(workspace: Workspace, gone: int) -> None:
    assert state(run(workspace, "r", **process(gone, "another-machine"))) == "running"


@pytest.mark.parametrize(
    ("pid", "expected"),
    [(0, "crashed"), (-1, "crashed"), (10**30, "crashed"), (True, "running"), ("1", "running"), (None, "running")],
)
def test_strange_process_numbers_signal_nobody(workspace: Workspace, pid: object, expected: str) -> None:
    assert state(run(workspace, "r", **process(pid))) == expected


@pytest.mark.parametrize("value", [None, 3, "text", [], {"pid": 3}, {"host": 3, "pid": 3}])
def test_no_process_that_can_be_read(workspace: Workspace, value: object) -> None:
    assert state(run(workspace, "r", status="running", process=value)) == "running"


def test_labels(workspace: Workspace) -> None:
    assert label(run(workspace, "a")) == "din@v2"
    assert label(run(workspace, "b", version="")) == "din"
    assert label(Run(Path("/home/imported/x"), {})) == "imported"


def test_figures_from_the_record_then_from_the_metrics(workspace: Workspace) -> None:
    lines = [
        {"step": 0, "valid/loss": 2.0},
        {"step": 1, "train/loss": 1.5, "tokens_per_s": 5.0, "peak_memory_gb": 1.0, "elapsed_s": 3.0},
        {"step": 1, "valid/loss": 1.25},
    ]
    history = parse_history([json.dumps(row).encode() + b"\n" for row in lines])
    running = figures(run(workspace, "running"), history)
    assert (running.steps, running.total_steps, running.best_step) == (1, None, 1)
    assert (running.base_valid_loss, running.best_valid_loss) == (2.0, 1.25)
    assert (running.tokens_per_s, running.peak_memory_gb, running.elapsed_s) == (5.0, 1.0, 3.0)
    metrics = {"steps": 9, "total_steps": 10, "base_valid_loss": 3.0, "best_valid_loss": 0.5, "best_step": 0}
    finished = figures(run(workspace, "finished", metrics=metrics), history)
    assert (finished.steps, finished.total_steps, finished.best_step) == (9, 10, 0)
    assert (finished.base_valid_loss, finished.best_valid_loss, finished.elapsed_s) == (3.0, 0.5, 3.0)


@pytest.mark.parametrize("value", [None, "1", True, [], {}, float("nan"), float("inf"), 10**400])
def test_figures_that_are_no_numbers_are_not_known(workspace: Workspace, value: object) -> None:
    keys = ("steps", "total_steps", "base_valid_loss", "best_valid_loss", "best_step", "peak_memory_gb", "elapsed_s")
    found = figures(run(workspace, "r", metrics=dict.fromkeys(keys, value)), History())
    assert (found.steps, found.total_steps, found.best_valid_loss, found.best_step) == (0, None, None, None)
    assert figures(run(workspace, "s", metrics=value), History()).elapsed_s is None


def test_an_overview_reads_what_lies_beside_the_record(workspace: Workspace) -> None:
    made = run(workspace, "r", status="imported")
    assert Overview.of(made).history == History()
    (made.path / "metrics.jsonl").write_text('{"step": 3, "train/loss": 1}\n')
    overview = Overview.of(made)
    assert (overview.figures.steps, overview.state) == (3, "imported")
