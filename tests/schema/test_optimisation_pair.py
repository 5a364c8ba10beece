"""An optimisation task as a question, an answer and a text to compare."""

from typing import Any

import pytest
from pydantic import ValidationError

from afs_mlx.schema.optimisation import EntryState, OptimisationPair, normalised

ROW: dict[str, Any] = {
    "id": "x-1",
    "family": "stz",
    "goal": "cycles",
    "entry": {"e": 0, "m": 8, "x": 16, "d": 0, "dbr": 0x7E, "known": "A is zero."},
    "live": ["x", "c"],
    "code": "\n  lda #$00\n  sta $10\n",
    "better": "  stz $10\n",
    "reason": "STZ needs no A.",
    "not_when": "A is read.",
}


def pair(**values: Any) -> OptimisationPair:
    return OptimisationPair.model_validate({**ROW, **values})


def test_the_question_says_goal_entry_and_what_is_needed() -> None:
    assert pair().question() == (
        "Optimise for cycles. Entry: A 8-bit, X/Y 16-bit, D=$0000, DBR=$7E, A is zero. Needed afterwards: X, C.\n"
        "```asm\n  lda #$00\n  sta $10\n```"
    )
    assert "Needed afterwards: nothing." in pair(live=[]).question()


def test_the_answer_is_a_block_and_two_reasons() -> None:
    assert pair().answer() == "```asm\n  stz $10\n```\nWhy: STZ needs no A.\nNot when: A is read."


def test_the_question_does_not_give_the_answer_away() -> None:
    question = pair(reason="REASON", not_when="NOTWHEN", family="FAMILY", id="IDENT").question()
    for secret in ("stz", "REASON", "NOTWHEN", "FAMILY", "IDENT"):
        assert secret not in question


def test_the_entry_state_in_words() -> None:
    assert EntryState(m=16, x=8).sentence() == "A 16-bit, X/Y 8-bit"
    assert EntryState(m=16, x=16, d=0x4200).sentence() == "A 16-bit, X/Y 16-bit, D=$4200"
    assert EntryState(e=1, m=8, x=8).sentence() == "Emulation mode"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("goal", "speed"),
        ("live", ["s"]),
        ("live", "x"),
        ("entry", {"m": 8}),
        ("entry", {"m": 12, "x": 8}),
        ("entry", {"m": 8, "x": 8, "d": 0x10000}),
        ("entry", {"m": 8, "x": 8, "dbr": 0x100}),
        ("entry", {"m": 8, "x": 8, "c": 2}),
        ("entry", {"m": 8, "x": 8, "s": 0x1FFF}),
        ("code", None),
        ("code", ""),
        ("better", " ; nothing is left\n"),
        ("extra", 1),
    ],
)
def test_a_bad_row(key: str, value: object) -> None:
    with pytest.raises(ValidationError):
        pair(**{key: value})


@pytest.mark.parametrize("better", [ROW["code"], "LDA  #$00 ; zero\n\tSTA $10", "; a comment\nlda #$00\n\nsta $10"])
def test_the_same_routine_written_otherwise_is_no_change(better: str) -> None:
    with pytest.raises(ValidationError, match="code and better are the same routine"):
        pair(better=better)


def test_normalised_forgets_comments_case_and_spacing_only() -> None:
    assert normalised("  LDA #$0F ; x\r\n\n; y\n\tsta   $10") == "lda #$0f\nsta $10"
    assert normalised("lda $10") != normalised("lda $11")
    assert normalised("nop\nrts") != normalised("nop rts")
    assert normalised("; only a comment") == ""
