"""Instructions that decide what is executed next: branches, jumps, calls, returns, interrupts, block moves, stops."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from afs_mlx.snes.cpu.core import Cpu


class Stopped(Exception):  # noqa: N818 - no error: how the loop is left
    """The chip has stopped; the reason is the argument."""


# ---- branches ------------------------------------------------------------------------------------


def bra(cpu: Cpu, operand: int) -> None:
    """PC ← PC + signed operand; crossing a page costs a cycle in emulation mode."""
    cpu.idle()
    target = cpu.pc + (operand ^ 0x80) - 0x80 & 0xFFFF
    if cpu.e and (target ^ cpu.pc) & 0xFF00:
        cpu.idle()
    cpu.pc = target


def bpl(cpu: Cpu, operand: int) -> None:
    """Branch if N = 0."""
    if not cpu.n:
        bra(cpu, operand)


def bmi(cpu: Cpu, operand: int) -> None:
    """Branch if N = 1."""
    if cpu.n:
        bra(cpu, operand)


def bvc(cpu: Cpu, operand: int) -> None:
    """Branch if V = 0."""
    if not cpu.v:
        bra(cpu, operand)


def bvs(cpu: Cpu, operand: int) -> None:
    """Branch if V = 1."""
    if cpu.v:
        bra(cpu, operand)


def bcc(cpu: Cpu, operand: int) -> None:
    """Branch if C = 0."""
    if not cpu.c:
        bra(cpu, operand)


def bcs(cpu: Cpu, operand: int) -> None:
    """Branch if C = 1."""
    if cpu.c:
        bra(cpu, operand)


def bne(cpu: Cpu, operand: int) -> None:
    """Branch if Z = 0."""
    if not cpu.z:
        bra(cpu, operand)


def beq(cpu: Cpu, operand: int) -> None:
    """Branch if Z = 1."""
    if cpu.z:
        bra(cpu, operand)


def brl(cpu: Cpu, operand: int) -> None:
    """PC ← PC + operand"""
    cpu.idle()
    cpu.pc = cpu.pc + operand & 0xFFFF


# ---- jumps ---------------------------------------------------------------------------------------


def jmp(cpu: Cpu, operand: int) -> None:
    """PC ← operand"""
    cpu.pc = operand


def jml(cpu: Cpu, operand: int) -> None:
    """PBR:PC ← operand"""
    cpu.pbr = operand >> 16
    cpu.pc = operand & 0xFFFF


def _word_in_bank(cpu: Cpu, bank: int, offset: int) -> int:
    low = cpu.read(bank | offset & 0xFFFF)
    return low | cpu.read(bank | offset + 1 & 0xFFFF) << 8


def jmp_indirect(cpu: Cpu, operand: int) -> None:
    """PC ← word in bank 0"""
    cpu.pc = _word_in_bank(cpu, 0, operand)


def jml_indirect(cpu: Cpu, operand: int) -> None:
    """PBR:PC ← three bytes in bank 0"""
    target = _word_in_bank(cpu, 0, operand)
    cpu.pbr = cpu.read(operand + 2 & 0xFFFF)
    cpu.pc = target


def jmp_indexed_indirect(cpu: Cpu, operand: int) -> None:
    """PC ← word in the program bank, at operand + X"""
    cpu.idle()
    cpu.pc = _word_in_bank(cpu, cpu.pbr << 16, operand + cpu.x)


# ---- calls and returns; the address pushed is that of the call's last byte -----------------------


def jsr(cpu: Cpu, operand: int) -> None:
    """Push PC - 1, PC ← operand"""
    cpu.idle()
    last = cpu.pc - 1 & 0xFFFF
    cpu.push(last >> 8)
    cpu.push(last & 0xFF)
    cpu.pc = operand


def jsl(cpu: Cpu, operand: int) -> None:
    """Push PBR and PC - 1, PBR:PC ← operand. The bank is pushed before the operand's last byte is fetched."""
    cpu.push_new(cpu.pbr)
    cpu.idle()
    bank = cpu.fetch()
    last = cpu.pc - 1 & 0xFFFF
    cpu.push_new(last >> 8)
    cpu.push_new(last & 0xFF)
    cpu.settle_stack()
    cpu.pbr = bank
    cpu.pc = operand


def jsr_indexed_indirect(cpu: Cpu, operand: int) -> None:
    """Push PC - 1, PC ← word in the program bank, at operand + X. Pushed before the operand's last byte is fetched."""
    cpu.push_new(cpu.pc >> 8)
    cpu.push_new(cpu.pc & 0xFF)
    operand |= cpu.fetch() << 8
    cpu.idle()
    cpu.pc = _word_in_bank(cpu, cpu.pbr << 16, operand + cpu.x)
    cpu.settle_stack()


def rts(cpu: Cpu, _operand: int) -> None:
    """PC ← pulled word + 1"""
    cpu.idle()
    cpu.idle()
    low = cpu.pull()
    last = low | cpu.pull() << 8
    cpu.idle()
    cpu.pc = last + 1 & 0xFFFF


def rtl(cpu: Cpu, _operand: int) -> None:
    """PBR:PC ← three pulled bytes, PC + 1"""
    cpu.idle()
    cpu.idle()
    low = cpu.pull_new()
    last = low | cpu.pull_new() << 8
    cpu.pbr = cpu.pull_new()
    cpu.pc = last + 1 & 0xFFFF
    cpu.settle_stack()


def rti(cpu: Cpu, _operand: int) -> None:
    """Pull P and PC, in native mode PBR too."""
    cpu.idle()
    cpu.idle()
    cpu.p = cpu.pull()
    low = cpu.pull()
    cpu.pc = low | cpu.pull() << 8
    if not cpu.e:
        cpu.pbr = cpu.pull()


# ---- interrupts ----------------------------------------------------------------------------------


def brk(cpu: Cpu, _operand: int) -> None:
    """Software interrupt through $FFE6, in emulation mode $FFFE."""
    _interrupt(cpu, 0xFFFE if cpu.e else 0xFFE6)


def cop(cpu: Cpu, _operand: int) -> None:
    """Coprocessor interrupt through $FFE4, in emulation mode $FFF4."""
    _interrupt(cpu, 0xFFF4 if cpu.e else 0xFFE4)


def _interrupt(cpu: Cpu, vector: int) -> None:
    if not cpu.e:
        cpu.push(cpu.pbr)
    cpu.push(cpu.pc >> 8)
    cpu.push(cpu.pc & 0xFF)
    cpu.push(cpu.p)
    cpu.irq_disable = True
    cpu.decimal = False
    cpu.pbr = 0
    cpu.pc = _word_in_bank(cpu, 0, vector)


def wai(cpu: Cpu, _operand: int) -> None:
    """Wait for an interrupt."""
    _stop(cpu, "wai")


def stp(cpu: Cpu, _operand: int) -> None:
    """Stop the clock."""
    _stop(cpu, "stp")


def _stop(cpu: Cpu, reason: str) -> NoReturn:
    cpu.idle()
    cpu.idle()
    raise Stopped(reason)


# ---- block moves: one byte each time; the instruction is executed again until A wraps ------------


def mvn(cpu: Cpu, operand: int) -> None:
    """Move a byte, X and Y count up."""
    _move(cpu, operand, 1)


def mvp(cpu: Cpu, operand: int) -> None:
    """Move a byte, X and Y count down."""
    _move(cpu, operand, -1)


def _move(cpu: Cpu, operand: int, step: int) -> None:
    source, destination = operand >> 8, operand & 0xFF
    cpu.dbr = destination
    cpu.write(destination << 16 | cpu.y, cpu.read(source << 16 | cpu.x))
    cpu.idle()
    cpu.idle()
    mask = 0xFF if cpu.x8 else 0xFFFF
    cpu.x = cpu.x + step & mask
    cpu.y = cpu.y + step & mask
    cpu.a = cpu.a - 1 & 0xFFFF
    if cpu.a != 0xFFFF:
        cpu.pc = cpu.pc - 3 & 0xFFFF
