"""The assembly in a model's Markdown answer. Finds fenced code; does not look into it."""

import re
from collections.abc import Iterator

# The first word after the fence, in lower case. A fence without a language counts as assembly here.
ASSEMBLY_LANGUAGES = frozenset(
    {
        "",
        "asm",
        "65816",
        "65c816",
        "65816asm",
        "asm65816",
        "asm-65816",
        "65816-asm",
        "assembly",
        "assembler",
        "asar",
        "snes",
    }
)

_OPENING = re.compile(r"([ \t>]*)(`{3,}|~{3,})[ \t]*([^`\r]*)")


def code_blocks(answer: str, allow_unterminated: bool = False) -> list[str]:
    """The assembly blocks of an answer, in order, without their fences; code in other languages is left out.

    A fence that is still open at the end of the text counts only with `allow_unterminated`: the model was cut off, and
    the routine may lack its end.
    """
    return [
        code
        for language, code, terminated in _fenced(answer)
        if language in ASSEMBLY_LANGUAGES and (terminated or allow_unterminated)
    ]


def assembly_of(answer: str, allow_unterminated: bool = False) -> str | None:
    """The first assembly block of an answer, None when there is none."""
    return next(iter(code_blocks(answer, allow_unterminated)), None)


def _fenced(answer: str) -> Iterator[tuple[str, str, bool]]:
    """Language, content and whether the fence was closed, for every fenced block (CommonMark, any indentation)."""
    fence = indent = language = ""
    lines: list[str] = []
    for line in answer.split("\n"):
        if not fence:
            if opening := _OPENING.fullmatch(line.rstrip()):
                indent, fence = opening[1], opening[2]
                language = opening[3].split()[0].strip("{}.").lower() if opening[3].split() else ""
                lines = []
        elif _closes(line, fence):
            yield language, "\n".join(lines), True
            fence = ""
        else:
            lines.append(line.removesuffix("\r").removeprefix(indent))
    if fence:
        yield language, "\n".join(lines), False


def _closes(line: str, fence: str) -> bool:
    """A line of nothing but the fence's sign, at least as often."""
    sign = line.strip(" \t\r>")
    return len(sign) >= len(fence) and set(sign) == {fence[0]}
