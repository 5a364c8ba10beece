"""Binds the opcode matrix to what it does: an operation, its addressing mode and its width become one function.

For each of the five modes of the chip (emulation, and native with m and x) there is a table of 256 functions, so that
no instruction asks for its width when it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from afs_mlx.snes.cpu import control, flags, modifies, reads, stack, transfers
from afs_mlx.snes.cpu.addressing import MODES, Mode
from afs_mlx.snes.cpu.modifies import Change
from afs_mlx.snes.cpu.opcodes import OPCODES, Opcode
from afs_mlx.snes.cpu.reads import Use
from afs_mlx.snes.cpu.width import BYTE, WORD, Width

if TYPE_CHECKING:
    from afs_mlx.snes.cpu.core import Cpu

type Execute = Callable[[Cpu, int], None]
"""What an instruction does once its bytes are fetched: (chip, operand)."""

# Mnemonic → operation, by kind. The width is flag x's for the index registers, else flag m's.
READS = {
    "adc": reads.adc, "and": reads.and_, "bit": reads.bit, "cmp": reads.cmp, "cpx": reads.cpx, "cpy": reads.cpy,
    "eor": reads.eor, "lda": reads.lda, "ldx": reads.ldx, "ldy": reads.ldy, "ora": reads.ora, "sbc": reads.sbc,
}  # fmt: skip
STORES: dict[str, Callable[[Cpu], int]] = {
    "sta": lambda cpu: cpu.a, "stx": lambda cpu: cpu.x, "sty": lambda cpu: cpu.y, "stz": lambda _cpu: 0,
}  # fmt: skip
MODIFIES = {
    "asl": modifies.asl, "dec": modifies.dec, "inc": modifies.inc, "lsr": modifies.lsr, "rol": modifies.rol,
    "ror": modifies.ror, "trb": modifies.trb, "tsb": modifies.tsb,
}  # fmt: skip
SIZED = {
    "dex": transfers.dex, "dey": transfers.dey, "inx": transfers.inx, "iny": transfers.iny, "pha": stack.pha,
    "phx": stack.phx, "phy": stack.phy, "pla": stack.pla, "plx": stack.plx, "ply": stack.ply,
    "tax": transfers.tax, "tay": transfers.tay, "tsx": transfers.tsx, "txa": transfers.txa, "txy": transfers.txy,
    "tya": transfers.tya, "tyx": transfers.tyx,
}  # fmt: skip
INDEX_WIDTH = frozenset(
    "cpx cpy ldx ldy stx sty dex dey inx iny phx phy plx ply tax tay tsx txy tyx".split()  # noqa: SIM905
)
INDIRECT_JUMPS: dict[tuple[str, str], Execute] = {
    ("jmp", "(a)"): control.jmp_indirect,
    ("jml", "[a]"): control.jml_indirect,
    ("jmp", "(a,x)"): control.jmp_indexed_indirect,
    ("jsr", "(a,x)"): control.jsr_indexed_indirect,
}
# These fetch the last byte of their operand themselves, after they have pushed.
LATE_BYTES = {("jsl", "al"): 1, ("jsr", "(a,x)"): 1}


@cache
def instructions_for(emulation: bool, m8: bool, x8: bool) -> tuple[tuple[Execute, int], ...]:
    """For each opcode what it does, and how many bytes are fetched before it does. Emulation implies m8 and x8."""
    return tuple(
        (
            _bound(opcode, BYTE if (x8 if opcode.name in INDEX_WIDTH else m8) else WORD),
            opcode.operand_bytes(m8, x8) - LATE_BYTES.get((opcode.name, opcode.mode), 0),
        )
        for opcode in OPCODES
    )


def _bound(opcode: Opcode, width: Width) -> Execute:
    name, mode = opcode.name, opcode.mode
    if name in READS:
        if name == "bit" and mode == "#m":
            return reads.bit_immediate(width)
        use = READS[name](width)
        return use if mode in ("#m", "#x") else _reading(use, MODES[mode], width)
    if name in STORES:
        return _storing(STORES[name], MODES[mode], width)
    if name in MODIFIES:
        change = MODIFIES[name](width)
        return _changing_a(change, width) if mode == "A" else _changing_memory(change, MODES[mode], width)
    if name in SIZED:
        return SIZED[name](width)
    jump = INDIRECT_JUMPS.get((name, mode))
    if jump is not None:
        return jump
    home = next(module for module in (control, flags, stack, transfers) if hasattr(module, name))
    execute: Execute = getattr(home, name)
    return execute


def _reading(use: Use, mode: Mode, width: Width) -> Execute:
    """Read the data, low byte first, and use it."""
    address, wrap = mode.to_read, mode.wrap

    def read_byte(cpu: Cpu, operand: int) -> None:
        use(cpu, cpu.read(address(cpu, operand)))

    def read_word(cpu: Cpu, operand: int) -> None:
        at = address(cpu, operand)
        low = cpu.read(at)
        use(cpu, low | cpu.read(at + 1 & wrap) << 8)

    return read_byte if width is BYTE else read_word


def _storing(register: Callable[[Cpu], int], mode: Mode, width: Width) -> Execute:
    """Write a register, low byte first."""
    address, wrap = mode.to_write, mode.wrap

    def store_byte(cpu: Cpu, operand: int) -> None:
        cpu.write(address(cpu, operand), register(cpu) & 0xFF)

    def store_word(cpu: Cpu, operand: int) -> None:
        at = address(cpu, operand)
        value = register(cpu)
        cpu.write(at, value & 0xFF)
        cpu.write(at + 1 & wrap, value >> 8)

    return store_byte if width is BYTE else store_word


def _changing_a(change: Change, width: Width) -> Execute:
    """Change the accumulator."""

    def execute(cpu: Cpu, _operand: int) -> None:
        cpu.idle()
        cpu.a = cpu.a & width.keep | change(cpu, cpu.a & width.mask)

    return execute


def _changing_memory(change: Change, mode: Mode, width: Width) -> Execute:
    """Read low byte first, think for a cycle, write high byte first."""
    address, wrap = mode.to_write, mode.wrap

    def change_byte(cpu: Cpu, operand: int) -> None:
        at = address(cpu, operand)
        value = cpu.read(at)
        cpu.idle()
        cpu.write(at, change(cpu, value))

    def change_word(cpu: Cpu, operand: int) -> None:
        at = address(cpu, operand)
        high = at + 1 & wrap
        value = cpu.read(at)
        value |= cpu.read(high) << 8
        cpu.idle()
        value = change(cpu, value)
        cpu.write(high, value >> 8)
        cpu.write(at, value & 0xFF)

    return change_byte if width is BYTE else change_word
