"""What single-step vectors do not show: running, stopping, the memory map, clocks, hooks, code that changes."""

import random
from collections.abc import Iterable

import pytest

from afs_mlx.snes.asar import asar_path, assemble
from afs_mlx.snes.cpu.control import Stopped
from afs_mlx.snes.cpu.core import Cpu, RecordedCpu
from afs_mlx.snes.cpu.memory import MemoryMap, flat, lorom
from afs_mlx.snes.cpu.state import DECIMAL, IRQ_DISABLE, M8, X8, State

needs_asar = pytest.mark.skipif(asar_path() is None, reason="Asar is not on this machine")

RESET = State(pc=0x8000, s=0x1FFF, p=M8 | X8)


def rom_with(parts: dict[int, str], size: int = 0x8000) -> bytes:
    """A ROM of zeros with hexadecimal bytes at addresses of bank 0."""
    rom = bytearray(size)
    for address, text in parts.items():
        code = bytes.fromhex(text)
        rom[address - 0x8000 : address - 0x8000 + len(code)] = code
    return bytes(rom)


def chip(code: str, state: State = RESET, memory: MemoryMap | None = None) -> Cpu:
    """A chip in front of code at $008000."""
    cpu = Cpu(memory or lorom(rom_with({0x8000: code})))
    cpu.load(state)
    return cpu


def put(cpu: Cpu, address: int, code: str) -> None:
    """Write bytes into RAM without the chip's noticing."""
    for place, value in enumerate(bytes.fromhex(code), start=address):
        block = cpu.memory.writable[place >> 13]
        assert block is not None
        block[place & 0x1FFF] = value


def measured(cpu: Cpu) -> tuple[State, int, int, list[bytes]]:
    return cpu.state, cpu.cycles, cpu.clocks, [bytes(block) for block in cpu.memory.ram_blocks()]


# ---- WAI, STP, budgets ---------------------------------------------------------------------------


@pytest.mark.parametrize(("opcode", "reason"), [("cb", "wai"), ("db", "stp")])
def test_stops(opcode: str, reason: str) -> None:
    cpu = chip(f"ea {opcode} ea ea")
    assert cpu.run(10) == reason
    assert cpu.state == RESET._replace(pc=0x8002)
    assert (cpu.cycles, cpu.clocks) == (2 + 3, 8 + 6 + 8 + 2 * 6)
    assert cpu.run(1) == "budget"
    assert cpu.pc == 0x8003


@pytest.mark.parametrize(("opcode", "reason"), [("cb", "wai"), ("db", "stp")])
def test_a_step_onto_a_stop_raises(opcode: str, reason: str) -> None:
    cpu = chip(opcode)
    with pytest.raises(Stopped) as raised:
        cpu.step()
    assert raised.value.args == (reason,)
    assert (cpu.pc, cpu.cycles) == (0x8001, 3)


def test_the_budget_counts_instructions() -> None:
    cpu = chip("ea " * 100)
    assert cpu.run(0) == "budget"
    assert (cpu.state, cpu.cycles, cpu.clocks) == (RESET, 0, 0)
    assert cpu.run(7) == "budget"
    assert (cpu.pc, cpu.cycles) == (0x8007, 14)
    assert cpu.run(3) == "budget"
    assert (cpu.pc, cpu.cycles) == (0x800A, 20)


def test_a_stop_within_the_budget_is_no_budget() -> None:
    assert chip("ea cb").run(1) == "budget"
    assert chip("ea cb").run(2) == "wai"


def test_each_byte_of_a_block_move_is_an_instruction() -> None:
    cpu = chip("54 7f 7e ea", RESET._replace(p=0, a=2, x=0x0010, y=0x0020))
    put(cpu, 0x7E0010, "11 22 33")
    assert cpu.run(2) == "budget"
    assert (cpu.pc, cpu.a, cpu.x, cpu.y, cpu.dbr) == (0x8000, 0, 0x0012, 0x0022, 0x7F)
    assert cpu.run(1) == "budget"
    assert (cpu.pc, cpu.a, cpu.x, cpu.y) == (0x8003, 0xFFFF, 0x0013, 0x0023)
    assert cpu.cycles == 3 * 7
    assert [cpu.read(0x7F0020 + place) for place in range(4)] == [0x11, 0x22, 0x33, 0]


# ---- breakpoints ---------------------------------------------------------------------------------


def test_run_stops_before_a_breakpoint() -> None:
    cpu = chip("a9 12 a9 34 a9 56 cb")
    cpu.stop_at([0x8002])
    assert cpu.run(10) == "breakpoint"
    assert (cpu.pc, cpu.a, cpu.cycles, cpu.clocks) == (0x8002, 0x12, 2, 16)
    before = measured(cpu)
    assert cpu.run(10) == "breakpoint"
    assert measured(cpu) == before
    cpu.step()
    assert (cpu.pc, cpu.a, cpu.cycles) == (0x8004, 0x34, 4)
    assert cpu.run(10) == "wai"
    assert cpu.a == 0x56


def test_a_budget_that_ends_before_a_breakpoint_is_a_budget() -> None:
    cpu = chip("ea ea ea")
    cpu.stop_at([0x8002])
    assert cpu.run(2) == "budget"
    assert cpu.run(1) == "breakpoint"
    assert cpu.pc == 0x8002


def test_breakpoints_have_24_bits() -> None:
    """The same byte of ROM seen from another bank is another place."""
    cpu = chip("ea ea cb")
    cpu.stop_at([0x808001])
    assert cpu.run(10) == "wai"
    cpu.load(RESET._replace(pbr=0x80))
    assert cpu.run(10) == "breakpoint"
    assert (cpu.pbr, cpu.pc) == (0x80, 0x8001)


def test_breakpoints_are_replaced() -> None:
    cpu = chip("ea ea ea ea cb")
    cpu.stop_at({0x8001, 0x8003})
    stops = []
    while cpu.run(10) == "breakpoint":
        stops.append(cpu.pc)
        cpu.step()
    assert stops == [0x8001, 0x8003]
    for breakpoints in ([0x8002], []):
        cpu.stop_at(breakpoints)
        cpu.load(RESET)
        assert cpu.run(10) == ("breakpoint" if breakpoints else "wai")
    assert cpu.pc == 0x8005


def test_a_breakpoint_can_be_set_where_the_chip_has_been() -> None:
    cpu = chip("ea 80 fd")
    assert cpu.run(10) == "budget"
    cpu.stop_at([0x8001])
    assert cpu.run(10) == "breakpoint"
    assert cpu.pc == 0x8001


def stops_in_a_loop(cpu: Cpu, breakpoint_at: int) -> list[int]:
    """Where the chip stops when it is stepped over a breakpoint three times."""
    cpu.stop_at([breakpoint_at])
    stops = []
    for _ in range(3):
        assert cpu.run(10) == "breakpoint"
        stops.append(cpu.state.address)
        cpu.step()
    return stops


def test_a_breakpoint_in_a_loop_in_ram_stops_each_time() -> None:
    cpu = chip("", RESET._replace(pc=0x0200))
    put(cpu, 0x0200, "ea ea 80 fc")
    assert stops_in_a_loop(cpu, 0x0201) == [0x0201] * 3


def test_a_breakpoint_in_a_loop_in_rom_stops_each_time() -> None:
    assert stops_in_a_loop(chip("ea ea 80 fc"), 0x8001) == [0x8001] * 3


def test_a_breakpoint_stops_in_every_width() -> None:
    """`sep #$30` and `rep #$30` in turn before the same instruction."""
    cpu = chip("c2 30 80 04 e2 30 80 00 ea 80 f5")
    cpu.stop_at([0x8008])
    for start in (0x8000, 0x8004):
        cpu.load(RESET._replace(pc=start))
        assert cpu.run(10) == "breakpoint"
        assert cpu.pc == 0x8008


# ---- the memory map ------------------------------------------------------------------------------

SYSTEM_BANKS = [*range(0x40), *range(0x80, 0xC0)]


def where(cpu: Cpu, addresses: Iterable[int], value: int) -> list[int]:
    return [address for address in addresses if cpu.read(address) == value]


def test_wram_is_seen_from_the_system_banks() -> None:
    cpu = Cpu(lorom(b""))
    cpu.write(0x7E0123, 0x5A)
    mirrors = [bank << 16 | 0x0123 for bank in SYSTEM_BANKS]
    assert where(cpu, (bank << 16 | 0x0123 for bank in range(256)), 0x5A) == sorted([*mirrors, 0x7E0123])
    cpu.write(0xBF1FFF, 0xA5)
    assert (cpu.read(0x7E1FFF), cpu.read(0x001FFF), cpu.read(0x7F1FFF)) == (0xA5, 0xA5, 0)


def test_wram_is_128_kib() -> None:
    """Each of the 16 blocks keeps its own byte; above the first 8 KiB nothing is mirrored."""
    cpu = Cpu(lorom(b""))
    for block in range(16):
        cpu.write(0x7E0000 + 0x2000 * block + block, block + 1)
    assert [cpu.read(0x7E0000 + 0x2000 * block + block) for block in range(16)] == list(range(1, 17))
    assert [ram[block] for block, ram in enumerate(cpu.memory.ram_blocks())] == list(range(1, 17))
    assert where(cpu, (bank << 16 | 0x8004 for bank in range(256)), 5) == [0x7E8004]


def test_rom_lies_in_the_upper_halves_and_is_mirrored() -> None:
    rom = bytearray(4 * 0x8000)
    for part in range(4):
        rom[0x8000 * part + 0x123] = part + 1
        rom[0x8000 * part + 0x7FFF] = part + 0x11
    cpu = Cpu(lorom(bytes(rom)))
    for bank in set(range(256)) - {0x7E, 0x7F}:
        assert cpu.read(bank << 16 | 0x8123) == bank % 4 + 1
        assert cpu.read(bank << 16 | 0xFFFF) == bank % 4 + 0x11


@pytest.mark.parametrize(
    ("given", "padded"),
    [(0, 0x8000), (1, 0x8000), (0x8000, 0x8000), (0x8001, 0x10000), (0x18000, 0x20000), (0x20000, 0x20000)],
)
def test_rom_is_filled_up_to_a_power_of_two(given: int, padded: int) -> None:
    cpu = Cpu(lorom(b"\x77" * given))
    parts = range(padded // 0x8000)
    seen = bytes(cpu.read(part << 16 | 0x8000 + offset) for part in parts for offset in range(0x8000))
    assert seen == b"\x77" * given + bytes(padded - given)
    mirror = padded // 0x8000
    assert cpu.read(mirror << 16 | 0x8000) == cpu.read(0x008000)
    assert cpu.memory.readable[mirror << 3 | 4] is cpu.memory.readable[4]


def test_save_ram() -> None:
    cpu = Cpu(lorom(b"", sram_bytes=0x8000))
    for block in range(4):
        cpu.write(0x700000 + 0x2000 * block, block + 1)
    assert [cpu.read(0x700000 + 0x2000 * block) for block in range(4)] == [1, 2, 3, 4]
    seen = where(cpu, (bank << 16 | 0x2000 for bank in range(256)), 2)
    assert seen == [bank << 16 | 0x2000 for bank in [*range(0x70, 0x7E), *range(0xF0, 0x100)]]
    assert [block[0] for block in cpu.memory.ram_blocks()] == [0] * 16 + [1, 2, 3, 4]


def test_small_save_ram_is_mirrored_and_large_goes_on_in_the_next_bank() -> None:
    small = Cpu(lorom(b"", sram_bytes=0x2000))
    small.write(0x706123, 0x42)
    assert [small.read(0x700123 + 0x2000 * block) for block in range(4)] == [0x42] * 4
    large = Cpu(lorom(b"", sram_bytes=0x10000))
    large.write(0x710123, 0x43)
    assert large.memory.sram[4][0x0123] == 0x43
    assert where(large, (bank << 16 | 0x0123 for bank in range(0x70, 0x7E)), 0x43) == [
        bank << 16 | 0x0123 for bank in range(0x71, 0x7E, 2)
    ]


def test_without_save_ram_there_is_no_memory() -> None:
    read: list[int] = []
    cpu = Cpu(lorom(b""), read_port=lambda address: read.append(address) or 0x99)
    assert [cpu.read(address) for address in (0x700000, 0xF07FFF, 0x400000, 0x6F7FFF, 0x006000)] == [0x99] * 5
    assert read == [0x700000, 0xF07FFF, 0x400000, 0x6F7FFF, 0x006000]


def test_flat_memory_is_ram_everywhere() -> None:
    memory = flat()
    assert len({id(block) for block in memory.readable}) == 2048
    cpu = Cpu(memory)
    for address in (0, 0x4000, 0x8000, 0x7E0000, 0xFFFFFF):
        cpu.write(address, 0x12)
        assert cpu.read(address) == 0x12
    assert cpu.clocks == 10 * 8


# ---- clocks --------------------------------------------------------------------------------------


def speed(address: int, fast: bool) -> int:
    """Clocks of an access by the address lines alone."""
    if address & 0x408000:
        return 6 if fast and address & 0x800000 else 8
    if address + 0x6000 & 0x4000:
        return 8
    return 6 if address - 0x4000 & 0x7E00 else 12


@pytest.mark.parametrize("fast", [False, True])
def test_clocks_of_the_whole_map(fast: bool) -> None:
    """The ends of every half KiB, read and written."""
    cpu = Cpu(lorom(b"", fast=fast, sram_bytes=0x2000))
    for address in (start + place for start in range(0, 1 << 24, 0x200) for place in (0, 0x1FF)):
        cpu.clocks = 0
        cpu.read(address)
        assert cpu.clocks == speed(address, fast), f"read ${address:06X}"
        cpu.write(address, 0)
        assert cpu.clocks == 2 * speed(address, fast), f"write ${address:06X}"


@pytest.mark.parametrize(
    ("address", "slow", "fast"),
    [
        (0x000000, 8, 8), (0x7E2000, 8, 8), (0x7FFFFF, 8, 8), (0x801FFF, 8, 8),  # WRAM
        (0x002000, 6, 6), (0x003FFF, 6, 6), (0x804200, 6, 6), (0xBF5FFF, 6, 6),  # ports
        (0x004000, 12, 12), (0x804100, 12, 12), (0xBF41FF, 12, 12), (0x004200, 6, 6),  # joypads
        (0x006000, 8, 8), (0x807FFF, 8, 8), (0x404000, 8, 8), (0xC04000, 8, 6),  # elsewhere
        (0x008000, 8, 8), (0x7DFFFF, 8, 8), (0x808000, 8, 6), (0xFFFFFF, 8, 6),  # ROM
    ],
)  # fmt: skip
def test_clocks(address: int, slow: int, fast: int) -> None:
    for setting, clocks in ((False, slow), (True, fast)):
        cpu = Cpu(lorom(b"", fast=setting))
        cpu.read(address)
        assert (cpu.cycles, cpu.clocks) == (1, clocks)


def test_an_idle_cycle_takes_6_clocks() -> None:
    cpu = Cpu(lorom(b""))
    cpu.idle()
    assert (cpu.cycles, cpu.clocks) == (1, 6)


def test_fastrom_is_fast_where_the_program_bank_says_so() -> None:
    """`nop` fetched from bank 0 and from bank $80."""
    for fast, bank, clocks in ((False, 0x00, 14), (False, 0x80, 14), (True, 0x00, 14), (True, 0x80, 12)):
        cpu = chip("ea", RESET._replace(pbr=bank), lorom(rom_with({0x8000: "ea"}), fast=fast))
        cpu.step()
        assert cpu.clocks == clocks


# ---- hooks ---------------------------------------------------------------------------------------


class Hooked:
    """A chip that notes what its hooks are told, with the cycles at that moment; reads answer from `answers`."""

    def __init__(self, code: str, state: State = RESET, answers: Iterable[int] = ()) -> None:
        self.events: list[tuple[str, int, int, int]] = []
        self.answers = iter(answers)
        self.cpu = Cpu(lorom(rom_with({0x8000: code})), self.read, self.write)
        self.cpu.load(state)

    def read(self, address: int) -> int:
        value = next(self.answers)
        self.events.append(("r", address, value, self.cpu.cycles))
        return value

    def write(self, address: int, value: int) -> None:
        self.events.append(("w", address, value, self.cpu.cycles))


def test_ports_are_read_and_written_in_order() -> None:
    hooked = Hooked("ad 10 42  8d 00 21  9c 15 42  ee 81 21  cb", answers=[0x8F, 0x7F])
    assert hooked.cpu.run(10) == "wai"
    assert hooked.events == [
        ("r", 0x4210, 0x8F, 4), ("w", 0x2100, 0x8F, 8), ("w", 0x4215, 0x00, 12),
        ("r", 0x2181, 0x7F, 16), ("w", 0x2181, 0x80, 18),
    ]  # fmt: skip
    assert hooked.cpu.a == 0x8F
    assert hooked.cpu.n


def test_wide_accesses_are_two_calls_low_byte_first() -> None:
    hooked = Hooked("ad 12 21  8d 18 21  ee 22 21  cb", RESET._replace(p=0), answers=[0x34, 0x12, 0xFF, 0x00])
    assert hooked.cpu.run(10) == "wai"
    assert [event[:3] for event in hooked.events] == [
        ("r", 0x2112, 0x34), ("r", 0x2113, 0x12), ("w", 0x2118, 0x34), ("w", 0x2119, 0x12),
        ("r", 0x2122, 0xFF), ("r", 0x2123, 0x00), ("w", 0x2123, 0x01), ("w", 0x2122, 0x00),
    ]  # fmt: skip


def test_ports_are_told_with_their_bank() -> None:
    hooked = Hooked("af 00 21 80  8f ff 5f 3f  cb", answers=[0x11])
    hooked.cpu.run(10)
    assert [event[:3] for event in hooked.events] == [("r", 0x802100, 0x11), ("w", 0x3F5FFF, 0x11)]


def test_ram_and_rom_are_read_without_the_hooks() -> None:
    hooked = Hooked("a5 10 85 11 af 00 80 00 af 00 00 7f cb")
    assert hooked.cpu.run(10) == "wai"
    assert hooked.events == []


def test_writes_to_rom_go_to_the_hook_and_change_nothing() -> None:
    hooked = Hooked("a9 ff  8d 00 80  8f 05 80 80  ee 00 80  cb")
    assert hooked.cpu.run(10) == "wai"
    assert [event[:3] for event in hooked.events] == [
        ("w", 0x8000, 0xFF), ("w", 0x808005, 0xFF), ("w", 0x8000, 0xAA)
    ]  # fmt: skip
    assert bytes(hooked.cpu.read(0x8000 + place) for place in range(5)).hex(" ") == "a9 ff 8d 00 80"


def test_without_hooks_open_bus_is_zero_and_writes_vanish() -> None:
    cpu = chip("8d 00 21 8d 00 80 ad 00 21 cb", RESET._replace(a=0x55))
    assert cpu.run(10) == "wai"
    assert (cpu.a, cpu.z, cpu.read(0x8000)) == (0, True, 0x8D)


def test_code_at_a_port_is_fetched_anew_each_time() -> None:
    hooked = Hooked("", RESET._replace(pc=0x4300), answers=[0xA9, 0x01, 0x80, 0xFC, 0xA9, 0x02])
    assert hooked.cpu.run(3) == "budget"
    assert hooked.cpu.a == 2
    assert [event[1] for event in hooked.events] == [0x4300, 0x4301, 0x4302, 0x4303, 0x4300, 0x4301]


# ---- code that changes ---------------------------------------------------------------------------


def test_code_in_wram_that_modifies_itself_is_executed_as_modified() -> None:
    """`lda #$01` whose operand is counted up by the instruction behind it, three times round."""
    cpu = chip("", RESET._replace(pc=0x0200, x=2))
    put(cpu, 0x0200, "a9 01  ee 01 02  ca  10 f8  cb")
    assert cpu.run(100) == "wai"
    assert (cpu.a, cpu.read(0x0201)) == (3, 4)


def test_an_opcode_can_be_changed_through_a_mirror() -> None:
    cpu = chip("", RESET._replace(pc=0x0200, pbr=0x7E))
    put(cpu, 0x0200, "ea 80 fd")
    assert cpu.run(9) == "budget"
    cpu.write(0x000200, 0xCB)
    assert cpu.run(10) == "wai"


@pytest.mark.parametrize(("at", "changing"), [(0x00FFFF, 0x000000), (0x707FFF, 0x707FFF)])
def test_code_half_in_rom_half_in_ram_is_executed_as_changed(at: int, changing: int) -> None:
    """The operand of the first lies in WRAM behind the bank's wrap; the opcode of the second is in save RAM."""
    rom = rom_with({0xFFFF: "a9", 0x8000: "1a"})
    cpu = Cpu(lorom(rom, sram_bytes=0x8000))
    start = RESET._replace(pc=at & 0xFFFF, pbr=at >> 16, a=0x55)
    put(cpu, changing, "a9" if changing == at else "1a")
    cpu.load(start)
    cpu.run(1)
    assert (cpu.a, cpu.pc) == (0x1A, at + 2 & 0xFFFF)
    put(cpu, changing, "29" if changing == at else "11")
    cpu.load(start)
    cpu.run(1)
    assert cpu.a == (0x55 & 0x1A if changing == at else 0x11)


def test_the_same_bytes_are_another_instruction_in_another_width() -> None:
    """`lda #$1234` with m clear, `lda #$34` and `ora ($ea)` with m set, at the same address."""
    cpu = chip("a9 34 12 ea")
    cpu.load(RESET._replace(p=X8))
    cpu.run(1)
    assert (cpu.a, cpu.pc) == (0x1234, 0x8003)
    cpu.load(RESET)
    cpu.run(1)
    assert (cpu.a, cpu.pc) == (0x34, 0x8002)
    cpu.load(RESET._replace(e=1))
    cpu.run(1)
    assert (cpu.a, cpu.pc) == (0x34, 0x8002)


# ---- ways to run agree ---------------------------------------------------------------------------


def random_start(rng: random.Random) -> State:
    emulation = rng.randrange(2)
    p = rng.randrange(256) | (M8 | X8) * emulation
    index = 0x100 if p & X8 else 0x10000
    stack = 0x100 + rng.randrange(0x100) if emulation else rng.randrange(0x2000)
    return State(
        0x8000 + rng.randrange(0x8000), stack, p, rng.randrange(0x10000), rng.randrange(index), rng.randrange(index),
        rng.choice((0x00, 0x7E, 0x7F, 0x80, 0x70)), rng.choice((0, 0x100, 0x123)), rng.choice((0, 0x80)), emulation,
    )  # fmt: skip


def machines(seed: int) -> tuple[Cpu, RecordedCpu, Cpu]:
    """Three boards of their own with the same random ROM and state."""
    rng = random.Random(seed)
    rom, start, fast = rng.randbytes(0x10000), random_start(rng), bool(rng.randrange(2))
    cpus = (
        Cpu(lorom(rom, fast, 0x2000)), RecordedCpu(lorom(rom, fast, 0x2000)), Cpu(lorom(rom, fast, 0x2000)),
    )  # fmt: skip
    for cpu in cpus:
        cpu.load(start)
    return cpus


@pytest.mark.parametrize("seed", range(12))
def test_run_and_step_and_the_recorded_chip_agree(seed: int) -> None:
    """Random bytes as a program; WAI and STP are gone past."""
    plain, recorded, stepped = machines(seed)
    for _ in range(20):
        reasons = plain.run(100), recorded.run(100)
        reason = "budget"
        for _ in range(100):
            try:
                stepped.step()
            except Stopped as stopped:
                reason = stopped.args[0]
                break
        assert reasons == (reason, reason)
        assert measured(plain) == measured(recorded) == measured(stepped)
    assert plain.cycles > 1000


@pytest.mark.parametrize("seed", range(12, 18))
def test_cycles_and_clocks_are_those_of_the_bus(seed: int) -> None:
    rom_clocks = machines(seed)[1]
    fast = rom_clocks.memory.clocks[-1] == 6
    for _ in range(20):
        rom_clocks.run(50)
    assert len(rom_clocks.bus) == rom_clocks.cycles
    assert rom_clocks.clocks == sum(6 if kind == "-" else speed(address, fast) for kind, address in rom_clocks.bus)
    assert [address for kind, address in rom_clocks.bus if kind == "w"] == [address for address, _ in rom_clocks.writes]


# ---- registers and flags -------------------------------------------------------------------------


def test_p_round_trips() -> None:
    cpu = Cpu(lorom(b""))
    for value in range(256):
        cpu.p = value
        assert cpu.p == value
        assert (cpu.n, cpu.v, cpu.m8, cpu.x8, cpu.decimal, cpu.irq_disable, cpu.z, cpu.c) == tuple(
            bit == "1" for bit in f"{value:08b}"
        )


def test_in_emulation_p_keeps_m_and_x() -> None:
    cpu = Cpu(lorom(b""))
    cpu.load(State(e=1))
    for value in range(256):
        cpu.p = value
        assert cpu.p == value | M8 | X8


def test_states_are_loaded_and_given_back() -> None:
    state = State(0x8123, 0x1EFF, 0xC5, 0x1234, 0x5678, 0x9ABC, 0x7E, 0x4321, 0x80, 0)
    cpu = Cpu(lorom(b""))
    cpu.load(state)
    assert cpu.state == state
    assert state.address == 0x808123


def test_what_the_mode_forbids_is_not_loaded() -> None:
    cpu = Cpu(lorom(b""))
    cpu.load(State(s=0x34FF, p=0, x=0x1234, y=0x5678, e=1))
    assert cpu.state == State(s=0x01FF, p=M8 | X8, x=0x34, y=0x78, e=1)
    cpu.load(State(s=0x34FF, p=X8, a=0x1234, x=0x1234, y=0x5678))
    assert cpu.state == State(s=0x34FF, p=X8, a=0x1234, x=0x34, y=0x78)


@pytest.mark.parametrize(
    ("p", "shown"),
    [(0, "nvmxdizc"), (0xFF, "NVMXDIZC"), (M8 | X8 | IRQ_DISABLE, "nvMXdIzc"), (0x81, "NvmxdizC"), (0x4A, "nVmxDiZc")],
)
def test_flags_are_shown(p: int, shown: str) -> None:
    assert State(p=p).flags() == shown


# ---- interrupts ----------------------------------------------------------------------------------

VECTORS = {0xFFE4: "00 90", 0xFFE6: "00 a0", 0xFFF4: "00 b0", 0xFFFE: "00 c0"}


@pytest.mark.parametrize(
    ("opcode", "emulation", "target"),
    [("02", 0, 0x9000), ("00", 0, 0xA000), ("02", 1, 0xB000), ("00", 1, 0xC000)],
    ids=["cop", "brk", "cop-emulation", "brk-emulation"],
)
def test_interrupts_go_through_their_vectors_and_return(opcode: str, emulation: int, target: int) -> None:
    parts = {0x8000: f"{opcode} 99 cb", target: "a9 77 40", **VECTORS}
    bank = 0 if emulation else 0x80
    start = RESET._replace(pbr=bank, p=M8 | X8 | DECIMAL | 0x41, s=0x01FF, e=emulation)
    cpu = chip("", start, lorom(rom_with(parts)))
    cpu.step()
    pushed = [start.p, 0x02, 0x80] + [bank] * (not emulation)
    assert cpu.state == start._replace(
        pc=target, pbr=0, s=0x01FF - len(pushed), p=(start.p | IRQ_DISABLE) & ~DECIMAL
    )  # fmt: skip
    assert [cpu.read(cpu.s + 1 + place) for place in range(len(pushed))] == pushed
    assert cpu.run(10) == "wai"
    assert cpu.state == start._replace(pc=0x8003, a=0x77)


# ---- whole routines ------------------------------------------------------------------------------

# Four ways to clear 32 bytes at $0100; the last one is wrong and still assembles. Text, bytes, cycles, clocks.
BYTE_LOOP = (
    " ldx #$001f\n- lda #$00\n sta $0100,x\n dex\n bpl -\n rts",
    "a2 1f 00 a9 00 9d 00 01 ca 10 f8 60", 392, 2940,
)  # fmt: skip
PAIRED_STZ = (
    " ldx #$001e\n- stz $0100,x\n stz $0101,x\n dex\n dex\n bpl -\n rts",
    "a2 1e 00 9e 00 01 9e 01 01 ca ca 10 f6 60", 280, 2076,
)  # fmt: skip
WIDE_STZ = (
    " rep #$20\n ldx #$001e\n- stz $0100,x\n dex\n dex\n bpl -\n sep #$20\n rts",
    "c2 20 a2 1e 00 9e 00 01 ca ca 10 f9 e2 20 60", 222, 1640,
)  # fmt: skip
MODE_MISMATCH = (
    " rep #$20\n ldx #$001e\n- lda #$00\n sta $0100,x\n dex\n dex\n bpl -\n sep #$20\n rts",
    "c2 20 a2 1e 00 a9 00 9d 00 01 ca ca 10 f7 e2 20 60",
)  # fmt: skip
CALLER = 0x9000


def called(code: str, seed: int, fast: bool = False, bank: int = 0) -> Cpu:
    """A chip that has just been called with JSR from before CALLER, with random A, X, Y and WRAM."""
    rng = random.Random(seed)
    cpu = Cpu(lorom(rom_with({0x8000: code, 0xFFE6: "00 a0"}), fast))
    for block in cpu.memory.wram:
        block[:] = rng.randbytes(len(block))
    put(cpu, 0x1FFE, (CALLER - 1).to_bytes(2, "little").hex())
    a, x, y = (rng.randrange(0x10000) for _ in range(3))
    cpu.load(State(0x8000, 0x1FFD, M8, a, x, y, pbr=bank))
    cpu.stop_at([bank << 16 | CALLER])
    return cpu


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("code", "cycles", "clocks"), [routine[1:] for routine in (BYTE_LOOP, PAIRED_STZ, WIDE_STZ)],
    ids=["byte-loop", "paired-stz", "wide-stz"],
)  # fmt: skip
def test_routines_that_clear_32_bytes(code: str, cycles: int, clocks: int, seed: int) -> None:
    cpu = called(code, seed)
    expected = bytearray(cpu.memory.wram[0])
    expected[0x0100:0x0120] = bytes(32)
    assert cpu.run(1000) == "breakpoint"
    assert (cpu.cycles, cpu.clocks) == (cycles, clocks)
    assert (cpu.pc, cpu.s, cpu.m8, cpu.x8) == (CALLER, 0x1FFF, True, False)
    assert cpu.memory.wram[0] == expected


def test_the_byte_loop_in_fastrom() -> None:
    """260 bytes are fetched, each two clocks sooner."""
    _, code, cycles, clocks = BYTE_LOOP
    for bank, fetched_sooner in ((0x00, 0), (0x80, 260)):
        cpu = called(code, 0, fast=True, bank=bank)
        assert cpu.run(1000) == "breakpoint"
        assert (cpu.cycles, cpu.clocks) == (cycles, clocks - 2 * fetched_sooner)


@pytest.mark.parametrize("seed", range(3))
def test_the_mode_mismatch_never_returns(seed: int) -> None:
    """`lda #$00` is executed with two operand bytes, and what follows is BRK."""
    cpu = called(MODE_MISMATCH[1], seed)
    cpu.stop_at([CALLER, 0xA000])
    assert cpu.run(1000) == "breakpoint"
    assert (cpu.pc, cpu.a, cpu.x) == (0xA000, 0x9D00, 0x1E)
    assert cpu.read(0x1FFE) | cpu.read(0x1FFF) << 8 == CALLER - 1


@needs_asar
@pytest.mark.parametrize("routine", [BYTE_LOOP, PAIRED_STZ, WIDE_STZ, MODE_MISMATCH], ids=lambda routine: routine[1])
def test_the_routines_are_what_asar_makes_of_their_texts(routine: tuple[str, str]) -> None:
    result = assemble(routine[0])
    assert (result.status, result.code.hex(" ")) == ("ok", routine[1])
