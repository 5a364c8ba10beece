"""Reading suites: the header, the cases, and everything that can be wrong with them."""

import json
from pathlib import Path
from typing import Any

import pytest

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.paths import checkout
from afs_mlx.evaluation.suites import load_suite

HEADER = 'title = "t"\nscorer = "optimisation"\ncases = "s.jsonl"\nmeasures = "m"\n'
ROW: dict[str, Any] = {
    "id": "c-1",
    "family": "stz",
    "goal": "bytes",
    "entry": {"m": 8, "x": 8},
    "live": [],
    "code": "lda #$00\nsta $10",
    "better": "stz $10",
    "reason": "SECRET-REASON",
    "not_when": "SECRET-NOT-WHEN",
}


def suite_in(tmp_path: Path, header: str = HEADER, rows: list[dict[str, Any]] | None = None) -> Path:
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows or [ROW]))
    path = tmp_path / "s.toml"
    path.write_text(header)
    return path


def test_a_suite_with_its_files(tmp_path: Path) -> None:
    path = suite_in(tmp_path, HEADER + "max_tokens = 64\n", [ROW, {**ROW, "id": "c-2"}])
    suite = load_suite(path)
    assert (suite.name, suite.header.max_tokens, [case.id for case in suite.cases]) == ("s", 64, ["c-1", "c-2"])
    assert suite.files == (path, tmp_path / "s.jsonl")


def test_the_reference_answer_is_not_in_the_case(tmp_path: Path) -> None:
    case = load_suite(suite_in(tmp_path)).cases[0]
    for secret in ("stz $10", "SECRET-REASON", "SECRET-NOT-WHEN"):
        assert secret not in case.model_dump_json()


def test_all_problems_of_the_header_come_together(tmp_path: Path) -> None:
    path = suite_in(tmp_path, 'title = "t"\nscorer = "optimisation"\nmax_token = 5\nmax_tokens = 0\n')
    with pytest.raises(AfsError) as caught:
        load_suite(path)
    found = [line.strip() for line in caught.value.what.splitlines()[1:]]
    assert len(found) == 4
    assert "max_token: there is no such key; did you mean 'max_tokens'?" in found
    assert {"cases", "measures", "max_tokens"} <= {line.split(":")[0] for line in found}
    assert caught.value.where == str(path)


def test_a_broken_header_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(AfsError, match=r"not valid TOML: .*line 2"):
        load_suite(suite_in(tmp_path, 'title = "t"\nscorer = \n'))


def test_an_unknown_scorer(tmp_path: Path) -> None:
    with pytest.raises(AfsError, match="there is no scorer 'optimization'") as caught:
        load_suite(suite_in(tmp_path, HEADER.replace('"optimisation"', '"optimization"')))
    assert caught.value.fix == "did you mean 'optimisation'?"


def test_bad_cases_are_named_by_line(tmp_path: Path) -> None:
    rows = [
        ROW,
        {**ROW, "id": "c-2", "goal": "speed"},
        {**ROW, "id": "c-3", "better": "LDA  #$00\nSTA $10"},
        {"id": "c"},
    ]
    with pytest.raises(AfsError) as caught:
        load_suite(suite_in(tmp_path, rows=rows))
    lines = [line.strip() for line in caught.value.what.splitlines()[1:]]
    assert lines[0].startswith("line 2: goal: ")
    assert lines[1].startswith("line 3: row: ")
    assert "same routine" in lines[1]
    assert {line.split(":")[0] for line in lines[2:]} == {"line 4"}
    assert caught.value.where == str(tmp_path / "s.jsonl")


def test_an_id_that_stands_twice(tmp_path: Path) -> None:
    with pytest.raises(AfsError, match=r"id 'c-1' stands twice"):
        load_suite(suite_in(tmp_path, rows=[ROW, {**ROW, "goal": "cycles"}]))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(AfsError, match="does not exist"):
        load_suite(tmp_path / "none.toml")
    path = suite_in(tmp_path)
    (tmp_path / "s.jsonl").unlink()
    with pytest.raises(MissingError, match="does not exist"):
        load_suite(path)


def test_an_empty_suite(tmp_path: Path) -> None:
    path = suite_in(tmp_path)
    (tmp_path / "s.jsonl").write_text("\n")
    with pytest.raises(AfsError, match="the file holds no rows"):
        load_suite(path)


def test_every_shipped_suite_loads_and_says_what_it_measures() -> None:
    root = checkout()
    assert root is not None
    paths = sorted((root / "evals" / "suites").glob("*.toml"))
    assert paths
    for path in paths:
        suite = load_suite(path)
        assert suite.header.measures
        assert suite.header.limits
