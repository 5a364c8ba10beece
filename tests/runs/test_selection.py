"""Which adapter is taken: best that passed on this base, latest; a named one only when it is whole."""

from pathlib import Path
from typing import Any

import pytest

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.files import write_json
from afs_mlx.core.paths import Workspace
from afs_mlx.runs.folder import WEIGHTS, Run, create
from afs_mlx.runs.selection import results_folder, select, usable_run

REAL, DEMO = "qwen2.5-coder-3b", "smollm2-135m"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "ws")


def run(
    workspace: Workspace, name: str, started: int, *, base: str = REAL, version: str = "v2", status: str = "finished"
) -> None:
    record = {
        "expert": "din",
        "version": version,
        "status": status,
        "base": {"id": base},
        "started_at": f"{started:04}",
    }
    path = create(workspace.adapters / "din" / name, record)
    (path / WEIGHTS).write_bytes(b"x")


def scored(workspace: Workspace, name: str, value: float | None, passed: bool, suite: str = "optimisation") -> None:
    record: dict[str, Any] = {"score": None if value is None else {"value": value}, "gate": {"passed": passed}}
    write_json(results_folder(workspace, "din", name) / f"{suite}.json", record)


def chosen(workspace: Workspace, base: str = REAL, version: str = "v2") -> tuple[str, str] | None:
    found = select(workspace, "din", version, base)
    return (found.run.name, found.reason) if found else None


def test_without_a_run_there_is_none(workspace: Workspace) -> None:
    assert chosen(workspace) is None


def test_the_latest_when_none_has_passed(workspace: Workspace) -> None:
    run(workspace, "z-old", 1)
    run(workspace, "a-new", 2)
    scored(workspace, "z-old", 0.9, passed=False)
    assert chosen(workspace) == ("a-new", "latest; none has passed its gate")


def test_the_best_that_passed(workspace: Workspace) -> None:
    for number, (value, passed) in enumerate([(0.6, True), (0.8, True), (0.95, False), (0.7, True)]):
        run(workspace, f"r{number}", number)
        scored(workspace, f"r{number}", value, passed)
    run(workspace, "latest", 9)
    assert chosen(workspace) == ("r1", "best that passed its gate, 0.80")


def test_a_score_of_zero_that_passed_is_still_a_score(workspace: Workspace) -> None:
    run(workspace, "zero", 1)
    run(workspace, "latest", 2)
    scored(workspace, "zero", 0.0, passed=True)
    assert chosen(workspace) == ("zero", "best that passed its gate, 0.00")


def test_of_equals_the_newest(workspace: Workspace) -> None:
    for number, name in enumerate(["c", "a", "b"]):
        run(workspace, name, number)
        scored(workspace, name, 0.7, passed=True)
    assert chosen(workspace) == ("b", "best that passed its gate, 0.70")


def test_every_suite_has_to_be_passed_and_the_lowest_counts(workspace: Workspace) -> None:
    for name in ("one", "two", "three"):
        run(workspace, name, 1)
    scored(workspace, "one", 0.9, passed=True)
    scored(workspace, "one", 0.3, passed=False, suite="hardware")
    scored(workspace, "two", 0.9, passed=True)
    scored(workspace, "two", 0.5, passed=True, suite="hardware")
    scored(workspace, "three", 0.6, passed=True)
    assert chosen(workspace) == ("three", "best that passed its gate, 0.60")


def test_an_unverified_result_never_passed(workspace: Workspace) -> None:
    run(workspace, "a", 1)
    run(workspace, "b", 2)
    scored(workspace, "a", None, passed=False)
    write_json(results_folder(workspace, "din", "b") / "x.json", {"gate": None})
    assert chosen(workspace) == ("b", "latest; none has passed its gate")


def test_a_demo_never_outranks_a_run_on_the_real_base(workspace: Workspace) -> None:
    run(workspace, "real", 1)
    scored(workspace, "real", 0.1, passed=False)
    run(workspace, "demo", 2, base=DEMO)
    scored(workspace, "demo", 1.0, passed=True)
    assert chosen(workspace) == ("real", "latest; none has passed its gate")
    assert chosen(workspace, base=DEMO) == ("demo", "best that passed its gate, 1.00")


def test_a_run_on_another_base_is_no_run(workspace: Workspace) -> None:
    run(workspace, "demo", 2, base=DEMO)
    assert chosen(workspace) is None
    assert chosen(workspace, base="") is None


@pytest.mark.parametrize("status", ["failed", "running", "unknown", ""])
def test_failed_runs_are_never_chosen(workspace: Workspace, status: str) -> None:
    run(workspace, "good", 1)
    run(workspace, "bad", 2, status=status)
    scored(workspace, "bad", 1.0, passed=True)
    assert chosen(workspace) == ("good", "latest; none has passed its gate")
    with pytest.raises(MissingError, match=r"run 'bad' holds no finished adapter"):
        usable_run(workspace, "din", "bad")


def test_a_run_without_weights_is_never_chosen(workspace: Workspace) -> None:
    run(workspace, "bare", 1)
    (workspace.adapters / "din" / "bare" / WEIGHTS).unlink()
    assert chosen(workspace) is None
    with pytest.raises(MissingError, match="holds no finished adapter"):
        usable_run(workspace, "din", "bare")


def test_runs_of_another_version_are_left_out(workspace: Workspace) -> None:
    run(workspace, "two", 1)
    run(workspace, "nine", 2, version="v9")
    run(workspace, "imported", 0, version="")
    assert chosen(workspace) == ("two", "latest; none has passed its gate")
    assert chosen(workspace, version="v9") == ("nine", "latest; none has passed its gate")
    assert chosen(workspace, version="") == ("nine", "latest; none has passed its gate")
    assert chosen(workspace, version="v3") == ("imported", "latest; none has passed its gate")


def test_a_named_run_that_is_not_there(workspace: Workspace) -> None:
    run(workspace, "r1", 1)
    with pytest.raises(MissingError, match="din has no run 'r2'") as caught:
        usable_run(workspace, "din", "r2")
    assert caught.value.fix == "runs: r1"


@pytest.mark.parametrize(
    "text",
    [
        '{"score": ',
        '{"gate": true}',
        '{"score": null, "gate": {"passed": true}}',
        '{"score": {"value": 3}, "gate": {"passed": true}}',
    ],
)
def test_a_broken_result_passes_nothing(workspace: Workspace, text: str) -> None:
    run(workspace, "r1", 1)
    run(workspace, "r2", 2)
    scored(workspace, "r1", 0.5, passed=True)
    scored(workspace, "r2", 0.9, passed=True)
    (results_folder(workspace, "din", "r2") / "optimisation.json").write_text(text)
    assert chosen(workspace) == ("r1", "best that passed its gate, 0.50")


def test_hidden_files_are_no_results(workspace: Workspace) -> None:
    run(workspace, "r1", 1)
    scored(workspace, "r1", 0.5, passed=True)
    (results_folder(workspace, "din", "r1") / "._optimisation.json").write_bytes(b"\x00\x05")
    assert chosen(workspace) == ("r1", "best that passed its gate, 0.50")


def test_a_run_cannot_name_a_folder_elsewhere(workspace: Workspace) -> None:
    run(workspace, "r1", 1)
    path = workspace.adapters / "din" / "r1"
    for expert in ("../..", "/home/somebody", "din/.."):
        write_json(path / "run.json", {"expert": expert})
        with pytest.raises(AfsError, match="is no expert's name"):
            Run.read(path)
