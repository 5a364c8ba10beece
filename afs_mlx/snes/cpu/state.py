"""The registers of the chip as one value, and the status byte's bits. Executes nothing."""

from typing import NamedTuple

# Bits of the status register P.
NEGATIVE, OVERFLOW, M8, X8, DECIMAL, IRQ_DISABLE, ZERO, CARRY = (1 << bit for bit in range(7, -1, -1))


class State(NamedTuple):
    """All that the chip remembers between two instructions. `e` is 1 in emulation mode; `p` has M8 and X8 set then."""

    pc: int = 0
    s: int = 0x01FF
    p: int = M8 | X8 | IRQ_DISABLE
    a: int = 0
    x: int = 0
    y: int = 0
    dbr: int = 0
    d: int = 0
    pbr: int = 0
    e: int = 0

    @property
    def address(self) -> int:
        """Where the next opcode lies, 24 bits."""
        return self.pbr << 16 | self.pc

    def flags(self) -> str:
        """`nvMXdizc`, a capital for each bit that is set."""
        return "".join(
            name.upper() if self.p & 0x80 >> place else name.lower() for place, name in enumerate("nvmxdizc")
        )
