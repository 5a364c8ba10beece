"""Pipes in and out: closed, not UTF-8, left early by their reader."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from afs_mlx.cli.app import app

ROOT = Path(__file__).parents[2]
AFS = f"{sys.executable} -m afs_mlx.cli.app"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    words = ["bash", "-c", f"set -o pipefail; {command}"]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)


def test_input_that_is_not_utf8() -> None:
    done = shell(f"printf 'caf\\xe9' | {AFS} chat --expert din --base tiny-qwen2")
    assert done.returncode == 2
    assert "not UTF-8" in done.stderr
    assert "Traceback" not in done.stderr


def test_closed_input_is_an_empty_one() -> None:
    done = shell(f"{AFS} chat --expert din --base tiny-qwen2 <&-")
    assert done.returncode == 2
    assert "there is no question" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_prompt_and_a_pipe_are_one_question() -> None:
    done = shell(f"echo 'lda #$00' | {AFS} chat --expert general --base tiny-qwen2 --max-tokens 3 'explain:'")
    assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    done = shell(f"{AFS} experts list | true; {AFS} experts show din --json | head -1")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_text_of_a_user_is_not_markup(tmp_path: Path) -> None:
    path = tmp_path / "workspace" / "experts.toml"
    path.parent.mkdir()
    path.write_text('[zelda]\ntitle = "knows [/x] and [bold]"\n')
    result = CliRunner().invoke(app, ["experts", "list"])
    assert result.exit_code == 0, result.output
    assert "[/x]" in result.output


def test_an_operating_system_error_has_no_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "rows.jsonl"
    folder.mkdir()
    (folder / "train.jsonl").mkdir()
    (folder / "valid.jsonl").touch()
    result = CliRunner().invoke(app, ["train", "din", "--base", "tiny-qwen2", "--data", str(folder)])
    assert result.exit_code == 1
    assert "Traceback" not in result.output

    def unreadable(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/somewhere/file")

    monkeypatch.setattr("afs_mlx.experts.catalog.Catalog.load", unreadable)
    result = CliRunner().invoke(app, ["experts", "list"])
    assert result.exit_code == 1
    assert "/somewhere/file: Permission denied" in result.output
