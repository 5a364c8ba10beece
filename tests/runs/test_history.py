"""metrics.jsonl as it is found: whole, torn, edited by hand, full of what is no number, rolled back and resumed."""

import json
import math
from pathlib import Path

import pytest

from afs_mlx.core.errors import AfsError
from afs_mlx.runs.history import History, Rollback, Sample, Validation, parse_history, read_history


def line(**values: object) -> bytes:
    return (json.dumps(values) + "\n").encode()


def step(number: int, loss: object = 1.0) -> bytes:
    return line(**{"step": number, "train/loss": loss})


def valid(number: int, loss: float) -> bytes:
    return line(**{"step": number, "valid/loss": loss, "elapsed_s": 1.0})


def answer(number: int, text: str, question: str = "Q") -> bytes:
    return line(**{"step": number, "sample/question": question, "sample/answer": text, "sample/expected": "E"})


def resume(number: int) -> bytes:
    return line(step=number, resumed=True, elapsed_s=3.0)


def losses(history: History) -> dict[int, float]:
    return {row.step: row.loss for row in history.steps}


def test_every_kind_of_line(tmp_path: Path) -> None:
    full = {"epoch": 1, "learning_rate": 1e-4, "grad_norm": 0.5, "supervised_tokens": 30, "tokens_per_s": 9.5}
    rows = [
        valid(0, 2.0),
        answer(0, "before"),
        line(**{"step": 1, "train/loss": 1.5, **full, "peak_memory_gb": 0.5, "elapsed_s": 2.0}),
        valid(1, 1.0),
        answer(1, "after"),
        line(**{"step": 1, "rolled_back/from": 2, "rolled_back/reason": "NaN", "rate_factor": 0.5}),
        line(warning="on battery"),
        resume(1),
        line(step=1, stopped_early=3),
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(rows))
    found = read_history(path)
    (only,) = found.steps
    assert (only.step, only.loss, only.learning_rate, only.supervised_tokens) == (1, 1.5, 1e-4, 30)
    assert (only.tokens_per_s, only.peak_memory_gb, only.elapsed_s) == (9.5, 0.5, 2.0)
    assert found.validations == (Validation(0, 2.0), Validation(1, 1.0))
    assert found.samples == (Sample(0, "Q", "before", "E"), Sample(1, "Q", "after", "E"))
    assert found.rollbacks == (Rollback(1, 2, "NaN", 0.5),)
    assert (found.warnings, found.resumed_at, found.stopped_early) == (("on battery",), (1,), 1)
    assert (found.unreadable, found.torn) == ((), False)
    assert (found.base_loss, found.best, found.last_step) == (2.0, Validation(1, 1.0), 1)


def test_no_file_and_no_line(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert read_history(tmp_path / "absent") == read_history(tmp_path / "empty") == History()
    assert (History().last_step, History().best, History().base_loss) == (0, None, None)
    with pytest.raises(AfsError, match="the metrics cannot be read"):
        read_history(tmp_path)


@pytest.mark.parametrize("tail", [b'{"step": 2, "tra', b'{"step": 2, "train/loss": 1.2', b"\0" * 4096])
def test_a_torn_last_line_is_left_out(tail: bytes) -> None:
    found = parse_history([step(1), tail])
    assert losses(found) == {1: 1.0}
    assert found.torn
    assert found.unreadable == ()


def test_a_whole_last_line_needs_no_line_end() -> None:
    found = parse_history([step(1), step(2).rstrip()])
    assert (losses(found), found.torn) == ({1: 1.0, 2: 1.0}, False)


def test_what_is_appended_to_half_a_line_counts() -> None:
    """A kill leaves half a line; the resumed run writes on in the same one."""
    found = parse_history([step(1), b'{"step": 2, "train/lo' + step(2, 7.0)])
    assert (losses(found), found.unreadable, found.torn) == ({1: 1.0, 2: 7.0}, (), False)


def test_half_a_line_before_a_resume_is_nothing_to_complain_about() -> None:
    half = b'{"step": 2, "tra\n'
    assert parse_history([step(1), half, resume(1), step(2)]).unreadable == ()
    assert parse_history([half, step(1), resume(1), step(2)]).unreadable == (1,)


def test_text_that_looks_like_an_object_is_none() -> None:
    found = parse_history([answer(1, 'x {"step": 9, "train/loss": 9}')[:-4] + b"\n"])
    assert (found.steps, found.unreadable) == ((), (1,))


@pytest.mark.parametrize(
    "bad",
    [
        b"\xff\xfe[1]\n",
        b"{}\n",
        b"null\n",
        b"[1]\n",
        b"[" * 100_000 + b"\n",
        b'{"step": ' + b"9" * 5000 + b"}\n",
        b'{"train/loss": 1}\n',
        step(-1),
        line(**{"step": True, "train/loss": 1}),
        line(**{"step": 1.5, "train/loss": 1}),
        line(**{"step": math.nan, "train/loss": 1}),
        line(**{"step": 10**400, "train/loss": 1}),
        step(2, "1.0"),
        step(2, [1]),
        step(2, True),
        line(step=2, something=3),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_a_bad_line_is_counted_and_passed_over(bad: bytes) -> None:
    found = parse_history([step(1), bad, b"\n", step(3)])
    assert losses(found) == {1: 1.0, 3: 1.0}
    assert found.unreadable == (2,)


def test_what_is_not_finite_is_kept_and_never_best() -> None:
    rows = [step(1, math.nan), step(2, math.inf), step(3, None), step(4, 1e300), valid(0, math.nan), valid(4, 3.0)]
    found = parse_history(rows)
    assert [math.isfinite(row.loss) for row in found.steps] == [False] * 4
    assert (found.best, found.base_loss) == (Validation(4, 3.0), None)


def test_a_rollback_takes_back_what_came_after() -> None:
    back = line(**{"step": 1, "rolled_back/from": 3, "rolled_back/reason": "spike", "rate_factor": 0.5})
    found = parse_history([step(1), step(2), valid(2, 9.0), answer(2, "bad"), step(3, 99.0), back, step(2, 0.5)])
    assert losses(found) == {1: 1.0, 2: 0.5}
    assert (found.validations, found.samples) == ((), ())
    assert found.rollbacks[0].failed_step == 3


def test_after_a_resume_the_second_word_on_a_step_counts() -> None:
    found = parse_history([step(1), step(2, 8.0), step(3, 8.0), resume(1), step(2, 2.0)])
    assert losses(found) == {1: 1.0, 2: 2.0}


def test_steps_out_of_order_and_twice() -> None:
    found = parse_history([step(3), step(1, 5.0), step(1, 6.0)])
    assert [(row.step, row.loss) for row in found.steps] == [(1, 6.0), (3, 1.0)]


def test_stopping_early_is_forgotten_when_training_goes_on() -> None:
    assert parse_history([step(1), line(step=1, stopped_early=2), resume(1), step(2)]).stopped_early is None


def test_texts_can_be_written_again() -> None:
    raw = b'{"step": 0, "sample/question": "\\ud800", "sample/answer": "a\\u001b[2J", "sample/expected": 3}\n'
    (sample,) = parse_history([raw]).samples
    assert sample == Sample(0, "?", "a\x1b[2J", "")


def test_samples_of_interest_are_the_bases_the_first_and_the_last() -> None:
    found = parse_history([answer(number, str(number), q) for number in (0, 5, 10, 15) for q in ("a", "b")])
    assert [(s.step, s.question) for s in found.samples_of_interest] == [
        (number, q) for number in (0, 5, 15) for q in ("a", "b")
    ]


def test_a_long_file_with_a_resume_at_every_step_is_no_square() -> None:
    rows = [row for number in range(50_000) for row in (step(number), resume(number))]
    assert parse_history(rows).last_step == 49_999
