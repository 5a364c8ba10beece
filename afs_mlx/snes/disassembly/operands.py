"""One instruction as Asar text, and the address it names. Knows no flow and no widths.

The text is built from the mode's own signs. A size suffix stands where Asar, or a later one that shortens addresses,
would choose another opcode.
"""

import re

from afs_mlx.snes.cpu.opcodes import OPCODES, Opcode

_MODES = {(opcode.name, opcode.mode) for opcode in OPCODES}
_ADDRESS = re.compile(r"al|a|d")
# Their absolute operand is a place in the program, or a number, not data that is read or written.
_NO_DATA = frozenset({"jmp", "jml", "jsr", "jsl", "pea"})


def target_of(opcode: Opcode, operand: int, address: int, size_bytes: int) -> int | None:
    """The 24-bit address that a branch, jump, call or PER names; None when it names none or goes through a pointer."""
    if opcode.mode in ("r", "rl"):
        bits = 8 * (size_bytes - 1)
        distance = operand - (operand >> bits - 1 << bits)
        return address & 0xFF0000 | address + size_bytes + distance & 0xFFFF
    if opcode.mode == "a" and opcode.name in ("jmp", "jsr"):
        return address & 0xFF0000 | operand
    if opcode.mode == "al" and opcode.name in ("jml", "jsl"):
        return operand
    return None


def data_address(opcode: Opcode, operand: int) -> int | None:
    """The address, 16 or 24 bits as written, at which an absolute mode reads or writes, before it is indexed."""
    absolute = opcode.mode in ("a", "a,x", "a,y", "al", "al,x") and opcode.name not in _NO_DATA
    return operand if absolute else None


def text_of(opcode: Opcode, operand: int, size_bytes: int, place: str | None = None) -> str:
    """The instruction in the syntax of the grammar; `place` is a label, or a number, for the address it names."""
    name, mode = opcode.name, opcode.mode
    digits = 2 * (size_bytes - 1)
    number = f"${operand:0{digits}x}"
    if mode in ("", "A"):
        return name
    if place is not None or mode in ("r", "rl"):
        return f"{name} {place or number}"
    if mode[0] == "#":
        return f"{name} #{number}"
    if mode == "xyc":
        return f"{name} ${operand & 0xFF:02x},${operand >> 8:02x}"
    return f"{name}{_suffix(name, mode, operand)} {_ADDRESS.sub(lambda _: number, mode, count=1)}"


def _suffix(name: str, mode: str, operand: int) -> str:
    if "al" in mode:
        shorter = operand <= 0xFFFF and any((name, mode.replace("al", sign)) in _MODES for sign in "ad")
        return ".l" if shorter else ""
    return ".w" if operand <= 0xFF and "a" in mode and (name, mode.replace("a", "d")) in _MODES else ""
