"""Numbers and labels joined by operators, as Asar reads them, and the names that a label may have.

Labels are not evaluated: one that does not fit its operand is not seen. Knows no line, instruction or addressing mode.
"""

import re
from dataclasses import dataclass

from afs_mlx.snes.mnemonics import RESERVED

NAME = r"[A-Za-z_][A-Za-z0-9_]{0,63}"
_TERM = re.compile(
    rf"(?P<number>\$[0-9A-Fa-f]{{1,8}}|%[01]{{1,32}}|[0-9]{{1,10}})(?![A-Za-z0-9_])|(?P<name>\.{{0,3}}{NAME})"
)
_OPERATOR = re.compile(r"<<|>>|[-+*/&|^]")
_PRECEDENCE = {"|": 0, "^": 1, "&": 2, "<<": 3, ">>": 3, "+": 4, "-": 4, "*": 5, "/": 5}


class RefusedError(Exception):
    """A part of a line is outside the grammar; the message goes to the user."""


@dataclass(frozen=True)
class Expression:
    """Numbers and labels joined by operators. `value` and `digits_bytes` are known for a single number only."""

    text: str
    has_label: bool
    value: int | None
    digits_bytes: int

    @classmethod
    def read(cls, text: str, has_parent: bool) -> "Expression":
        """Check one expression; `has_parent` where `.name` has a label to belong to. Raises RefusedError."""
        position = 1 if text[:1] in ("-", "~") else 0
        has_label = False
        numbers: list[str] = []
        operators: list[str] = []
        while True:
            term = _TERM.match(text, position)
            if term is None:
                raise RefusedError(_bad_term(text, text[position:]))
            if name := term["name"]:
                has_label = True
                if not name.startswith("."):
                    free_name(name)
                elif not has_parent:
                    raise RefusedError(f"{name} has no parent: put a label like main: before it")
            else:
                numbers.append(term["number"])
            position = term.end()
            if position == len(text):
                break
            operator = _OPERATOR.match(text, position)
            if operator is None:
                raise RefusedError(_bad_term(text, text[position:]))
            operators.append(operator[0])
            position = operator.end()
        levels = [_PRECEDENCE[operator] for operator in operators]
        if levels != sorted(levels, reverse=True):
            raise RefusedError(f"{text!r}: Asar reckons from left to right; reorder it or give the result")
        single = not operators and not has_label and text[0] != "~"
        value = _value(numbers[0]) * (-1 if text[0] == "-" else 1) if single else None
        return cls(text, has_label, value, _digits_bytes(numbers[0]) if single else 0)

    def must_fit(self, size_bytes: int, by_digits: bool) -> None:
        """Asar cuts a number off in silence; `by_digits` where it also takes the size from the digits written."""
        if self.value is None:
            return
        low, high = -(1 << (8 * size_bytes - 1)), (1 << (8 * size_bytes)) - 1
        if not low <= self.value <= high or (by_digits and self.digits_bytes > size_bytes):
            unit = "byte" if size_bytes == 1 else "bytes"
            raise RefusedError(f"{self.text} does not fit into {size_bytes} {unit}; Asar would cut it off or refuse it")


def free_name(name: str) -> None:
    """Check that a label may have this name. Raises RefusedError."""
    if name.lower() in RESERVED:
        raise RefusedError(f"{name!r} is an instruction, a register or a directive, not a name for a label")
    if name.lower().startswith("afs_"):
        raise RefusedError(f"{name!r}: names that start with afs_ are taken")


def _value(number: str) -> int:
    return int(number[1:], {"$": 16, "%": 2}[number[0]]) if number[0] in "$%" else int(number)


def _digits_bytes(number: str) -> int:
    """The size in bytes that Asar gives to a number: from the digits of $ and %, from the value of a decimal."""
    if number[0] == "$":
        return len(number) // 2
    if number[0] == "%":
        return (len(number) + 6) // 8
    return max(1, (int(number).bit_length() + 7) // 8)


def _bad_term(text: str, rest: str) -> str:
    if not rest:
        return f"{text!r}: a number or label is missing at the end" if text else "a number or label is missing"
    if rest[0] in "<>":
        return (
            f"{text!r}: Asar has no < and >; write label with .b for the low byte, label>>8 or label>>16 for the others"
        )
    if rest[0] == "%":
        return f"{text!r}: % only starts a binary number"
    return f"{text!r}: {rest[:20]!r} is neither a number nor a label"
