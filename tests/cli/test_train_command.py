"""`afs-mlx train` as a process: killed or interrupted at any moment, it resumes to the bytes of one that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from afs_mlx.cli.app import app
from afs_mlx.core.errors import ExitCode
from afs_mlx.runs.history import read_history

pytestmark = pytest.mark.slow

ROWS = [{"instruction": f"Clear address ${i:02X}.", "output": f"```asm\n  stz ${i:02x}\n```"} for i in range(16, 36)]
RECIPE = {
    "epochs": 2,
    "layers": 2,
    "rank": 2,
    "batch_tokens": 100,
    "dropout": 0.2,
    "validations_per_epoch": 3,
    "checkpoint_steps": 3,
    "sample_tokens": 4,
    "speed.memory_gb": 0,  # the frozen blocks' outputs in a file, which a kill may leave half written
}
KILLS = int(os.environ.get("AFS_MLX_KILLS", "4"))  # AFS_MLX_KILLS=20 for the whole claim
WEIGHTS = "adapters.safetensors"


@dataclass
class Place:
    """A workspace with rows, where the command is run as its own process."""

    home: Path

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        self.rows = self.home / "rows.jsonl"
        self.rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    @property
    def runs(self) -> list[Path]:
        return sorted((self.home / "workspace" / "adapters" / "din").glob("*"))

    @property
    def run(self) -> Path:
        (run,) = self.runs
        return run

    @property
    def record(self) -> dict[str, Any]:
        return dict(json.loads((self.run / "run.json").read_text()))

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.run / "checkpoints").glob("step-*"))

    def start(self, *words: str) -> subprocess.Popen[str]:
        folders = {"AFS_MLX_HOME": "workspace", "XDG_CACHE_HOME": "cache", "XDG_DATA_HOME": "data"}
        return subprocess.Popen(
            [sys.executable, "-m", "afs_mlx.cli.app", "train", "din", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **{name: str(self.home / folder) for name, folder in folders.items()}},
        )

    def train(self, **changes: Any) -> subprocess.Popen[str]:
        settings = [word for name, value in {**RECIPE, **changes}.items() for word in ("--set", f"{name}={value}")]
        return self.start("--base", "tiny-qwen2", "--data", str(self.rows), *settings)

    def resume(self, *words: str) -> str:
        """Until it has ended well; returns what it said."""
        process = self.start("--resume", *words)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        return said

    def lines(self) -> int:
        return sum(path.read_bytes().count(b"\n") for run in self.runs for path in run.glob("metrics.jsonl"))


def wait(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    """Until that holds; a process that ended before is an error of the test."""
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.0005)


def end(process: subprocess.Popen[str], number: signal.Signals) -> str:
    process.send_signal(number)
    return process.communicate(timeout=60)[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run that nobody disturbed."""
    place = Place(tmp_path_factory.mktemp("whole"))
    process = place.train()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    record = place.record
    assert (record["status"], record["metrics"]["steps"]) == ("finished", 38)
    assert record["metrics"]["best_step"] > 6
    return place


def assert_same_adapter(place: Place, whole: Place) -> None:
    for name in (WEIGHTS, "adapter_config.json"):
        assert (place.run / name).read_bytes() == (whole.run / name).read_bytes(), name
    spared = ("elapsed_s", "peak_memory_gb")
    metrics = [{k: v for k, v in each.record["metrics"].items() if k not in spared} for each in (place, whole)]
    assert metrics[0] == metrics[1]
    assert place.record["status"] == "finished"
    curves = [read_history(each.run / "metrics.jsonl") for each in (place, whole)]
    assert [(s.step, s.loss) for s in curves[0].steps] == [(s.step, s.loss) for s in curves[1].steps]


def moments(whole: Place, count: int) -> Iterator[int]:
    """How many lines of metrics there are when the process is killed; 0 is at once when the folder is there."""
    rng = np.random.default_rng(20)
    yield from sorted(int(i) for i in rng.choice(whole.lines(), count, replace=False))


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_a_random_moment_it_resumes_to_the_same_bytes(whole: Place, tmp_path: Path, number: int) -> None:
    moment = list(moments(whole, KILLS))[number]
    place = Place(tmp_path)
    process = place.train()
    wait(process, lambda: bool(place.runs) and place.lines() >= moment)
    end(process, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert place.record["status"] == "running", "nothing had time to say otherwise"
    if place.checkpoints:
        said = place.resume()
        assert "resume din@v2" in said
        assert len(place.record["resumed_at"]) == 1
    else:
        process = place.start("--resume")
        assert "has no checkpoint" in process.communicate(timeout=120)[1]
        assert process.returncode == ExitCode.ERROR
        place = Place(tmp_path / "anew")
        assert place.train().wait(timeout=120) == 0
    assert_same_adapter(place, whole)


@pytest.mark.parametrize("which", [2, 5])
def test_killed_while_a_checkpoint_is_written(whole: Place, tmp_path: Path, which: int) -> None:
    place = Place(tmp_path)
    process = place.train()

    def writes() -> bool:
        folders = [run / "checkpoints" for run in place.runs]
        names = [path.name for folder in folders if folder.is_dir() for path in folder.iterdir()]
        done = max((int(name[5:]) // 3 for name in names if name.startswith("step-")), default=-1)
        return done >= which - 1 and any(name.startswith(".step-") for name in names)

    wait(process, writes)
    end(process, signal.SIGKILL)
    place.resume()
    assert_same_adapter(place, whole)


def test_killed_again_and_again(whole: Place, tmp_path: Path) -> None:
    place = Place(tmp_path)
    process = place.train()
    for more in (6, 9, 7):
        before = place.lines()
        wait(process, lambda before=before, more=more: place.lines() >= before + more and bool(place.checkpoints))
        end(process, signal.SIGKILL)
        process = place.start("--resume")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert len(place.record["resumed_at"]) == 3
    assert_same_adapter(place, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_finishes_the_step_saves_and_exits_130(
    whole: Place, tmp_path: Path, number: signal.Signals
) -> None:
    place = Place(tmp_path)
    process = place.train()
    wait(process, lambda: place.lines() >= 8)
    said = end(process, number)
    assert process.returncode == ExitCode.INTERRUPTED == 130
    assert "finishing this step and saving" in said
    assert "go on with: afs-mlx train din@v2 --resume" in said
    assert "Traceback" not in said
    steps = place.record["metrics"]["steps"]
    assert place.record["status"] == "interrupted"
    assert (place.run / WEIGHTS).is_file()
    assert place.checkpoints[-1] == f"step-{steps:08d}"
    assert "interrupted at" in said
    place.resume()
    assert_same_adapter(place, whole)


# What cannot be resumed


def invoke(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["train", "din", *words])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def crashed(rows: Path, tmp_path: Path) -> Path:
    """A run whose process is gone, with checkpoints; made in this process."""
    settings = [word for name, value in {**RECIPE, "epochs": 1}.items() for word in ("--set", f"{name}={value}")]
    code, said = invoke("--base", "tiny-qwen2", "--data", str(rows), *settings)
    assert code == 0, said
    (run,) = (tmp_path / "workspace" / "adapters" / "din").iterdir()
    record = json.loads((run / "run.json").read_text())
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = {**record["process"], "pid": dead.pid}
    left = {name: value for name, value in record.items() if name not in ("metrics", "finished_at")}
    (run / "run.json").write_text(json.dumps({**left, "status": "running", "process": gone}))
    return run


def test_a_crashed_run_goes_on_where_and_with_what_it_was_started(crashed: Path) -> None:
    expected = (crashed / WEIGHTS).read_bytes()
    (crashed / WEIGHTS).unlink()
    code, said = invoke("--resume")
    assert code == 0, said
    assert (crashed / WEIGHTS).read_bytes() == expected
    assert [path.name for path in crashed.parent.iterdir()] == [crashed.name]


def test_there_is_nothing_to_resume(rows: Path) -> None:
    code, said = invoke("--resume")
    assert code == ExitCode.MISSING
    assert "din@v2 has no run to resume" in said
    assert "without --resume" in said


def test_a_finished_run_is_not_resumed(crashed: Path) -> None:
    invoke("--resume")
    code, said = invoke("--resume")
    assert code == ExitCode.ERROR
    assert "nothing to resume: it is finished" in said


def test_a_run_that_still_runs_is_not_resumed(crashed: Path) -> None:
    record = json.loads((crashed / "run.json").read_text())
    alive = {**record, "process": {**record["process"], "pid": os.getpid()}}
    (crashed / "run.json").write_text(json.dumps(alive))
    for words in ([], ["--out", str(crashed)]):
        code, said = invoke("--resume", *words)
        assert code == ExitCode.ERROR
        assert f"still training (process {os.getpid()})" in said
    assert json.loads((crashed / "run.json").read_text()) == alive


def test_another_recipe_is_refused_by_its_keys(crashed: Path) -> None:
    before = (crashed / "run.json").read_bytes()
    code, said = invoke("--resume", "--set", "learning_rate=0.5")
    assert code == ExitCode.USAGE
    assert "a resumed run keeps its recipe" in said
    assert "→ 0.5" in said
    assert (crashed / "run.json").read_bytes() == before


@pytest.mark.parametrize("words", [["--set", "rank=2"], ["--set", "rank=2", "--set", "dropout=0.2"]])
def test_the_same_value_of_some_keys_is_no_other_recipe(crashed: Path, words: list[str]) -> None:
    code, said = invoke("--resume", *words)
    assert code == 0, said


def test_what_never_reaches_the_weights_may_be_changed(crashed: Path) -> None:
    settings = [word for name, value in {**RECIPE, "epochs": 1}.items() for word in ("--set", f"{name}={value}")]
    code, said = invoke("--resume", *settings, "--set", "keep_checkpoints=5")
    assert code == 0, said


def test_naming_the_whole_recipe_again_is_no_other_recipe(crashed: Path) -> None:
    settings = [word for name, value in {**RECIPE, "epochs": 1}.items() for word in ("--set", f"{name}={value}")]
    code, said = invoke("--resume", *settings)
    assert code == 0, said


def test_other_rows_are_refused_and_nothing_is_touched(crashed: Path, rows: Path) -> None:
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:-1]))
    checkpoints = {path: path.read_bytes() for path in (crashed / "checkpoints").rglob("*") if path.is_file()}
    code, said = invoke("--resume")
    assert code == ExitCode.ERROR
    assert "made with another data" in said
    assert {path: path.read_bytes() for path in checkpoints} == checkpoints


def test_damaged_checkpoints_are_told_and_passed_over(crashed: Path) -> None:
    expected = (crashed / WEIGHTS).read_bytes()
    names = sorted(path.name for path in (crashed / "checkpoints").iterdir())
    (crashed / "checkpoints" / names[-1] / "state.safetensors").write_bytes(b"half")
    code, said = invoke("--resume")
    assert code == 0, said
    assert f"damaged checkpoint was passed over: {names[-1]}" in said
    assert (crashed / WEIGHTS).read_bytes() == expected


def test_when_all_checkpoints_are_damaged_it_says_so(crashed: Path) -> None:
    for path in (crashed / "checkpoints").glob("*/state.json"):
        path.write_text("{")
    code, said = invoke("--resume")
    assert code == ExitCode.ERROR
    assert "no checkpoint can be read" in said
    assert "without --resume" in said
