"""What is done with a value that is read, changed and written back: shifts, counts, test-and-set.

Each function takes the width and returns the operation (chip, value) → new value. Knows no addressing and no cycles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from afs_mlx.snes.cpu.width import Width

if TYPE_CHECKING:
    from afs_mlx.snes.cpu.core import Cpu

type Change = Callable[[Cpu, int], int]


def asl(width: Width) -> Change:
    """C ← top bit, value ← value · 2. NZC"""
    mask, sign = width.mask, width.sign

    def change(cpu: Cpu, value: int) -> int:
        cpu.c = value >= sign
        value = value << 1 & mask
        cpu.n = value >= sign
        cpu.z = value == 0
        return value

    return change


def lsr(_width: Width) -> Change:
    """C ← bit 0, value ← value / 2. NZC"""

    def change(cpu: Cpu, value: int) -> int:
        cpu.c = value & 1 != 0
        value >>= 1
        cpu.n = False
        cpu.z = value == 0
        return value

    return change


def rol(width: Width) -> Change:
    """Rotate left through the carry. NZC"""
    mask, sign = width.mask, width.sign

    def change(cpu: Cpu, value: int) -> int:
        rotated = value << 1 & mask | cpu.c
        cpu.c = value >= sign
        cpu.n = rotated >= sign
        cpu.z = rotated == 0
        return rotated

    return change


def ror(width: Width) -> Change:
    """Rotate right through the carry. NZC"""
    sign = width.sign

    def change(cpu: Cpu, value: int) -> int:
        rotated = value >> 1 | sign * cpu.c
        cpu.c = value & 1 != 0
        cpu.n = rotated >= sign
        cpu.z = rotated == 0
        return rotated

    return change


def inc(width: Width) -> Change:
    """value ← value + 1. NZ"""
    mask, sign = width.mask, width.sign

    def change(cpu: Cpu, value: int) -> int:
        value = value + 1 & mask
        cpu.n = value >= sign
        cpu.z = value == 0
        return value

    return change


def dec(width: Width) -> Change:
    """value ← value - 1. NZ"""
    mask, sign = width.mask, width.sign

    def change(cpu: Cpu, value: int) -> int:
        value = value - 1 & mask
        cpu.n = value >= sign
        cpu.z = value == 0
        return value

    return change


def tsb(width: Width) -> Change:
    """Z from A ∧ value, value ← value ∨ A."""
    mask = width.mask

    def change(cpu: Cpu, value: int) -> int:
        cpu.z = value & cpu.a & mask == 0
        return value | cpu.a & mask

    return change


def trb(width: Width) -> Change:
    """Z from A ∧ value, value ← value ∧ ¬A."""
    mask = width.mask

    def change(cpu: Cpu, value: int) -> int:
        cpu.z = value & cpu.a & mask == 0
        return value & ~cpu.a

    return change
