"""What is done with a value that was read: loads, arithmetic, logic, comparisons. Knows no addressing and no cycles.

Each function takes the width and returns the operation (chip, value); the value has that width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from afs_mlx.snes.cpu.width import Width

if TYPE_CHECKING:
    from afs_mlx.snes.cpu.core import Cpu

type Use = Callable[[Cpu, int], None]


def lda(width: Width) -> Use:
    """A ← value. NZ"""
    keep, sign = width.keep, width.sign

    def use(cpu: Cpu, value: int) -> None:
        cpu.a = cpu.a & keep | value
        cpu.n = value >= sign
        cpu.z = value == 0

    return use


def ldx(width: Width) -> Use:
    """X ← value. NZ"""
    sign = width.sign

    def use(cpu: Cpu, value: int) -> None:
        cpu.x = value
        cpu.n = value >= sign
        cpu.z = value == 0

    return use


def ldy(width: Width) -> Use:
    """Y ← value. NZ"""
    sign = width.sign

    def use(cpu: Cpu, value: int) -> None:
        cpu.y = value
        cpu.n = value >= sign
        cpu.z = value == 0

    return use


def and_(width: Width) -> Use:
    """A ← A ∧ value. NZ"""
    keep, sign = width.keep, width.sign

    def use(cpu: Cpu, value: int) -> None:
        value &= cpu.a
        cpu.a = cpu.a & keep | value
        cpu.n = value >= sign
        cpu.z = value == 0

    return use


def ora(width: Width) -> Use:
    """A ← A ∨ value. NZ"""
    keep, mask, sign = width.keep, width.mask, width.sign

    def use(cpu: Cpu, value: int) -> None:
        value |= cpu.a & mask
        cpu.a = cpu.a & keep | value
        cpu.n = value >= sign
        cpu.z = value == 0

    return use


def eor(width: Width) -> Use:
    """A ← A ⊕ value. NZ"""
    keep, mask, sign = width.keep, width.mask, width.sign

    def use(cpu: Cpu, value: int) -> None:
        value ^= cpu.a & mask
        cpu.a = cpu.a & keep | value
        cpu.n = value >= sign
        cpu.z = value == 0

    return use


def adc(width: Width) -> Use:
    """A ← A + value + C, in decimal digits when the decimal flag is set. NVZC"""
    return _adder(width, subtract=False)


def sbc(width: Width) -> Use:
    """A ← A + ¬value + C, in decimal digits when the decimal flag is set. NVZC"""
    return _adder(width, subtract=True)


def _adder(width: Width, subtract: bool) -> Use:
    keep, mask, sign = width.keep, width.mask, width.sign
    complement = mask if subtract else 0

    def use(cpu: Cpu, value: int) -> None:
        value ^= complement
        a = cpu.a & mask
        if cpu.decimal:
            total, binary_top = _decimal_sum(a, value, cpu.c, width.bits, subtract)
        else:
            total = binary_top = a + value + cpu.c
        cpu.v = ~(a ^ value) & (a ^ binary_top) & sign != 0
        cpu.c = total > mask
        total &= mask
        cpu.a = cpu.a & keep | total
        cpu.n = total >= sign
        cpu.z = total == 0

    return use


def _decimal_sum(a: int, value: int, carry: int, bits: int, subtract: bool) -> tuple[int, int]:
    """Digit by digit. The second result has the last digit before its correction: V is taken from there.

    For a subtraction the value comes complemented, and a digit that borrowed is corrected by 6.
    """
    total = 0
    for shift in range(0, bits, 4):
        digit = (a >> shift & 15) + (value >> shift & 15) + carry
        binary_top = total | digit << shift
        if subtract:
            carry = digit > 15
            digit -= 0 if carry else 6
        else:
            digit += 6 if digit > 9 else 0
            carry = digit > 15
        total |= (digit & 15) << shift
    return total | carry << bits, binary_top


def cmp(width: Width) -> Use:
    """A - value. NZC"""
    mask, sign = width.mask, width.sign

    def use(cpu: Cpu, value: int) -> None:
        difference = (cpu.a & mask) - value
        cpu.c = difference >= 0
        cpu.z = difference == 0
        cpu.n = difference & sign != 0

    return use


def cpx(width: Width) -> Use:
    """X - value. NZC"""
    sign = width.sign

    def use(cpu: Cpu, value: int) -> None:
        difference = cpu.x - value
        cpu.c = difference >= 0
        cpu.z = difference == 0
        cpu.n = difference & sign != 0

    return use


def cpy(width: Width) -> Use:
    """Y - value. NZC"""
    sign = width.sign

    def use(cpu: Cpu, value: int) -> None:
        difference = cpu.y - value
        cpu.c = difference >= 0
        cpu.z = difference == 0
        cpu.n = difference & sign != 0

    return use


def bit(width: Width) -> Use:
    """Z from A ∧ value, N and V from the value's two top bits."""
    mask, sign = width.mask, width.sign

    def use(cpu: Cpu, value: int) -> None:
        cpu.z = value & cpu.a & mask == 0
        cpu.n = value >= sign
        cpu.v = value & sign >> 1 != 0

    return use


def bit_immediate(width: Width) -> Use:
    """Z from A ∧ value; N and V stay."""

    def use(cpu: Cpu, value: int) -> None:
        cpu.z = value & cpu.a & width.mask == 0

    return use
