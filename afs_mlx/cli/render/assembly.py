"""65816 assembly in colour, a line at a time: what streams in is shown as soon as its line is whole."""

import re
from typing import TYPE_CHECKING

from afs_mlx.snes.mnemonics import DATA_BYTES, SHAPES

if TYPE_CHECKING:
    from rich.text import Text

LANGUAGES = frozenset({"asm", "65816", "65c816", "6502", "asar", "ca65", "assembly", "snes"})
DIRECTIVES = frozenset(
    {*DATA_BYTES, "org", "base", "incsrc", "incbin", "macro", "endmacro", "if", "else", "elseif", "endif", "while"}
    | {"arch", "lorom", "hirom", "exlorom", "exhirom", "norom", "namespace", "pushpc", "pullpc", "table", "print"}
    | {"fill", "fillbyte", "pad", "padbyte", "warnpc", "assert", "struct", "endstruct", "skip", "freecode", "bank"}
)
_NAMES = "|".join(sorted(SHAPES))
# Without an operand these could be words; with one that only code has they are none.
_ALONE = (
    "asl|clc|cld|cli|clv|dea|dex|dey|ina|inx|iny|lsr|nop|pha|phb|phd|phk|php|phx|phy|pla|plb|pld|plp|plx|ply|"
    "rol|ror|rti|rtl|rts|sei|stp|tax|tay|tcd|tcs|tdc|tsc|tsx|txa|txs|txy|tya|tyx|wai|xba|xce"
)
_OPERAND = r"(?:#\S|\$[0-9a-f]|%[01]{4}|[\[(]\s*[$\w]|[.@!?]\w|[-+]{1,3}(?=\s|$)|\w+\s*,\s*[xys]\b|\w*_\w+)"
_JUMPS = "bcc|bcs|beq|bmi|bne|bpl|bra|brl|bvc|bvs|jmp|jml|jsr|jsl|per|pea"
_LABEL = r"(?:[.@?]*[A-Za-z_]\w*:|[.@][A-Za-z_]\w*|[-+]{1,3})"
_CODE = re.compile(
    rf"\s*(?:{_LABEL}\s+)?(?:(?:{_NAMES})(?:\.[bwl])?\s+{_OPERAND}|(?:{_JUMPS})\s+[\w.@+-]+\s*(?:;|$)|"
    rf"(?:{_ALONE})\s*(?:;|$)|(?:inc|dec|asl|lsr|rol|ror)\s+a\s*(?:;|$)|(?:db|dw|dl|dd|org)\s+[$%\"\d])",
    re.I,
)
_BESIDE_CODE = re.compile(rf"\s*(?:;.*|{_LABEL}\s*(?:;.*)?)")
_TOKEN = re.compile(
    r"(?P<comment>;.*)|(?P<string>\"[^\"]*\"?)"
    r"|(?P<number>#?[-]?(?:\$[0-9a-f]+|%[01]+|(?<![\w.])\d+)\b)"
    r"|(?P<label>(?<!\S)(?:[.@?]*[a-z_]\w*:|[.@][a-z_]\w*)|![a-z_]\w*)"
    r"|(?P<register>(?<=,)\s*[xys]\b)|(?P<word>[a-z_]\w*)(?:\.[bwl]\b)?",
    re.I,
)
STYLES = {"comment": "dim", "string": "green", "number": "magenta", "label": "yellow", "register": "cyan"}


def is_assembly(line: str, after_code: bool = False) -> bool:
    """Whether a line outside any fence is an instruction; after one, a label or a comment alone is code too."""
    found = _CODE.match(line)
    if found is None:
        return after_code and bool(_BESIDE_CODE.fullmatch(line))
    rest = line[found.end() :].partition(";")[0]
    words = rest.split() if rest[:1].isspace() else rest.split()[1:]
    return not any(len(word) > 1 and word.isalpha() for word in words)  # "- lda #$00 loads" is a sentence


def highlighted(line: str) -> "Text":
    """A line of assembly in colours; its text is unchanged."""
    from rich.text import Text

    text = Text(line)
    for found in _TOKEN.finditer(line):
        kind = str(found.lastgroup)
        if kind == "word":
            word = found["word"].lower()
            style = "bold blue" if word in SHAPES else "bold cyan" if word in DIRECTIVES else ""
        else:
            style = STYLES[kind]
        if style:
            text.stylize(style, found.start(), found.end())
    return text
