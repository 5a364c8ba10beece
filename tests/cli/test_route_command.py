"""`afs-mlx route` for a person and for a program."""

import json
from pathlib import Path

from typer.testing import CliRunner

from afs_mlx.cli.app import app


def test_a_question_and_the_reason() -> None:
    result = CliRunner().invoke(app, ["route", "explain what this does", "--why"])
    assert result.stdout.splitlines()[0] == "veran"
    assert "“explain”" in result.stdout


def test_a_file_gives_one_line_each(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text('{"query": "find the problem"}\n{"query": "what is the weather"}\n')
    result = CliRunner().invoke(app, ["route", "--file", str(path)])
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["expert"] for line in lines] == ["farore", "general"]
    assert lines[0]["scores"] == {"farore": 1}
    assert lines[1]["confidence"] == 0


def test_a_bad_file_names_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text('{"query": "x"}\n{"question": "y"}\n')
    result = CliRunner().invoke(app, ["route", "--file", str(path)])
    assert result.exit_code == 1
    assert "line 2: query: a text is expected" in result.output
