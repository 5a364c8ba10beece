"""An optimisation task: a routine, what its surroundings assume, and a cheaper routine that does the same."""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from afs_mlx.core.config import StrictModel

Live = Literal["a", "b", "x", "y", "c", "z", "n", "v"]


class EntryState(StrictModel):
    """What is true when the routine is entered. Widths are in bits; a register that is None may hold anything."""

    e: Literal[0, 1] = 0
    m: Literal[8, 16]
    x: Literal[8, 16]
    d: int | None = Field(default=None, ge=0, le=0xFFFF)
    dbr: int | None = Field(default=None, ge=0, le=0xFF)
    a: int | None = Field(default=None, ge=0, le=0xFFFF)
    x_value: int | None = Field(default=None, ge=0, le=0xFFFF, description="the X register; `x` is its width")
    y: int | None = Field(default=None, ge=0, le=0xFFFF)
    c: Literal[0, 1] | None = None
    decimal: Literal[0, 1] = 0
    known: str = ""

    def sentence(self) -> str:
        """The entry state as a prompt states it."""
        mode = "Emulation mode" if self.e else f"A {self.m}-bit, X/Y {self.x}-bit"
        facts = [
            f"D=${self.d:04X}" if self.d is not None else "",
            f"DBR=${self.dbr:02X}" if self.dbr is not None else "",
            self.known.rstrip("."),
        ]
        return ", ".join([mode, *(fact for fact in facts if fact)])


class OptimisationPair(StrictModel):
    """One row of a curated optimisation set or suite; the source is Asar syntax, `\\n` between lines."""

    id: str
    family: str
    goal: Literal["cycles", "bytes"]
    entry: EntryState
    live: tuple[Live, ...] = Field(description="registers and flags that the code after the routine still reads")
    code: str
    better: str
    reason: str
    not_when: str

    @model_validator(mode="after")
    def _is_a_change(self) -> Self:
        if not normalised(self.code) or not normalised(self.better):
            raise ValueError("code and better must hold at least one instruction each")
        if normalised(self.code) == normalised(self.better):
            raise ValueError("code and better are the same routine")
        return self

    def question(self) -> str:
        """What the user asks."""
        needed = ", ".join(name.upper() for name in self.live) if self.live else "nothing"
        return (
            f"Optimise for {self.goal}. Entry: {self.entry.sentence()}. Needed afterwards: {needed}.\n"
            f"```asm\n{self.code.strip(chr(10))}\n```"
        )

    def answer(self) -> str:
        """What the expert is to say: the routine, why it is cheaper, and when it would be wrong."""
        return f"```asm\n{self.better.strip(chr(10))}\n```\nWhy: {self.reason}\nNot when: {self.not_when}"


def normalised(code: str) -> str:
    """Assembly without comments, case and spacing, to tell whether two routines are the same text."""
    lines = (line.split(";")[0].split() for line in code.lower().splitlines())
    return "\n".join(" ".join(words) for words in lines if words)


def skeleton(code: str) -> str:
    """`normalised` without its numbers and size suffixes: what two routines share that differ in addresses alone."""
    without_numbers = re.sub(r"\$[0-9a-f]+|%[01]+|\b[0-9]+\b", "n", normalised(code))
    return re.sub(r"\b([a-z]{3})\.[bwl]\b", r"\1", without_numbers)
