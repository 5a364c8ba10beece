"""Pushes and pulls. The 6502's own and the 65816's treat the stack pointer differently in emulation mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from afs_mlx.snes.cpu.width import BYTE, WORD, Width, set_nz

if TYPE_CHECKING:
    from afs_mlx.snes.cpu.core import Cpu
    from afs_mlx.snes.cpu.instructions import Execute


def _push(cpu: Cpu, value: int, width: Width) -> None:
    cpu.idle()
    if width is WORD:
        cpu.push(value >> 8)
    cpu.push(value & 0xFF)


def _pull(cpu: Cpu, width: Width) -> int:
    cpu.idle()
    cpu.idle()
    value = cpu.pull()
    if width is WORD:
        value |= cpu.pull() << 8
    set_nz(cpu, value, width)
    return value


def pha(width: Width) -> Execute:
    """Push A."""
    return lambda cpu, _operand: _push(cpu, cpu.a, width)


def phx(width: Width) -> Execute:
    """Push X."""
    return lambda cpu, _operand: _push(cpu, cpu.x, width)


def phy(width: Width) -> Execute:
    """Push Y."""
    return lambda cpu, _operand: _push(cpu, cpu.y, width)


def pla(width: Width) -> Execute:
    """Pull A. NZ"""

    def execute(cpu: Cpu, _operand: int) -> None:
        cpu.a = cpu.a & width.keep | _pull(cpu, width)

    return execute


def plx(width: Width) -> Execute:
    """Pull X. NZ"""

    def execute(cpu: Cpu, _operand: int) -> None:
        cpu.x = _pull(cpu, width)

    return execute


def ply(width: Width) -> Execute:
    """Pull Y. NZ"""

    def execute(cpu: Cpu, _operand: int) -> None:
        cpu.y = _pull(cpu, width)

    return execute


def php(cpu: Cpu, _operand: int) -> None:
    """Push P."""
    _push(cpu, cpu.p, BYTE)


def phb(cpu: Cpu, _operand: int) -> None:
    """Push the data bank."""
    _push(cpu, cpu.dbr, BYTE)


def phk(cpu: Cpu, _operand: int) -> None:
    """Push the program bank."""
    _push(cpu, cpu.pbr, BYTE)


def plp(cpu: Cpu, _operand: int) -> None:
    """Pull P."""
    cpu.idle()
    cpu.idle()
    cpu.p = cpu.pull()


def plb(cpu: Cpu, _operand: int) -> None:
    """Pull the data bank. NZ"""
    cpu.idle()
    cpu.idle()
    cpu.dbr = cpu.pull_new()
    set_nz(cpu, cpu.dbr, BYTE)
    cpu.settle_stack()


def _push_word_new(cpu: Cpu, value: int) -> None:
    cpu.push_new(value >> 8)
    cpu.push_new(value & 0xFF)
    cpu.settle_stack()


def phd(cpu: Cpu, _operand: int) -> None:
    """Push D."""
    cpu.idle()
    _push_word_new(cpu, cpu.d)


def pld(cpu: Cpu, _operand: int) -> None:
    """Pull D. NZ"""
    cpu.idle()
    cpu.idle()
    low = cpu.pull_new()
    cpu.d = low | cpu.pull_new() << 8
    set_nz(cpu, cpu.d, WORD)
    cpu.settle_stack()


def pea(cpu: Cpu, operand: int) -> None:
    """Push the operand."""
    _push_word_new(cpu, operand)


def pei(cpu: Cpu, operand: int) -> None:
    """Push the word at an offset in the direct page."""
    if cpu.d & 0xFF:
        cpu.idle()
    at = cpu.d + operand
    low = cpu.read(at & 0xFFFF)
    _push_word_new(cpu, low | cpu.read(at + 1 & 0xFFFF) << 8)


def per(cpu: Cpu, operand: int) -> None:
    """Push the program counter plus the operand."""
    cpu.idle()
    _push_word_new(cpu, cpu.pc + operand & 0xFFFF)
