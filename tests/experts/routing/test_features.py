"""Any text becomes tokens: words, letter groups, and what code, registers and cues say."""

import pytest

from afs_mlx.experts.routing.assembly import BLOCK, instructions, shape, split
from afs_mlx.experts.routing.cues import found_in
from afs_mlx.experts.routing.features import features
from afs_mlx.experts.routing.foreign import foreign_signs
from afs_mlx.experts.routing.reading import END_CHARS, read

ROUTINE = "Clear:\n  ldx #$00\n- stz $10,x\n  inx ; next one\n  bne -\n  rts"


def words(text: str) -> set[str]:
    return set(features(text).blocks["words"])


def signs(text: str) -> set[str]:
    return set(features(text).blocks["signs"])


def cues(text: str) -> set[str]:
    return {cue.name for cue in found_in(read(text).terms)}


def test_code_and_question_are_told_apart() -> None:
    parts = split(f"Why is this slow?\n{ROUTINE}\nThanks")
    assert parts.prose == f"Why is this slow?\n{BLOCK}\nThanks"
    assert len(parts.code) == 6
    assert parts.comments == "next one"


@pytest.mark.parametrize(
    "line", ["lda #$00 : sta $10", ".loop lda ($10),y", "+ rts", "  LDA.w Table,X ; the table", "dw One, Two", "inc"]
)
def test_a_line_of_assembly(line: str) -> None:
    assert split(line).code


@pytest.mark.parametrize("line", ["and then", "per frame", "bit fields", "Note:", "what is lda", "", "  "])
def test_a_line_of_words(line: str) -> None:
    assert not split(line).code


def test_what_a_fence_holds_is_code() -> None:
    parts = split("look:\n```c\nint x = 1;\n```\nok")
    assert parts.fences == ("c",)
    assert [line.strip() for line in parts.code] == ["int x = 1"]


@pytest.mark.parametrize(
    ("operand", "found"),
    [
        ("#$12", "#"),
        ("$10", "dp"),
        ("$2100", "abs"),
        ("$7e0000,x", "long,x"),
        ("($10),y", "(dp),y"),
        ("[$10],y", "[dp],y"),
        ("($10,x)", "(dp,x)"),
        ("$01,s", "dp,s"),
        ("Table,x", "label,x"),
        ("", ""),
    ],
)
def test_the_shape_of_an_operand(operand: str, found: str) -> None:
    assert shape(operand) == found


def test_instructions_of_a_line() -> None:
    assert instructions("lda #$00 : sta $2100") == [("lda", "#"), ("sta", "abs")]


def test_registers_are_folded_by_name_and_by_address() -> None:
    assert {"reg", "reg:INIDISP"} <= signs("what is $2100")
    assert {"reg", "reg:INIDISP"} <= signs("what is inidisp")
    assert "_reg" in words("what is $002100")
    assert "reg" not in signs("das ist TM los") - {"reg:TM"} or "reg:TM" in signs("das ist TM los")
    assert "das" in words("was macht das")


def test_mnemonics_in_a_sentence_are_folded_where_they_are_no_words() -> None:
    assert "op lda" in signs("what does `lda ($10),y` do")
    assert "mode (dp),y" in signs("what does `lda ($10),y` do")
    assert {"_mn", "does _mn"} <= words("what does PEI do")
    assert {"and", "bit"} <= words("a bit of this and that")


def test_files_paths_and_numbers_are_folded() -> None:
    assert {"_file", "open _file"} <= words("open src/main.asm")
    assert "_path" in words("look in ./levels/forest")
    assert "_num" in words("takes 12 of them")
    assert "_path" not in words("stz/lda, which one")


def test_accents_case_and_quotes_do_not_matter() -> None:
    assert words("Größe DON’T") == words("grosse don't")


def test_a_comment_speaks_where_nothing_else_does() -> None:
    assert "bug" in words("; BUG here\n  lda $10\n  rts")
    assert "bug" not in words("explain\n; BUG here\n  lda $10\n  rts")


@pytest.mark.parametrize(
    ("text", "cue"),
    [
        ("how many cycles", "measure.cycles"),
        ("wie viele Takte", "measure.cycles"),
        ("how many cylces", "measure.cycles"),
        ("何サイクルですか", "measure.cycles"),
        ("make it shorter", "improve.order"),
        ("it crashes", "broken.crash"),
        ("what does this do", "understand.what"),
        ("write me a routine", "make.order"),
        ("git log", "act.git"),
        ("a recipe for soup", "elsewhere.home"),
    ],
)
def test_cues(text: str, cue: str) -> None:
    assert cue in cues(text)


def test_other_processors_and_languages() -> None:
    assert "processor x86" in foreign_signs("mov eax, 1", ["mov", "eax"])
    assert "language" in foreign_signs("def f(x):\n    return x", [])
    assert foreign_signs("lda $10", ["lda"]) == []


def test_letter_groups_survive_a_typo() -> None:
    right, wrong = (set(features(word).blocks["letters"]) for word in ("optimize", "optmize"))
    assert len(right & wrong) > 6


@pytest.mark.parametrize(
    "text",
    ["", " ", "\x00" * 100, "\x01\x02", "\ud800", "a" * 10**7, "l'" * 5000, "a-" * 5000, "lda $10:" * 3000, "`" * 9999],
    ids=["empty", "space", "nul", "controls", "surrogate", "10 MB", "quotes", "dashes", "code", "fences"],
)
def test_any_text_will_do(text: str) -> None:
    found = features(text)
    assert found.is_cut == (len(text) > 2 * END_CHARS)
    assert sum(map(len, found.blocks.values())) < 20_000


def test_of_a_long_text_both_ends_are_read() -> None:
    text = "explain " + "x " * 10**5 + " optimize"
    assert {"explain", "optimize"} <= words(text)
