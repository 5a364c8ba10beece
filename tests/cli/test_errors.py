"""What a person gets wrong: one message that names the place and the remedy, the right exit code, no traceback."""

import json
import os
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from afs_mlx.cli.app import app
from afs_mlx.cli.errors import remembered_interrupt

ROWS = [{"instruction": f"Clear address ${i:02X}.", "output": f"```asm\n  stz ${i:02x}\n```"} for i in range(16, 28)]


def run(*words: str, code: int, input_text: str | None = None) -> str:
    result = CliRunner().invoke(app, list(words), input=input_text)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    path = tmp_path / "workspace" / "experts.toml"
    path.parent.mkdir()
    return path


def test_an_unknown_expert_names_the_nearest() -> None:
    assert "did you mean 'veran'?" in run("train", "varan", code=2)
    assert "did you mean 'v2'?" in run("train", "din@v22", code=2)
    assert "there is no expert" in run("chat", "--expert", "zelda", "hello", code=2)


def test_a_missing_base_exits_3_and_names_pull(rows: Path) -> None:
    said = run("train", "din", "--data", str(rows), code=3)
    assert "afs-mlx pull smollm2-135m" in said
    assert "afs-mlx pull qwen2.5-coder-3b" in said
    said = run("train", "din", "--base", "qwen2.5-coder-7b", "--data", str(rows), code=3)
    assert "afs-mlx pull qwen2.5-coder-7b, or --base smollm2-135m" in said
    assert run("chat", "--expert", "veran", "hello", code=3).count("fix:") == 1


def test_an_unknown_base_names_the_nearest() -> None:
    assert "did you mean 'qwen2.5-coder-3b'?" in run("train", "din", "--base", "qwen2.5-coder3b", code=2)
    assert "did you mean 'smollm2-135m'?" in run("pull", "smollm2", code=2)


def test_an_unknown_recipe_key_names_the_nearest(rows: Path, tmp_path: Path) -> None:
    said = run("train", "din", "--base", "tiny-qwen2", "--data", str(rows), "--set", "learning_rat=1", code=1)
    assert "did you mean 'learning_rate'?" in said
    config = tmp_path / "recipe.toml"
    config.write_text("rnk = 4\nepochs = 0\n")
    said = run("train", "din", "--base", "tiny-qwen2", "--data", str(rows), "--config", str(config), code=1)
    assert str(config) in said
    assert "rnk" in said
    assert "epochs" in said, "both problems are named"


def test_broken_toml_names_the_line(overlay: Path, tmp_path: Path) -> None:
    overlay.write_text("[din]\ntitle = nothing\n")
    said = run("experts", "list", code=1)
    assert "experts.toml" in said
    assert "line 2" in said


def test_an_overlay_with_an_unknown_key_is_refused(overlay: Path) -> None:
    overlay.write_text("[din]\ntemperature = 1\n\n[zelda]\ntitel = 'x'\n")
    said = run("experts", "list", code=1)
    assert "din.temperature: there is no such key" in said
    assert "zelda.titel: there is no such key" in said
    assert "zelda.title: Field required" in said


def test_bad_rows_are_listed_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "a", "output": "b"}\n{broken\n{"prompt": "x"}\n{"messages": []}\n')
    said = run("train", "din", "--base", "tiny-qwen2", "--data", str(path), code=1)
    for line in ("line 2", "line 3", "line 4"):
        assert line in said
    assert str(path) in said


def test_empty_and_missing_data(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert "holds no rows" in run("train", "din", "--base", "tiny-qwen2", "--data", str(empty), code=1)
    assert "there is no such data" in run(
        "train", "din", "--base", "tiny-qwen2", "--data", str(tmp_path / "no"), code=3
    )
    (tmp_path / "folder").mkdir()
    said = run("train", "din", "--base", "tiny-qwen2", "--data", str(tmp_path / "folder"), code=1)
    assert "no train.jsonl and no valid.jsonl" in said
    assert "data/curated/nayru-v5.jsonl" in run("train", "nayru", "--base", "tiny-qwen2", code=3)


def test_rows_over_the_limit_name_the_rows(rows: Path) -> None:
    words = ["train", "din", "--base", "tiny-qwen2", "--data", str(rows), "--set", "max_seq_tokens=16"]
    said = run(*words, code=1)
    assert "longer than max_seq_tokens = 16" in said
    assert "over_long=drop" in said


def test_a_question_over_the_limit_is_refused(overlay: Path) -> None:
    overlay.write_text("[general]\nsampling = { context_tokens = 64 }\n")
    said = run("chat", "--expert", "general", "--base", "tiny-qwen2", "word " * 200, code=1)
    assert "the limit is 64" in said


def test_an_expert_that_is_not_trained(rows: Path) -> None:
    assert "din@v3-fewshot is not trained" in run("train", "din@v3-fewshot", "--data", str(rows), code=2)
    assert "general is not trained" in run("build", "general", code=2)


def test_nothing_to_fuse_or_export() -> None:
    assert "afs-mlx train din@v2" in run("fuse", "din", "--base", "tiny-qwen2", code=3)
    assert "there is no type" in run("export", "gguf", "din", "--type", "q3", code=2)


def test_route_wants_one_of_two() -> None:
    assert "not both" in run("route", code=2)


def test_an_empty_pipe_is_no_question() -> None:
    assert "the piped input is empty" in run("chat", "--expert", "din", code=2, input_text="")


def test_debug_shows_the_traceback() -> None:
    result = CliRunner().invoke(app, ["--debug", "train", "varan"])
    assert result.exception is not None
    assert "varan" in str(result.exception)


def test_an_interrupt_that_a_library_swallows_is_raised_again() -> None:
    before = signal.getsignal(signal.SIGINT)
    with remembered_interrupt() as check:
        check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is before
