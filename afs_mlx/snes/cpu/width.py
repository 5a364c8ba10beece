"""The two widths of an operation: flag m sets the accumulator's, flag x the index registers'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from afs_mlx.snes.cpu.core import Cpu


@dataclass(frozen=True)
class Width:
    """Bits of the data; `keep` is the part of the accumulator that an operation of this width leaves alone."""

    bits: int
    mask: int
    sign: int
    keep: int


BYTE = Width(8, 0xFF, 0x80, 0xFF00)
WORD = Width(16, 0xFFFF, 0x8000, 0)


def set_nz(cpu: Cpu, value: int, width: Width) -> None:
    """N and Z from a value of a width."""
    cpu.n = value >= width.sign
    cpu.z = value == 0
