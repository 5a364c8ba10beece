"""Streamed Markdown: which blocks there are, that nothing is lost, and what counts as assembly."""

import io

import pytest
from rich.console import Console

from afs_mlx.cli.render.assembly import highlighted, is_assembly
from afs_mlx.cli.render.markdown import Block, Blocks, Code, Gap, MarkdownWriter, Prose, rendered


def cut(text: str, size: int = 1) -> list[Block]:
    blocks = Blocks()
    found: list[Block] = []
    for start in range(0, len(text), size):
        found += blocks.feed(text[start : start + size])
    return found + list(blocks.end())


def shown(text: str, width: int = 40) -> list[str]:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    for block in cut(text):
        console.print(rendered(block), soft_wrap=isinstance(block, Code))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_blocks_are_the_same_however_they_come(size: int) -> None:
    text = "One\ntwo\n\n```asm\nlda #1\n\nrts\n```\nafter\n# Head\nlast"
    assert cut(text, size) == [
        Prose("One\ntwo"),
        Gap(),
        Code("lda #1", "asm"),
        Code("", "asm", ("lda #1",)),
        Code("rts", "asm", ("lda #1", "")),
        Prose("after"),
        Prose("# Head"),
        Prose("last"),
    ]


def test_a_fence_that_is_never_closed_and_one_inside_another() -> None:
    assert cut("~~~python\nx = 1") == [Code("x = 1", "python")]
    assert cut("````\n```\nx\n```\n````\ny") == [
        Code("```", ""),
        Code("x", "", ("```",)),
        Code("```", "", ("```", "x")),
        Prose("y"),
    ]
    assert cut("see ```this``` here") == [Prose("see ```this``` here")]


def test_assembly_without_a_fence_keeps_its_lines_and_indentation() -> None:
    text = "Try this:\nloop:\n  lda $10,x\n  ; next\n.done:\n  rts\nThat is all."
    assert shown(text)[-5:] == ["  lda $10,x", "  ; next", ".done:", "  rts", "That is all."]


@pytest.mark.parametrize(
    "line",
    [
        "lda #$00",
        "  STA $7E0010,x",
        "  rts",
        "loop: dex",
        "  bne loop",
        "jsr Init_All",
        "  inc a",
        "db $01,$02",
        "  rep #$20 ; wide",
    ],
)
def test_instructions(line: str) -> None:
    assert is_assembly(line)


@pytest.mark.parametrize(
    "line",
    [
        "and the rest",
        "Inc is a company",
        "bit by bit",
        "",
        "The code: lda",
        "- lda #$00 loads",
        "per second, that is",
        "rep the word",
        "sec is short",
    ],
)
def test_sentences(line: str) -> None:
    assert not is_assembly(line)


def test_a_label_counts_beside_code_only() -> None:
    assert not is_assembly("note:")
    assert is_assembly("note:", after_code=True)
    assert not is_assembly("Note well", after_code=True)


@pytest.mark.parametrize(
    "line", ["  lda.w #$12AB,y ; x", 'db "a;b", 1', "!define = %101", "\tjml [$00]", "", "é: ☃ lda"]
)
def test_colours_change_no_character(line: str) -> None:
    assert highlighted(line).plain == line


def test_what_is_coloured() -> None:
    spans = {
        highlighted("loop: lda #$10,x ; go")[s.start : s.end].plain: s.style
        for s in highlighted("loop: lda #$10,x ; go").spans
    }
    assert spans == {"loop:": "yellow", "lda": "bold blue", "#$10": "magenta", "x": "cyan", "; go": "dim"}


def test_nothing_is_lost() -> None:
    text = (
        "Set <b>A</b> & <tool_call> to *one*.\nNext line &amp; more\n\n1. a\n\n2. b\n\n| x | y |\n|---|---|\n| 1 | 2 |"
    )
    lines = shown(text)
    assert lines[:2] == ["Set <b>A</b> & <tool_call> to one.", "Next line &amp; more"]
    assert [line.strip() for line in lines if line.strip()[:1].isdigit()][:2] == ["1 a", "2 b"]
    assert any("x" in line and "y" in line for line in lines)


@pytest.mark.parametrize("width", [20, 8])
def test_a_narrow_terminal_loses_nothing(width: int) -> None:
    text = "A sentence of several words\n\n- an item\n\n# A heading\n\n`code`\n"
    assert "".join("".join(shown(text, width)).split()).replace("•", "").isascii()
    for word in ("sentence", "heading", "item"):
        assert word in "".join(line.strip(" ┃│━┏┓┗┛") for line in shown(text, width))


def test_other_languages_have_their_own_colours_over_lines() -> None:
    lines = [rendered(block) for block in cut("```python\nx = '''a\nif b'''\n```")]
    assert [line.plain for line in lines] == ["x = '''a", "if b'''"]  # type: ignore[union-attr]
    assert cut("```nosuchlang\nx") == [Code("x", "nosuchlang")]
    assert rendered(Code("x", "nosuchlang")).plain.rstrip("\n") == "x"  # type: ignore[union-attr]


def test_a_block_higher_than_the_screen_is_printed_once() -> None:
    console = Console(width=30, height=6, file=io.StringIO(), force_terminal=True, highlight=False)
    writer = MarkdownWriter(console)
    words = " ".join(f"word{number}" for number in range(60))
    writer.write(words)
    writer.write("\n\nend")
    writer.end()
    raw = console.file.getvalue()  # type: ignore[attr-defined]
    assert raw.rstrip().endswith("end\x1b[?25h") or "end" in raw.rsplit("word59", 1)[1]
    assert raw.count("word0 ") <= 2, "once in the live region at most, once for good"
    assert "\x1b[?25h" in raw, "the cursor is shown again"
