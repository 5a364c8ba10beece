"""Pipes in and out: closed, not UTF-8, left early by their reader."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from afs_mlx.cli.app import app
from afs_mlx.cli.render import progress
from afs_mlx.pipelines.diagnose import diagnose

ROOT = Path(__file__).parents[2]
AFS = f"{sys.executable} -m afs_mlx.cli.app"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    words = ["bash", "-c", f"set -o pipefail; {command}"]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)


@pytest.mark.parametrize("locale", ["C.UTF-8", "en_US.UTF-8"])  # in the first, Python lets such bytes through as text
def test_input_that_is_not_utf8(locale: str) -> None:
    done = shell(f"printf 'caf\\xe9' | LC_ALL={locale} {AFS} chat --expert din --base tiny-qwen2")
    assert done.returncode == 2
    assert "the piped input is not UTF-8" in done.stderr
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
    done = shell(f"{AFS} experts list | true && {AFS} experts show din --json | true")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_text_of_a_user_is_not_markup(tmp_path: Path) -> None:
    path = tmp_path / "workspace" / "experts.toml"
    path.parent.mkdir()
    path.write_text('[zelda]\ntitle = "knows [/x], [bold] and :on:"\n')
    for words in (["list"], ["show", "zelda"]):
        result = CliRunner().invoke(app, ["experts", *words])
        assert result.exit_code == 0, result.output
        assert "knows [/x], [bold] and :on:" in result.output


def test_the_name_of_a_processor_is_not_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    report = diagnose()
    machine = replace(report.machine, processor="CPU [/x]")
    monkeypatch.setattr("afs_mlx.pipelines.diagnose.diagnose", lambda: replace(report, machine=machine))
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "machine    CPU [/x], " in result.output


def test_a_download_without_a_terminal_speaks_in_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 10.0, 15.0, 16.0, 16.0, 40.0, 40.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with progress.bytes_progress() as count:
        count(1_000_000, 2_000_000)
        count(1_500_000, 2_000_000)
        count(1_600_000, 2_000_000)
    assert capsys.readouterr().err == "  1.5 MB of 2.0 MB\n"


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
