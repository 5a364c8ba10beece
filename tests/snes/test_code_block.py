"""Taking assembly out of a model's Markdown answer."""

import pytest

from afs_mlx.snes.code_block import assembly_of, code_blocks


@pytest.mark.parametrize("language", ["asm", "ASM", "65816", "65c816", "assembly", "", " asm", "asm title=x", "{.asm}"])
def test_languages_that_count(language: str) -> None:
    assert assembly_of(f"Here:\n\n```{language}\n  lda #$00\n  rts\n```\nDone.") == "  lda #$00\n  rts"


@pytest.mark.parametrize("language", ["python", "c", "text", "diff"])
def test_other_languages_are_skipped(language: str) -> None:
    answer = f"```{language}\nprint()\n```\n```asm\nrts\n```"
    assert code_blocks(answer) == ["rts"]


def test_first_block_is_the_answer() -> None:
    answer = "```asm\nnop\n```\nor\n```\nrts\n```\n"
    assert code_blocks(answer) == ["nop", "rts"]
    assert assembly_of(answer) == "nop"


@pytest.mark.parametrize("answer", ["", "lda #$00\nrts", "Use `rts`.", "```lda #$00``` inline", "``\nrts\n``"])
def test_no_block(answer: str) -> None:
    assert assembly_of(answer) is None


def test_an_open_fence_counts_only_when_allowed() -> None:
    answer = "```asm\nlda #$00\nsta $1"
    assert assembly_of(answer) is None
    assert assembly_of(answer, allow_unterminated=True) == "lda #$00\nsta $1"
    both = "```\nnop\n```\n```asm\nlda"
    assert code_blocks(both) == ["nop"]
    assert code_blocks(both, allow_unterminated=True) == ["nop", "lda"]


def test_an_open_fence_of_another_language_swallows_the_rest() -> None:
    assert code_blocks("```python\nx\n```asm\nrts\n", allow_unterminated=True) == []


def test_a_longer_fence_or_another_sign_does_not_close() -> None:
    assert assembly_of("````asm\n```\nrts\n````") == "```\nrts"
    assert assembly_of("~~~asm\nrts\n```\n~~~") == "rts\n```"
    assert assembly_of("```asm\nrts\n`````") == "rts"


def test_windows_line_ends_indentation_and_quotes() -> None:
    assert assembly_of("```asm\r\nnop\r\nrts\r\n```\r\n") == "nop\nrts"
    assert assembly_of("1. First\n   ```asm\n   loop:\n     rts\n   ```\n") == "loop:\n  rts"
    assert assembly_of("> ```asm\n> nop\n> ```") == "nop"


def test_an_empty_block_is_empty_not_absent() -> None:
    assert assembly_of("```asm\n```") == ""


def test_large_answers() -> None:
    assert code_blocks("`" * (1 << 20)) == []
    assert len(code_blocks("```\nnop\n```\n" * 50_000)) == 50_000
