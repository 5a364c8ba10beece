"""Verdicts by execution: what counts as a difference and what does not, and that every counter-example is one."""

import re
from functools import cache

import pytest

from afs_mlx.schema.optimisation import EntryState, Live
from afs_mlx.snes import asar as asar_module
from afs_mlx.snes.asar import asar_path, assemble
from afs_mlx.snes.cpu.memory import BLOCK_BYTES
from afs_mlx.snes.cpu.state import CARRY, NEGATIVE, OVERFLOW, ZERO
from afs_mlx.snes.equivalence.checker import LEAST_STATES, Checker, Contract, Report
from afs_mlx.snes.equivalence.comparison import Span, first_difference
from afs_mlx.snes.equivalence.judging import judge
from afs_mlx.snes.equivalence.widths import entry_states
from afs_mlx.snes.execution.board import ENDLESS, RETURNS, Board
from afs_mlx.snes.execution.cost import Cost, Spread
from afs_mlx.snes.execution.entries import RAM_BLOCKS
from afs_mlx.snes.execution.routine import Routine

needs_asar = pytest.mark.skipif(asar_path() is None, reason="Asar is not on this machine")
pytestmark = needs_asar

E8 = EntryState(m=8, x=8, d=0, dbr=0)
E16 = EntryState(m=16, x=16, d=0, dbr=0)
WIDE_X = EntryState(m=8, x=16, d=0, dbr=0)
EMULATION = EntryState(e=1, m=8, x=8, d=0, dbr=0)
STATES = 96

# Four ways to clear 32 bytes at $0100; the last one is wrong and still assembles.
BYTE_LOOP = " ldx #$001f\n- lda #$00\n sta $0100,x\n dex\n bpl -\n rts"
PAIRED_STZ = " ldx #$001e\n- stz $0100,x\n stz $0101,x\n dex\n dex\n bpl -\n rts"
WIDE_STZ = " rep #$20\n ldx #$001e\n- stz $0100,x\n dex\n dex\n bpl -\n sep #$20\n rts"
MODE_MISMATCH = " rep #$20\n ldx #$001e\n- lda #$00\n sta $0100,x\n dex\n dex\n bpl -\n sep #$20\n rts"


@cache
def routine(text: str) -> Routine:
    assembly = assemble(text)
    assert assembly.status == "ok", assembly.errors
    return Routine.of(assembly)


@cache
def checker(
    reference: str,
    entry: EntryState | tuple[EntryState, ...] = E8,
    live: tuple[Live, ...] | None = (),
    scratch: tuple[Span, ...] = (),
    states: int = STATES,
) -> Checker:
    entries = entry if isinstance(entry, tuple) else (entry,)
    return Checker(routine(reference), Contract(entries, live, scratch), states)


def held(
    reference: str,
    candidate: str,
    entry: EntryState | tuple[EntryState, ...] = E8,
    live: tuple[Live, ...] | None = (),
    scratch: tuple[Span, ...] = (),
    states: int = STATES,
) -> Report:
    """The candidate's report; a counter-example in it has been played again on new boards."""
    held_to = checker(reference, entry, live, scratch, states)
    report = held_to.check(routine(candidate))
    if report.counter_example is not None:
        replay(held_to, routine(candidate), report)
    return report


def verdict(
    reference: str,
    candidate: str,
    entry: EntryState | tuple[EntryState, ...] = E8,
    live: tuple[Live, ...] | None = (),
    scratch: tuple[Span, ...] = (),
    states: int = STATES,
) -> str:
    return held(reference, candidate, entry, live, scratch, states).verdict


def replay(held_to: Checker, candidate: Routine, report: Report) -> None:
    example = report.counter_example
    assert example is not None
    expected = Board(held_to.routine).execute(example.entry, 20_000)
    board = Board(candidate, entered_by=held_to.routine.entered_by, readable_bytes=len(held_to.routine.code))
    got = board.execute(example.entry, 300_000)
    assert expected == example.expected
    assert expected.returned
    if example.got.stop == ENDLESS:
        assert got.stop == ENDLESS
    else:
        assert got == example.got
    assert first_difference(example.entry, expected, got, held_to.live, held_to.contract.scratch) == example.difference
    assert example.difference.expected != example.difference.got
    assert report.verdict == ("differs" if got.returned else "no return")


def small(report: Report, **but: int) -> None:
    """All registers and flags of the counter-example are zero but these, and all memory."""
    assert report.counter_example is not None
    state = report.counter_example.entry.state
    found = {name: getattr(state, name) for name in ("a", "x", "y", "d", "dbr") if getattr(state, name)}
    found |= {"flags": flags} if (flags := state.p & (CARRY | NEGATIVE | OVERFLOW | ZERO)) else {}
    assert found == but
    assert report.counter_example.entry.ram == (bytes(BLOCK_BYTES),) * RAM_BLOCKS


# ---- the known routines --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size_bytes", "cycles", "clocks"),
    [(BYTE_LOOP, 12, 392, 2940), (PAIRED_STZ, 14, 280, 2076), (WIDE_STZ, 15, 222, 1640)],
)
def test_known_routines_are_equal_at_their_known_cost(text: str, size_bytes: int, cycles: int, clocks: int) -> None:
    report = held(BYTE_LOOP, text, WIDE_X, states=512)
    assert (report.verdict, report.notes) == ("equal", ())
    assert report.states >= 512
    assert report.reference == Cost(12, Spread(392, 392, 392, 392), Spread(2940, 2940, 2940, 2940))
    assert report.candidate == Cost(
        size_bytes, Spread(cycles, cycles, cycles, cycles), Spread(clocks, clocks, clocks, clocks)
    )
    assert report.cheaper("cycles") == (text != BYTE_LOOP)
    assert not report.cheaper("bytes")


def test_the_known_wrong_routine_does_not_return() -> None:
    report = held(BYTE_LOOP, MODE_MISMATCH, WIDE_X, states=512)
    assert report.verdict == "no return"
    assert report.candidate is None
    assert "executed with A 16-bit" in report.notes[0].message
    assert not report.cheaper("cycles")


def test_every_known_routine_as_the_reference() -> None:
    for reference in (PAIRED_STZ, WIDE_STZ):
        for candidate in (BYTE_LOOP, PAIRED_STZ, WIDE_STZ):
            assert verdict(reference, candidate, WIDE_X) == "equal"
    assert held(WIDE_STZ, BYTE_LOOP, WIDE_X, live=("x",)).why == "X: $FFFE expected, $FFFF found"


# ---- every kind of difference --------------------------------------------------------------------------------------

CHANGED = r"\$.. (\(unchanged\) )?expected"


@pytest.mark.parametrize(
    ("reference", "candidate", "entry", "live", "why"),
    [
        (" rts", " rtl", E8, (), "the reference returns, the candidate returns long"),
        (" rtl", " rts", E8, (), "the reference returns long, the candidate returns"),
        (" rts", " nop", E8, (), "the reference returns, the candidate falls off its end"),
        (" nop", " pha", E8, (), r"S: \$1... expected"),
        (" rts", " pea $1234\n pld\n rts", E8, (), r"D: \$0000 expected, \$1234 found"),
        (" rts", " lda #$7e\n pha\n plb\n rts", E8, (), r"DBR: \$0000 expected, \$007E found"),
        (" nop", " clc\n xce", EMULATION, (), "flag e: 1 expected, 0 found"),
        (" rts", " rep #$20\n rts", E8, (), "flag m: 1 expected, 0 found"),
        (" rts", " rep #$10\n rts", E8, (), "flag x: 1 expected, 0 found"),
        (" rts", " sed\n rts", E8, (), "flag decimal: 0 expected, 1 found"),
        (" sei\n rts", " cli\n rts", E8, (), "flag irq-disable: 1 expected, 0 found"),
        (" rts", " sei\n rts", E8, (), "flag irq-disable: 0 expected, 1 found"),
        (" lda #$01\n rts", " lda #$02\n rts", E8, ("a",), r"A: \$0001 expected, \$0002 found"),
        (" lda #$1234\n rts", " lda #$1235\n rts", E16, ("a",), r"A: \$1234 expected, \$1235 found"),
        (" rts", " xba\n lda #$01\n xba\n rts", E8, ("b",), r"B: \$00.. expected, \$0001 found"),
        (" ldx #$01\n rts", " ldx #$02\n rts", E8, ("x",), r"X: \$0001 expected, \$0002 found"),
        (" ldy #$0100\n rts", " ldy #$0200\n rts", E16, ("y",), r"Y: \$0100 expected, \$0200 found"),
        (" clc\n rts", " sec\n rts", E8, ("c",), "flag c: 0 expected, 1 found"),
        (" rep #$02\n rts", " sep #$02\n rts", E8, ("z",), "flag z: 0 expected, 1 found"),
        (" sep #$80\n rts", " rep #$80\n rts", E8, ("n",), "flag n: 1 expected, 0 found"),
        (" clv\n rts", " sep #$40\n rts", E8, ("v",), "flag v: 0 expected, 1 found"),
        (" lda #$07\n sta $10\n rts", " lda #$07\n sta $11\n rts", E8, (), r"\$7E0010: " + CHANGED),
        (" stz $10\n rts", " rts", E8, (), r"\$7E0010: " + CHANGED),
        (" rts", " stz $10\n rts", E8, (), r"\$7E0010: \$.. \(unchanged\) expected"),
        (" inc $10\n rts", " dec $10\n rts", E8, (), r"\$7E0010: " + CHANGED),
        (" rts", " inc $0100\n rts", E8, (), r"\$7E0100: \$.. \(unchanged\) expected"),
        (" rts", " lda #$5a\n sta.l $7e8000\n rts", E8, (), r"\$7E8000: \$.. \(unchanged\) expected, \$5A found"),
        (" rts", " lda #$5a\n sta.l $7fffff\n rts", E8, (), r"\$7FFFFF: \$.. \(unchanged\) expected, \$5A found"),
        (" rts", " lda #$5a\n sta.l $f00010\n rts", E8, (), r"\$700010: \$.. \(unchanged\) expected, \$5A found"),
    ],
)  # fmt: skip
def test_kinds_of_difference(
    reference: str, candidate: str, entry: EntryState, live: tuple[Live, ...], why: str
) -> None:
    report = held(reference, candidate, entry, live)
    assert report.verdict == "differs"
    assert re.match(why, report.why), report.why
    assert report.candidate is None
    assert not report.cheaper("bytes")


@pytest.mark.parametrize(
    ("reference", "candidate", "entry", "live"),
    [
        (" lda #$01\n rts", " lda #$02\n rts", E8, ("b", "x", "y", "c", "v")),
        (" rts", " xba\n lda #$01\n xba\n rts", E8, ("a", "x", "y", "c", "v")),
        (" ldx #$01\n rts", " ldx #$02\n rts", E8, ("a", "b", "y", "c", "v", "n", "z")),
        (" clc\n rts", " sec\n rts", E8, ("a", "b", "x", "y", "z", "n", "v")),
        (" clv\n rts", " sep #$40\n rts", E8, ("a", "b", "x", "y", "z", "n", "c")),
        (" rep #$02\n rts", " sep #$02\n rts", E8, ("a", "b", "x", "y", "c", "n", "v")),
    ],
)
def test_what_is_not_live_may_differ(reference: str, candidate: str, entry: EntryState, live: tuple[Live, ...]) -> None:
    assert verdict(reference, candidate, entry, live) == "equal"


@pytest.mark.parametrize(
    ("candidate", "why"),
    [
        (" lda #$01\n sta $2101\n sta $2100", r"port access 1: write \$01 to \$2100 expected, write \$01 to \$2101"),
        (" lda #$02\n sta $2100\n sta $2101", r"port access 1: write \$01 to \$2100 expected, write \$02 to \$2100"),
        (" lda #$01\n sta $2100", r"port access 2: write \$01 to \$2101 expected, none found"),
        (" lda #$01\n sta $2100\n sta $2101\n sta $4200", r"port access 3: none expected, write \$01 to \$4200 found"),
        (" lda #$01\n sta $2100\n sta $2100\n sta $2101", r"port access 2: write \$01 to \$2101 expected"),
        (" lda #$01\n ldx $4210\n sta $2100\n sta $2101", r"port access 1: .* expected, read \$.. from \$4210 found"),
        (" nop", r"port access 1: write \$01 to \$2100 expected, none found"),
    ],
)  # fmt: skip
def test_ports_count_in_order(candidate: str, why: str) -> None:
    report = held(" lda #$01\n sta $2100\n sta $2101", candidate)
    assert report.verdict == "differs"
    assert re.match(why, report.why), report.why


def test_a_word_to_two_ports_is_two_bytes_in_order() -> None:
    wide = " rep #$20\n lda #$1234\n sta $2116\n sep #$20\n rts"
    assert verdict(wide, " lda #$34\n sta $2116\n lda #$12\n sta $2117\n rts") == "equal"
    assert verdict(wide, " lda #$12\n sta $2117\n lda #$34\n sta $2116\n rts") == "differs"


def test_the_bank_through_which_a_port_is_reached_is_no_difference() -> None:
    assert verdict(" stz $2100\n rts", " lda #$00\n sta.l $802100\n rts") == "equal"


def test_a_read_that_changes_the_device_counts_and_another_does_not() -> None:
    once = " lda $4210\n sta $10\n rts"
    assert verdict(once, " lda $4210\n lda $4210\n sta $10\n rts") == "differs"
    assert verdict(once, " lda $4211\n sta $10\n rts") == "differs"
    assert verdict(once, " ldx $4210\n stx $10\n rts") == "equal"
    plain = " lda $4218\n sta $10\n rts"
    assert verdict(plain, " lda $4218\n lda $4218\n sta $10\n rts") == "equal"
    assert verdict(plain, " lda $4219\n sta $10\n rts") == "differs"
    assert verdict(" lda $4212\n lda $4212\n sta $10\n rts", " lda $4212\n sta $10\n rts") == "differs"


def test_what_a_port_gives_may_depend_on_what_was_written_before() -> None:
    reference = " lda #$01\n sta $2105\n lda $2134\n sta $10\n rts"
    assert verdict(reference, " lda $2134\n sta $10\n lda #$01\n sta $2105\n rts") == "differs"
    assert verdict(reference, " ldx #$01\n stx $2105\n ldy $2134\n sty $10\n rts") == "equal"


def test_the_multiplier_is_right_after_its_time() -> None:
    factors = " lda $10\n sta $4202\n lda #$03\n sta $4203\n"
    patient = factors + " nop\n nop\n nop\n nop\n lda $4216\n sta $12\n rts"
    assert verdict(patient, factors + " lda $10\n xba\n lda $10\n nop\n lda $4216\n sta $12\n rts") == "equal"
    assert verdict(patient, factors + " lda $4216\n sta $12\n rts") == "differs"


def test_save_ram_and_work_ram_through_mirrors_are_the_same() -> None:
    reference = " lda $10\n sta.l $700010\n sta.l $7e0012\n rts"
    assert verdict(reference, " lda.l $800010\n sta.l $fe0010\n sta $12\n rts") == "equal"
    assert verdict(reference, " lda.l $800010\n sta.l $fe2010\n sta $12\n rts") == "differs"


def test_another_address_of_the_code_is_no_difference() -> None:
    assert verdict("org $008000\n inc $10\n rts", "org $00C123\n inc $10\n rts") == "equal"


# ---- dead memory ---------------------------------------------------------------------------------------------------


def test_bytes_below_the_stack_are_dead() -> None:
    assert verdict(" inc $10\n rts", " pha\n phx\n php\n inc $10\n plp\n plx\n pla\n rts") == "equal"
    assert verdict(" inc $10\n rts", " jsr sub\n rts\nsub: inc $10\n rts") == "equal"
    assert verdict(" inc $10", " pea $1234\n ply\n ply\n inc $10") == "equal"


def test_bytes_above_the_stack_are_not() -> None:
    above = " phy\n tsc\n"
    report = held(" rts", " lda #$5a\n sta $05,s\n rts")
    assert (report.verdict, report.why.split(":")[0][:4]) == ("differs", "$7E1")
    assert verdict(" rts", above + " ply\n rts") == "equal"


def test_scratch_is_dead_and_nothing_beside_it() -> None:
    span = ((0x7E0010, 0x7E0011),)
    for address in ("$10", "$11"):
        assert verdict(" inc $20\n rts", f" inc $20\n stz {address}\n rts", scratch=span) == "equal"
    for address in ("$0f", "$12"):
        assert verdict(" inc $20\n rts", f" inc $20\n stz {address}\n rts", scratch=span) == "differs"
    two = ((0x7E0010, 0x7E0010), (0x700000, 0x7FFFFF))
    assert verdict(" rts", " lda #$00\n sta.l $702000\n sta.l $7e9000\n rts", scratch=two) == "equal"


# ---- counter-examples ----------------------------------------------------------------------------------------------


def test_counter_examples_are_small() -> None:
    small(held(" stz $10\n rts", " sta $10\n rts"), a=1)
    small(held(" stz $10\n rts", " stx $10\n rts"), x=1)
    small(held(" stz $0310\n rts", " sty $0310\n rts", EntryState(m=8, x=8)), y=1)
    small(held(" lda #$01\n sta $10\n rts", " lda #$02\n sta $10\n rts"))
    small(held(" inc $10\n rts", " dec $10\n rts"))
    small(held(" rts", " bcc +\n inc $10\n+ rts"), flags=CARRY)
    small(held(" rts", " bpl +\n inc $10\n+ rts"), flags=NEGATIVE)
    small(held(" rts", " rep #$20\n rts"))
    small(held(" rts", "- bra -"))
    small(held(" lda #$00\n rts", " txa\n rts", EntryState(m=8, x=8), live=("a",)), x=1)


def test_a_counter_example_keeps_the_memory_that_matters() -> None:
    report = held(" inc $0310\n rts", " lda $0310\n beq +\n inc $0310\n+ rts")
    assert report.counter_example is not None
    assert sum(map(any, report.counter_example.entry.ram)) == 0
    report = held(" stz $10\n rts", " lda $0311\n sta $10\n rts")
    assert report.counter_example is not None
    block = report.counter_example.entry.ram[0]
    assert [place for place, value in enumerate(block) if value] == [0x311]
    assert not any(map(any, report.counter_example.entry.ram[1:]))


def test_a_counter_example_keeps_what_is_declared() -> None:
    declared = EntryState(m=8, x=16, d=0x0300, dbr=0x7E, a=0x12, x_value=0x0204, y=0x0507, c=1)
    example = held(" stz $10\n rts", " sta $10\n rts", declared).counter_example
    assert example is not None
    state = example.entry.state
    assert (state.d, state.dbr, state.a & 0xFF, state.x, state.y) == (0x300, 0x7E, 0x12, 0x204, 0x507)
    assert state.p & CARRY
    assert example.difference.where == "$7E0310"


def test_the_reason_is_that_of_the_counter_example() -> None:
    report = held(" stz $10\n rts", " sta $10\n rts")
    assert report.counter_example is not None
    assert report.why == str(report.counter_example.difference) == "$7E0010: $00 (unchanged) expected, $01 found"


# ---- cost ----------------------------------------------------------------------------------------------------------


def test_costs_spread_over_the_same_states() -> None:
    branchy = " lda $10\n bmi +\n inc $11\n inc $11\n rts\n+ rts"
    report = held(branchy, branchy.replace(" lda $10", " lda.b $10\n nop"))
    assert report.reference is not None
    assert report.candidate is not None
    assert (report.reference.cycles.least, report.reference.cycles.most) == (3 + 3 + 6, 3 + 2 + 10 + 6)
    assert report.reference.cycles.least < report.reference.cycles.mean < report.reference.cycles.most
    assert report.candidate.cycles.mean == pytest.approx(report.reference.cycles.mean + 2)
    assert str(report.reference.cycles).endswith("(12 to 21)")
    assert not report.cheaper("cycles")
    assert report.reference == checker(branchy).cost


def test_cheaper_means_less_of_what_the_goal_names() -> None:
    loop = " ldx #$03\n- stz $10,x\n dex\n bpl -\n rts"
    flat = " stz $10\n stz $11\n stz $12\n stz $13\n ldx #$ff\n rts"
    there, back = held(loop, flat), held(flat, loop)
    assert (there.verdict, back.verdict) == ("equal", "equal")
    assert [there.cheaper("cycles"), there.cheaper("bytes")] == [True, False]
    assert [back.cheaper("cycles"), back.cheaper("bytes")] == [False, True]
    assert not held(loop, loop).cheaper("cycles")
    assert not held(loop, loop).cheaper("bytes")


def test_a_candidate_that_is_slower_by_a_factor_is_still_equal() -> None:
    slow = " ldx #$40\n- dex\n bne -\n stz $10\n rts"
    report = held(" stz $10\n rts", slow, EntryState(m=8, x=8, d=0, dbr=0))
    assert report.verdict == "equal"
    assert report.reference is not None
    assert report.candidate is not None
    assert report.candidate.cycles.mean > 20 * report.reference.cycles.mean
    assert not report.cheaper("cycles")


VERY_SLOW = " ldx #$04\n-- ldy #$ff\n- dey\n bne -\n dex\n bne --\n"  # some 2,000 instructions


def test_a_very_slow_candidate_is_waited_for() -> None:
    assert verdict(" stz $10\n rts", VERY_SLOW + " stz $10\n rts", states=32) == "equal"


def test_a_very_slow_candidate_that_is_wrong_differs() -> None:
    for wrong in (" lda #$01\n sta $10\n rts", " lda $10\n bmi +\n stz $10\n+ rts"):
        report = checker(" stz $10\n rts", states=32).check(routine(VERY_SLOW + wrong))
        found = (report.verdict, report.why[:7])
        assert found == ("differs", "$7E0010")


# ---- what is live when nobody says so ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "entry", "live"),
    [
        (" inc $10\n rts", E8, ("a", "b", "x", "y", "c")),  # left alone
        (" lda $10\n rts", E8, ("a", "b", "x", "y", "c")),  # a result
        (" lda #$00\n sta $10\n rts", E8, ("b", "x", "y", "c")),  # a left-over
        (" ldx #$03\n- stz $10,x\n dex\n bpl -\n rts", E8, ("a", "b", "y", "c")),
        (" lda $10\n clc\n adc $11\n sta $12\n rts", E8, ("a", "b", "x", "y")),  # the carry is a by-product
        (" inc $10\n clc\n rts", E8, ("a", "b", "x", "y", "c")),  # set on purpose
        (" lda $10\n cmp #$05\n rts", E8, ("a", "b", "x", "y", "c", "z", "n")),
        (" lda $10\n cmp #$05\n lda #$00\n rts", E8, ("a", "b", "x", "y", "c")),
        (" cpx #$05\n txa\n rts", E8, ("a", "b", "x", "y", "c")),
        (" lda $10\n asl\n tay\n rts", E8, ("a", "b", "x", "y")),
        (" rep #$20\n lda $10\n sta $12\n sep #$20\n rts", E8, ("a", "b", "x", "y", "c")),
        (" lda $10\n sta $12\n rts", E16, ("a", "b", "x", "y", "c")),
        (" xba\n rts", E8, ("a", "b", "x", "y", "c")),
        (" ldx $10\n ldy #$05\n rts", E8, ("a", "b", "x", "c")),
    ],
)
def test_what_is_live_by_inference(reference: str, entry: EntryState, live: tuple[Live, ...]) -> None:
    assert checker(reference, entry, None).live == live


def test_inferred_outputs_are_held_against_candidates() -> None:
    assert held(" inc $10\n rts", " inc $10\n ldx #$00\n rts", live=None).why.startswith("X: ")
    assert held(" inc $10\n rts", " inc $10\n clc\n rts", live=None).why.startswith("flag c: ")
    assert verdict(" lda $10\n rts", " ldx $10\n rts", live=None) == "differs"
    assert verdict(" lda #$00\n sta $10\n rts", " stz $10\n rts", live=None) == "equal"
    assert verdict(" lda $10\n cmp #$05\n rts", " lda $10\n sec\n sbc #$05\n lda $10\n rts", live=None) == "differs"
    assert held(" inc $10\n lda $11\n clc\n rts", " inc $10\n lda $11\n sec\n rts", live=None).why.startswith("flag c")
    by_product = " lda $10\n clc\n adc $11\n sta $12\n rts"
    assert verdict(by_product, by_product.replace("rts", "clc\n rts"), live=None) == "equal"


def test_overflow_after_a_bit_test_is_live() -> None:
    assert verdict(" bit $10\n rts", " bit $10\n clv\n rts", live=None) == "differs"


def test_declared_outputs_are_taken_as_they_are() -> None:
    assert checker(" lda $10\n rts", live=()).live == ()
    assert checker(" lda $10\n rts", live=("v", "a")).live == ("v", "a")


# ---- widths --------------------------------------------------------------------------------------------------------

ALL = [(8, 8), (8, 16), (16, 8), (16, 16)]


@pytest.mark.parametrize(
    ("text", "declared", "widths"),
    [
        (" lda #$1234\n rts", {"x": 8}, [(16, 8)]),
        (" lda #$12\n ldx #$1234\n rts", {}, [(8, 16)]),
        (" lda #$12\n ldx #$12\n rts", {}, [(8, 8)]),
        (" lda #$1234\n ldy #$1234\n rts", {}, [(16, 16)]),
        (" lda #$1234\n rts", {}, [(16, 8), (16, 16)]),
        (" stz $10\n rts", {}, ALL),
        (" rep #$30\n lda #$1234\n ldx #$1234\n rts", {}, ALL),
        (" lda #$12\n rep #$20\n lda #$1234\n rts", {"x": 16}, [(8, 16)]),
        (" lda #$12\n lda #$1234\n rts", {}, []),
        (" pha\n ldx #$12\n plx\n rts", {}, [(8, 8)]),  # A's width must be that of X, or the stack is out of step
        (" lda #$12\n lda #$1234\n rts", {"m": 8, "x": 8}, [(8, 8)]),  # declared is not judged
        (" stz $10\n rts", {"m": 16}, [(16, 8), (16, 16)]),
        (" stz $10\n rts", {"e": 1}, [(8, 8)]),
        ("- bra -", {}, [(8, 8), (8, 16), (16, 8), (16, 16)]),
    ],
)
def test_widths_are_those_under_which_it_runs_as_written(
    text: str, declared: dict[str, int], widths: list[tuple[int, int]]
) -> None:
    states = entry_states(routine(text), declared)
    assert [(state.m, state.x) for state in states] == widths
    assert all(getattr(state, key) == value for state in states for key, value in declared.items())


def test_ambiguous_widths_are_all_tried() -> None:
    entries = tuple(entry_states(routine(" stz $10\n rts"), {"d": 0}))
    report = held(" stz $10\n rts", " lda #$00\n sta $10\n rts", entries)
    assert report.verdict in ("differs", "no return"), "under a 16-bit A the immediate swallows the next opcode"
    assert verdict(" stz $10\n rts", " php\n sep #$20\n stz $10\n plp\n rts", entries) == "differs"
    assert verdict(" stz $10\n rts", " nop\n stz $10\n rts", entries) == "equal"


def test_every_alternative_meets_every_kind_of_state() -> None:
    entries = entry_states(routine(" stz $10\n rts"), {"d": 0})
    runs = checker(" stz $10\n rts", entries).runs
    for declared in entries:
        sizes = {len(set(entry.ram[0])) for used, entry, _ in runs if used == declared}
        assert {256, 8} <= sizes, "a state of edges and one of anything"
        assert min(sizes) <= 4, "and one that repeats"


# ---- not verifiable ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("- bra -", "the reference does not return within its budget from"),
        (" jmp $9000", r"the reference leaves to \$009000 from 96 of 96 states"),
        (" jml $7e2000", r"the reference leaves to \$7E2000 from 96 of 96 states"),
        (" wai", "the reference waits at wai from 96 of 96"),
        (" stp", "the reference stops at stp from 96 of 96"),
        (" pha\n rts", r"the reference leaves to \$"),
        ("m: lda.l m\n sta $10\n rts\n db 1", "the reference reads its own instructions; 0 of 96 states are left"),
        (" lda $10\n cmp #$fe\n bcs +\n stp\n+ rts", r"the reference stops at stp from \d+ of 96"),
    ],
)
def test_a_reference_that_proves_nothing(reference: str, why: str) -> None:
    held_to = checker(reference)
    report = held_to.check(routine(" rts"))
    assert report.verdict == "not verifiable"
    assert re.match(why, report.why), report.why
    assert held_to.problem == report.why
    assert not report.cheaper("cycles")


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        (" lda $10\n bmi +\n jmp $9000\n+ inc $11\n rts", "leaves to $009000"),
        (" lda $10\n bmi far\n inc $11\n rts\nfar: jsr $9000\n rts", "leaves to $009000"),
        (" lda $10\n bpl +\n jsl $809000\n+ inc $11\n rts", "leaves to $809000"),
        (" lda $10\n cmp #$37\n bne +\n jmp $9000\n+ inc $11\n rts", "leaves to $009000"),
        (" lda $10\n bpl +\n stp\n+ inc $11\n rts", "stops at stp"),
        (" lda $10\n bpl +\n- bra -\n+ bvc +\n- bra -\n+ inc $11\n rts", "does not return within its budget"),
    ],
)
def test_a_reference_that_also_ends_elsewhere_proves_nothing(reference: str, why: str) -> None:
    report = checker(reference, states=512).check(routine(" inc $11\n lda $10\n rts"))
    assert report.verdict == "not verifiable"
    assert why in report.why


def test_lines_that_no_state_leads_to_are_told() -> None:
    dead = " sec\n lda $10\n bcs out\n inx\nout: rts"
    report = checker(dead, states=512).check(routine(" sec\n lda $10\n rts"))
    assert (report.verdict, report.unreached) == ("equal", (("reference", 4),))
    assert "line 4 of the reference from none" in report.why
    trap = " lda $10\n clc\n adc #$10\n cmp #$f4\n bne +\n adc #$0b\n cmp #$00\n bcs +\n stz $40\n+ rts"
    report = checker(" lda $10\n rts", live=(), states=64).check(routine(trap))
    assert (report.verdict, report.unreached[-1]) == ("equal", ("candidate", 9))
    behind = " lda $10\n cmp #$05\n bne out\n lda $11\n cmp #$39\n bne out\n inc $20\nout: rts"
    for seed in range(3):
        found = Checker(routine(behind), Contract((E8,), ()), STATES, seed).check(routine(" rts"))
        assert found.verdict == "differs", "it is led there"


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (" sta $4203\n nop\n nop\n nop\n nop\n lda $4216\n sta $10\n rts", " sta $4203\n lda $4216\n sta $10\n rts"),
        ("wait: bit $4212\n bpl wait\n sta $2104\n rts", " sta $2104\n rts"),
        ("- lda $4212\n and #$01\n bne -\n lda $4218\n sta $10\n rts", " lda $4218\n sta $10\n rts"),
        (" sta $2140\n- cmp $2140\n bne -\n inc\n sta $2140\n rts", " sta $2140\n inc\n sta $2140\n rts"),
    ],
)
def test_waiting_for_a_device_cannot_be_left_out(reference: str, candidate: str) -> None:
    assert verdict(reference, candidate, live=(), states=256) == "differs"


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (" lda #$01\n rts", " rts"),
        (" lda $10\n bpl ok\n sec\n rts\nok: asl\n sta $10\n rts", " lda $10\n bpl ok\n rts\nok: asl\n sta $10\n rts"),
    ],
)
def test_what_callers_rely_on_is_not_missed(reference: str, candidate: str) -> None:
    report = Checker(routine(reference), Contract((E8,)), STATES).check(routine(candidate))
    assert report.verdict == "differs"


def test_few_states_are_enough_only_when_few_were_asked_for() -> None:
    seldom = " lda $10\n cmp #$ff\n beq +\n- bra -\n+ rts"
    assert checker(seldom, states=60).problem
    assert held(" rts", " nop\n rts", states=LEAST_STATES).states == LEAST_STATES
    assert held(" rts", " nop\n rts", states=3).states == 3


def test_notes_of_a_reference_are_its_own() -> None:
    held_to = checker(" rep #$20\n lda #$12\n nop\n rts")
    assert [note.offset for note in held_to.notes][:1] == [2]


# ---- accidents: an index that leaves its table ---------------------------------------------------------------------


def test_states_in_which_a_wide_index_strays_to_ports_are_left_out() -> None:
    read = held(" lda $1000,x\n sta $10\n rts", " lda.l $001000,x\n sta $10\n rts", WIDE_X, states=256)
    assert read.verdict == "equal"
    assert 200 < len(checker(" lda $1000,x\n sta $10\n rts", WIDE_X, states=256).runs) < 256
    write = held(" stz $1000,x\n rts", " lda #$00\n sta $1000,x\n rts", WIDE_X, states=256)
    assert write.verdict == "equal"
    assert verdict(" stz $1000,x\n rts", " stz $1001,x\n rts", WIDE_X, states=256) == "differs"


def test_ports_reached_by_an_index_on_purpose_are_judged() -> None:
    loop = " ldx #$03\n- lda $10,x\n sta $2116,x\n dex\n bpl -\n rts"
    assert held(loop, loop).states == STATES
    flat = " lda $13\n sta $2119\n lda $12\n sta $2118\n lda $11\n sta $2117\n lda $10\n sta $2116\n rts"
    assert verdict(loop, flat) == "equal"
    assert verdict(loop, flat.replace("$2117", "$2115")) == "differs"
    assert verdict(loop, " rts") == "differs"


def test_direct_ports_in_rare_branches_are_judged() -> None:
    rare = " lda $10\n cmp #$20\n bcs +\n sta $2118\n+ rts"
    assert held(rare, rare).states == STATES
    assert verdict(rare, " lda $10\n cmp #$20\n rts") == "differs"


def test_indexed_ports_in_rare_branches_are_judged() -> None:
    rare = " lda $10\n cmp #$20\n bcs +\n ldx #$00\n sta $2118,x\n+ rts"
    assert verdict(rare, " lda $10\n cmp #$20\n rts", states=512) == "differs"


SELDOM = " asl\n bcs ok\n asl\n bcc ok\n asl\n bcs ok\n asl\n bcs ok\n asl\n bcc ok\n"  # past it where A is %01001...
STRAYS = {
    "writes a port": " cmp #$20\n bcs +\n ldx #$00\n stz $2100,x\n+ stz $10\n rts",
    "reads a port and stops": " cmp #$20\n bcs +\n ldx #$00\n lda $2100,x\n stp\n+ stz $10\n rts",
    "reads itself and is wrong": "m: cmp #$20\n bcs +\n ldy m\n rts\n+ stz $10\n rts\n db 1",
    "reads itself and stops": "m: cmp #$20\n bcs +\n ldy m\n stp\n+ stz $10\n rts\n db 1",
    "hangs in half of the states": "m: cmp #$80\n bcs +\n ldy m\n- bra -\n+ stz $10\n rts\n db 1",
    "seldom hangs": f"m:{SELDOM} ldy m\n- bra -\nok: stz $10\n rts\n db 1",
}


@pytest.mark.parametrize("name", STRAYS)
def test_a_candidate_that_strays_where_the_reference_does_not_is_not_equal(name: str) -> None:
    assert verdict(" stz $10\n rts", STRAYS[name], states=256) in ("differs", "no return")


@pytest.mark.parametrize(
    "candidate",
    [
        f"{SELDOM} ldx #$00\n stz $2100,x\nok: stz $10\n rts",
        f"{SELDOM} ldx #$00\n stz $2100,x\n rts\nok: stz $10\n rts",
        f"m:{SELDOM} ldy m\n rts\nok: stz $10\n rts\n db 1",
    ],
)
def test_a_candidate_that_seldom_strays_is_not_equal(candidate: str) -> None:
    found = verdict(" stz $10\n rts", candidate, states=512)
    assert found == "differs"


# ---- false verdicts that the states do not show --------------------------------------------------------------------

DUMMIES = "".join(f" ldy #${37 * number:04x}\n" for number in range(1, 30))


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (" cmp #$3456\n bcc +\n stz $10\n+ rts", " cmp #$3457\n bcc +\n stz $10\n+ rts"),
        (" lda $10\n cmp #$1234\n bne +\n stz $12\n+ rts", " lda $10\n rts"),
        (" cpx #$01f0\n bne +\n stz $12\n+ rts", " rts"),
        (" rts", " cmp #$3456\n bne +\n stz $10\n+ rts"),
        (" lda $0300,x\n cmp #$4321\n bne +\n stz $10\n+ rts", " rts"),
    ],
)
def test_comparisons_with_a_word_are_met_at_their_border(reference: str, candidate: str) -> None:
    assert verdict(reference, candidate, E16, states=512) == "differs"


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (" cmp.l t\n bcc +\n stz $10\n+ rts\nt: dw $3456", " cmp.l t\n bcc +\n stz $10\n+ rts\nt: dw $3457"),
        (" rts", f"{DUMMIES} cmp #$f456\n bne +\n stz $10\n+ rts"),
        (" rts", " lda.l $7f1234\n cmp #$4321\n bne +\n stz $10\n+ rts"),
        (" rts", " lda $0300,x\n cmp #$4321\n bne +\n stz $10\n+ rts"),
    ],
)
def test_comparisons_with_a_word_are_met_wherever_it_stands(reference: str, candidate: str) -> None:
    found = verdict(reference, candidate, E16, states=512)
    assert found == "differs"


def test_comparisons_of_a_port_with_a_word_are_met() -> None:
    found = verdict(" lda $2140\n cmp #$bbaa\n bne +\n stz $10\n+ rts", " lda $2140\n rts", E16, states=512)
    assert found == "differs"


def test_comparisons_of_a_port_with_a_byte_are_met() -> None:
    for value in ("$aa", "$37"):
        one = f" lda $2140\n cmp #{value}\n bne +\n stz $10\n+ rts"
        assert verdict(one, " lda $2140\n rts", E8, states=512) == "differs"


def test_comparisons_with_edges_and_with_memory_are_met_at_their_border() -> None:
    assert verdict(" cmp #$80\n bcc +\n stz $10\n+ rts", " cmp #$81\n bcc +\n stz $10\n+ rts") == "differs"
    assert verdict(" cmp $11\n bcc +\n stz $10\n+ rts", " cmp $11\n beq +\n bcc +\n stz $10\n+ rts") == "differs"
    wide = " lda $10\n cmp $12\n bne +\n stz $14\n+ rts"
    assert verdict(wide, " rts", E16) == "differs"


def test_memory_is_written_before_dma_reads_it() -> None:
    before = " lda $10\n sta $0100\n lda #$01\n sta $420b\n rts"
    assert verdict(before, " lda #$01\n sta $420b\n lda $10\n sta $0100\n rts") == "differs"


def test_the_return_address_cannot_be_known() -> None:
    board = Board(routine(" rts"))
    address = board.execute(checker(" rts").runs[0][1], 9).state.pc
    jumps = f" stz $10\n ply\n ply\n jmp ${address:04x}"
    assert verdict(" stz $10\n rts", jumps) != "equal"


def test_the_rom_around_the_routine_cannot_be_known() -> None:
    value = Board(routine(" lda.l $00c000\n rts")).execute(checker(" rts").runs[0][1], 9).state.a & 0xFF
    assert verdict(f" lda #${value:02x}\n sta $10\n rts", " lda.l $00c000\n sta $10\n rts") != "equal"


@pytest.mark.parametrize(
    ("candidate", "scratch"),
    [
        (" inc $20\n php\n lda #$01\n sta $420b\n plp\n rts", ()),
        (" inc $20\n jsr sub\n rts\nsub: lda #$01\n sta $420b\n rts", ()),
        (" inc $20\n stz $10\n lda #$01\n sta $420b\n rts", ((0x7E0010, 0x7E0010),)),
    ],
)
def test_dma_does_not_see_the_stack_nor_scratch(candidate: str, scratch: tuple[Span, ...]) -> None:
    found = verdict(" inc $20\n lda #$01\n sta $420b\n rts", candidate, scratch=scratch)
    assert found == "equal"


def test_a_candidate_that_seldom_reads_its_own_end_is_not_equal() -> None:
    found = verdict(" stz $10\n rts", f"{SELDOM} ldy ok\n rts\nok: stz $10\n rts\n db 1", states=512)
    assert found == "differs"


def test_falling_off_the_end_in_another_bank_is_another_end() -> None:
    assert verdict(" stz $10", " stz $10\n jml end+$800000\nend:") == "differs"


def test_a_candidate_is_entered_as_the_reference_is() -> None:
    assert verdict(" stz $10\n rts", " stz $10\n rts\n rti") == "equal"


def test_interrupt_handlers_are_compared_as_such() -> None:
    handler = " pha\n lda #$01\n sta $10\n pla\n rti"
    saved = handler.replace(" pha\n", " php\n pha\n").replace(" pla\n", " pla\n plp\n")
    assert verdict(handler, saved, live=("a", "b", "x", "y", "c", "z", "n", "v")) == "equal"
    lost = held(handler, " lda #$01\n sta $10\n rti", live=("a",))
    assert (lost.verdict, lost.why[:2]) == ("differs", "A:")
    assert verdict(handler, " pha\n lda #$01\n sta $10\n pla\n rts") != "equal"


# ---- texts ---------------------------------------------------------------------------------------------------------


def test_every_verdict_on_texts() -> None:
    reference = " stz $10\n rts"
    for candidate, verdict, why in (
        (" lda #$00\n sta $10\n rts", "equal", r"the same from \d+ states"),
        (" stz $11\n rts", "differs", r"\$7E001[01]: "),
        ("- bra -", "no return", "it does not return within its budget"),
        (" stz $10\n\n bla", "does not assemble", "line 3: "),
        ("", "does not assemble", "line 1: there is no instruction"),
    ):
        judgement = judge(reference, candidate, E8, live=(), states=64)
        assert judgement.verdict == verdict
        assert re.match(why, judgement.why), judgement.why
        assert (judgement.report is None) == (verdict == "does not assemble")
        assert judgement.reference.status == "ok"


def test_a_reference_that_does_not_assemble_is_told_with_its_line() -> None:
    judgement = judge(" rts\n bla", " rts", E8)
    assert (judgement.verdict, judgement.report) == ("not verifiable", None)
    assert judgement.why.startswith("the reference does not assemble: line 2: ")
    assert judge(" bla", " bla", E8).verdict == "not verifiable"


def test_texts_without_fitting_widths_or_a_return_are_not_verifiable() -> None:
    judgement = judge(" lda #$12\n lda #$1234\n rts", " rts", {})
    assert judgement.verdict == "not verifiable"
    assert judgement.why.endswith("declare m and x")
    assert (judgement.entries, judgement.report) == ((), None)
    left = judge(" jmp $9000", " rts", E8, states=32)
    assert (left.verdict, left.why) == ("not verifiable", "the reference leaves to $009000 from 32 of 32 states")


def test_some_keys_of_an_entry_state_are_enough() -> None:
    judgement = judge(" lda #$1234\n sta $10\n rts", " ldx #$1234\n stx $10\n rts", {"d": 0}, live=(), states=64)
    assert [(entry.m, entry.x, entry.d) for entry in judgement.entries] == [(16, 8, 0), (16, 16, 0)]
    assert judgement.verdict in ("differs", "no return"), "X may have 8 bits"
    declared = {"d": 0, "x": 16}
    assert judge(
        " lda #$1234\n sta $10\n rts", " ldx #$1234\n stx $10\n rts", declared, live=(), states=64
    ).verdict == ("equal")


def test_without_asar_nothing_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asar_module, "asar_path", lambda: None)
    judgement = judge(" stz $10\n rts", " stz $10\n rts", E8)
    assert (judgement.verdict, judgement.report, judgement.why) == ("not verified", None, "Asar is not installed")


def test_notes_have_the_lines_of_the_candidate() -> None:
    judgement = judge(BYTE_LOOP, f"; wrong\n{MODE_MISMATCH}", WIDE_X, live=(), states=64)
    assert judgement.verdict == "no return"
    found = (4, "the immediate is written with 1 byte and executed with A 16-bit")
    assert found in [(note.line, note.message) for note in judgement.notes()]
    assert judge(" rts", " bla", E8).notes() == ()


def test_notes_of_the_reference_are_not_told_of_the_candidate() -> None:
    judgement = judge(" rep #$20\n- lda #$00\n bra -", " rts", E8, states=32)
    assert judgement.verdict == "not verifiable"
    assert judgement.notes() == ()


def test_a_verdict_does_not_depend_on_candidates_before() -> None:
    held_to = checker(" inc $10\n lda $4210\n rts", live=("a",))
    candidates = [" inc $10\n lda $4210\n rts", " dec $10\n lda $4210\n rts", "- bra -", " inc $10\n lda $4211\n rts"]
    alone = [Checker(held_to.routine, held_to.contract, STATES).check(routine(text)) for text in candidates]
    assert [held_to.check(routine(text)) for text in candidates * 2] == alone * 2
    assert [report.verdict for report in alone] == ["equal", "differs", "no return", "differs"]


def test_a_routine_is_equal_to_itself_and_seeds_agree() -> None:
    for text in (BYTE_LOOP, WIDE_STZ, " lda ($10),y\n sta [$13]\n rts", " lda $4210\n bmi +\n inc $2100\n+ rtl"):
        for seed in (0, 1):
            report = Checker(routine(text), Contract((WIDE_X,)), STATES, seed).check(routine(text))
            assert report.verdict == "equal", text
            assert report.reference == report.candidate


def test_emulation_mode_is_compared_like_any_other() -> None:
    loop = " ldx #$1f\n- stz $0300,x\n dex\n bpl -\n rts"
    assert verdict(loop, loop.replace("stz", "lda #$00\n sta"), EMULATION) == "equal"
    assert verdict(loop, loop.replace("1f", "1e"), EMULATION) == "differs"
    ends = Board(routine(loop)).execute(checker(loop, EMULATION).runs[0][1], 500)
    assert (ends.stop, ends.state.e) == (RETURNS, 1)
