"""How assembled and disassembled code looks on a terminal, and the same as plain data for --json."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from afs_mlx.cli.render.console import err, out, plain

if TYPE_CHECKING:
    from afs_mlx.snes.asar import Assembly
    from afs_mlx.snes.disassembler import Listing
    from afs_mlx.snes.grammar import Problem

MOST_ERRORS = 20


def assembly(text: str, result: "Assembly") -> None:
    """Each instruction with its bytes; a line of several has its text once. Errors and the size go to stderr."""
    lines = text.split("\n")
    shown_line = 0
    for place in result.placed:
        shown = result.code[place.offset : place.offset + place.size].hex(" ")
        source = plain(lines[place.line - 1].strip()) if place.line != shown_line else ""
        shown, shown_line = shown if place.size <= 4 else f"{shown[:8]} …", place.line
        out().print(f"{result.org + place.offset:06x}  {shown:<12}  {source}", markup=False)
    for problem in result.errors[:MOST_ERRORS]:
        err().print(plain(str(problem)), style="red", markup=False)
    if len(result.errors) > MOST_ERRORS:
        err().print(f"… and {len(result.errors) - MOST_ERRORS} more", style="red", markup=False)
    if result.status == "ok":
        err().print(f"{len(result.code)} byte{'' if len(result.code) == 1 else 's'}", markup=False)


def assembly_json(result: "Assembly", warnings: "Sequence[Problem]") -> dict[str, Any]:
    """An assembly as plain data."""
    return {
        "status": result.status,
        "org": result.org,
        "code": result.code.hex(),
        "size_bytes": len(result.code),
        "errors": [{"line": e.line, "message": plain(e.message)} for e in result.errors],
        "warnings": [{"line": e.line, "message": plain(e.message)} for e in warnings],
    }


def listing_json(listing: "Listing") -> dict[str, Any]:
    """A disassembly as plain data."""
    return {
        "lines": [
            {
                "address": line.address,
                "code": line.code.hex(),
                "label": line.label,
                "text": line.text,
                "comment": line.comment,
                "m8": line.m8,
                "x8": line.x8,
            }
            for line in listing.lines
        ],
        "problems": [{"address": p.address, "message": p.message} for p in listing.problems],
    }
