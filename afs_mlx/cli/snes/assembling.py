"""`afs-mlx snes asm` and `disasm`."""

from pathlib import Path
from typing import Annotated

import typer

from afs_mlx.cli.options import AsJson
from afs_mlx.cli.render.console import emit_json, notice, out, plain
from afs_mlx.cli.snes.arguments import (
    COPIER_HEADER_BYTES,
    Code,
    OrgOption,
    address,
    declared_entry,
    machine_code_of,
    text_of,
)
from afs_mlx.core.errors import ExitCode, MissingError, UsageError


def asm(
    code: Code,
    org: OrgOption = "$008000",
    entry: Annotated[
        str, typer.Option("--entry", metavar="KEY=VALUE,...", help="Also execute it, entered with m=…,x=…, and warn.")
    ] = "",
    write: Annotated[Path | None, typer.Option("--out", help="Write the bytes to a file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Assemble with Asar.

    Errors carry the line of your text. Exit code 1 when it does not assemble, 3 when Asar is not installed: then
    nothing is verified.
    """
    from afs_mlx.cli.render import listing as render
    from afs_mlx.core.files import atomic_path
    from afs_mlx.snes.asar import assemble
    from afs_mlx.snes.equivalence.widths import as_8_bit, entry_states
    from afs_mlx.snes.execution.routine import Routine
    from afs_mlx.snes.lint import lint, lint_execution

    text, declared = text_of(code), declared_entry(entry)
    result = assemble(text, address(org, "--org"))
    warnings = list(result.warnings)
    if result.status == "ok":
        warnings += lint(text)
        if declared:
            fitting = entry_states(Routine.of(result), declared)
            warnings += lint_execution(result, fitting[0] if fitting else as_8_bit(declared))
    if as_json:
        emit_json(render.assembly_json(result, warnings))
    else:
        for problem in warnings:
            notice(plain(str(problem)))
        render.assembly(text, result)
    if result.status == "unavailable":
        raise MissingError("not verified: Asar is not installed", "asm", "make setup, or put asar on the PATH")
    if result.status == "failed":
        raise typer.Exit(ExitCode.ERROR)
    if write is not None:
        with atomic_path(write) as temporary:
            temporary.write_bytes(result.code)


def disasm(
    code: Annotated[
        str, typer.Argument(metavar="CODE", help="A binary file, - for standard input, or hexadecimal bytes.")
    ],
    org: OrgOption = "$008000",
    m: Annotated[int, typer.Option("--m", help="Bits of A on entry: 8 or 16.")] = 8,
    x: Annotated[int, typer.Option("--x", help="Bits of X and Y on entry: 8 or 16.")] = 8,
    rom: Annotated[bool, typer.Option("--rom", help="The file is a LoROM image; start at --org in it.")] = False,
    length: Annotated[int, typer.Option("--length", min=0, help="How many bytes; 0 for all.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Disassemble along the flow.

    Register widths are followed through REP, SEP, PHP and PLP; what is not reached is data.
    """
    from afs_mlx.cli.render import listing as render
    from afs_mlx.snes.disassembler import disassemble

    if m not in (8, 16) or x not in (8, 16):
        raise UsageError("a register has 8 or 16 bits", "--m, --x", "write 8 or 16")
    start, data = address(org, "--org"), machine_code_of(code)
    if not data:
        raise UsageError("there are no bytes", "disasm", "give a file that holds some, or hexadecimal digits")
    if rom:
        data = _from_image(data, start)
    listing = disassemble(data[: length or None], start, m == 8, x == 8)
    if as_json:
        emit_json(render.listing_json(listing))
        return
    out().print(listing.render(), markup=False)


def _from_image(data: bytes, start: int) -> bytes:
    """The rest of the bank of a LoROM image from an address on."""
    from afs_mlx.snes.grammar import lorom_address, lorom_offset

    if len(data) % 1024 == COPIER_HEADER_BYTES:
        notice(f"skipping a copier's header of {COPIER_HEADER_BYTES} bytes")
        data = data[COPIER_HEADER_BYTES:]
    if not lorom_address(start):
        raise UsageError(f"${start:06X} is not a LoROM address", "--org", "take $8000-$FFFF of a bank")
    offset = lorom_offset(start)
    if offset >= len(data):
        raise UsageError(f"${start:06X} lies behind the image's {len(data):,} bytes", "--org", "take a lower bank")
    return data[offset : offset + 0x8000 - (start & 0x7FFF)]
