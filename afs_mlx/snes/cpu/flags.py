"""Instructions that set the status register, and the two that do nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from afs_mlx.snes.cpu.core import Cpu


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
