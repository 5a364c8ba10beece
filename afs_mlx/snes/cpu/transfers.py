"""Instructions that count index registers and move values between registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from afs_mlx.snes.cpu.width import BYTE, WORD, Width, set_nz

if TYPE_CHECKING:
    from afs_mlx.snes.cpu.core import Cpu
    from afs_mlx.snes.cpu.instructions import Execute


# ---- counting and moving index registers; `width` is the destination's ---------------------------


def inx(width: Width) -> Execute:
    """X ← X + 1. NZ"""

    def execute(cpu: Cpu, _operand: int) -> None:
        cpu.idle()
        value = cpu.x = cpu.x + 1 & width.mask
        cpu.n = value >= width.sign
        cpu.z = value == 0

    return execute


def iny(width: Width) -> Execute:
    """Y ← Y + 1. NZ"""

    def execute(cpu: Cpu, _operand: int) -> None:
        cpu.idle()
        value = cpu.y = cpu.y + 1 & width.mask
        cpu.n = value >= width.sign
        cpu.z = value == 0

    return execute


def dex(width: Width) -> Execute:
    """X ← X - 1. NZ"""

    def execute(cpu: Cpu, _operand: int) -> None:
        cpu.idle()
        value = cpu.x = cpu.x - 1 & width.mask
        cpu.n = value >= width.sign
        cpu.z = value == 0

    return execute


def dey(width: Width) -> Execute:
    """Y ← Y - 1. NZ"""

    def execute(cpu: Cpu, _operand: int) -> None:
        cpu.idle()
        value = cpu.y = cpu.y - 1 & width.mask
        cpu.n = value >= width.sign
        cpu.z = value == 0

    return execute


def tax(width: Width) -> Execute:
    """X ← A, all 16 bits into a wide X whatever m says. NZ"""

    def execute(cpu: Cpu, _operand: int) -> None:
        cpu.idle()
        cpu.x = cpu.a & width.mask
        set_nz(cpu, cpu.x, width)

    return execute


def tay(width: Width) -> Execute:
    """Y ← A, all 16 bits into a wide Y whatever m says. NZ"""

    def execute(cpu: Cpu, _operand: int) -> None:
        cpu.idle()
        cpu.y = cpu.a & width.mask
        set_nz(cpu, cpu.y, width)

    return execute


def tsx(width: Width) -> Execute:
    """X ← S. NZ"""

    def execute(cpu: Cpu, _operand: int) -> None:
        cpu.idle()
        cpu.x = cpu.s & width.mask
        set_nz(cpu, cpu.x, width)

    return execute


def txy(width: Width) -> Execute:
    """Y ← X. NZ"""

    def execute(cpu: Cpu, _operand: int) -> None:
        cpu.idle()
        cpu.y = cpu.x
        set_nz(cpu, cpu.y, width)

    return execute


def tyx(width: Width) -> Execute:
    """X ← Y. NZ"""

    def execute(cpu: Cpu, _operand: int) -> None:
        cpu.idle()
        cpu.x = cpu.y
        set_nz(cpu, cpu.x, width)

    return execute


def txa(width: Width) -> Execute:
    """A ← X; a narrow X fills a wide A with a zero high byte. NZ"""

    def execute(cpu: Cpu, _operand: int) -> None:
        cpu.idle()
        value = cpu.x & width.mask
        cpu.a = cpu.a & width.keep | value
        set_nz(cpu, value, width)

    return execute


def tya(width: Width) -> Execute:
    """A ← Y; a narrow Y fills a wide A with a zero high byte. NZ"""

    def execute(cpu: Cpu, _operand: int) -> None:
        cpu.idle()
        value = cpu.y & width.mask
        cpu.a = cpu.a & width.keep | value
        set_nz(cpu, value, width)

    return execute


# ---- transfers of all 16 bits --------------------------------------------------------------------


def tcd(cpu: Cpu, _operand: int) -> None:
    """D ← C, all 16 bits. NZ"""
    cpu.idle()
    cpu.d = cpu.a
    set_nz(cpu, cpu.d, WORD)


def tdc(cpu: Cpu, _operand: int) -> None:
    """C ← D, all 16 bits. NZ"""
    cpu.idle()
    cpu.a = cpu.d
    set_nz(cpu, cpu.a, WORD)


def tsc(cpu: Cpu, _operand: int) -> None:
    """C ← S, all 16 bits. NZ"""
    cpu.idle()
    cpu.a = cpu.s
    set_nz(cpu, cpu.a, WORD)


def tcs(cpu: Cpu, _operand: int) -> None:
    """S ← C; no flags. In emulation mode S stays in page 1."""
    cpu.idle()
    cpu.s = cpu.a
    cpu.settle_stack()


def txs(cpu: Cpu, _operand: int) -> None:
    """S ← X; no flags. In emulation mode S stays in page 1."""
    cpu.idle()
    cpu.s = cpu.x
    cpu.settle_stack()


def xba(cpu: Cpu, _operand: int) -> None:
    """Exchange the two bytes of the accumulator. NZ of the new low byte."""
    cpu.idle()
    cpu.idle()
    cpu.a = cpu.a << 8 & 0xFF00 | cpu.a >> 8
    set_nz(cpu, cpu.a & 0xFF, BYTE)
