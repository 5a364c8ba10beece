"""Hostile text and hostile code: always a verdict, after bounded work, and nothing left behind.

Work is counted in runs and in emulated cycles, never in time.
"""

import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from afs_mlx.schema.optimisation import EntryState
from afs_mlx.snes import asar as asar_module
from afs_mlx.snes.asar import asar_path, assemble
from afs_mlx.snes.cpu.memory import BLOCK_BYTES
from afs_mlx.snes.cpu.state import M8, X8, State
from afs_mlx.snes.equivalence.checker import Checker, Contract
from afs_mlx.snes.equivalence.comparison import first_difference
from afs_mlx.snes.equivalence.judging import judge
from afs_mlx.snes.execution.board import ENDLESS, FALLS_OFF, RETURNS, RETURNS_LONG, Board, Outcome
from afs_mlx.snes.execution.entries import RAM_BLOCKS, Entry, draw
from afs_mlx.snes.execution.routine import Routine

needs_asar = pytest.mark.skipif(asar_path() is None, reason="Asar is not on this machine")

REFERENCE = " stz $10\n rts"
E8 = EntryState(m=8, x=8, d=0, dbr=0)
E16 = EntryState(m=16, x=16, d=0, dbr=0)
EMULATION = EntryState(e=1, m=8, x=8, d=0, dbr=0)
FREE = EntryState(m=8, x=16)
ZERO_RAM = (bytes(BLOCK_BYTES),) * RAM_BLOCKS

MAX_RUNS, MAX_CYCLES = 1000, 12_000_000  # of a verdict on a candidate for a reference of two instructions


@dataclass
class Work:
    """What has been executed since it was last set to zero."""

    runs: int = 0
    cycles: int = 0


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Counts what boards execute, and fails where it is too much for one test."""
    counted, execute = Work(), Board.execute

    def counting(board: Board, entry: Entry, budget: int) -> Outcome:
        outcome = execute(board, entry, budget)
        counted.runs += 1
        counted.cycles += outcome.cycles
        assert counted.runs <= MAX_RUNS, "too many runs"
        assert counted.cycles <= MAX_CYCLES, "too many cycles"
        return outcome

    monkeypatch.setattr(Board, "execute", counting)
    return counted


@pytest.fixture(autouse=True)
def sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The temporary folder is empty again afterwards; a folder beside it and the working folder are as before."""
    temporary, marker, working = (tmp_path / name for name in ("temporary", "marker", "working"))
    for folder in (temporary, marker, working):
        folder.mkdir()
    (marker / "canary.asm").write_text(" nop\n")
    (working / "in.asm").write_text(" lda #$ca\n")
    (working / "out.sfc").write_bytes(b"canary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(working)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()}
    yield
    assert list(temporary.iterdir()) == []
    assert before == {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()
    }


# ---- texts ---------------------------------------------------------------------------------------------------------

REFUSED = {
    "a file": 'incbin "/etc/passwd"',
    "a file beside": 'incsrc "../marker/canary.asm"',
    "a file in the working folder": "incsrc in.asm",
    "a name put together": '!x = inc\n!{x}bin "/etc/passwd"',
    "a name put together in parts": '!a = in\n!b = cbin\n!a!b "/etc/passwd"',
    "a joined line": 'nop \\\n : incbin "/etc/passwd"',
    "a joined list": 'db 1,\nincbin "/etc/passwd"',
    "a second command": 'nop : incbin "/etc/passwd"',
    "an old comment mark": ';@xkas\nincbin "/etc/passwd"',
    "an include mark": '@include\nincsrc "in.asm"',
    "a function": 'db readfile1("/etc/passwd", 0)',
    "a table": 'table "/etc/passwd"',
    "printing": 'print "x"',
    "macros": "macro a()\n%a()\n%a()\nendmacro\n%a()",
    "deep macros": "".join(f"macro m{n}()\n%m{n + 1}()\n%m{n + 1}()\nendmacro\n" for n in range(30)) + "%m0()",
    "a macro's name in a label": "%a: nop",
    "a loop": "while 1\n nop\nendwhile",
    "another loop": "for i = 0..1000000000\n nop\nendfor",
    "a repeat": "rep 1000000000 : nop",
    "a repeated command": "nop #1000000000",
    "a doubling define": "!a = nop\n" + "!a := !a : !a\n" * 60 + "!a",
    "fill": "fill 1000000000",
    "pad": "padbyte $00\npad $ffffff",
    "far away": "org $ff8000\nnop\norg $808000\nnop",
    "another mapper": "hirom\nnop",
    "another chip": "arch spc700\nnop",
    "10 MB": "nop\n" * (10 << 18),
    "10 MB in a line": "a" * (10 << 20),
    "zero bytes": "nop\x00\nnop",
    "only zero bytes": "\x00" * 1000,
    "an escape": " nop\x1b[2J",
    "deep brackets": "dw " + "(" * 480 + "1" + ")" * 480,
    "deep signs": "dw " + "-" * 900 + "1",
    "the end label": "afs_end: nop",
    "a surrogate": "nop \udcff",
    "another digit": "lda #²",
    "nothing": "",
    "a comment": "; incbin",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_texts_are_a_verdict_and_never_reach_asar(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: object, **__: object) -> None:
        raise AssertionError("Asar was called")

    with monkeypatch.context() as patch:
        patch.setattr(asar_module, "run_limited", unwanted)
        patch.setattr(asar_module, "asar_path", lambda: Path("asar"))
        result = assemble(REFUSED[name])
        assert (result.status, result.code, result.placed) == ("failed", b"", ())
        assert 1 <= len(result.errors) <= 2001
        assert all(len(str(error)) < 2500 for error in result.errors)


@needs_asar
def test_refused_texts_are_judged_on_both_sides(work: Work) -> None:
    for text in REFUSED.values():
        judgement = judge(REFERENCE, text, E8)
        assert (judgement.verdict, judgement.report) == ("does not assemble", None)
        assert judgement.why.startswith("line ")
    for name in ("a file", "10 MB", "zero bytes", "deep macros", "nothing"):
        assert judge(REFUSED[name], REFERENCE, E8).verdict == "not verifiable"
        assert judge(REFUSED[name], REFUSED[name], {}).verdict == "not verifiable"
    assert work.runs == 0


@needs_asar
def test_huge_tables_are_carried_along(work: Work) -> None:
    table = "\n".join(["dd " + ",".join(["$60ea60ea"] * 3)] * 1900)
    judgement = judge(REFERENCE, f"{REFERENCE}\n{table}", E8, live=(), states=16)
    assert judgement.verdict == "equal"
    assert judgement.report is not None
    assert judgement.report.candidate is not None
    assert judgement.report.candidate.size_bytes == 3 + 1900 * 12
    executed = judge(REFERENCE, f"{table}\n{REFERENCE}", E8, live=(), states=16)
    assert executed.verdict == "differs"
    assert executed.notes()[0].message == "data is executed"
    assert work.runs < MAX_RUNS


@needs_asar
def test_many_labels_and_branches_are_a_verdict(work: Work) -> None:
    chain = "\n".join(f"l{number}: bra l{number + 1}" for number in range(1500)) + "\nl1500: stz $10\n rts"
    assert judge(REFERENCE, chain, E8, live=(), states=16).verdict == "equal"
    assert work.runs < MAX_RUNS


# ---- code that the judge meets -------------------------------------------------------------------------------------

# Candidates for the reference; none does what it does.
WRONG = {
    "a jump to itself": "m: jmp m",
    "a branch to itself": "- bra -",
    "nested counters": " rep #$30\n-- ldx #$0000\n- dex\n bne -\n bra --",
    "code in work RAM": " lda #$60\n sta.l $7e2000\n jml $7e2000",
    "code in work RAM, called": " lda #$6b\n sta.l $7e2000\n jsl $7e2000\n rts",
    "code on the stack": " lda #$60\n pha\n tsc\n inc\n pha\n rts",
    "a return to nowhere": " pha\n pha\n rts",
    "a pulled return address": " plx\n rts",
    "an overwritten return address": " lda #$00\n sta $01,s\n sta $02,s\n stz $10\n rts",
    "an overwritten stack": " rep #$10\n ldx #$1fff\n- stz $00,x\n dex\n bpl -\n stz $10\n rts",
    "S to the ports": " rep #$30\n lda #$2107\n tcs\n pha\n phx\n sep #$30\n stz $10\n rts",
    "S to the ROM": " rep #$30\n ldx #$9000\n txs\n phx\n plx\n sep #$30\n stz $10\n rts",
    "S to the top": " rep #$30\n ldx #$ffff\n txs\n pla\n sep #$30\n stz $10\n rts",
    "S to the bottom": " rep #$30\n lda #$0000\n tcs\n pha\n sep #$30\n stz $10\n rts",
    "wai": " stz $10\n wai\n rts",
    "stp": " stz $10\n stp\n rts",
    "brk": " stz $10\n brk #$00\n rts",
    "cop": " stz $10\n cop #$00\n rts",
    "its vector": " stz $10\n jmp ($ffe6)",
    "its reset": " stz $10\n jmp ($fffc)",
    "emulation": " stz $10\n sec\n xce\n rts",
    "emulation and back": " stz $10\n sec\n xce\n clc\n xce\n rts",
    "a width left behind": " stz $10\n rep #$30\n rts",
    "the widths of an immediate": " rep #$20\n lda #$00\n stz $10\n sep #$20\n rts",
    "decimal left behind": " stz $10\n sed\n rts",
    "interrupts on": " stz $10\n php\n pla\n eor #$04\n pha\n plp\n rts",
    "one byte more": " stz $10\n stz $11\n rts",
    "a block move over bank 0": " rep #$30\n lda #$ffff\n ldx #$0000\n ldy #$0001\n mvn $00,$00\n sep #$30\n rts",
    "the wrong bank": " stz $10\n phk\n plb\n lda #$7e\n pha\n plb\n rts",
    "the direct page": " stz $10\n pea $2100\n pld\n rts",
    "a pointer from memory": " stz $10\n jmp ($0010)",
    "a far pointer from memory": " stz $10\n jml [$0012]",
    "a table of nothing": " stz $10\n jmp ($0000,x)",
    "another interrupt's return": " stz $10\n rti",
    "the reference's place": "org $00C000\n jmp $8000",
    "the reference's place, by a mirror": "org $00C000\n jml $808000",
    "a copy of the reference": "org $00C000\n lda.l $008000\n sta $10\n rts",
}  # fmt: skip


@needs_asar
@pytest.mark.parametrize("name", WRONG)
def test_hostile_candidates_get_a_verdict_after_bounded_work(name: str, work: Work) -> None:
    judgement = judge(REFERENCE, WRONG[name], E8, live=(), states=32)
    verdict, why = judgement.verdict, judgement.why
    assert verdict in ("differs", "no return"), why
    assert why
    assert judgement.report is not None
    assert judgement.report.counter_example is not None
    assert work.runs > 32


@needs_asar
@pytest.mark.parametrize("name", ["a jump to itself", "code in work RAM", "wai", "brk", "a return to nowhere"])
def test_as_references_they_prove_nothing(name: str, work: Work) -> None:
    judgement = judge(WRONG[name], REFERENCE, E8, live=(), states=32)
    assert judgement.verdict == "not verifiable"
    assert work.runs <= 64, "32 and some for its constants"


@needs_asar
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pushes for ever", "- pha\n bra -"),
        ("calls itself", "m: jsr m"),
        ("calls itself far", "m: jsl m"),
        ("writes a port for ever", "- sta $2100\n bra -"),
        ("reads itself for ever", "m: lda m\n bra m"),
        ("a block move over all ports", " rep #$30\n lda #$ffff\n mvn $00,$7f\n sep #$30\n rts"),
    ],
)
def test_hostile_candidates_that_meet_ports_do_not_take_longer(name: str, text: str, work: Work) -> None:
    assert judge(REFERENCE, text, E8, live=(), states=512).verdict in ("differs", "no return"), name
    assert work.runs > 512


@needs_asar
def test_slow_candidates_are_judged(work: Work) -> None:
    rounds = " php\n rep #$10\n ldx #$0000\n- dex\n bne -\n plp\n stz $10\n rts"
    assert judge(REFERENCE, rounds, E8, live=(), states=4).verdict == "equal", "65,536 rounds"
    assert work.cycles > 4 * 65_536 * 5


@needs_asar
def test_a_candidate_may_try_to_overwrite_the_reference(work: Work) -> None:
    """ROM stays, and so does what the reference does."""
    overwrite = " lda #$db\n sta.l $008000\n sta.l $808001\n lda #$00\n sta $10\n rts"
    assert judge(REFERENCE, overwrite, E8, live=(), states=32).verdict == "equal"
    assert judge(REFERENCE, f"org $00C000\n{overwrite}", E8, live=(), states=32).verdict == "equal"


# ---- code on the board ---------------------------------------------------------------------------------------------

ENDS = {
    "jmp to itself": ("4c 00 80", "does not return"),
    "nested 16-bit counters": ("c2 30 a2 00 00 a0 00 00 88 d0 fd ca d0 f7 60", "does not return"),
    "pushing for ever": ("48 80 fd", "does not return"),
    "calling itself": ("20 00 80", "does not return"),
    "calling itself far": ("22 00 80 00", "does not return"),
    "calling itself by a table": ("fc 06 80 80 fb 60 00 80", ""),
    "code put into work RAM": ("a9 60 8f 00 20 7e 5c 00 20 7e", "leaves to $7E2000"),
    "code put into save RAM": ("a9 6b 8f 00 00 70 22 00 00 70", "leaves to $700000"),
    "code at a port": ("5c 80 21 00", "leaves to $002180"),
    "code on open bus": ("5c 00 60 40", "leaves to $406000"),
    "pha pha rts": ("48 48 60", "leaves to $00"),
    "plx rts": ("fa 60", "leaves to $00"),
    "return address overwritten": ("a9 00 83 01 83 02 60", "leaves to $00"),
    "wai": ("cb", "waits at wai"),
    "stp": ("db", "stops at stp"),
    "brk": ("00 00", "leaves to $00"),
    "cop": ("02 00", "leaves to $00"),
    "xce for ever": ("38 fb 18 fb 80 fa", "does not return"),
    "xce and pull": ("38 fb 28 28 28 fb 60", ""),
    "plp, plb, pld of anything": ("28 ab 2b 60", ""),
    "rti of anything": ("40", ""),
    "S anywhere": ("c2 30 1b 48 da 5a 9a 48 68 60", ""),
    "D anywhere": ("c2 30 5b 85 00 e6 80 06 ff 60", ""),
    "mvn over bank 0": ("c2 30 a9 ff ff 54 00 00 60", "" ),
    "mvn from the ports": ("c2 30 a9 ff ff 54 7e 00 60", ""),
    "mvp over the ROM": ("c2 30 a9 ff ff 44 80 ff 60", ""),
    "mvn with 8-bit indices": ("e2 10 a9 ff 54 00 7e 60", ""),
    "writing for ever to ports": ("9c 00 21 80 fb", "does not return"),
    "writing everywhere": ("c2 30 9f 00 00 00 9f 00 00 7e 9f 00 80 ff e8 80 f1", "does not return"),
    "all 256 opcodes": (bytes(range(256)).hex(), ""),
    "all opcodes backwards": (bytes(range(255, -1, -1)).hex(), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_every_run_ends_and_leaves_the_entry_alone(name: str) -> None:
    code, stop = ENDS[name]
    board = Board(Routine(0x8000, bytes.fromhex(code)))
    for index, declared in enumerate((E8, E16, EMULATION)):
        entry = draw(declared, index, 1)
        copy = Entry(entry.state, tuple(bytes(bytearray(block)) for block in entry.ram), entry.port_seed)
        outcome = board.execute(entry, 5000)
        if declared is E8:
            assert outcome.stop.startswith(stop)
        assert_sane(outcome)
        assert entry == copy
        assert board.execute(entry, 5000) == outcome
        assert Board(board.routine).execute(entry, 5000) == outcome


def assert_sane(outcome: Outcome) -> None:
    """What holds for every outcome."""
    stops = (RETURNS, RETURNS_LONG, FALLS_OFF, ENDLESS, "waits at wai", "stops at stp")
    assert outcome.stop in stops or outcome.stop.startswith("leaves to $")
    state = outcome.state
    assert 0 <= max(state.pc, state.s, state.a, state.x, state.y, state.d) <= 0xFFFF
    assert max(state.p, state.dbr, state.pbr) <= 0xFF
    assert state.e in (0, 1)
    assert not state.e or (state.p & (M8 | X8) == M8 | X8 and state.s >> 8 == 1)
    assert not state.p & X8 or max(state.x, state.y) <= 0xFF
    assert all(0 <= number < RAM_BLOCKS and len(block) == BLOCK_BYTES for number, block in outcome.ram.items())
    assert 6 * outcome.cycles <= outcome.clocks <= 12 * outcome.cycles
    assert all(kind in "rw" and 0x2000 <= at < 0x6000 and 0 <= value <= 255 for kind, at, value in outcome.events)


def test_an_empty_routine_and_one_of_a_full_bank() -> None:
    entry = Entry(State(s=0x1FF0, p=M8 | X8), ZERO_RAM, 0)
    assert Board(Routine(0x8000, b"")).execute(entry, 10).stop == FALLS_OFF
    full = Board(Routine(0x8000, b"\xea" * 0x7FFF + b"\x60"))
    assert full.execute(entry, 0x8002).stop == RETURNS
    assert len(full.notes) == 0


def test_random_bytes_never_raise() -> None:
    rng = random.Random(65816)
    stops = set()
    for number in range(300):
        org = rng.choice((0x8000, 0x808000, 0x01FF00, 0x7DFFF0, 0xFFFFFD, 0x0E8000))
        code = rng.randbytes(rng.randrange(1, 60))
        board = Board(Routine(org, code), fast=bool(number & 1))
        entry = draw(rng.choice((E8, E16, EMULATION, FREE)), number, 2)
        outcome = board.execute(entry, 2000)
        assert_sane(outcome)
        assert Board(board.routine, fast=bool(number & 1)).execute(entry, 2000) == outcome
        stops.add(outcome.stop.split("$")[0])
    assert {RETURNS, FALLS_OFF, ENDLESS, "leaves to "} <= stops


# ---- candidates at random ------------------------------------------------------------------------------------------

# ldx #3; - lda $10,x; sta $20,x; dex; bpl -; inc $30; lda $10; rts
FIXED = bytes.fromhex("a2 03 b5 10 95 20 ca 10 f9 e6 30 a5 10 60")


def mutated(rng: random.Random) -> bytes:
    """The fixed reference with a byte changed, left out or put in, or anything."""
    code = bytearray(FIXED)
    at = rng.randrange(len(code))
    match rng.randrange(5):
        case 0:
            code[at] = rng.randrange(256)
        case 1:
            code[at] ^= 1 << rng.randrange(8)
        case 2:
            del code[at]
        case 3:
            code.insert(at, rng.choice((0xEA, 0xEA, 0x18, 0xB8, 0xD8, 0x78, 0x00)))
        case _:
            code = bytearray(rng.randbytes(rng.randrange(1, 30)))
    return bytes(code)


def test_random_candidates_are_equal_only_where_they_are(work: Work) -> None:
    """Each "equal" is held against fresh states of another seed."""
    rng = random.Random(4)
    held_to = Checker(Routine(0x8000, FIXED), Contract((E8,), live=("a", "b", "x", "y")), states=64)
    fresh = [draw(E8, index, 99) for index in range(48)]
    reference = Board(held_to.routine)
    expected = [reference.execute(entry, 500) for entry in fresh]
    verdicts = []
    for _ in range(150):
        work.runs = work.cycles = 0
        candidate = Routine(0x8000, mutated(rng))
        report = held_to.check(candidate)
        verdicts.append(report.verdict)
        if report.verdict != "equal":
            assert report.counter_example is not None, report.why
            continue
        assert report.states == 64
        board = Board(candidate)
        for entry, wanted in zip(fresh, expected, strict=True):
            got = board.execute(entry, 2000)
            assert first_difference(entry, wanted, got, held_to.live) is None, candidate.code.hex(" ")
    assert verdicts.count("equal") > 5
    assert verdicts.count("differs") > 30
    assert verdicts.count("no return") > 30


@needs_asar
def test_a_long_candidate_that_is_mostly_unreached_is_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To find out where branches lead takes long on hostile bytes; states are drawn by the hundred."""
    calls: list[int] = []
    reachable = Routine.reachable
    monkeypatch.setattr(Routine, "reachable", lambda self, entries: (calls.append(1), reachable(self, entries))[1])
    trap = " lda $10\n clc\n adc #$10\n cmp #$f4\n bne +\n adc #$0b\n cmp #$00\n bcs +\n jmp far\n"
    candidate = trap + "back:\n+ stz $10\n rts\nfar:\n" + " inc $20\n" * 1500 + " jmp back"
    judgement = judge(" stz $10\n rts", candidate, E8, live=(), states=32)
    assert judgement.verdict == "equal"
    assert "line 6 of the candidate from none" in judgement.why
    assert len(calls) == 2, "once for each routine"
