"""`afs-mlx route` for a person and for a program."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from afs_mlx.cli.app import app as whole_app
from afs_mlx.cli.routing import app


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_a_question_and_the_reason() -> None:
    result = run("explain what register $2100 does", "--why")
    lines = result.stdout.splitlines()
    assert lines[0] == "veran"
    assert "; confidence " in lines[1]
    assert lines[2].split()[0] == "veran"
    assert any(line.startswith("  margin ") for line in lines)
    assert any("what spoke for veran (+)" in line for line in lines)


def test_the_whole_command_line_has_it() -> None:
    result = CliRunner().invoke(whole_app, ["route", "explain what register $2100 does"])
    assert result.stdout == "veran\n"


def test_the_baseline() -> None:
    result = run("explain what this does", "--why", "--router", "keywords")
    assert result.stdout.splitlines()[0] == "veran"
    assert "matched “explain”" in result.stdout


def test_the_word_query_may_be_written_out() -> None:
    assert run("query", "explain register $2100").stdout == run("explain register $2100").stdout


def test_json() -> None:
    record = json.loads(run("explain register $2100", "--json").stdout)
    assert record["schema_version"] == 1
    assert record["expert"] == "veran"
    assert record["confidence"] == record["scores"]["veran"]
    assert {"reason", "margin", "words", "router", "query"} <= record.keys()


def test_a_file_gives_one_line_each(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text('{"query": "explain register $2100"}\n{"query": "what is the weather in Rome"}\n')
    lines = [json.loads(line) for line in run("--file", str(path)).stdout.splitlines()]
    assert [line["expert"] for line in lines] == ["veran", "general"]
    assert all(line.keys() == {"query", "expert", "confidence", "scores"} for line in lines)
    assert all(0 <= line["confidence"] <= 1 for line in lines)


def test_a_file_by_keywords_is_as_the_seed_had_it(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text('{"query": "find the problem"}\n{"query": "what is the weather"}\n')
    lines = [json.loads(line) for line in run("--file", str(path), "--router", "keywords").stdout.splitlines()]
    assert [line["expert"] for line in lines] == ["farore", "general"]
    assert lines[0]["scores"] == {"farore": 1}
    assert lines[1]["confidence"] == 0


def test_a_bad_file_names_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text('{"query": "x"}\n{"question": "y"}\n')
    result = run("--file", str(path))
    assert result.exit_code == 1
    assert "line 2: query: a text is expected" in result.output


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "a question or --file is needed"),
        (["x", "--file", "y"], 2, "not both"),
        (["x", "--router", "tfid"], 2, "did you mean 'tfidf'?"),
        (["\udcff"], 2, "not UTF-8"),
        (["x", "--router", "head", "--base", "tiny-qwen2"], 3, "afs-mlx route train --base tiny-qwen2"),
        (["eval", "--router", "tfid"], 2, "did you mean 'tfidf'?"),
        (["eval", "--file", "missing.jsonl", "--base", "tiny-qwen2"], 3, "does not exist"),
        (["train", "--base", "no-such-base"], 2, "neither a base id nor a model folder"),
    ],
)
def test_what_goes_wrong_is_said(words: list[str], code: int, said: str) -> None:
    result = run(*words)
    assert said in result.output
    assert result.exit_code == code


def test_controls_do_not_reach_the_terminal() -> None:
    assert "\x1b" not in run("explain \x1b[31mthis\x1b[0m $2100", "--why").output


def test_the_routers_beside_each_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"query": "explain register $2100", "expert": "veran", "kind": "short"}\n'
        '{"query": "what is the weather in Rome", "expert": "general"}\n'
    )
    words = ("eval", "--file", str(path), "--router", "keywords", "--router", "tfidf")
    shown = run(*words)
    assert shown.exit_code == 0, shown.output
    assert "accuracy in scope" in shown.stdout
    record = json.loads(run(*words, "--json").stdout)
    assert [report["router"] for report in record["reports"]] == ["keywords", "tfidf"]
    assert record["reports"][1]["accuracy"]["value"] == 1
    assert Path(record["result"]).is_file()


@pytest.mark.parametrize("words", [["--help"], ["query", "--help"], ["train", "--help"], ["eval", "--help"]])
def test_help(words: list[str]) -> None:
    result = run(*words)
    assert result.exit_code == 0
    assert "Usage:" in result.output
