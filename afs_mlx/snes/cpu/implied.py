"""Instructions that move between registers, flags and the stack. Each performs its own cycles after the opcode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from afs_mlx.snes.cpu.width import BYTE, WORD, Width

if TYPE_CHECKING:
    from afs_mlx.snes.cpu.core import Cpu
    from afs_mlx.snes.cpu.instructions import Execute


def _set_nz(cpu: Cpu, value: int, width: Width) -> None:
    cpu.n = value >= width.sign
    cpu.z = value == 0


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
        _set_nz(cpu, cpu.x, width)

    return execute


def tay(width: Width) -> Execute:
    """Y ← A, all 16 bits into a wide Y whatever m says. NZ"""

    def execute(cpu: Cpu, _operand: int) -> None:
        cpu.idle()
        cpu.y = cpu.a & width.mask
        _set_nz(cpu, cpu.y, width)

    return execute


def tsx(width: Width) -> Execute:
    """X ← S. NZ"""

    def execute(cpu: Cpu, _operand: int) -> None:
        cpu.idle()
        cpu.x = cpu.s & width.mask
        _set_nz(cpu, cpu.x, width)

    return execute


def txy(width: Width) -> Execute:
    """Y ← X. NZ"""

    def execute(cpu: Cpu, _operand: int) -> None:
        cpu.idle()
        cpu.y = cpu.x
        _set_nz(cpu, cpu.y, width)

    return execute


def tyx(width: Width) -> Execute:
    """X ← Y. NZ"""

    def execute(cpu: Cpu, _operand: int) -> None:
        cpu.idle()
        cpu.x = cpu.y
        _set_nz(cpu, cpu.x, width)

    return execute


def txa(width: Width) -> Execute:
    """A ← X; a narrow X fills a wide A with a zero high byte. NZ"""

    def execute(cpu: Cpu, _operand: int) -> None:
        cpu.idle()
        value = cpu.x & width.mask
        cpu.a = cpu.a & width.keep | value
        _set_nz(cpu, value, width)

    return execute


def tya(width: Width) -> Execute:
    """A ← Y; a narrow Y fills a wide A with a zero high byte. NZ"""

    def execute(cpu: Cpu, _operand: int) -> None:
        cpu.idle()
        value = cpu.y & width.mask
        cpu.a = cpu.a & width.keep | value
        _set_nz(cpu, value, width)

    return execute


# ---- transfers of all 16 bits --------------------------------------------------------------------


def tcd(cpu: Cpu, _operand: int) -> None:
    """D ← C, all 16 bits. NZ"""
    cpu.idle()
    cpu.d = cpu.a
    _set_nz(cpu, cpu.d, WORD)


def tdc(cpu: Cpu, _operand: int) -> None:
    """C ← D, all 16 bits. NZ"""
    cpu.idle()
    cpu.a = cpu.d
    _set_nz(cpu, cpu.a, WORD)


def tsc(cpu: Cpu, _operand: int) -> None:
    """C ← S, all 16 bits. NZ"""
    cpu.idle()
    cpu.a = cpu.s
    _set_nz(cpu, cpu.a, WORD)


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
    _set_nz(cpu, cpu.a & 0xFF, BYTE)


# ---- flags ---------------------------------------------------------------------------------------


def clc(cpu: Cpu, _operand: int) -> None:
    """C ← 0"""
    cpu.idle()
    cpu.c = False


def sec(cpu: Cpu, _operand: int) -> None:
    """C ← 1"""
    cpu.idle()
    cpu.c = True


def cli(cpu: Cpu, _operand: int) -> None:
    """I ← 0"""
    cpu.idle()
    cpu.irq_disable = False


def sei(cpu: Cpu, _operand: int) -> None:
    """I ← 1"""
    cpu.idle()
    cpu.irq_disable = True


def cld(cpu: Cpu, _operand: int) -> None:
    """D ← 0 (the decimal flag)"""
    cpu.idle()
    cpu.decimal = False


def sed(cpu: Cpu, _operand: int) -> None:
    """D ← 1 (the decimal flag)"""
    cpu.idle()
    cpu.decimal = True


def clv(cpu: Cpu, _operand: int) -> None:
    """V ← 0"""
    cpu.idle()
    cpu.v = False


def rep(cpu: Cpu, operand: int) -> None:
    """P ← P ∧ ¬operand"""
    cpu.idle()
    cpu.p &= ~operand


def sep(cpu: Cpu, operand: int) -> None:
    """P ← P ∨ operand"""
    cpu.idle()
    cpu.p |= operand


def xce(cpu: Cpu, _operand: int) -> None:
    """Exchange C and E."""
    cpu.idle()
    cpu.c, cpu.e = cpu.e, cpu.c
    cpu.adopt_mode()


def nop(cpu: Cpu, _operand: int) -> None:
    """Nothing."""
    cpu.idle()


def wdm(_cpu: Cpu, _operand: int) -> None:
    """Reserved: its operand is fetched and nothing follows."""


# ---- stack ---------------------------------------------------------------------------------------


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
    _set_nz(cpu, value, width)
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
    _set_nz(cpu, cpu.dbr, BYTE)
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
    _set_nz(cpu, cpu.d, WORD)
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
