"""What a person reads when something is wrong, and the exit code that goes with it."""

import pytest

from afs_mlx.core.errors import AfsError, ExitCode, MissingError, RefusedError, UsageError, closest, problems


def test_text_is_where_what_and_fix() -> None:
    assert (
        str(AfsError("the file is empty", "a.toml", "write a line")) == "a.toml: the file is empty\nfix: write a line"
    )


def test_absent_parts_leave_no_trace() -> None:
    assert str(AfsError("the file is empty")) == "the file is empty"
    assert str(AfsError("the file is empty", fix="write a line")) == "the file is empty\nfix: write a line"


@pytest.mark.parametrize(("error", "code"), [(AfsError, 1), (UsageError, 2), (MissingError, 3), (RefusedError, 4)])
def test_each_kind_has_its_exit_code(error: type[AfsError], code: int) -> None:
    raised = error("what", "where", "fix")
    assert (int(raised.code), raised.what, raised.where, raised.fix) == (code, "what", "where", "fix")
    assert ExitCode(code) is raised.code


def test_an_interrupt_is_told_as_shells_do() -> None:
    assert ExitCode.INTERRUPTED == 130


def test_problems_are_counted_and_listed() -> None:
    assert problems(["line 3: a", "line 9: b"], "bad rows", "x.jsonl", "mend").what == (
        "bad rows (2 problems)\n  line 3: a\n  line 9: b"
    )
    assert "(1 problem)" in problems(["only"], "bad rows").what


def test_of_many_problems_twenty_are_shown_and_the_rest_counted() -> None:
    lines = problems([f"line {n}" for n in range(1, 24)], "bad rows").what.splitlines()
    assert lines[0] == "bad rows (23 problems)"
    assert (lines[20], lines[21]) == ("  line 20", "  … and 3 more")
    assert len(lines) == 22


def test_exactly_twenty_problems_are_all_shown() -> None:
    assert "more" not in problems([f"line {n}" for n in range(20)], "bad rows").what


def test_closest_names_the_nearest_else_all() -> None:
    assert closest("verran", ["din", "veran", "nayru"]) == "did you mean 'veran'?"
    assert closest("xyz", ["din", "veran"]) == "known: din, veran"
