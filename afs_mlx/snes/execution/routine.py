"""An assembled routine: bytes at an address, with the lines they come from. Does not run."""

from dataclasses import dataclass
from functools import cached_property

from afs_mlx.snes.asar import Assembly, Placed

_RTI = 0x40


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

    @property
    def serves_interrupt(self) -> bool:
        """Whether it ends as an interrupt handler does, so that it must be entered as one."""
        return any(not place.is_data and self.code[place.offset] == _RTI for place in self.placed)

    def offset_of(self, address: int) -> int:
        """Where in the code a CPU address lies, also through a mirror; outside of range(len(code)) when it does not."""
        if not address & 0x8000:
            return -1
        return rom_offset(address) - rom_offset(self.org)

    def line_at(self, offset: int) -> int | None:
        """The user's line of an offset."""
        place = next((p for p in self.placed if p.offset <= offset < p.offset + p.size), None)
        return place.line if place else None


ROM_BYTES = 512 * 1024  # of the board that routines are run on; larger addresses are its mirrors


def rom_offset(address: int) -> int:
    """Where in the board's ROM a LoROM address lies."""
    return ((address & 0x7F0000) >> 1 | address & 0x7FFF) % ROM_BYTES
