"""`afs-mlx runs` as a person types it: text, JSON, the HTML page, what is wrong, and no mlx."""

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from afs_mlx.cli.app import app
from afs_mlx.cli.render.run_facts import age
from afs_mlx.core.manifest import now
from afs_mlx.core.paths import Workspace
from afs_mlx.schema.recipe import Recipe

ROOT = Path(__file__).parents[2]
EVIL = "\x1b[31m</pre><script>x</script>\u202e"
PROBE = """
import sys
from afs_mlx.cli.app import main
sys.argv = ["afs-mlx", *sys.argv[1:]]
try:
    main()
except SystemExit as error:
    code = error.code
heavy = {"mlx", "mlx_lm", "transformers", "torch", "numpy"}
print("HEAVY", sorted({n.partition(".")[0] for n in sys.modules} & heavy), code, file=sys.stderr)
"""


def run(*words: str) -> str:
    result = CliRunner().invoke(app, ["runs", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


def parsed(*words: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    value = json.loads(run(*words, "--json"), parse_constant=refuse)
    assert isinstance(value, dict)
    assert value["schema_version"] == 1
    return value


def failed(code: int, *words: str) -> str:
    result = CliRunner().invoke(app, ["runs", *words])
    assert result.exit_code == code, result.output
    assert not result.stdout
    return result.stderr


def metrics(best: float, steps: int = 20) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"step": 0, "valid/loss": 2.0, "elapsed_s": 0.1}]
    answers = {0: f"Sure! {EVIL}", 10: "lda #0", steps: "stz $10"}
    for step in range(1, steps + 1):
        rows.append(
            {"step": step, "epoch": 1, "train/loss": 2.0 - step / 20, "learning_rate": 1e-4, "grad_norm": 1.0}
            | {"supervised_tokens": 30, "tokens_per_s": 50.0, "peak_memory_gb": 0.5, "elapsed_s": float(step)}
        )
        if step % 10 == 0:
            rows.append({"step": step, "valid/loss": 2.0 - (2.0 - best) * step / steps, "elapsed_s": float(step)})
    texts = {"sample/question": "Clear $10.", "sample/expected": "stz $10"}
    return rows + [{"step": step, **texts, "sample/answer": answer} for step, answer in answers.items()]


def make(name: str, best: float = 1.0, expert: str = "din", tail: str = "", **changes: Any) -> Path:
    folder = Workspace.find().adapters / expert / name
    folder.mkdir(parents=True)
    recipe = Recipe(rank=16, targets=("q_proj",)).model_dump(mode="json")
    record: dict[str, Any] = {
        "made_by": "afs-mlx 0.1.0: train",
        "code": {"commit": "abcdef0123456789", "dirty": True},
        "packages": {"mlx": "0.32.4"},
        "machine": {"system": "Darwin", "processor": "Apple M1"},
        "expert": expert,
        "version": "v2",
        "status": "finished",
        "demo": True,
        "started_at": "2026-01-01T00:00:00Z",
        "base": {"id": "tiny-qwen2", "weights_sha256": "a" * 64},
        "recipe": {**recipe, "speed": {**recipe["speed"], "lean": False}},
        "system": "You are Din.",
        "data": {"inputs": [{"file": "din.jsonl", "sha256": "d" * 64, "rows": 9}], "seed": 0, "train_rows": 8},
        "metrics": {"steps": 20, "total_steps": 20, "base_valid_loss": 2.0, "best_valid_loss": best, "best_step": 20},
    }
    (folder / "run.json").write_text(json.dumps(record | changes))
    text = "".join(json.dumps(row) + "\n" for row in metrics(best))
    (folder / "metrics.jsonl").write_text(text + tail)
    return folder


@pytest.fixture
def crashed() -> Path:
    """A run that says it is running, of a process that is gone, torn in the middle of a line."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    there = {"pid": process.pid, "host": platform.node()}
    tail = '{"step": 21, "train/lo'
    folder = make("v2-broken", status="running", metrics=None, process=there, started_at=now(), tail=tail)
    (folder / "checkpoints" / "step-00000020").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000020" / "state.json").write_bytes(b"x" * 2000)
    (folder / "checkpoints" / ".step-00000021.half").mkdir()
    return folder


def test_list_is_newest_first_and_says_how_each_stands(crashed: Path) -> None:
    make("v2-first", 0.75)
    make("v4-other", expert="veran", started_at="2026-02-01T00:00:00Z", status="interrupted")
    lines = run("list").splitlines()
    assert [line.split()[0] for line in lines] == ["run", "v2-broken", "v4-other", "v2-first"]
    assert lines[1].split()[1:5] == ["din@v2", "tiny-qwen2", "crashed", "20"]
    assert lines[1].endswith("just now")
    assert "20/20  2.0000 → 0.7500 @20" in lines[3]
    assert [row["name"] for row in parsed("list", "--expert", "veran")["runs"]] == ["v4-other"]
    first = parsed("list")["runs"][2]
    assert (first["expert"], first["version"], first["best_valid_loss"], first["demo"]) == ("din", "v2", 0.75, True)


def test_list_of_nothing_and_of_an_expert_that_is_none() -> None:
    assert run("list").startswith("no runs in ")
    assert parsed("list", "--expert", "din")["runs"] == []
    assert "did you mean 'din'?" in failed(2, "list", "--expert", "dinn")


def test_a_broken_run_keeps_no_other_from_the_list() -> None:
    make("good")
    (make("broken") / "run.json").write_text("{")
    unreadable = make("unreadable") / "metrics.jsonl"
    unreadable.unlink()
    unreadable.mkdir()
    result = CliRunner().invoke(app, ["runs", "list"])
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["run", "good"]
    assert result.stderr.count("notice: left out: ") == 2


def test_a_narrow_terminal_gets_two_lines_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    make("v2-first")
    narrow = Console(force_terminal=True, width=40, soft_wrap=True, no_color=True)
    monkeypatch.setattr("afs_mlx.cli.render.runs.out", lambda: narrow)
    lines = run("list").splitlines()
    assert "v2-first" in lines[0]
    assert lines[1].startswith("  din@v2  tiny-qwen2  finished")


def test_show_tells_all_of_a_finished_run() -> None:
    make("v2-first", 0.75)
    text = run("show", "v2-first")
    for part in (
        "expert       din@v2 on tiny-qwen2 (demo), weights aaaaaaaaaaaa",
        "status       finished, step 20 of 20",
        "2.0000 (base) → 0.7500 (best, step 20), 0.7500 (last, step 20)",
        "50 tok/s (median), 600 tokens learnt, peak 500 MB, took 20 s",
        "recipe       rank 16 (default 8)\n             targets q_proj (default none)\n"
        "             speed.lean False (default True)\n",
        f"din.jsonl, 9 rows, sha256 {'d' * 64}",
        "abcdef012345 with local changes",
        "base         Sure!",
        "step 10      lda #0",
        "step 20      stz $10",
        "expected     stz $10",
    ):
        assert part in text
    assert "to go on" not in text


def test_show_tells_how_to_go_on_with_a_crashed_run(crashed: Path) -> None:
    text = run("show", "broken")
    assert "status       crashed, step 20; its process " in text
    assert f"to go on: afs-mlx train din@v2 --resume --out {crashed}" in text
    assert "checkpoints  step-00000020 (2.0 kB)" in text
    assert "the last line is half; it was left out" in text
    found = parsed("show", "broken")
    assert (found["status"], found["steps"], found["torn_last_line"]) == ("crashed", 20, True)
    assert found["resume"] == f"afs-mlx train din@v2 --resume --out {crashed}"
    assert found["checkpoints"] == ["step-00000020"]
    assert found["changed_recipe"]["rank"] == {"value": 16, "default": 8}
    assert found["record"]["system"] == "You are Din."
    assert [sample["step"] for sample in found["samples"]] == [0, 10, 20]


def test_without_a_checkpoint_there_is_nothing_to_go_on_with(crashed: Path) -> None:
    (crashed / "checkpoints" / "step-00000020").rename(crashed / "elsewhere")
    assert "to go on" not in run("show", "broken")
    assert parsed("show", "broken")["resume"] is None


def test_show_tells_what_happened() -> None:
    rows = [
        {"step": 19, "rolled_back/from": 20, "rolled_back/reason": "the loss is NaN", "rate_factor": 0.5},
        {"step": 19, "resumed": True, "elapsed_s": 1},
        {"warning": f"on battery{EVIL}"},
        {"step": 20, "train/loss": float("nan")},
        {"step": 20, "stopped_early": 3},
    ]
    tail = "".join(json.dumps(row) + "\n" for row in rows) + "no line\n"
    make("r", tail=tail, status="failed", error="the disk is full\nfix: free some space")
    text = run("show", "r")
    for part in (
        "the disk is full\n             fix: free some space",
        "step 20 was rolled back to step 19: the loss is NaN; rate × 0.5",
        "resumed after step 19",
        "warned: on battery",
        "stopped early at step 20",
        "1 losses are not finite",
        "1 lines cannot be read",
    ):
        assert part in text


def test_compare_says_who_is_better_and_what_differs() -> None:
    make("first", 1.0)
    make("second", 0.5, recipe=Recipe(rank=32).model_dump(mode="json"))
    text = run("compare", "first", "second")
    assert "- B has the lowest validation loss: 0.5000 at step 20; A 1.0000 (+100.0%)" in text
    assert [line.split() for line in text.splitlines() if line.startswith("recipe.rank")] == [
        ["recipe.rank", "16", "32"]
    ]
    assert "recipe.alpha" not in text
    found = parsed("compare", "first", "second")
    assert found["losses_comparable"] is True
    assert found["settings"]["recipe.rank"] == [16, 32]
    assert found["at_steps"][-1]["valid"] == [1.0, 0.5]


def test_compare_of_other_data_claims_nothing() -> None:
    make("first", 1.0)
    make("second", 0.5, data={"inputs": [{"file": "x.jsonl", "sha256": "e" * 64}], "seed": 0})
    text = run("compare", "first", "second")
    assert "- losses are not comparable: other data" in text
    assert "lowest" not in text
    assert parsed("compare", "first", "second")["losses_comparable"] is False
    assert "losses are not comparable: other data" in run("plot", "first", "second")


def test_plot_draws_and_names_the_runs() -> None:
    make("first", 1.0)
    make("second", 0.5)
    text = run("plot", "first", "second")
    assert {"A", "B"} <= set("".join(text.splitlines()[:18]))
    assert "A  first (finished): best 1.0000 at step 20" in text
    assert "●" in run("plot", "first")
    found = parsed("plot", "first")
    assert found["runs"][0]["valid"] == [[0, 2.0], [10, 1.5], [20, 1.0]]
    assert found["runs"][0]["train"][0] == [1, 1.95]
    assert found["html"] is None


def test_plot_writes_one_page_that_escapes_what_it_shows(tmp_path: Path) -> None:
    make("first", notes="x", system=EVIL)
    make("second", 0.5, system="other")
    page = tmp_path / "new" / "page.html"
    assert run("plot", "first", "second", "--html", str(page)) == f"{page}\n"
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "\x1b" not in text
    assert text.count("&lt;script&gt;") >= 2
    assert "B has the lowest validation loss" in text
    assert parsed("plot", "first", "--html", str(page))["html"] == str(page)
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


def test_a_page_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    make("first")
    target = tmp_path / "folder"
    target.mkdir()
    assert "cannot write" in failed(1, "plot", "first", "--html", str(target))
    assert list(tmp_path.glob("*.html")) == []


def test_names_that_mean_no_run_or_several() -> None:
    make("v2-first")
    make("v2-second")
    assert "'v2-' may mean 2 runs" in failed(2, "show", "v2-")
    assert "name one: din/v2-second, din/v2-first" in failed(2, "show", "v2-")
    assert "did you mean din/v2-first?" in failed(3, "show", "v2-furst")
    assert "is named twice" in failed(2, "compare", "v2-first", "din/v2-first")
    assert "one run is nothing to compare" in failed(2, "compare", "v2-first")
    assert "9 runs are too many" in failed(2, "plot", *["v2-first"] * 9)


def test_a_run_without_metrics_cannot_be_drawn() -> None:
    (make("imported", status="imported") / "metrics.jsonl").unlink()
    make("trained")
    assert "nothing to draw: imported" in failed(3, "plot", "imported")
    result = CliRunner().invoke(app, ["runs", "plot", "imported", "trained"])
    assert result.exit_code == 0
    assert "not drawn, for want of metrics: imported" in result.stderr
    assert "imported" in run("show", "imported")


@pytest.mark.parametrize(
    "value", [None, 3, "text", [], [[]], [3], {}, {"a": 3}, float("nan"), EVIL, "\ud800"], ids=repr
)
def test_a_strange_record_is_no_obstacle(value: object) -> None:
    keys = ("base", "data", "recipe", "system", "machine", "code", "packages", "metrics", "process", "error", "version")
    make("strange", **dict.fromkeys((*keys, "started_at", "made_by", "demo", "inputs"), value))
    make("plain")
    for words in (("list",), ("show", "strange"), ("compare", "plain", "strange"), ("plot", "strange")):
        assert "\x1b" not in run(*words)
        assert parsed(*words)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_utf8_gets_what_it_can_show(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make("first", system="日本 → é")
    make("second", 0.5)
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    for words in (["list"], ["show", "first"], ["compare", "first", "second"], ["plot", "first", "second"]):
        command = [sys.executable, "-m", "afs_mlx.cli.app", "runs", *words]
        done = subprocess.run(command, capture_output=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr.decode(encoding)
        assert done.stdout.decode(encoding)


@pytest.mark.parametrize("words", [["list"], ["show", "first"], ["compare", "first", "second"], ["plot", "first"]])
def test_no_mlx_is_imported(words: list[str]) -> None:
    make("first")
    make("second")
    command = [sys.executable, "-c", PROBE, "runs", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert "HEAVY [] 0" in done.stderr, done.stderr


@pytest.mark.parametrize("words", [(), ("list",), ("show",), ("compare",), ("plot",)])
def test_help(words: tuple[str, ...]) -> None:
    assert "Usage:" in run(*words, "--help")


def test_ages() -> None:
    assert age(now()) == "just now"
    assert age("2000-01-01T00:00:00Z").endswith(" days ago")
    assert age("2000-01-01").endswith(" days ago")
    assert age("9999-01-01T00:00:00Z") == "just now"
    assert age("nonsense") == ""
