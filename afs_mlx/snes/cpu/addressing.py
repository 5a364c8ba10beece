"""The addressing modes: from an operand to the address of the data, with every read and idle cycle on the way.

Each function is (chip, operand) → 24-bit address. The operand has been fetched. Modes whose last cycles differ when
data is written (`a,x`, `a,y`, `(d),y`: the idle cycle is then always there) have a second function for that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from afs_mlx.snes.cpu.core import Cpu

type Address = Callable[[Cpu, int], int]

BANK_0 = 0xFFFF  # the second byte of the data stays in bank 0
MEMORY = 0xFFFFFF  # the second byte of the data may lie in the next bank


@dataclass(frozen=True)
class Mode:
    """How an operand becomes an address: to read from, to write to, and what the address of a second byte wraps in."""

    to_read: Address
    to_write: Address
    wrap: int


# ---- direct page ---------------------------------------------------------------------------------


def _direct_page(cpu: Cpu, offset: int) -> int:
    """D + offset in bank 0; in emulation mode with an aligned D it stays in the page, as on the 6502."""
    if cpu.e and not cpu.d & 0xFF:
        return cpu.d | offset & 0xFF
    return cpu.d + offset & 0xFFFF


def _idle_if_unaligned(cpu: Cpu) -> None:
    if cpu.d & 0xFF:
        cpu.idle()


def direct(cpu: Cpu, operand: int) -> int:
    """`d`"""
    if cpu.d & 0xFF:
        cpu.idle()
        return cpu.d + operand & 0xFFFF
    return cpu.d + operand  # an aligned D leaves no carry into the next page


def direct_x(cpu: Cpu, operand: int) -> int:
    """`d,x`"""
    _idle_if_unaligned(cpu)
    cpu.idle()
    return _direct_page(cpu, operand + cpu.x)


def direct_y(cpu: Cpu, operand: int) -> int:
    """`d,y`"""
    _idle_if_unaligned(cpu)
    cpu.idle()
    return _direct_page(cpu, operand + cpu.y)


def _pointer(cpu: Cpu, offset: int) -> int:
    """The 16-bit pointer at an offset in the direct page."""
    low = cpu.read(_direct_page(cpu, offset))
    return low | cpu.read(_direct_page(cpu, offset + 1)) << 8


def indirect(cpu: Cpu, operand: int) -> int:
    """`(d)`"""
    _idle_if_unaligned(cpu)
    return cpu.dbr << 16 | _pointer(cpu, operand)


def indexed_indirect(cpu: Cpu, operand: int) -> int:
    """`(d,x)`"""
    _idle_if_unaligned(cpu)
    cpu.idle()
    if cpu.e and cpu.d & 0xFF:  # the chip's own quirk: the pointer's second byte wraps within its page
        at = cpu.d + operand + cpu.x & 0xFFFF
        low = cpu.read(at)
        return cpu.dbr << 16 | low | cpu.read(at & 0xFF00 | at + 1 & 0xFF) << 8
    return cpu.dbr << 16 | _pointer(cpu, operand + cpu.x)


def indirect_indexed(cpu: Cpu, operand: int) -> int:
    """`(d),y` to read: the idle cycle is left out where an 8-bit index stays in the page."""
    _idle_if_unaligned(cpu)
    base = _pointer(cpu, operand)
    if not cpu.x8 or (base & 0xFF) + cpu.y > 0xFF:
        cpu.idle()
    return (cpu.dbr << 16) + base + cpu.y & 0xFFFFFF


def indirect_indexed_store(cpu: Cpu, operand: int) -> int:
    """`(d),y` to write."""
    _idle_if_unaligned(cpu)
    base = _pointer(cpu, operand)
    cpu.idle()
    return (cpu.dbr << 16) + base + cpu.y & 0xFFFFFF


def indirect_long(cpu: Cpu, operand: int) -> int:
    """`[d]`: a 24-bit pointer, which leaves the direct page also in emulation mode."""
    _idle_if_unaligned(cpu)
    at = cpu.d + operand
    low = cpu.read(at & 0xFFFF)
    middle = cpu.read(at + 1 & 0xFFFF)
    return low | middle << 8 | cpu.read(at + 2 & 0xFFFF) << 16


def indirect_long_indexed(cpu: Cpu, operand: int) -> int:
    """`[d],y`"""
    return indirect_long(cpu, operand) + cpu.y & 0xFFFFFF


# ---- absolute ------------------------------------------------------------------------------------


def absolute(cpu: Cpu, operand: int) -> int:
    """`a`"""
    return cpu.dbr << 16 | operand


def _indexed(cpu: Cpu, base: int, index: int) -> int:
    """`a,x` and `a,y` to read: the idle cycle is left out where an 8-bit index stays in the page."""
    if not cpu.x8 or (base & 0xFF) + index > 0xFF:
        cpu.idle()
    return (cpu.dbr << 16) + base + index & 0xFFFFFF


def absolute_x(cpu: Cpu, operand: int) -> int:
    """`a,x` to read."""
    return _indexed(cpu, operand, cpu.x)


def absolute_y(cpu: Cpu, operand: int) -> int:
    """`a,y` to read."""
    return _indexed(cpu, operand, cpu.y)


def absolute_x_store(cpu: Cpu, operand: int) -> int:
    """`a,x` to write."""
    cpu.idle()
    return (cpu.dbr << 16) + operand + cpu.x & 0xFFFFFF


def absolute_y_store(cpu: Cpu, operand: int) -> int:
    """`a,y` to write."""
    cpu.idle()
    return (cpu.dbr << 16) + operand + cpu.y & 0xFFFFFF


def long(_cpu: Cpu, operand: int) -> int:
    """`al`"""
    return operand


def long_x(cpu: Cpu, operand: int) -> int:
    """`al,x`"""
    return operand + cpu.x & 0xFFFFFF


# ---- stack relative ------------------------------------------------------------------------------


def stack_relative(cpu: Cpu, operand: int) -> int:
    """`d,s`"""
    cpu.idle()
    return cpu.s + operand & 0xFFFF


def stack_relative_indirect_indexed(cpu: Cpu, operand: int) -> int:
    """`(d,s),y`"""
    cpu.idle()
    at = cpu.s + operand
    low = cpu.read(at & 0xFFFF)
    base = low | cpu.read(at + 1 & 0xFFFF) << 8
    cpu.idle()
    return (cpu.dbr << 16) + base + cpu.y & 0xFFFFFF


MODES = {
    "d": Mode(direct, direct, BANK_0),
    "d,x": Mode(direct_x, direct_x, BANK_0),
    "d,y": Mode(direct_y, direct_y, BANK_0),
    "(d)": Mode(indirect, indirect, MEMORY),
    "(d,x)": Mode(indexed_indirect, indexed_indirect, MEMORY),
    "(d),y": Mode(indirect_indexed, indirect_indexed_store, MEMORY),
    "[d]": Mode(indirect_long, indirect_long, MEMORY),
    "[d],y": Mode(indirect_long_indexed, indirect_long_indexed, MEMORY),
    "a": Mode(absolute, absolute, MEMORY),
    "a,x": Mode(absolute_x, absolute_x_store, MEMORY),
    "a,y": Mode(absolute_y, absolute_y_store, MEMORY),
    "al": Mode(long, long, MEMORY),
    "al,x": Mode(long_x, long_x, MEMORY),
    "d,s": Mode(stack_relative, stack_relative, BANK_0),
    "(d,s),y": Mode(stack_relative_indirect_indexed, stack_relative_indirect_indexed, MEMORY),
}
