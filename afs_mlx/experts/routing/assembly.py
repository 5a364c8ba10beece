"""Which lines of a message are 65816 assembly, and what its operands look like. Judges shapes; assembles nothing."""

import re
from dataclasses import dataclass

from afs_mlx.snes.mnemonics import DATA_BYTES, SHAPES
from afs_mlx.snes.registers.wording import words_of

# Mnemonics that are also words of some language: they count where an operand or code stands beside them.
ORDINARY_WORDS = words_of("and bit per cop sed tax dec inc tas tad dea sec rol rep pea cli")
_MNEMONICS = "|".join(sorted(SHAPES))
_DATA = "|".join(DATA_BYTES)
_OPERAND = r"(?:[#!>]?[\[(]?[$%<>&^!@.\w+\-*~|]+[^\s;/`]*(?:\s*,\s*[^\s;/`]+)?)"
_STATEMENT = rf"(?:(?:{_MNEMONICS})(?:\.[bwl])?(?:[ \t]+{_OPERAND})?|(?:{_DATA}|org|\.byte|\.word)[ \t]+[^;]+)"
_LABEL = (
    r"(?:[.@?]*[a-z_]\w*:|[.@][a-z_]\w*:?|[a-z_]\w*(?=[ \t]+(?:lda|ldx|ldy|stz|rts|rtl|php|pha|rep|sep)\b)|[-+]{1,3}:?)"
)
_CODE_LINE = re.compile(
    rf"[ \t]*(?:{_LABEL}[ \t]+)?{_STATEMENT}(?:[ \t]*[:/][ \t]*{_STATEMENT})*[ \t]*(?::[ \t]*)?(?:;.*)?", re.I
)
_LABEL_LINE = re.compile(r"[ \t]*(?:[.@?]*[a-z_]\w*:|[.@][a-z_]\w*:?|[-+]{1,3}:?)[ \t]*(?:;.*)?", re.I)
_COMMENT_LINE = re.compile(r"[ \t]*;(.*)")
_FENCE = re.compile(r"[ \t]*(?:```|~~~)[ \t]*([\w+#.-]*)[ \t]*")
# An instruction in running text: the operand has to look like one.
INSTRUCTION = re.compile(
    rf"(?<![\w$#%])({_MNEMONICS})(?:\.[bwl])?[ \t]+"
    r"(#?[$%][0-9a-f]+[^\s;:/`]*|#\w+|[\[(][$\w]+[^\s;:/`]*|[a-z_]\w*,[xys]\b|\w+,\w+,?[xys]?\b)",
    re.I,
)
_WHOLE = re.compile(rf"(?<![\w$#%.])({_MNEMONICS})(?:\.[bwl])?(?:[ \t]+({_OPERAND}))?", re.I)
_HEX = re.compile(r"\$([0-9a-f]+)", re.I)


@dataclass(frozen=True)
class Split:
    """Running text, code lines, what the comments say, and the language that a fence names.

    `prose` has a line `\\x01` where a block of code stood.
    """

    prose: str
    code: tuple[str, ...]
    comments: str
    fences: tuple[str, ...]


BLOCK = "\x01"
_LONGEST_LINE = 120


def split(text: str) -> Split:
    """Sort the lines of a message. Fenced text is code whatever it looks like; elsewhere a line has to be assembly."""
    lines = text.split("\n")
    is_code, fences = _code_lines(lines)
    prose: list[str] = []
    code: list[str] = []
    comments: list[str] = []
    for line, here in zip(lines, is_code, strict=True):
        if here is None:
            continue
        if not here:
            prose.append(line)
            continue
        if not prose or prose[-1] != BLOCK:
            prose.append(BLOCK)
        statement, _, comment = line.partition(";")
        if statement.strip():
            code.append(statement)
        if comment.strip(" ;-=*"):
            comments.append(comment.strip(" ;-=*"))
    return Split("\n".join(prose), tuple(code), "\n".join(comments), tuple(fences))


def _code_lines(lines: list[str]) -> tuple[list[bool | None], list[str]]:
    """Whether each line is code, None for a fence."""
    found: list[bool | None] = []
    fences: list[str] = []
    inside = False
    for line in lines:
        fence = _FENCE.fullmatch(line)
        if fence:
            inside = not inside
            if inside:
                fences.append(fence[1].lower() or "plain")
            found.append(None)
        else:
            found.append(inside or _is_assembly(line))
    # A bare label or a comment is code where code stands beside it.
    for step in (1, -1):
        order = range(len(lines)) if step == 1 else range(len(lines) - 1, -1, -1)
        beside = False
        for place in order:
            line = lines[place]
            if found[place] is False and beside and (_LABEL_LINE.fullmatch(line) or _COMMENT_LINE.fullmatch(line)):
                found[place] = True
            if line.strip():
                beside = bool(found[place])
    return found, fences


def _is_assembly(line: str) -> bool:
    # The bound keeps the pattern's backtracking short.
    return len(line) <= _LONGEST_LINE and bool(_CODE_LINE.fullmatch(line)) and not _is_sentence(line)


def _is_sentence(line: str) -> bool:
    """Whether a line that could be code begins with a mnemonic that is an ordinary word and names no operand."""
    words = line.split()
    if len(words) != 2 or words[0].lower() not in ORDINARY_WORDS:
        return False
    return words[1].isalpha() and words[1].lower() not in ("a", "x", "y")


def instructions(code: str) -> list[tuple[str, str]]:
    """(mnemonic, operand shape) of what a code line holds, in small letters; the shape is empty without operand."""
    return [(found[1].lower(), shape(found[2] or "")) for found in _WHOLE.finditer(code)]


def shape(operand: str) -> str:
    """The addressing mode as written, numbers folded to their width: `($10),y` is `(dp),y`, `$7e0000,x` is `long,x`."""
    text = operand.strip().lower().replace(" ", "").rstrip(".?!")
    if not text:
        return ""
    if text.startswith("#"):
        return "#"
    open_sign = text[0] if text[0] in "([" else ""
    inner = text[1:] if open_sign else text
    body, tail = inner, ""
    for end in ("),y", "],y", ",s),y", ",x)", ")", "]", ",x", ",y", ",s"):
        if inner.endswith(end):
            body, tail = inner[: -len(end)], end
            break
    return open_sign + _width(body) + tail


def _width(body: str) -> str:
    found = _HEX.match(body)
    if not found:
        return "label" if body[:1].isalpha() or body[:1] in "._!@<>" else "number"
    digits = len(found[1])
    return "dp" if digits <= 2 else "abs" if digits <= 4 else "long"
