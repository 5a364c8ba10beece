"""What the commands of `snes` take: code as a file, standard input or text, addresses, entry states, what is live."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from afs_mlx.core.errors import AfsError, UsageError, closest

MAX_INPUT_BYTES = 4 << 20  # a LoROM image; texts are held to the grammar's own limit
COPIER_HEADER_BYTES = 512  # before the image

Code = Annotated[
    str,
    typer.Argument(
        metavar="CODE", help="A file, - for standard input, or the code itself (after -- if it starts with -)."
    ),
]
EntryOption = Annotated[
    str,
    typer.Option(
        "--entry",
        metavar="KEY=VALUE,...",
        help="What holds on entry: m and x (8 or 16), d, dbr, a, x_value, y, c, decimal, e. The rest may be anything.",
    ),
]
OrgOption = Annotated[str, typer.Option("--org", metavar="ADDRESS", help="Where the code lies, unless it says so.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Draws other states.")]


def text_of(argument: str) -> str:
    """Assembly text from a file, standard input or the argument itself. Raises AfsError when it is none of these."""
    data = _bytes_of(argument)
    if data is None:
        if not argument.strip():
            raise UsageError("there is no code", "CODE", "name a file, - for standard input, or write the code itself")
        if not _looks_like_code(argument):
            raise UsageError(
                "there is no such file", argument[:100], "check the path; code itself holds a space: 'lda #$00'"
            )
        return argument
    return data.decode("utf-8-sig", "replace")


def file_text(argument: str) -> str:
    """The text of a file or of standard input, never the argument itself."""
    data = _bytes_of(argument)
    if data is None:
        raise UsageError("there is no such file", argument[:100], "name a file, or - for standard input")
    return data.decode("utf-8-sig", "replace")


def only_one_from_stdin(arguments: Sequence[str]) -> None:
    """Standard input can be read once."""
    if list(arguments).count("-") > 1:
        raise UsageError("standard input can stand for one routine only", "-", "put the others into files")


def machine_code_of(argument: str) -> bytes:
    """Machine code from a file, standard input or hexadecimal digits."""
    data = _bytes_of(argument, COPIER_HEADER_BYTES)
    if data is not None:
        return data
    return hex_bytes(argument, "CODE")


def hex_bytes(text: str, where: str) -> bytes:
    """Bytes in hexadecimal digits, with or without spaces. Raises UsageError."""
    digits = re.sub(r"[\s,$]", "", text)
    what = "neither a file nor hexadecimal bytes" if where == "CODE" else "not hexadecimal bytes"
    if not digits or re.fullmatch(r"([0-9A-Fa-f]{2})+", digits) is None:
        raise UsageError(f"{text[:40]!r} is {what}", where, "write for example 'a9 00 60'")
    return bytes.fromhex(digits)


def _bytes_of(argument: str, header_bytes: int = 0) -> bytes | None:
    """The bytes of a file or of standard input; None when the argument names no file."""
    most = MAX_INPUT_BYTES + header_bytes
    if argument == "-":
        if sys.stdin is None or sys.stdin.closed:
            raise UsageError("there is no standard input", "-", "pipe the code in, or name a file")
        return _limited(sys.stdin.buffer.read(most + 1), most, "standard input")
    path = Path(argument)
    try:
        if not argument or not path.exists():
            return None
        if path.is_dir():
            raise UsageError("a folder, not a file", argument, "name a file")
    except (OSError, ValueError):  # too long for a name, or a zero byte: it is code
        return None
    with path.open("rb") as file:
        return _limited(file.read(most + 1), most, argument)


def _limited(data: bytes, most: int, where: str) -> bytes:
    if len(data) > most:
        raise UsageError(f"more than {MAX_INPUT_BYTES >> 20} MiB", where, "cut out the part that matters")
    return data


def _looks_like_code(text: str) -> bool:
    from afs_mlx.snes.mnemonics import SHAPES

    word = text.strip().lower()
    return bool(re.search(r"\s", text.strip())) or word in SHAPES or word.endswith(":")


def number(text: str, where: str) -> int:
    """`$7E`, `0x7e`, `%101` or `126`. Raises UsageError."""
    digits = text.strip().lower()
    base = 10
    for sign, its_base in (("$", 16), ("0x", 16), ("%", 2)):
        if digits.startswith(sign):
            digits, base = digits.removeprefix(sign), its_base
    if re.fullmatch(r"[0-9a-f]{1,16}", digits) is not None:
        try:
            return int(digits, base)
        except ValueError:
            pass
    raise UsageError(f"{text!r} is not a number", where, "write $7E, 0x7e, %101 or 126")


def address(text: str, where: str) -> int:
    """A 24-bit address in hexadecimal: `$8000`, `808000`, `$80:8000`. Raises UsageError."""
    digits = text.strip().lower().removeprefix("$").removeprefix("0x").replace(":", "")
    if re.fullmatch(r"[0-9a-f]{1,6}", digits) is None:
        raise UsageError(f"{text!r} is not an address", where, "write up to six hexadecimal digits, like $7E0010")
    return int(digits, 16)


def declared_entry(text: str) -> dict[str, int]:
    """The keys of an entry state that were given. Raises UsageError or AfsError with what is wrong."""
    from afs_mlx.core.config import validate
    from afs_mlx.schema.optimisation import EntryState

    keys = [key for key in EntryState.model_fields if key != "known"]
    found: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, sign, value = part.partition("=")
        key = key.strip().lower()
        if key not in keys:
            raise UsageError(f"{key[:20]!r} is no key of an entry state", "--entry", closest(key[:20], keys))
        if not sign:
            raise UsageError(f"{key} has no value", "--entry", f"write for example {key}=8")
        found[key] = number(value, f"--entry {key}")
    try:
        validate(EntryState, {"m": 8, "x": 8, **found}, "--entry")
    except AfsError as error:
        raise UsageError(error.what, error.where, error.fix) from error
    if found.get("e") == 1 and 16 in (found.get("m"), found.get("x")):
        raise UsageError("emulation mode has 8-bit registers", "--entry", "leave e out, or m and x at 8")
    for key in ("x_value", "y"):
        narrow = found.get("x") == 8 or found.get("e") == 1
        if narrow and found.get(key, 0) > 0xFF:
            raise UsageError(f"{key}=${found[key]:04X} does not fit into 8 bits", "--entry", "write x=16, or less")
    return found


def live_names(text: str | None) -> tuple[Any, ...] | None:
    """What is live, None when it is to be inferred, () for `none`. Raises UsageError."""
    from afs_mlx.schema.optimisation import Live

    if text is None:
        return None
    known = [str(name) for name in get_args(Live)]
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if names == ["none"]:
        return ()
    for name in names:
        if name not in known:
            raise UsageError(f"{name!r} cannot be live", "--live", f"known: {', '.join(known)}, none")
    return tuple(dict.fromkeys(names))


def spans(text: str) -> tuple[tuple[int, int], ...]:
    """`10-1F,7E2000`: stretches of memory, by the one address that stands for each byte of RAM. Raises UsageError."""
    from afs_mlx.snes.execution.entries import span_of

    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, _, last = part.partition("-")
        span = span_of(address(first, "--scratch"), address(last or first, "--scratch"))
        if span is None:
            raise UsageError(f"{part!r} is no stretch of RAM", "--scratch", "write for example 10-1F or 7E2000-7E20FF")
        found.append(span)
    return tuple(found)
