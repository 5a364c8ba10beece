"""What Asar accepts without a word and a person mostly did not mean. Reads text, executes nothing.

Cut-off numbers, numeric branch targets, `rep $30` and a dropped indirection are refused by the grammar already, and
immediates whose width is not the one reached are noticed where the routine is executed.
"""

import re

from afs_mlx.snes.grammar import Problem, parse

_MODE_BITS = re.compile(r"\b(rep|sep) #([0-9]+)$")
_HEXADECIMAL = frozenset(("10", "20", "30"))


def lint(text: str) -> list[Problem]:
    """The doubtful lines of a text that the grammar accepts."""
    found: list[Problem] = []
    for number, line in enumerate(parse(text).lines, start=1):
        for command in line.split(" : "):
            bits = _MODE_BITS.search(command)
            if bits and bits[2] in _HEXADECIMAL:
                name, value = bits.groups()
                found.append(Problem(number, f"{name} #{value} is decimal (${int(value):02X}); write {name} #${value}"))
    return found
