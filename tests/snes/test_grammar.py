"""The whitelist grammar: what passes, what is refused and on which line, and that the clean text holds nothing else."""

import random
import re
import string

import pytest

from afs_mlx.core.errors import AfsError
from afs_mlx.snes.grammar import MAX_LINE_CHARS, MAX_LINES, MAX_TEXT_CHARS, Problem, check, clean

ROUTINE = """\
; Clears 32 bytes – from the top, 2 × 16
Clear:
  REP #$20        ; A is 16 bits wide
  ldx #$001E
- stz $0100, X : dex
  dex
  bpl -
.done:
\tsep #$20
  rts
table: db 1,-1,%101, $FF : dw Clear, table+2
"""


def problem_of(text: str) -> Problem:
    found = check(text)
    assert len(found) == 1, found
    return found[0]


def test_a_routine_passes_and_comes_out_canonical() -> None:
    assert check(ROUTINE) == []
    assert clean(ROUTINE).split("\n") == [
        "",
        "Clear:",
        "rep #$20",
        "ldx #$001E",
        "- stz $0100,X : dex",
        "dex",
        "bpl -",
        ".done:",
        "sep #$20",
        "rts",
        "table: db 1,-1,%101,$FF : dw Clear,table+2",
        "",
    ]


def test_clean_is_stable_and_keeps_the_number_of_lines() -> None:
    once = clean(ROUTINE.replace("\n", "\r\n"))
    assert clean(once) == once
    assert once.count("\n") == ROUTINE.count("\n")


@pytest.mark.parametrize(
    "line",
    [
        "lda ($10),y",
        "lda ($10,s),y",
        "lda [$10],Y",
        "LDA.W $10,X",
        "lda #%10101010",
        "lda.b #main>>8",
        "lda.w main+4,x",
        "lda #-1",
        "asl",
        "asl a",
        "INC A",
        "brk",
        "brk #$12",
        "mvn $7E, $00",
        "jmp (main,x)",
        "jml [$1234]",
        "jsl $808000",
        "pei ($12)",
        "per main",
        "bra .sub : .sub",
        "- : bra -",
        "+ bra ++ : ++ nop",
        ".sub lda #$00 : bne .sub",
        "..deep: bra ..deep",
        "main_sub: jmp main_sub",
        "reset: jmp reset",
        "table: db 1 : lda.w table,x",
        "count = 2*8 : lda #count",
        "dl main : dd $12345678",
        "lorom : nop",
        "arch 65816",
        "nop ; incbin !x @ \\ é",
    ],
)
def test_accepted(line: str) -> None:
    assert check(f"main:\n {line}\n rts") == []


# What gets out of a deny list, reads or writes files, or loops.
HOSTILE = {
    'incbin "/etc/passwd"': "quotes",
    "incbin /etc/passwd": "no file is read",
    "incsrc secret.asm": "no file is read",
    "table ../table.txt": "no file is read",
    "!x = inc": "'!': defines",
    "!{x}bin secret": "'!': defines",
    "nop : incbin secret": "no file is read",
    "main: incbin secret": "no file is read",
    ".sub incbin secret": "not a|another assembler|no file",
    "- incbin secret": "no file is read",
    "incbin: nop": "not a name",
    "incbin = 3": "not a name",
    "table = 3": "has a directive",
    "fill = 3": "has a directive",
    "db 1,": "missing",
    "db 1, ; joined": "missing",
    "nop \\": "cannot be joined",
    "@xkas": "not accepted",
    "@include": "not accepted",
    "macro m() : nop : endmacro": "directives|not an operand|not understood",
    "%m()": "macros",
    "nop : %m()": "macros",
    "while 1": "directives",
    "for i = 0..9": "not a name|not a number|no space|directives",
    "if 1 : nop : endif": "directives",
    "rep 1000000 : nop": "rep #1000000",
    "rep $30": "write rep #[$]30",
    "nop #99999999": "would repeat nop",
    "asl.b #99999999": "would repeat asl",
    "fill 99999": "no instruction",
    "pad $00FFFF": "no instruction",
    'print "x"': "quotes",
    'db readfile1("/etc/passwd", 0)': "quotes",
    "db read1($008000)": "neither",
    "lda #bank(main)": "not an operand",
    "function f(x) = x": "not a name|directives|no space",
    "namespace x": "no instruction",
    "warnpc $9000": "no instruction",
    "base $7E0000": "no instruction",
    "freecode": "no instruction",
    "arch spc700": "not understood|no instruction",
    "hirom": "LoROM",
    "db '\"'": "quotes",
    "lda #'a'": "quotes",
    "lda {x}": "defines",
    "nop\x00": "control",
    "nop ; \x00": "control",
    "nop\x1b[2J": "control",
    "nop\rincbin secret": "control",
    "nop\x0bincbin secret": "control",
    "lda #\u0661": "only ASCII",
    "lda\u00a0#1": "only ASCII",
    "nop\u2028incbin secret": "only ASCII",
    "afs_end: nop": "afs_",
    "lda afs_end": "afs_",
    "++++++++++++ nop": "not understood",
}


@pytest.mark.parametrize("line", HOSTILE)
def test_hostile_lines_are_refused_on_their_line(line: str) -> None:
    problem = problem_of(f"main: nop\n nop\n{line}\n rts")
    assert problem.line == 3
    assert re.search(HOSTILE[line], problem.message), problem.message


# Accepted by Asar without a word, and not what was meant.
SILENT = {
    "lda #$12345": "does not fit into 2 bytes",
    "lda #$00012": "does not fit into 2 bytes",
    "lda.b #$1234": "does not fit into 1 byte",
    "lda.b $1234": "does not fit into 1 byte",
    "lda.w $7E1234": "does not fit into 2 bytes",
    "lda ($1234),y": "does not fit into 1 byte",
    "sep #$130": "does not fit into 1 byte",
    "mvn $1234,$00": "does not fit into 1 byte",
    "db 256": "does not fit into 1 byte",
    "db -129": "does not fit into 1 byte",
    "dw $10000": "does not fit into 2 bytes",
    "lda.l #$12": "no such size",
    "lda ($12),x": r"lda has no operand of the form \(\$12\),x",
    "bra $8000": "takes a label",
    "bne -5": "takes a label",
    "per $0001": "takes a label",
    "lda 2+3*2": "left to right",
    "lda main&3+1": "left to right",
    ".a8": "digits",
}

# Common elsewhere, and an error to Asar.
ELSEWHERE = {
    "bge main": "write bcs",
    "blt main": "write bcc",
    "ina": "write inc",
    "DEA": "write dec",
    "swa": "write xba",
    "tad": "write tcd",
    "pea #$1234": r"write pea \$1234",
    "jsr #$8000": r"write jsr \$8000",
    "lda #<main": "no < and >",
    "lda #>main": "no < and >",
    "nop // done": "a comment starts with ;",
    ".byte $01": "write db",
    ".segment CODE": "another assembler",
    "count equ 3": "write name = value",
    "lda #$00:sta $10": "a colon needs a space",
    "loop:lda #$00": "a colon needs a space",
    "loop": "a label ends with a colon",
    "1up: nop": "not a label",
    "lda # $10": "no space",
    "lda $10 , x": "no space",
    "brk $12": "write brk #",
    "sep 30": "write sep #30",
    "jsr.l $123456": "write jsl",
    "jmp.l $123456": "write jml",
    "sta #$10": "no operand of the form",
    "nop $10": "takes no operand",
    "lda": "needs an operand",
    "lda $10,z": "no operand of the form|not a",
    "lda x": "no operand|register",
    "lda.q $10": ".b, .w and .l",
    "lda $GG": "neither a number nor a label",
    "lda #%12": "binary|neither",
    "nop :": "nothing stands",
    "org $9000": "before the first label",
    "```": "Markdown",
}


@pytest.mark.parametrize(("line", "message"), [*SILENT.items(), *ELSEWHERE.items()])
def test_misleading_lines_are_refused_with_a_remedy(line: str, message: str) -> None:
    problem = problem_of(f"main:\n{line}\n rts")
    assert problem.line == 2
    assert re.search(message, problem.message), problem.message


@pytest.mark.parametrize("line", [".sub: nop", "bra .sub", "lda.w .table,x"])
def test_local_labels_need_a_parent(line: str) -> None:
    assert "no parent" in problem_of(line).message


@pytest.mark.parametrize("address", ["$7E8000", "$7F8000", "$0000", "$7FFF", "$80", "32768", "main", "$0080000"])
def test_org_outside_lorom_is_refused(address: str) -> None:
    assert problem_of(f"count = 1\norg {address}\nnop").line == 2


def test_org_stands_first_and_once() -> None:
    assert check("lorom\norg $018000\nnop") == []
    for text in ("org $8000\norg $9000\nnop", "nop\norg $9000", "-\norg $9000\nnop"):
        assert [p.line for p in check(text)] == [2]


def test_every_problem_is_reported() -> None:
    assert [problem.line for problem in check("nop\nbge x1\nnop\nincbin f\n!a = 1")] == [2, 4, 5]


@pytest.mark.parametrize("text", ["", "\n\n", "; only a comment", "main:", "a1 = 3", "lorom"])
def test_text_without_code_is_refused(text: str) -> None:
    assert "no instruction" in problem_of(text).message


def test_sizes_are_limited() -> None:
    assert check("nop\n" * MAX_LINES) == []
    assert problem_of("nop\n" * MAX_LINES + "nop") == Problem(MAX_LINES + 1, "the text has more than 2,000 lines")
    assert "64 KiB" in problem_of("nop ;" + "x" * MAX_TEXT_CHARS).message
    assert "64 KiB" in problem_of("nop\n" * (10 << 18)).message
    assert problem_of("nop\ndb " + "1," * (MAX_LINE_CHARS // 2) + "1").line == 2
    assert "64 KiB" not in str(check("(" * MAX_TEXT_CHARS))


def test_clean_refuses_with_every_line() -> None:
    with pytest.raises(AfsError, match=r"(?s)2 problems.*line 1: INA: write inc.*line 3:"):
        clean("INA\nnop\nincbin f")


def test_random_text_never_raises_and_clean_text_is_whitelisted() -> None:
    """Random splices of accepted and hostile pieces: whatever passes consists of the signs and words Asar may see."""
    words = re.compile(r"[A-Za-z_]+")
    banned = {"incbin", "incsrc", "while", "for", "macro", "print", "if", "fill", "pad", "base", "namespace"}
    pieces = [*HOSTILE, *SILENT, *ROUTINE.split("\n"), " : ", ",", "\\", "lda ", "#", "$12", "+", "-", ";", "x1:", '"']
    chance = random.Random(65816)
    passed = 0
    for _ in range(4000):
        text = "".join(chance.choice(pieces) for _ in range(chance.randint(1, 4)))
        if chance.random() < 0.3:
            text += "".join(chance.choice(string.printable) for _ in range(5))
        if check(text):
            continue
        passed += 1
        cleaned = clean(text)
        assert not re.search(r"[^A-Za-z0-9_ \n$%#()\[\],.:+\-*/&|^~<>=]", cleaned), text
        assert not banned & {word.lower() for word in words.findall(re.sub(r"\w+:", "", cleaned))}, text
        assert not re.search(r",\s*$", cleaned, re.MULTILINE), text
    assert passed > 50
