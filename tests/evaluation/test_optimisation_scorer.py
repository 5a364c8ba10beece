"""Verdicts on answers. Asar is real where it is installed, and played where the verdict must not depend on it."""

import pytest

from afs_mlx.evaluation.scorers.optimisation import case_of, enough, score
from afs_mlx.schema.case import Case, CaseResult
from afs_mlx.snes.asar import Assembly, asar_path
from afs_mlx.snes.code_block import assembly_of
from afs_mlx.snes.equivalence import judging
from afs_mlx.snes.grammar import Problem

needs_asar = pytest.mark.skipif(asar_path() is None, reason="Asar is not on this machine")
CASE = case_of(
    {
        "id": "c-1",
        "family": "stz",
        "goal": "bytes",
        "entry": {"m": 8, "x": 8},
        "live": [],
        "code": "  lda #$00\n  sta $10",
        "better": "  stz $10",
        "reason": "r",
        "not_when": "n",
    }
)


def verdict(answer: str) -> CaseResult:
    return score(CASE, answer)


def asm(code: str) -> str:
    return f"Here it is:\n```asm\n{code}\n```\nWhy: shorter."


@needs_asar
def test_a_routine_that_does_the_same_with_less_passes() -> None:
    result = verdict(asm("  stz $10"))
    assert (result.passed, result.why) == (True, "4 → 2 bytes, 5.2 → 3.2 cycles"), (
        "a page that is not aligned costs a cycle"
    )
    assert result.checks == {"code_block": True, "assembles": True, "equal": True, "cheaper": True}
    assert result.answer == asm("  stz $10")


SAME = {"code_block": True, "assembles": True, "equal": True, "cheaper": False}
OTHER = {"code_block": True, "assembles": True, "equal": False}
NO_CODE = {"code_block": True, "assembles": False}


@needs_asar
@pytest.mark.parametrize(
    ("answer", "checks", "why"),
    [
        (asm("  lda #$00\n  sta $10"), SAME, "not fewer bytes: 4 → 4 bytes"),
        (asm("  LDA #$00 ; x\n  STA $10"), SAME, "not fewer bytes: 4 → 4 bytes"),
        (asm("  stz $10\n  nop\n  nop"), SAME, "not fewer bytes: 4 → 4 bytes"),
        (asm("  nop"), OTHER, "differs: "),
        (asm("  stz $11"), OTHER, "differs: "),
        (asm("  sta $10"), OTHER, "differs: "),
        (
            asm("  stz $10\n  rts"),
            OTHER,
            "the reference falls off its end, the candidate returns, though nothing has called it",
        ),
        (asm("- bra -"), OTHER, "no return: it does not return within its budget"),
        (asm("  lda #$0000\n  sta $10"), OTHER, "line 1: the immediate is written with 2 bytes"),
        (asm("label:"), NO_CODE, "there is no instruction and no data"),
        (asm("  clr $10"), NO_CODE, "does not assemble: line 1: "),
        (asm("  nop\n  rep $20"), NO_CODE, "does not assemble: line 2: "),
        (asm('incbin "/etc/passwd"'), NO_CODE, "does not assemble: line 1: "),
        (asm("nop\n" * 100_000), NO_CODE, "does not assemble: "),
    ],
)
def test_what_fails_says_where_it_stopped(answer: str, checks: dict[str, bool], why: str) -> None:
    result = verdict(answer)
    assert (result.passed, result.checks) == (False, checks)
    assert why in result.why


CYCLES = case_of(
    {
        "id": "c-2",
        "family": "unroll",
        "goal": "cycles",
        "entry": {"m": 8, "x": 8, "d": 0},
        "live": ["x"],
        "code": "  ldx #$01\nloop:\n  stz $10,x\n  dex\n  bpl loop",
        "better": "  stz $11\n  stz $10\n  ldx #$ff",
        "reason": "r",
        "not_when": "n",
    }
)


@needs_asar
def test_the_goal_decides_what_cheaper_means() -> None:
    longer = asm("  stz $11\n  stz $10\n  ldx #$ff\n  bra out\nout:")
    result = score(CYCLES, longer)
    assert (result.passed, result.checks["cheaper"]) == (True, True)
    bytes_wanted = CYCLES.model_copy(update={"facts": CYCLES.facts | {"goal": "bytes"}})
    result = score(bytes_wanted, longer)
    assert (result.passed, result.checks) == (False, SAME)
    assert result.why.startswith("not fewer bytes: 7 → 8 bytes")


DEAD = "  sec\n  lda $10\n  bcs out\n  inx\nout:"


@needs_asar
def test_a_line_that_no_state_leads_to_is_not_taken_for_proven() -> None:
    trap = score(CASE, asm(f"{DEAD}\n  stz $10"))
    assert (trap.passed, trap.checks["equal"]) == (False, False)
    assert "line 4 of the candidate from none" in trap.why
    unproven = CASE.model_copy(update={"facts": CASE.facts | {"code": f"{DEAD}\n  stz $10\n  nop"}})
    result = score(unproven, asm("  stz $10"))
    assert result.passed is None
    assert "not verified: the same from" in result.why


@needs_asar
def test_the_entry_state_and_what_is_live_belong_to_the_case() -> None:
    answer = asm("  stz $11\n  stz $10")
    assert "X: " in score(CYCLES, answer).why
    dead = CYCLES.model_copy(update={"facts": CYCLES.facts | {"live": []}})
    assert score(dead, answer).passed
    absolute = asm("  stz.w $0011\n  stz.w $0010\n  ldx #$ff")
    assert "differs" in score(CYCLES, absolute).why, "DBR may be any bank"
    bank_0 = CYCLES.model_copy(update={"facts": CYCLES.facts | {"entry": {**CYCLES.facts["entry"], "dbr": 0}}})
    assert score(bank_0, absolute).checks["equal"]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Use STZ $10.",
        "  stz $10",
        "```asm\n  stz $10",  # cut off
        "```asm\n```",
        "```asm\n  ; nothing\n\n```",
        "```python\nprint('stz $10')\n```",
    ],
)
def test_an_answer_without_a_code_block_fails_even_without_asar(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "assemble", lambda text: Assembly("unavailable", 0x8000))
    result = verdict(answer)
    assert (result.passed, result.checks, result.why) == (
        False,
        {"code_block": False},
        "no code block in the answer",
    )


def test_without_asar_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "assemble", lambda text: Assembly("unavailable", 0x8000))
    result = verdict(asm("  stz $10"))
    assert (result.passed, result.checks) == (None, {"code_block": True})
    assert result.why == "not verified: Asar is not installed"


def test_a_case_that_does_not_assemble_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def play(text: str) -> Assembly:
        if "lda" in text:
            return Assembly("failed", 0x8000, errors=(Problem(1, "no"),))
        return Assembly("ok", 0x8000, b"\x64\x10")

    monkeypatch.setattr(judging, "assemble", play)
    result = verdict(asm("  stz $10"))
    assert (result.passed, result.why) == (None, "not verified: the reference does not assemble: line 1: no")


@pytest.mark.parametrize(
    "answer",
    [
        asm("  stz $10"),
        asm("  lda #$00\n  sta $10") + asm("  stz $10"),
        "```python\nx = 1\n```\n" + asm("  stz $10"),
        "````asm\n  nop\n```\n  stz $10\n````\nWhy.",
        "~~~\n  stz $10\n~~~\n\n```asm\n  nop\n```\n",
        "```asm\r\n  stz $10\r\n```\r\nWhy.",
        "```asm\n```\n" + asm("  stz $10"),
    ],
)
def test_an_answer_is_cut_short_only_where_the_verdict_stands(answer: str) -> None:
    cut = [answer[:length] for length in range(len(answer) + 1) if enough(answer[:length])]
    assert cut
    assert {assembly_of(text) for text in cut} == {assembly_of(answer)}


@pytest.mark.parametrize(
    "answer", ["", "Use STZ.", "```asm\n  stz $10\n", "```asm\n  stz $10\n```", "```python\nx\n```\n"]
)
def test_an_open_answer_goes_on(answer: str) -> None:
    assert not enough(answer)


@needs_asar
def test_the_first_block_is_the_answer() -> None:
    assert verdict(asm("  lda #$00\n  sta $10") + asm("  stz $10")).passed is False


def test_the_case_keeps_what_scoring_needs_and_nothing_else() -> None:
    assert CASE.facts == {
        "code": "  lda #$00\n  sta $10",
        "goal": "bytes",
        "family": "stz",
        "entry": {"e": 0, "m": 8, "x": 8, "decimal": 0, "known": ""},
        "live": [],
    }
    assert isinstance(CASE, Case)
