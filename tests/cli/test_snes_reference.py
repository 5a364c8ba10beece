"""`afs-mlx snes register` and `verify`, and what all commands of the group have in common: help pages and no mlx."""

import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from afs_mlx.cli.app import app
from afs_mlx.snes.asar import asar_path

ROOT = Path(__file__).parents[2]
needs_asar = pytest.mark.skipif(asar_path() is None, reason="Asar is not on this machine")

OPTIONS = {
    "asm": ["--org", "--entry", "--out", "--json"],
    "disasm": ["--org", "--m", "--x", "--rom", "--length", "--json"],
    "run": ["--entry", "--org", "--poke", "--trace", "--budget", "--break", "--seed", "--json"],
    "cost": ["--entry", "--org", "--states", "--seed", "--fast", "--json"],
    "equal": ["--entry", "--live", "--scratch", "--goal", "--states", "--seed", "--json"],
    "register": ["--check", "--json"],
    "verify": ["--first", "--json"],
}

PROBE = """
import sys
from afs_mlx.cli.app import main
for words in sys.argv[1:]:
    sys.argv = ["afs-mlx", *words.split("|")]
    try:
        main()
    except SystemExit as error:
        heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"mlx", "mlx_lm", "transformers", "torch"})
        print("HEAVY", heavy, "CODE", int(error.code or 0), file=sys.stderr)
"""

# inc $10 at $8000 of bank 0 in native mode with 8 bits: the byte $7F becomes $80.
INIT = [0x8000, 0x01FF, 0x30, 0x1234, 0x05, 0x06, 0x7E, 0x0000, 0x00, 0]
FINAL = [0x8002, 0x01FF, 0xB0, 0x1234, 0x05, 0x06, 0x7E, 0x0000, 0x00, 0]
RAM = [[0x8000, 0xE6], [0x8001, 0x10], [0x0010, 0x7F]]
CASE = [INIT, RAM, FINAL, [[0x0010, 0x80]], 5, "rrr-w", [0x8000, 0x8001, 0x0010, 0x0010]]
FINAL_AT, WRITES_AT, CYCLES_AT, KINDS_AT, ADDRESSES_AT = range(2, 7)


def snes(*words: str, code: int = 0, stdin: str | bytes | None = None) -> Result:
    result = CliRunner().invoke(app, ["snes", *words], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == code, result.output
    return result


def answer(*words: str, code: int = 0, stdin: str | bytes | None = None) -> dict[str, Any]:
    """The one JSON object on stdout."""
    data: dict[str, Any] = json.loads(snes(*words, "--json", code=code, stdin=stdin).stdout)
    assert data.pop("schema_version") == 1
    return data


def changed(place: int, value: Any) -> list[Any]:
    return [*CASE[:place], value, *CASE[place + 1 :]]


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    """A folder with one good file."""
    folder = tmp_path / "vectors"
    folder.mkdir()
    (folder / "e6.n.json").write_text(json.dumps([CASE, CASE]))
    return folder


# ---- the group ---------------------------------------------------------------------------------------


def test_the_group_lists_its_commands() -> None:
    page = CliRunner().invoke(app, ["snes", "--help"]).stdout
    listed = [line.split()[0] for line in page.partition("Commands:")[2].splitlines() if line.strip()]
    assert listed == list(OPTIONS)
    assert "Usage: afs-mlx snes" in snes(code=2).output
    assert "No such command 'assemble'" in snes("assemble", code=2).stderr


@pytest.mark.parametrize("command", OPTIONS)
def test_a_help_page_names_every_option(command: str) -> None:
    page = snes(command, "--help").stdout
    named = [line.split()[0].rstrip(",") for line in page.partition("Options:")[2].splitlines() if line[:4] == "  --"]
    assert named == OPTIONS[command]
    assert "-h, --help" in page
    assert snes(command, "-h").stdout == page


@pytest.mark.parametrize("command", OPTIONS)
def test_an_unknown_option_and_a_missing_argument(command: str) -> None:
    assert "No such option: --bogus" in snes(command, "--bogus", "x", code=2).stderr
    assert snes(command, code=2).stdout == ""


@needs_asar
def test_no_command_imports_mlx(vectors: Path) -> None:
    commands = ["--help", "asm|nop", "disasm|ea", "run|nop|--trace", "cost|nop", "equal|nop|nop", "register|2100"]
    words = [f"snes|{command}" for command in [*commands, f"verify|{vectors}"]]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words], capture_output=True, text=True, cwd=ROOT, check=False, timeout=60
    )
    assert [line for line in done.stderr.splitlines() if line.startswith("HEAVY")] == ["HEAVY [] CODE 0"] * 8


def test_a_reader_that_leaves_is_no_error() -> None:
    line = f"{sys.executable} -m afs_mlx.cli.app snes disasm {'ea' * 100} | true"
    words = ["bash", "-c", f"set -o pipefail; {line}"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def on_a_terminal(words: list[str], **environment: str) -> str:
    """What a command shows on a terminal with colours."""
    terminal, its_end = pty.openpty()
    surroundings = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    surroundings |= {"TERM": "xterm-256color", **environment}
    command = [sys.executable, "-m", "afs_mlx.cli.app", *words]
    with subprocess.Popen(command, stdout=its_end, stderr=its_end, stdin=its_end, cwd=ROOT, env=surroundings):
        os.close(its_end)
        shown = b""
        with suppress(OSError):  # how Linux says that the other end is closed
            while read := os.read(terminal, 4096):
                shown += read
    os.close(terminal)
    return shown.decode()


def test_colours_on_a_terminal_unless_they_are_not_wanted() -> None:
    words = ["snes", "register", "frob"]
    assert "\x1b[31m" in on_a_terminal(words)
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        shown = on_a_terminal(words, **environment)
        assert "there is no register of this name" in shown
        assert "\x1b" not in shown


# ---- register ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["INIDISP", "inidisp", " INIDISP ", "!INIDISP", "2100", "$2100", "0x2100", "$00:2100", "802100", "$BF:2100"]
)
def test_a_register_in_the_ways_people_write_it(name: str) -> None:
    result = snes("register", name)
    assert result.stdout == ("$2100 INIDISP  W  f---bbbb\n  forced blank (1 = display off) and screen brightness\n")
    assert result.stderr == ""


def test_a_register_as_json() -> None:
    assert answer("register", "CGDATA") == {
        "registers": [
            {
                "address": 0x2122,
                "name": "CGDATA",
                "access": "W",
                "accesses_per_value": 2,
                "bits": "-bbbbbgg gggrrrrr",
                "purpose": "palette colour write, low byte then high byte; the index steps after the second",
                "aliases": ["WRCGDATA"],
            }
        ]
    }


def test_what_a_register_page_tells() -> None:
    said = snes("register", "cgdata").stdout
    assert said.startswith("$2122 CGDATA  W (low byte, then high byte)  -bbbbbgg gggrrrrr\n")
    assert said.endswith("\n  also WRCGDATA\n")


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("DMAPx", [0x4300 + 16 * channel for channel in range(8)]),
        ("dmap3", [0x4330]),
        ("VMDATA", [0x2118, 0x2119]),
        ("WMADDH", [0x2182, 0x2183]),
        ("4016", [0x4016]),
    ],
)
def test_names_for_one_a_pair_and_a_row(name: str, addresses: list[int]) -> None:
    assert [one["address"] for one in answer("register", name)["registers"]] == addresses


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("INIDSP", "fix: did you mean INIDISP?"),
        ("DMAP8", "fix: did you mean DMAP"),
        ("frob", "there is no register of this name"),
        ("$", "there is no register of this name"),
        ("21", "there is no register of this name"),
        ("1234567890", "there is no register of this name"),
        ("2200", "there is no register at this address"),
        ("7E2100", "there is no register at this address"),
        ("402100", "there is no register at this address"),
        ("\x1b[31mred", "error: [31mred: there is no register of this name"),
        ("\u202eINIDISP", "error: INIDISP: there is no register of this name"),
    ],
)
def test_no_register(name: str, said: str) -> None:
    result = snes("register", name, code=1)
    assert said in result.stderr
    assert result.stdout == ""
    assert not set(result.output) & set("\x1b\u202e")


def test_one_of_name_and_check(tmp_path: Path) -> None:
    path = tmp_path / "text.md"
    path.write_text("INIDISP ($2100)")
    for words in ((), ("",), ("2100", "--check", str(path))):
        assert "a name, an address or --check is needed" in snes("register", *words, code=2).stderr


CLAIMS = "sta $2100 ; INIDISP\n$2115 (VMAIN)\n\n`$2121` is VMAIN. $2122 (FOOBAR)\n"


def test_check_judges_what_a_text_says(tmp_path: Path) -> None:
    path = tmp_path / "answer.md"
    path.write_text(CLAIMS)
    for words, stdin in (((str(path),), None), (("-",), CLAIMS)):
        result = snes("register", "--check", *words, code=1, stdin=stdin)
        assert result.stdout == (
            "line 4: $2121 is CGADD, not VMAIN (VMAIN is $2115)\n"
            "line 4: no register is called FOOBAR; $2122 is CGDATA\n"
            "2 of 4 claims are right\n"
        )
        assert result.stderr == ""
    found = answer("register", "--check", str(path), code=1)["claims"]
    assert [(claim["line"], claim["address"], claim["name"], claim["verdict"]) for claim in found] == [
        (1, 0x2100, "INIDISP", "right"),
        (2, 0x2115, "VMAIN", "right"),
        (4, 0x2121, "VMAIN", "wrong"),
        (4, 0x2122, "FOOBAR", "unknown"),
    ]
    assert [claim["expected"] for claim in found] == ["INIDISP", "VMAIN", "CGADD", "CGDATA"]


@pytest.mark.parametrize(
    ("text", "right", "said"),
    [
        ("INIDISP ($2100), VMAIN ($2115)\r\n", 2, "2 of 2 claims are right"),
        ("nothing of that kind", 0, "no claims about registers found"),
        ("", 0, "no claims about registers found"),
    ],
)
def test_check_of_a_text_without_mistakes(text: str, right: int, said: str) -> None:
    result = snes("register", "--check", "-", stdin=text)
    assert result.stdout == f"{said}\n"
    assert [claim["verdict"] for claim in answer("register", "--check", "-", stdin=text)["claims"]] == ["right"] * right


def test_check_reads_what_is_not_utf8_and_shows_no_controls() -> None:
    result = snes("register", "--check", "-", code=1, stdin=b"caf\xe9 \x1b[31m INIDISP ($2101) \x1b]0;x\x07\n\xff")
    assert "line 1: $2101 is OBSEL, not INIDISP" in result.stdout
    assert "\x1b" not in result.output


def test_check_of_a_file_that_is_none(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "no.md", "there is no such file"), (tmp_path, "a folder, not a file")):
        assert f"{path}: {said}" in snes("register", "--check", str(path), code=2).stderr


def test_check_of_a_missing_file_with_a_space() -> None:
    assert "my answers.md: there is no such file" in snes("register", "--check", "my answers.md", code=2).stderr


def test_check_of_a_text_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "long.md"
    path.write_text("a line of filler\n" * 260_000 + "INIDISP ($2101)\n")
    result = snes("register", "--check", str(path), code=2)
    assert f"{path}: more than 4 MiB" in result.stderr
    assert result.stdout == ""


# ---- verify ------------------------------------------------------------------------------------------


def test_verify_good_vectors(vectors: Path) -> None:
    (vectors / "deeper").mkdir()
    (vectors / "deeper" / "more.json").write_text(json.dumps([CASE]))
    (vectors / "README.md").write_text("no vectors")
    assert snes("verify", str(vectors)).stdout == "3/3 in 2 files\n"
    assert answer("verify", str(vectors)) == {"passed": 3, "total": 3, "files": 2, "mismatches": []}


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ([*changed(CYCLES_AT, 6)[:KINDS_AT], "rrr--w", CASE[ADDRESSES_AT]], "cycles 6 expected, 5 performed"),
        (changed(FINAL_AT, [*FINAL[:3], 0x1235, *FINAL[4:]]), "a $1235 expected, $1234 found"),
        (changed(FINAL_AT, [*FINAL[:2], 0x30, *FINAL[3:]]), "p $0030 expected, $00B0 found"),
        (changed(WRITES_AT, [[0x0010, 0x81]]), "$000010: $81 expected, $80 found"),
        (changed(KINDS_AT, "rr-rw"), "bus cycle 3: internal expected, read $000010 performed"),
        (
            changed(ADDRESSES_AT, [0x8000, 0x8001, 0x0010, 0x0011]),
            "bus cycle 5: write $000011 expected, write $000010 performed",
        ),
    ],
    ids=["cycles", "state", "flags", "memory", "bus order", "bus address"],
)
def test_verify_finds_what_is_planted(case: list[Any], said: str, vectors: Path) -> None:
    (vectors / "planted.json").write_text(json.dumps([CASE, case, CASE]))
    result = snes("verify", str(vectors), code=1)
    first, last = result.stdout.splitlines()
    assert first.startswith("planted.json case 1: ")
    assert said in first
    assert last == "4/5 in 2 files"
    found = answer("verify", str(vectors), code=1)
    assert (found["passed"], found["total"], found["files"]) == (4, 5, 2)
    (mismatch,) = found["mismatches"]
    assert (mismatch["file"], mismatch["case"]) == ("planted.json", 1)
    assert said in mismatch["differences"]


def test_first_is_how_many_are_shown(vectors: Path) -> None:
    (vectors / "planted.json").write_text(json.dumps([changed(FINAL_AT, INIT)] * 12))
    for words, shown in ((), 10), (("--first", "3"), 3), (("--first", "0"), 0), (("--first", "99"), 12):
        lines = snes("verify", str(vectors), *words, code=1).stdout.splitlines()
        assert len(lines) == shown + 1
        assert lines[-1] == "2/14 in 2 files"
        assert len(answer("verify", str(vectors), *words, code=1)["mismatches"]) == shown
    assert "Invalid value for '--first'" in snes("verify", str(vectors), "--first", "-1", code=2).stderr


def test_verify_without_vectors_exits_3(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path, "there are no vector files (*.json) here"),
        (tmp_path / "no", "there is no such folder"),
    ):
        result = snes("verify", str(path), code=3)
        assert f"{path}: {said}" in result.stderr
        assert result.stdout == ""


def test_verify_of_no_cases_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text("[]")
    result = snes("verify", str(tmp_path), code=3)
    assert f"{tmp_path}: the files hold no cases" in result.stderr
    assert result.stdout == ""


def test_verify_of_a_file_says_that_it_is_one(vectors: Path) -> None:
    said = CliRunner().invoke(app, ["snes", "verify", str(vectors / "e6.n.json")]).output
    assert "no vector files" not in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("{}", "a list of cases is expected"),
        ("[[1, 2]]", "case 0: a case is a list of seven"),
        (json.dumps([CASE, changed(CYCLES_AT, "5")]), "case 1: cycles must be a number"),
        (json.dumps([changed(KINDS_AT, "rrrr")]), "case 0: kinds has 4 signs for 5 cycles"),
        (json.dumps([changed(ADDRESSES_AT, [0x8000])]), "case 0: addrs has 1 entries"),
        (json.dumps([changed(KINDS_AT, "xxxxx")]), "case 0: kinds is a text of r, w and -"),
        (json.dumps([changed(FINAL_AT, [0x10000, *FINAL[1:]])]), "case 0: final pc must be a number from 0 to 65535"),
    ],
    ids=["cut off", "empty", "deep", "object", "short", "text", "signs", "addresses", "kinds", "range"],
)
def test_verify_of_bad_files(text: str, said: str, vectors: Path) -> None:
    (vectors / "zz.json").write_text(text)
    result = snes("verify", str(vectors), code=1)
    assert f"{vectors / 'zz.json'}: {said}" in result.stderr
    assert result.stdout == ""


def test_verify_shows_no_controls_of_a_file_name(vectors: Path) -> None:
    (vectors / "\x1b[31m\u202ered.json").write_text(json.dumps([changed(FINAL_AT, INIT)]))
    result = snes("verify", str(vectors), code=1)
    assert "red.json case 0: " in result.stdout
    assert not set(result.output) & set("\x1b\u202e")


def test_an_error_shows_no_controls_of_a_file_name(vectors: Path) -> None:
    (vectors / "\x1b[31mred.json").write_text("[1]")
    assert "\x1b" not in CliRunner().invoke(app, ["snes", "verify", str(vectors)]).output


def test_an_error_is_short(vectors: Path) -> None:
    (vectors / "zz.json").write_text(json.dumps([changed(FINAL_AT, ["x" * 100_000, *FINAL[1:]])]))
    assert len(CliRunner().invoke(app, ["snes", "verify", str(vectors)]).output) < 2000
