"""States to enter in: what is declared holds, the rest varies in the ways that find differences, reproducibly."""

from collections import Counter
from itertools import product

import pytest

from afs_mlx.schema.optimisation import EntryState
from afs_mlx.snes.cpu.memory import BLOCK_BYTES, lorom
from afs_mlx.snes.cpu.state import CARRY, DECIMAL, IRQ_DISABLE, M8, NEGATIVE, OVERFLOW, X8, ZERO
from afs_mlx.snes.execution.board import SRAM_BYTES, Board
from afs_mlx.snes.execution.entries import RAM_BLOCKS, STACK_BYTES, Entry, address_of, block_of, draw
from afs_mlx.snes.execution.routine import Routine

COUNT = 200
FREE = EntryState(m=8, x=16)
EDGES = {0x00, 0x01, 0x02, 0x7F, 0x80, 0x81, 0xFE, 0xFF}


def drawn(declared: EntryState, seed: int = 0, count: int = COUNT) -> list[Entry]:
    return [draw(declared, index, seed) for index in range(count)]


@pytest.mark.parametrize(
    ("m", "x", "e", "decimal"), [*product((8, 16), (8, 16), (0,), (0, 1)), (8, 8, 1, 0), (8, 8, 1, 1)]
)
def test_modes_hold_in_every_state(m: int, x: int, e: int, decimal: int) -> None:
    for entry in drawn(EntryState(m=m, x=x, e=e, decimal=decimal)):
        state = entry.state
        assert (state.p & M8 != 0, state.p & X8 != 0, state.e, state.p & DECIMAL != 0) == (m == 8, x == 8, e, decimal)
        assert max(state.a, state.d, state.s) <= 0xFFFF
        if x == 8:
            assert max(state.x, state.y) <= 0xFF


@pytest.mark.parametrize(("m", "x", "e"), [*product((8, 16), (8, 16), (0,)), (8, 8, 1)])
def test_a_state_is_one_that_the_chip_can_be_in(m: int, x: int, e: int) -> None:
    board = Board(Routine(0x8000, b"\xea"))
    for entry in drawn(EntryState(m=m, x=x, e=e)):
        after = board.execute(entry, 0).state
        assert after == entry.state._replace(pc=0x8000)


def test_emulation_forces_the_index_registers_to_8_bits() -> None:
    for entry in drawn(EntryState(e=1, m=16, x=16)):
        assert entry.state.p & (M8 | X8) == M8 | X8
        assert max(entry.state.x, entry.state.y) <= 0xFF


def test_declared_registers_hold_in_every_state() -> None:
    declared = EntryState(m=16, x=16, d=0x1234, dbr=0x12, a=0x3456, x_value=0x789A, y=0xBCDE, c=1)
    for entry in drawn(declared):
        state = entry.state
        assert (state.d, state.dbr, state.a, state.x, state.y) == (0x1234, 0x12, 0x3456, 0x789A, 0xBCDE)
        assert state.p & CARRY
    for entry in drawn(EntryState(m=16, x=16, d=0, dbr=0, a=0, x_value=0, y=0, c=0)):
        assert (entry.state.d, entry.state.dbr, entry.state.a, entry.state.x, entry.state.y) == (0, 0, 0, 0, 0)
        assert not entry.state.p & CARRY


def test_a_declared_8_bit_accumulator_leaves_b_open() -> None:
    values = [entry.state.a for entry in drawn(EntryState(m=8, x=8, a=0x34))]
    assert {value & 0xFF for value in values} == {0x34}
    assert len({value >> 8 for value in values}) > 20


def test_a_declared_accumulator_of_16_bits_holds_under_m_8() -> None:
    assert {entry.state.a for entry in drawn(EntryState(m=8, x=8, a=0x1234))} == {0x1234}


def test_what_is_not_declared_varies() -> None:
    entries = drawn(FREE)
    for name, least in (("a", 60), ("x", 60), ("y", 60), ("s", 100), ("d", 60), ("dbr", 12), ("p", 32)):
        assert len({getattr(entry.state, name) for entry in entries}) >= least, name
    assert len({entry.port_seed for entry in entries}) == COUNT
    assert len({entry.ram[0] for entry in entries}) == COUNT
    for flag in (CARRY, ZERO, NEGATIVE, OVERFLOW, IRQ_DISABLE):
        share = sum(entry.state.p & flag != 0 for entry in entries) / COUNT
        assert 0.35 < share < 0.65


def test_direct_pages_and_data_banks_are_plausible() -> None:
    entries = drawn(FREE)
    pages = Counter("zero" if e.state.d == 0 else "page" if e.state.d & 0xFF == 0 else "odd" for e in entries)
    assert min(pages["zero"], pages["page"], pages["odd"]) > 10
    assert max(entry.state.d for entry in entries) + 0xFF < min(entry.state.s for entry in entries) - STACK_BYTES
    banks = Counter(entry.state.dbr for entry in entries)
    assert min(banks[0x00], banks[0x7E], banks[0x7F], banks[0x80]) > 10


def test_wide_indices_are_mostly_small_and_sometimes_large() -> None:
    values = [value for entry in drawn(FREE) for value in (entry.state.x, entry.state.y)]
    assert sum(value <= 0xFF for value in values) > COUNT // 2
    assert sum(value > 0x7FFF for value in values) > 10


def kind_of(entry: Entry) -> str:
    values = set(entry.ram[0])
    if values <= EDGES:
        return "edges"
    if len(values) <= 4:
        return "repeating"
    banks = Counter(entry.ram[0][0::2])[0x7E]
    return "pointers" if banks > BLOCK_BYTES // 8 else "anything"


def test_each_kind_of_state_occurs() -> None:
    kinds = Counter(kind_of(entry) for entry in drawn(FREE))
    assert set(kinds) == {"edges", "anything", "repeating", "pointers"}
    assert min(kinds.values()) >= COUNT // 5
    for entry in drawn(FREE):
        if kind_of(entry) == "anything":
            assert len(set(entry.ram[0])) == 256
        if kind_of(entry) == "pointers":
            assert all(0x02 <= high < 0x1C for high in entry.ram[0][1::2]), "words point into low WRAM"


def test_constants_and_their_neighbours_are_drawn_where_there_are_any() -> None:
    near = {0x3455, 0x3456, 0x3457, 0x0011, 0x0012, 0x0013}
    entries = [draw(EntryState(m=16, x=16), index, 0, (0x12, 0x3456)) for index in range(COUNT)]
    assert {entry.state.a for entry in entries} >= near
    assert len(near & {index for entry in entries for index in (entry.state.x, entry.state.y)}) >= 5
    words = [entry.ram[0][0x10] | entry.ram[0][0x11] << 8 for entry in entries]
    assert near <= {block[at] | block[at + 1] << 8 for entry in entries for block in entry.ram[:2] for at in range(64)}
    kinds = Counter(kind_of(entry) for entry in entries if words[entries.index(entry)] not in near)
    assert set(kinds) >= {"edges", "anything", "repeating", "pointers"}, "the other kinds stay"
    assert near == set(entries[0].port_words)
    assert draw(FREE, 5, 0).port_words == ()


def test_equal_values_occur() -> None:
    entries = drawn(FREE)
    assert sum(entry.state.a & 0xFF == entry.ram[0][0x10] for entry in entries) > COUNT // 20
    assert sum(entry.state.x == entry.state.y for entry in entries) > 5
    assert sum(entry.ram[0][0x10] == entry.ram[0][0x12] for entry in entries) > COUNT // 10
    assert sum(entry.ram[0][0x10:0x12] == entry.ram[0][0x12:0x14] for entry in entries) > 5
    assert any(entry.state.a & 0xFF == 0 for entry in entries)
    assert any(entry.ram[0][0x10] == 0xFF for entry in entries)


def test_all_memory_is_drawn() -> None:
    for entry in drawn(FREE, count=40):
        assert len(entry.ram) == RAM_BLOCKS == 16 + SRAM_BYTES // BLOCK_BYTES
        assert all(len(block) == BLOCK_BYTES and isinstance(block, bytes) for block in entry.ram)
    for number in range(RAM_BLOCKS):
        assert len({entry.ram[number] for entry in drawn(FREE, count=40)}) > 10, number


def test_a_seed_gives_the_same_states_and_another_seed_others() -> None:
    for declared in (FREE, EntryState(e=1, m=8, x=8), EntryState(m=16, x=16, d=0, a=5)):
        assert drawn(declared, 3, 40) == drawn(declared, 3, 40)
        pairs = zip(drawn(declared, 3, 40), drawn(declared, 4, 40), strict=True)
        assert all(one != other for one, other in pairs)
    assert draw(FREE, 17, 3) == drawn(FREE, 3, 18)[17], "a state does not depend on the ones before"


@pytest.mark.parametrize(("e", "low", "high"), [(0, 0x1E00, 0x1FFF), (1, 0x0100, 0x01FF)])
def test_there_is_room_on_the_stack(e: int, low: int, high: int) -> None:
    for entry in drawn(EntryState(e=e, m=8, x=8)):
        assert low <= entry.state.s - STACK_BYTES
        assert entry.state.s + 4 <= high, "the return address lies above"


def test_addresses_and_blocks_are_inverse() -> None:
    for block in range(RAM_BLOCKS):
        for offset in (0, 1, 0x10, BLOCK_BYTES - 1):
            assert block_of(address_of(block, offset)) == (block, offset)
    assert address_of(0, 0x10) == 0x7E0010
    assert (address_of(15, 0x1FFF), address_of(16, 0), address_of(19, 0x1FFF)) == (0x7FFFFF, 0x700000, 0x707FFF)


def test_every_address_of_the_board_is_in_the_block_that_the_board_has_there() -> None:
    memory = lorom(b"", sram_bytes=SRAM_BYTES)
    numbers = {id(block): number for number, block in enumerate(memory.ram_blocks())}
    for place, bytes_here in enumerate(memory.readable):
        for offset in (0, 0x123, BLOCK_BYTES - 1):
            expected = (numbers[id(bytes_here)], offset) if isinstance(bytes_here, bytearray) else None
            assert block_of(place * BLOCK_BYTES + offset) == expected


@pytest.mark.parametrize(
    ("address", "place"),
    [
        (0x000010, (0, 0x10)), (0x3F1FFF, (0, 0x1FFF)), (0x800010, (0, 0x10)), (0x7E2010, (1, 0x10)),
        (0x7F0000, (8, 0)), (0xF00000, (16, 0)), (0x7D6000, (19, 0)), (0x002000, None), (0x400010, None),
        (0x008000, None), (0x6F0000, None), (0x708000, None), (0xC00010, None),
    ],
)  # fmt: skip
def test_blocks_through_mirrors(address: int, place: tuple[int, int] | None) -> None:
    assert block_of(address) == place
