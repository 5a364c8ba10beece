"""One run on the board: how it ends, which memory it sees and leaves, what is noticed; and tracing changes nothing."""

import random
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest

from afs_mlx.schema.optimisation import EntryState
from afs_mlx.snes.asar import asar_path, assemble
from afs_mlx.snes.cpu.memory import BLOCK_BYTES
from afs_mlx.snes.cpu.state import CARRY, M8, X8, State
from afs_mlx.snes.execution.board import ENDLESS, FALLS_OFF, RETURNS, RETURNS_LONG, Board, Outcome
from afs_mlx.snes.execution.entries import RAM_BLOCKS, Entry, draw
from afs_mlx.snes.execution.routine import Routine
from afs_mlx.snes.execution.tracing import Tracer
from afs_mlx.snes.lint import lint, lint_execution

needs_asar = pytest.mark.skipif(asar_path() is None, reason="Asar is not on this machine")

BYTES_8 = EntryState(m=8, x=8, d=0, dbr=0)
WIDE_X = EntryState(m=8, x=16, d=0, dbr=0)
EMULATION = EntryState(e=1, m=8, x=8, d=0, dbr=0)
ZERO_RAM = (bytes(BLOCK_BYTES),) * RAM_BLOCKS


def zero_entry(**registers: int) -> Entry:
    """All memory and registers zero, 8-bit registers, S at $1FF0."""
    return Entry(State(**{"s": 0x1FF0, "p": M8 | X8, **registers}), ZERO_RAM, 1)


def run(code: str, org: int = 0x8000, budget: int = 1000, **registers: int) -> Outcome:
    """Machine code from zero."""
    return Board(Routine(org, bytes.fromhex(code))).execute(zero_entry(**registers), budget)


@cache
def routine(text: str, org: int = 0x8000) -> Routine:
    assembly = assemble(text, org)
    assert assembly.status == "ok", assembly.errors
    return Routine.of(assembly)


def byte_at(outcome: Outcome, offset: int, block: int = 0) -> int:
    """A byte of RAM after a run that began with zeros."""
    return outcome.ram.get(block, ZERO_RAM[block])[offset]


# ---- how runs end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "stop"),
    [
        ("60", RETURNS),  # rts
        ("6b", RETURNS_LONG),  # rtl
        ("ea", FALLS_OFF),  # nop
        ("", FALLS_OFF),
        ("8000", FALLS_OFF),  # bra to the end
        ("4c 04 80 60", FALLS_OFF),  # jmp to the end
        ("4c 03 80 60", RETURNS),  # jmp to the rts
        ("4c 00 90", "leaves to $009000"),
        ("4c 00 20", "leaves to $002000"),
        ("20 00 90", "leaves to $009000"),  # jsr
        ("5c 00 20 7e", "leaves to $7E2000"),  # jml
        ("5c 00 80 01", "leaves to $018000"),
        ("22 56 34 12", "leaves to $123456"),  # jsl
        ("6c 10 00", "leaves to $000000"),  # jmp ($0010)
        ("f4 33 12 60", "leaves to $001234"),  # pea $1233, rts
        ("48 48 60", "leaves to $000001"),  # pha, pha, rts
        ("4b f4 33 92 6b", "leaves to $009234"),  # phk, pea, rtl
        ("80 fe", ENDLESS),  # bra to itself
        ("4c 00 80", ENDLESS),
        ("cb", "waits at wai"),
        ("db", "stops at stp"),
    ],
)
def test_how_runs_end(code: str, stop: str) -> None:
    outcome = run(code)
    assert outcome.stop == stop
    assert outcome.returned == (stop in (RETURNS, RETURNS_LONG, FALLS_OFF))


@pytest.mark.parametrize("code", ["00 00 60", "02 00 60"])
def test_brk_and_cop_leave_through_their_vectors(code: str) -> None:
    native, emulation = run(code), run(code, e=1, s=0x1F0)
    assert native.stop.startswith("leaves to $00")
    assert emulation.stop.startswith("leaves to $00")
    assert native.stop != emulation.stop
    assert (native.state.s, emulation.state.s) == (0x1FEC, 0x1ED)
    assert not native.returned


@pytest.mark.parametrize(
    ("code", "stop"),
    [("68 68 60", "leaves"), ("7a 60", "leaves"), ("48 60", "leaves"), ("68 48 60", RETURNS), ("48 68 60", RETURNS)],
)
def test_a_stack_that_is_out_of_step_does_not_return(code: str, stop: str) -> None:
    assert run(code).stop.startswith(stop)


@pytest.mark.parametrize("org", [0x8000, 0x808000, 0x018000, 0x2A8000, 0x2B8123, 0x7D8000, 0xFFF000])
def test_both_ways_back_work_from_every_bank(org: int) -> None:
    assert run("60", org).stop == RETURNS
    assert run("6b", org).stop == RETURNS_LONG


@pytest.mark.parametrize(("e", "s"), [(0, 0x1FF0), (1, 0x1E0)])
def test_what_a_return_pulls(e: int, s: int) -> None:
    assert run("60", e=e, s=s).state.s == s + 2
    assert run("6b", e=e, s=s).state.s == s + 3
    assert run("ea", e=e, s=s).state.s == s


@needs_asar
def test_an_interrupt_handler_is_entered_as_one() -> None:
    handler = routine(" pha\n inc $10\n pla\n rti")
    native = Board(handler).execute(zero_entry(p=M8 | X8 | CARRY, a=7), 100)
    assert (native.stop, native.state.s, native.state.p, native.state.a) == (RETURNS_LONG, 0x1FF4, 0x31, 7)
    emulation = Board(handler).execute(zero_entry(e=1, s=0x1E0, p=M8 | X8 | CARRY), 100)
    assert (emulation.stop, emulation.state.s, emulation.state.p) == (RETURNS, 0x1E3, 0x31)
    assert byte_at(native, 0x10) == byte_at(emulation, 0x10) == 1


@needs_asar
def test_how_a_routine_wants_to_be_entered() -> None:
    assert routine(" nop\n rts").entered_by == routine(" nop\n rtl").entered_by == "call"
    assert routine(" rti").entered_by == "interrupt"
    assert routine(" nop\n rts\n db $40").entered_by == "call", "data is no instruction"
    assert routine(" nop\n db $60").entered_by == "falling in"
    assert Routine(0x8000, b"\x40").entered_by == "call", "of raw code nothing is known"
    asked = Board(Routine(0x8000, b"\x40"), entered_by="interrupt").execute(zero_entry(p=M8 | X8 | CARRY), 9)
    assert (asked.stop, asked.state.p, asked.state.s) == (RETURNS_LONG, 0x31, 0x1FF4)
    assert not Board(Routine(0x8000, b"\xea\x60"), entered_by="falling in").execute(zero_entry(), 9).returned


def test_the_number_of_instructions_is_held() -> None:
    endless = "1a 80 fd"  # - inc, bra -
    for budget in (1, 2, 7, 100):
        outcome = run(endless, budget=budget)
        assert (outcome.stop, outcome.state.a) == (ENDLESS, (budget + 1) // 2)
    assert run("ea" * 20 + "60", budget=10).stop == ENDLESS
    assert run("ea" * 20 + "60", budget=22).stop == RETURNS
    assert run("60", budget=0).stop == ENDLESS


def test_cycles_and_clocks_begin_and_end_with_the_routine() -> None:
    outcome = run("ea 60")
    assert (outcome.cycles, outcome.clocks) == (2 + 6, 8 + 6 + 8 + 6 + 6 + 8 + 8 + 6)
    fast = Board(Routine(0x808000, b"\xea\x60"), fast=True).execute(zero_entry(), 10)
    assert (fast.cycles, fast.clocks) == (8, 6 + 6 + 6 + 6 + 6 + 8 + 8 + 6)
    assert Board(Routine(0x8000, b"\xea\x60"), fast=True).execute(zero_entry(), 10).clocks == outcome.clocks


# ---- memory --------------------------------------------------------------------------------------------------------

LOW_RAM = [0x000010, 0x3F0010, 0x800010, 0xBF0010, 0x7E0010]
SAVE_RAM = [0x700010, 0x7D0010, 0xF00010, 0xFE0010]


def long(address: int) -> str:
    return address.to_bytes(3, "little").hex()


@pytest.mark.parametrize(("places", "block"), [(LOW_RAM, 0), (SAVE_RAM, 16)])
def test_what_is_written_through_one_mirror_is_seen_through_all(places: list[int], block: int) -> None:
    for written in places:
        for read in places:
            # sta written; lda #0; lda read; sta $11
            outcome = run(f"8f {long(written)} a9 00 af {long(read)} 85 11 60", a=0x5A)
            assert (byte_at(outcome, 0x10, block), byte_at(outcome, 0x11)) == (0x5A, 0x5A), f"{written:06X} {read:06X}"


def test_memory_beside_the_mirrors_is_other_memory() -> None:
    outcome = run(f"8f {long(0x7E2010)} 8f {long(0x7F0010)} 8f {long(0x702010)} 60", a=0x5A)
    assert sorted(outcome.ram) == [0, 1, 8, 17], "block 0 holds the stack"
    assert byte_at(outcome, 0x10) == 0
    for block in (1, 8, 17):
        assert outcome.ram[block] == bytes(16) + b"\x5a" + bytes(BLOCK_BYTES - 17)
    assert run(f"af {long(0x402010)} 60").state.a == 0x20, "no memory"


def test_reads_see_the_state_it_was_entered_in() -> None:
    blocks = tuple(bytes([number + 1]) * BLOCK_BYTES for number in range(RAM_BLOCKS))
    for number, address in [(0, 0x800000), (1, 0x7E2000), (15, 0x7FFFFF), (16, 0x700000), (19, 0xFD7FFF)]:
        board = Board(Routine(0x8000, bytes.fromhex(f"af {long(address)} 60")))
        assert board.execute(Entry(zero_entry().state, blocks, 0), 10).state.a == number + 1


def test_nothing_leaks_from_one_run_into_the_next() -> None:
    """Memory, ports, counters and marks; runs of other states in between."""
    # inc $10; lda $10; sta $7E8000; sta $70000F; sta $2105; lda $2134; sta $12; lda $4210; lda $008000; rts
    code = "e6 10 a5 10 8f 00 80 7e 8f 0f 00 70 8d 05 21 ad 34 21 85 12 ad 10 42 af 00 80 00 60"
    entries = [draw(BYTES_8, index, 5) for index in range(12)]
    copies = [replace(entry, ram=tuple(bytes(bytearray(block)) for block in entry.ram)) for entry in entries]
    board = Board(Routine(0x8000, bytes.fromhex(code)))
    fresh = [Board(board.routine).execute(entry, 100) for entry in entries]
    for order in (range(12), reversed(range(12)), [3, 3, 3]):
        for number in order:
            assert board.execute(entries[number], 100) == fresh[number]
    assert entries == copies
    assert fresh[0].read_itself
    assert fresh[0].at_ports
    other = Board(Routine(0x8000, bytes.fromhex("d0 04 ad 10 42 af 00 80 00 60")))  # reaches both only where Z is set
    for number in range(12):
        assert other.execute(entries[number], 100) == Board(other.routine).execute(entries[number], 100)


def test_an_earlier_outcome_is_not_changed_by_a_later_run() -> None:
    board = Board(Routine(0x8000, bytes.fromhex("e6 10 60")))
    first = board.execute(zero_entry(), 10)
    kept = first.ram[0]
    board.execute(Entry(first.state, (kept, *ZERO_RAM[1:]), 0), 10)
    assert (byte_at(first, 0x10), first.ram[0] is kept) == (1, True)


def test_writes_to_rom_are_lost() -> None:
    # sta $008008 (the nop); sta $C000; lda $C000; nop; rts
    code = "8f 08 80 00 8f 00 c0 00 ea 60"
    outcome = run(code, a=0xDB)
    assert (outcome.stop, outcome.read_itself, sorted(outcome.ram)) == (RETURNS, False, [0])
    before = run(f"af {long(0xC000)} 60").state.a
    assert run(f"a9 {before ^ 0xFF:02x} 8f {long(0xC000)} af {long(0xC000)} 60").state.a == before


@needs_asar
@pytest.mark.parametrize("bank", [0x00, 0x10, 0x80, 0xF0])
def test_own_data_is_read_through_mirrors_and_is_no_reading_of_itself(bank: int) -> None:
    outcome = Board(routine(f" lda.l table+${bank:02x}0001\n sta $10\n rts\ntable: db $11,$5a")).execute(
        zero_entry(), 9
    )
    assert (outcome.stop, byte_at(outcome, 0x10), outcome.read_itself) == (RETURNS, 0x5A, False)


@needs_asar
@pytest.mark.parametrize("bank", [0x00, 0x10, 0x80])
@pytest.mark.parametrize("label", ["main", "main+1", "last"])
def test_own_instructions_are_noticed_when_they_are_read(bank: int, label: str) -> None:
    code = routine(f"main: lda.l {label}+${bank:02x}0000\n sta $10\nlast: rts\n db 1")
    outcome = Board(code).execute(zero_entry(), 9)
    assert outcome.read_itself
    assert byte_at(outcome, 0x10) == code.code[{"main": 0, "main+1": 1, "last": 6}[label]]


@needs_asar
def test_the_next_instruction_is_noticed_when_it_is_read() -> None:
    outcome = Board(routine(" lda.l next\nnext: sta $10\n rts\n db 1")).execute(zero_entry(), 9)
    assert byte_at(outcome, 0x10) == 0x85
    assert outcome.read_itself


@needs_asar
def test_fetching_and_tables_of_addresses_are_no_reading_of_itself() -> None:
    text = """ ldx #$02
 jsr (table,x)
 jsl far
 jmp (pointer)
one: stp
two: lda #$07
 sta $10
 rts
far: rtl
out: rts
table: dw one,two"""
    code = routine(text.replace("(pointer)", "out"))
    outcome = Board(code).execute(zero_entry(), 50)
    assert (outcome.stop, byte_at(outcome, 0x10), outcome.read_itself) == (RETURNS, 7, False)


@needs_asar
def test_calls_inside_a_routine_come_back() -> None:
    text = (
        " jsr one\n jsl two\n ldx #$02\n jsr (table,x)\n rtl\none: inc $10\n rts\ntwo: inc $11\n rtl\ntable: dw one,one"
    )
    for org in (0x8000, 0x808000, 0x01FF00):
        outcome = Board(routine(text, org)).execute(zero_entry(), 50)
        assert (outcome.stop, outcome.state.s) == (RETURNS_LONG, 0x1FF3)
        assert (byte_at(outcome, 0x10), byte_at(outcome, 0x11)) == (2, 1)


@needs_asar
@pytest.mark.parametrize("org", [0x808000, 0x018000, 0x7DFF00, 0xC08000])
def test_code_in_other_banks_sees_its_own_bank(org: int) -> None:
    outcome = Board(routine(" phk\n plb\n lda.w table\n sta $10\n rts\ntable: db $5a", org)).execute(zero_entry(), 50)
    assert outcome.state.dbr == org >> 16
    if org >> 16 & 0x40:
        assert outcome.state.a == 0x5A
    else:
        assert (outcome.state.a, byte_at(outcome, 0x10)) == (0x5A, 0x5A)


@pytest.mark.parametrize("org", [0x00FFFD, 0x01FFFD, 0x80FFFD, 0xFFFFFD])
def test_code_up_to_the_end_of_a_bank(org: int) -> None:
    outcome = run("e6 10 60", org)
    assert (outcome.stop, byte_at(outcome, 0x10), outcome.read_itself) == (RETURNS, 1, False)


@pytest.mark.parametrize("org", [0x00FFFE, 0x01FFFE])
def test_falling_off_the_end_of_a_bank(org: int) -> None:
    assert run("e6 10", org).stop == FALLS_OFF


def test_the_bank_behind_code_at_a_banks_end_is_elsewhere() -> None:
    assert run("5c 00 80 01", 0x00FFFC).stop == "leaves to $018000"


@pytest.mark.parametrize("target", [0x7E8000, 0x7F8004])
def test_wram_is_no_mirror_of_the_routine(target: int) -> None:
    org = target & 0x0F8000
    outcome = run(f"5c {long(target)} ea ea ea 60", org)
    assert outcome.stop == f"leaves to ${target:06X}"


def test_an_operand_in_ram_is_not_remembered() -> None:
    """The last byte of the bank is `lda #`, its operand is $000000."""
    board = Board(Routine(0x00FFFE, b"\xea\xa9"))
    for index in range(8):
        entry = draw(BYTES_8, index, 0)
        assert board.execute(entry, 5) == Board(board.routine).execute(entry, 5)


# ---- block moves ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("opcode", "x", "y", "end_x", "end_y"), [("54", 16, 64, 21, 69), ("44", 20, 68, 15, 63)])
def test_block_moves(opcode: str, x: int, y: int, end_x: int, end_y: int) -> None:
    ram = (bytes(16) + b"SNES!" + bytes(BLOCK_BYTES - 21), *ZERO_RAM[1:])
    entry = Entry(State(s=0x1FF0, p=0, a=4, x=x, y=y), ram, 0)
    outcome = Board(Routine(0x8000, bytes.fromhex(f"{opcode} 7f 00 60"))).execute(entry, 100)
    assert (outcome.stop, outcome.state.a, outcome.state.dbr) == (RETURNS, 0xFFFF, 0x7F)
    assert (outcome.state.x, outcome.state.y) == (end_x, end_y)
    assert outcome.ram[8] == bytes(64) + b"SNES!" + bytes(BLOCK_BYTES - 69)
    assert outcome.cycles == 5 * 7 + 6
    assert not outcome.read_itself


def test_a_block_move_over_64_kib_is_counted_byte_by_byte() -> None:
    entry = Entry(State(s=0x1FF0, p=0, a=0xFFFF), ZERO_RAM, 0)
    board = Board(Routine(0x8000, bytes.fromhex("54 7f 7e 60")))
    assert board.execute(entry, 1000).stop == ENDLESS
    outcome = board.execute(entry, 65_536 + 2)
    assert (outcome.stop, outcome.cycles) == (RETURNS, 65_536 * 7 + 6)
    assert sorted(outcome.ram) == [0, *range(8, 16)]


def test_a_block_move_into_ports_and_rom() -> None:
    entry = Entry(State(s=0x1FF0, p=0, a=1, x=0, y=0x2100), ZERO_RAM, 0)
    outcome = Board(Routine(0x8000, bytes.fromhex("54 00 7e 60"))).execute(entry, 9)
    assert outcome.events == (("w", 0x2100, 0), ("w", 0x2101, 0))
    rom = Board(Routine(0x8000, bytes.fromhex("54 00 7e 60"))).execute(
        replace(entry, state=entry.state._replace(y=0x8000)), 9
    )
    assert (rom.stop, rom.events, sorted(rom.ram)) == (RETURNS, (), [0])


# ---- ports ---------------------------------------------------------------------------------------------------------


def test_ports_are_reached_in_their_banks_and_remembered_by_instruction() -> None:
    # sta $2100; sta $802101; sta $7E2102; lda $4210; lda $4212; rts
    outcome = run("8d 00 21 8f 01 21 80 8f 02 21 7e ad 10 42 ad 12 42 60", a=3)
    reads = [("r", 0x4210), ("r", 0x4212)]
    assert [event[:2] for event in outcome.events] == [("w", 0x2100), ("w", 0x2101), *reads]
    assert outcome.at_ports == {0x8003, 0x8007, 0x800E, 0x8011}
    assert byte_at(outcome, 0x102, 1) == 3


def test_words_reach_ports_byte_by_byte() -> None:
    assert run("8d 16 21 60", p=0, a=0x1234).events == (("w", 0x2116, 0x34), ("w", 0x2117, 0x12))
    reads_and_writes = run("ee 00 21 60", p=0).events
    assert [event[:2] for event in reads_and_writes] == [("w", 0x2101), ("w", 0x2100)], "the high byte is written first"


def test_the_port_seed_picks_what_is_read() -> None:
    board = Board(Routine(0x8000, bytes.fromhex("ad 18 42 60")))
    values = {board.execute(replace(zero_entry(), port_seed=seed), 9).state.a for seed in range(50)}
    assert len(values) > 30


# ---- notes ---------------------------------------------------------------------------------------------------------


def notes_of(text: str, declared: EntryState, budget: int = 200) -> list[tuple[int | None, str]]:
    code = routine(text)
    board = Board(code)
    board.execute(draw(declared, 0, 0), budget)
    return [(code.line_at(note.offset), note.message) for note in sorted(board.notes)]


@needs_asar
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("; x\n rep #$20\n\n lda #$12\n rts", (4, "the immediate is written with 1 byte and executed with A 16-bit")),
        (" nop\n lda #$1234\n rts", (2, "the immediate is written with 2 bytes and executed with A 8-bit")),
        (" sep #$10 : ldy #$1234\n rts", (1, "the immediate is written with 2 bytes and executed with X/Y 8-bit")),
        (" nop\n cpx #$12\n nop\n nop", (2, "the immediate is written with 1 byte and executed with X/Y 16-bit")),
        (" nop\n db $ea,$ea\n rts", (2, "data is executed")),
        ("m: bra +\n nop\n+ db $80,$fd\n rts", (3, "data is executed")),
    ],
)
def test_notes_and_their_lines(text: str, found: tuple[int, str]) -> None:
    assert found in notes_of(text, WIDE_X)


@needs_asar
def test_a_byte_inside_an_instruction_is_told() -> None:
    found = notes_of(" nop\n jmp in+1\n nop\nin: lda #$ea\n rts", BYTES_8)
    assert found == [(4, "nop is executed, a byte inside an instruction")]


@needs_asar
def test_what_runs_as_it_was_written_leaves_no_notes() -> None:
    text = " rep #$30\n lda #$1234\n ldx #$0001\n sep #$30\n lda #$12\n ldx #$01\n brk #$00\n wdm #$00"
    assert notes_of(text, BYTES_8) == []
    assert notes_of("- lda #$12\n bra -\n lda #$1234", BYTES_8) == [], "what is not executed is not judged"


def test_raw_code_has_no_notes() -> None:
    board = Board(Routine(0x8000, bytes.fromhex("c2 20 a9 00 9d 00 01 60")))
    board.execute(zero_entry(), 50)
    assert board.notes == set()


@needs_asar
def test_the_same_note_is_kept_once_and_for_every_run() -> None:
    board = Board(routine("- bcs +\n lda #$1234\n rts\n+ ldx #$1234\n rts"))
    seen = []
    for index in [*range(30), *range(30)]:
        board.execute(draw(BYTES_8, index, 0), 50)
        seen.append(frozenset(board.notes))
    assert {2, 6} <= {note.offset for note in board.notes}
    assert all(before <= after for before, after in pairwise(seen))
    assert len({note.offset for note in seen[0]} & {2, 6}) == 1
    assert seen[29] == seen[-1]


# ---- tracing -------------------------------------------------------------------------------------------------------

TRACED = [
    " ldx #$001f\n- lda #$00\n sta $0100,x\n dex\n bpl -\n rts",
    " rep #$20\n lda $10\n sta $2116\n sep #$20\n lda $4210\n rts",
    " jsr sub\n jsl far\n rtl\nsub: inc $10\n rts\nfar: stz $12\n rtl",
    " lda $10\n beq +\n wai\n+ stp",
    " rep #$30\n lda #$0004\n ldx #$0010\n ldy #$0040\n mvn $7f,$7e\n rts",
    "- bra -",
    " brk #$00",
    " lda.l table\n rts\ntable: db 1",
    " pea $1233\n rts",
]


@needs_asar
@pytest.mark.parametrize("text", TRACED)
@pytest.mark.parametrize("declared", [WIDE_X, BYTES_8, EMULATION])
def test_tracing_is_executing(text: str, declared: EntryState) -> None:
    for index in range(4):
        entry = draw(declared, index, 3)
        tracer = Tracer(Board(routine(text)))
        steps = list(tracer.steps(entry, 300))
        executed = Board(routine(text)).execute(entry, 300)
        assert tracer.outcome == executed
        stopped_inside = executed.stop in ("waits at wai", "stops at stp")
        assert sum(step.cycles for step in steps) == executed.cycles - (3 if stopped_inside else 0)
        if not stopped_inside:
            assert sum(step.clocks for step in steps) == executed.clocks
            assert steps[-1].after == executed.state
        for step, following in pairwise(steps):
            assert step.after.address == following.address


def test_tracing_random_bytes_is_executing() -> None:
    rng = random.Random(8)
    for number in range(150):
        org = rng.choice((0x8000, 0x80FF00, 0x0F8000))
        code = Routine(org, rng.randbytes(rng.randrange(1, 40)) + b"\xea\xea\xea\x60")
        entry = draw(rng.choice((WIDE_X, BYTES_8, EMULATION)), number, 0)
        tracer = Tracer(Board(code))
        taken = len(list(tracer.steps(entry, 100)))
        executed = Board(code).execute(entry, 100)
        assert tracer.outcome == executed
        assert taken <= 100


@pytest.mark.parametrize("code", ["10", "82"])
def test_tracing_a_branch_that_is_cut_off(code: str) -> None:
    cut = Routine(0x8000, bytes.fromhex(code))
    steps = list(Tracer(Board(cut)).steps(zero_entry(), 1))
    assert [step.after for step in steps] == [Board(cut).execute(zero_entry(), 1).state]


@needs_asar
def test_tracing_is_no_reading_of_itself() -> None:
    tracer = Tracer(Board(routine(" lda #$00\n sta $10\n rts")))
    list(tracer.steps(zero_entry(), 50))
    assert not tracer.outcome.read_itself


def test_a_tracer_can_be_used_again() -> None:
    tracer = Tracer(Board(Routine(0x8000, b"\xea\xea\x60")))
    list(tracer.steps(zero_entry(), 10))
    list(tracer.steps(zero_entry(), 2))
    assert tracer.outcome.stop == ENDLESS


@needs_asar
def test_the_texts_of_a_trace() -> None:
    text = """main: rep #$20
 lda #$1234
 sta.w $2116
 sep #$20 : stz $10
 bra out
 nop
out: jsr sub
 rts
sub: lda.l $004210
 rts"""
    steps = list(Tracer(Board(routine(text))).steps(zero_entry(), 50))
    assert [(step.line, step.text, step.comment) for step in steps] == [
        (1, "rep #$20", ""), (2, "lda #$1234", ""), (3, "sta $2116", "VMADDL"), (4, "sep #$20", ""),
        (4, "stz $10", ""), (5, "bra $800f", ""), (7, "jsr $8013", ""), (9, "lda.l $004210", "RDNMI"), (10, "rts", ""),
        (8, "rts", ""),
    ]  # fmt: skip
    assert [step.address for step in steps[:3]] == [0x8000, 0x8002, 0x8005]
    assert b"".join(step.code for step in steps[:3]).hex() == "c220a934128d1621"
    assert (steps[1].after.a, steps[1].cycles, steps[1].clocks) == (0x1234, 3, 24)


def test_tracing_raw_code_has_no_lines() -> None:
    steps = list(Tracer(Board(Routine(0x8000, b"\xea\x60"))).steps(zero_entry(), 50))
    assert [(step.text, step.line) for step in steps] == [("nop", None), ("rts", None)]


# ---- routines ------------------------------------------------------------------------------------------------------


@needs_asar
def test_lines_and_data_of_a_routine() -> None:
    code = routine("m: db 1 : lda #$05 : dw 2,3\n\n jmp m")
    assert [code.line_at(offset) for offset in range(-1, 11)] == [None, *[1] * 7, *[3] * 3, None]
    assert code.data == bytes([1, 0, 0, 1, 1, 1, 1, 0, 0, 0])
    assert sorted(code.place_at) == [0, 1, 3, 7]


@needs_asar
def test_every_command_is_placed_with_its_line_and_kind() -> None:
    """Random lines of several commands, labels and values."""
    rng = random.Random(12)
    commands = {"nop": 1, "lda #$12": 2, "lda #$1234": 3, "sta.l $7e0010": 4, "jmp main": 3, "mvn $7e,$7f": 3}
    data = {"db 1": 1, "db 1,2,3": 3, "dw main,2": 4, "dl 1": 3, "dd 1,2": 8}
    lines, expected, offset = ["main: nop"], [(0, 1, 1, False)], 1
    for number in range(2, 400):
        parts = []
        for place in range(rng.randrange(4)):
            if rng.random() < 0.2:
                parts.append(rng.choice(("+", "--", f"value_{number}_{place} = 5", f"label_{number}_{place}:")))
                continue
            table = rng.choice((commands, data))
            part, size = rng.choice(list(table.items()))
            parts.append(f"{rng.choice(('', '', f'here_{number}_{place}: '))}{part}")
            expected.append((offset, size, number, table is data))
            offset += size
        lines.append(" : ".join(parts) + rng.choice(("", " ; db 1 : nop")))
    code = routine("\n".join(lines), 0x01C000)
    assert [(place.offset, place.size, place.line, place.is_data) for place in code.placed] == expected
    assert len(code.code) == offset


def test_decimal_mode_bits_are_doubtful() -> None:
    text = " rep #$30\n sep #30\n REP  #20 ; x\n nop : sep #10\n rep #48\n lda #30\n sep #%00110000"
    assert [problem.line for problem in lint(text)] == [2, 3, 4]
    assert lint(text)[0].message == "sep #30 is decimal ($1E); write sep #$30"


@pytest.mark.parametrize("line", ["rep.b #30", "sep #030"])
def test_decimal_mode_bits_are_doubtful_however_they_are_written(line: str) -> None:
    assert [problem.line for problem in lint(line)] == [1]


@needs_asar
def test_what_is_doubtful_in_execution_has_its_line() -> None:
    assembly = assemble(" nop\n rep #$20\n lda #$12\n nop\n rts")
    found = lint_execution(assembly, BYTES_8)
    assert (3, "the immediate is written with 1 byte and executed with A 16-bit") in [
        (p.line, p.message) for p in found
    ]
    assert lint_execution(assemble(" rep #$20\n lda #$1234\n rts"), BYTES_8) == []


def test_offsets_through_mirrors() -> None:
    code = Routine(0x018010, bytes(4))
    for address in (0x018010, 0x118010, 0x818010, 0x418010, 0xF18010):
        assert code.offset_of(address) == 0
    assert code.offset_of(0x018014) == 4
    for address in (0x008010, 0x028010, 0x010010, 0x7E0010, 0x01800F):
        assert code.offset_of(address) not in range(5)
