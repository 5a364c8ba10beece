"""The two widths of an operation: flag m sets the accumulator's, flag x the index registers'."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Width:
    """Bits of the data; `keep` is the part of the accumulator that an operation of this width leaves alone."""

    bits: int
    mask: int
    sign: int
    keep: int


BYTE = Width(8, 0xFF, 0x80, 0xFF00)
WORD = Width(16, 0xFFFF, 0x8000, 0)
