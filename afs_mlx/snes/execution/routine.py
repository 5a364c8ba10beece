"""An assembled routine: bytes at an address, with the lines they come from. Does not run."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from afs_mlx.schema.optimisation import EntryState
from afs_mlx.snes.asar import Assembly, Placed
from afs_mlx.snes.cpu.opcodes import OPCODES, Opcode
from afs_mlx.snes.disassembly.flow import Flow
from afs_mlx.snes.disassembly.widths import Widths
from afs_mlx.snes.grammar import Problem, lorom_address, lorom_offset

_MOST_TABLE_BYTES = 64
_CALLS = {("jmp", "a"), ("jsr", "a"), ("jml", "al"), ("jsl", "al")}

type EnteredBy = Literal["call", "interrupt", "falling in"]


@dataclass(frozen=True)
class Routine:
    """Code at `org`, a 24-bit LoROM address. `placed` says where each instruction starts; raw code has none."""

    org: int
    code: bytes
    placed: tuple[Placed, ...] = ()

    @classmethod
    def of(cls, assembly: Assembly) -> "Routine":
        """The routine of an assembly whose status is "ok"."""
        return cls(assembly.org, assembly.code, assembly.placed)

    @cached_property
    def place_at(self) -> dict[int, Placed]:
        """Offset → what was written there."""
        return {place.offset: place for place in self.placed}

    @cached_property
    def data(self) -> bytes:
        """For each byte 1 where it was written as data: it may be read by the routine itself."""
        marks = bytearray(len(self.code))
        for place in self.placed:
            if place.is_data:
                marks[place.offset : place.offset + place.size] = b"\1" * place.size
        return bytes(marks)

    @cached_property
    def opcodes(self) -> tuple[tuple[Opcode, int], ...]:
        """Every instruction as written, with its operand; nothing for raw code."""
        return tuple(
            (
                OPCODES[self.code[place.offset]],
                int.from_bytes(self.code[place.offset + 1 : place.offset + place.size], "little"),
            )
            for place in self.placed
            if not place.is_data
        )

    @cached_property
    def entered_by(self) -> EnteredBy:
        """How it wants to be entered, by how it ends: a part of a routine finds nothing on the stack to return to."""
        names = {opcode.name for opcode, _ in self.opcodes}
        if "rti" in names:
            return "interrupt"
        return "call" if names & {"rts", "rtl"} or not self.placed else "falling in"

    @cached_property
    def constants(self) -> tuple[int, ...]:
        """The immediates that it loads, compares and adds, and the words of its tables: values worth trying."""
        found = {operand for opcode, operand in self.opcodes if opcode.mode in ("#m", "#x")}
        for place in self.placed:
            if place.is_data:
                table = self.code[place.offset : place.offset + min(place.size, _MOST_TABLE_BYTES)]
                found.update(int.from_bytes(table[at : at + 2], "little") for at in range(0, len(table), 2))
        return tuple(sorted(found))

    def ends_by(self, stop: str) -> bool:
        """Whether a run that ended away from its caller did what is written: a jump or call out, or a stop."""
        targets = {
            f"${operand if opcode.mode == 'al' else self.org & 0xFF0000 | operand:06X}"
            for opcode, operand in self.opcodes
            if (opcode.name, opcode.mode) in _CALLS
        }
        names = {opcode.name for opcode, _ in self.opcodes}
        return stop[-7:] in targets or (bool(names & {"stp", "wai", "brk", "cop"}) and "return" not in stop)

    def reachable(self, entries: Iterable[EntryState]) -> frozenset[int]:
        """The offsets of the instructions that the flow leads to, under any of the widths on entry."""
        found: set[int] = set()
        for m8, x8, emulation in {(entry.m == 8, entry.x == 8, bool(entry.e)) for entry in entries}:
            widths = Widths(m8, x8, emulation=emulation).settled()
            found.update(Flow(self.code, self.org, widths).instructions)
        return frozenset(found)

    def offset_of(self, address: int) -> int:
        """Where in the code a CPU address lies, also through a mirror; outside of range(len(code)) when it does not."""
        if not lorom_address(address):
            return -1
        return rom_offset(address) - rom_offset(self.org)

    def ends_before(self, address: int) -> bool:
        """Whether execution that runs on behind the last byte comes to this address; banks are not left that way."""
        in_bank = lorom_address(address | 0x8000) and _rom_bank(address) == _rom_bank(self.org)
        return in_bank and address & 0xFFFF == self.org + len(self.code) & 0xFFFF

    def problem(self, offset: int, message: str) -> Problem:
        """A message at the user's line of an offset."""
        return Problem(self.line_at(offset) or 1, message)

    def line_at(self, offset: int) -> int | None:
        """The user's line of an offset."""
        place = next((p for p in self.placed if p.offset <= offset < p.offset + p.size), None)
        return place.line if place else None


ROM_BYTES = 512 * 1024  # of the board that routines are run on; larger addresses are its mirrors


def rom_offset(address: int) -> int:
    """Where in the board's ROM a LoROM address lies."""
    return lorom_offset(address) % ROM_BYTES


def _rom_bank(address: int) -> int:
    return rom_offset(address | 0x8000) >> 15
