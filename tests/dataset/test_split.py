"""Splitting: nothing of one side stands in the other, and a row that has its place keeps it."""

import random
from itertools import pairwise

import pytest

from afs_mlx.core.errors import AfsError
from afs_mlx.dataset.split import Split, refuse_overlap, split
from afs_mlx.schema.example import Example


def example(question: str, group: str = "", answer: str = "a", system: str = "") -> Example:
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Example.model_validate({"messages": messages, "group": group})


def rows(count: int, start: int = 0) -> list[Example]:
    return [example(f"question {n}") for n in range(start, start + count)]


def side_of(result: Split) -> dict[str, str]:
    sides = {e.messages[-2].content: "train" for e in result.train}
    return sides | {e.messages[-2].content: "valid" for e in result.valid}


def test_every_row_lands_on_exactly_one_side() -> None:
    given = rows(200)
    result = split(given, 0.12, 0, "x")
    assert sorted(map(repr, [*result.train, *result.valid])) == sorted(map(repr, given))
    assert result.duplicates == 0


def test_rows_keep_their_order() -> None:
    result = split(rows(100), 0.3, 0, "x")
    for side in (result.train, result.valid):
        numbers = [int(e.messages[0].content.split()[1]) for e in side]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("share", [0.05, 0.12, 0.5])
def test_the_share_is_met_on_average(share: float) -> None:
    held_out = len(split(rows(4000), share, 0, "x").valid) / 4000
    assert held_out == pytest.approx(share, abs=0.03)


def test_the_split_is_the_same_every_time_and_another_for_another_seed() -> None:
    given = rows(100)
    assert split(given, 0.2, 1, "x") == split(given, 0.2, 1, "x")
    assert side_of(split(given, 0.2, 1, "x")) != side_of(split(given, 0.2, 2, "x"))


def test_the_split_is_the_same_on_every_machine() -> None:
    """Python's own hash is seeded per process; these sides were written down once."""
    sides = side_of(split(rows(20), 0.3, 0, "x"))
    assert sorted(int(q.split()[1]) for q, side in sides.items() if side == "valid") == [0, 2, 3, 4, 11, 15, 17, 18]


def test_the_order_of_the_file_does_not_matter() -> None:
    given = rows(100)
    shuffled = random.Random(0).sample(given, len(given))
    assert side_of(split(given, 0.2, 0, "x")) == side_of(split(shuffled, 0.2, 0, "x"))


def test_adding_rows_moves_no_other_row() -> None:
    """A row that was validated on must not be trained on after the set has grown."""
    counts = [20, 21, 22, 30, 57, 100, 400]
    splits = [side_of(split(rows(count), 0.12, 0, "x")) for count in counts]
    for smaller, larger in pairwise(splits):
        assert {q: larger[q] for q in smaller} == smaller


def test_groups_never_straddle() -> None:
    given = [example(f"paraphrase {n}", group=f"parent {n % 40}") for n in range(400)]
    result = split(given, 0.25, 0, "x")
    assert {e.group for e in result.train}.isdisjoint(e.group for e in result.valid)
    assert result.valid
    assert all(sum(e.group == group for e in result.valid) == 10 for group in {e.group for e in result.valid})


def test_duplicates_are_dropped_and_counted() -> None:
    given = [
        *rows(10),
        example("QUESTION   3"),
        example("question 3", system="other words"),
        example("question 3", "g"),
    ]
    result = split(given, 0.2, 0, "x")
    assert result.duplicates == 3
    assert len(result.train) + len(result.valid) == 10


def test_another_answer_is_no_duplicate() -> None:
    assert split([*rows(10), example("question 3", answer="b")], 0.2, 0, "x").duplicates == 0


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0.0001, 0.12, 0.9999])
def test_no_side_is_empty(share: float, seed: int) -> None:
    for count in (2, 3):
        result = split(rows(count), share, seed, "x")
        assert result.train
        assert result.valid


@pytest.mark.parametrize(
    "given", [rows(1), [example("q"), example("Q ")], [example("q", "g"), example("r", "g"), example("s", "g")]]
)
def test_one_group_cannot_be_split(given: list[Example]) -> None:
    with pytest.raises(AfsError, match="one row, or one group of rows, cannot be split") as caught:
        split(given, 0.2, 0, "rows.jsonl")
    assert caught.value.where == "rows.jsonl"


def test_overlap_is_refused_with_the_rows() -> None:
    train = rows(50)
    valid = [example("new"), example(" Question 7"), example("question 9", system="s")]
    with pytest.raises(AfsError, match=r"2 of 3 validation rows are training rows too.*\(rows 2, 3\)") as caught:
        refuse_overlap(train, valid, "folder")
    assert caught.value.where == "folder"


def test_a_validation_set_that_is_the_training_set_is_refused_in_short() -> None:
    with pytest.raises(AfsError, match=r"50 of 50 .*\(rows 1, 2, 3, 4, 5, 6, 7, 8, 9, 10\)"):
        refuse_overlap(rows(50), rows(50), "folder")


def test_paraphrases_of_one_parent_on_both_sides_are_refused() -> None:
    with pytest.raises(AfsError, match=r"1 of 2 validation rows .* of one group with some \(rows 2\)"):
        refuse_overlap([example("a", "g1"), example("b")], [example("c"), example("d", "g1")], "folder")


def test_distinct_sides_are_fine() -> None:
    refuse_overlap([*rows(5), example("a", "g1")], [*rows(5, start=5), example("b", "g2")], "folder")
    refuse_overlap(rows(5), [example("question 3", answer="b")], "folder")
