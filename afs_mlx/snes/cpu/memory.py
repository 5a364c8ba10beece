"""Memory maps: which bytes stand behind a 24-bit address, and how many master clocks an access takes.

The unit is a block of 8 KiB: nothing in a SNES map changes within one except the clocks of $4000-$41FF. Open bus and
the ports at $2000-$5FFF are no memory: the bus hands them to its hooks.
"""

from dataclasses import dataclass, field

BLOCK_BITS = 13
BLOCK_BYTES = 1 << BLOCK_BITS
BLOCKS = 1 << (24 - BLOCK_BITS)
WRAM_BYTES = 128 * 1024

IDLE_CLOCKS = 6  # an internal cycle, and every access to FastROM or to a port
SLOW_CLOCKS = 8  # WRAM, SlowROM
JOYPAD_CLOCKS = 12  # $4000-$41FF


@dataclass
class MemoryMap:
    """For each block of 8 KiB: what is read, what is written (None: not memory, or read only), clocks per access."""

    readable: list[bytes | bytearray | None] = field(default_factory=lambda: [None] * BLOCKS)
    writable: list[bytearray | None] = field(default_factory=lambda: [None] * BLOCKS)
    clocks: list[int] = field(default_factory=lambda: [SLOW_CLOCKS] * BLOCKS)
    wram: list[bytearray] = field(default_factory=list)
    sram: list[bytearray] = field(default_factory=list)

    def put_ram(self, block: int, ram: bytearray) -> None:
        """Let 8 KiB of RAM stand at a block."""
        self.readable[block] = self.writable[block] = ram

    def ram_blocks(self) -> list[bytearray]:
        """All RAM of a board in blocks: WRAM from $7E0000, then save RAM."""
        return [*self.wram, *self.sram]


def flat() -> MemoryMap:
    """16 MiB of RAM, 8 clocks each access: what single-step vectors assume."""
    blocks = [bytearray(BLOCK_BYTES) for _ in range(BLOCKS)]
    return MemoryMap(readable=list(blocks), writable=list(blocks))


def lorom(rom: bytes, fast: bool = False, sram_bytes: int = 0) -> MemoryMap:
    """A LoROM board: 32 KiB of ROM in the upper half of each bank, WRAM, ports, save RAM from $700000.

    `rom` is filled up to a power of two with zeros, save RAM to blocks of 8 KiB; both are mirrored. `fast` (MEMSEL
    set) makes ROM in banks $80-$FF take 6 clocks.
    """
    rom_bytes = max(4 * BLOCK_BYTES, 1 << (max(len(rom), 1) - 1).bit_length())
    padded = rom.ljust(rom_bytes, b"\0")
    rom_blocks = [padded[at : at + BLOCK_BYTES] for at in range(0, rom_bytes, BLOCK_BYTES)]
    memory = MemoryMap(
        wram=[bytearray(BLOCK_BYTES) for _ in range(WRAM_BYTES // BLOCK_BYTES)],
        sram=[bytearray(BLOCK_BYTES) for _ in range(-(-sram_bytes // BLOCK_BYTES))],
    )
    for block in range(BLOCKS):
        bank, part = block >> 3, block & 7  # eight blocks to a bank
        half = bank & 0x7F
        low_half = half < 0x40 and part < 4
        if low_half and part in (1, 2):
            memory.clocks[block] = IDLE_CLOCKS  # ports
        elif not low_half and fast and bank & 0x80:
            memory.clocks[block] = IDLE_CLOCKS
        if bank in (0x7E, 0x7F):
            memory.put_ram(block, memory.wram[(bank & 1) << 3 | part])
        elif part >= 4:
            memory.readable[block] = rom_blocks[(half << 2 | part & 3) % len(rom_blocks)]
        elif low_half and part == 0:
            memory.put_ram(block, memory.wram[0])
        elif half >= 0x70 and memory.sram:
            memory.put_ram(block, memory.sram[((half - 0x70) << 2 | part) % len(memory.sram)])
    return memory
