"""`afs-mlx snes register` and `verify`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from afs_mlx.cli.options import AsJson
from afs_mlx.cli.render.console import emit_json, out, plain
from afs_mlx.cli.snes.arguments import address, file_text
from afs_mlx.core.errors import AfsError, ExitCode, UsageError

if TYPE_CHECKING:
    from afs_mlx.snes.registers.table import Register


def register(
    name: Annotated[str, typer.Argument(metavar="NAME|ADDRESS", help="INIDISP, DMAPx, $2100, 4300.")] = "",
    check: Annotated[
        str, typer.Option("--check", metavar="FILE", help="Find address-name claims in a text (or -) and judge them.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Look a register up, or check what a text says.

    By name or address; names are those of the SNES development wiki and their aliases. --check exits with 1 when a
    claim is wrong or names a register that does not exist.
    """
    if bool(name) == bool(check):
        raise UsageError(
            "a name, an address or --check is needed, not several", "register", "afs-mlx snes register 2100"
        )
    if check:
        _check(check, as_json)
        return
    found = _look_up(name)
    if as_json:
        emit_json({"registers": [_json(one) for one in found]})
        return
    for one in found:
        written = " (low byte, then high byte)" if one.accesses_per_value == 2 else ""
        out().print(f"${one.address:04X} {one.name}  {one.access}{written}  {one.bits}", markup=False, style="bold")
        out().print(f"  {one.purpose}", markup=False)
        if one.aliases:
            out().print(f"  also {', '.join(one.aliases)}", markup=False)


def _look_up(name: str) -> "tuple[Register, ...]":
    from afs_mlx.snes.registers.table import by_address, by_name, nearest

    if found := by_name(name.strip().lstrip("!")):
        return found
    if re.fullmatch(r"(\$|0x)?[0-9A-Fa-f:]{4,7}", name.strip()):
        at = by_address(address(name, "register"))
        if at is not None:
            return (at,)
        raise AfsError(
            "there is no register at this address", plain(name), "registers lie at $2100-$21FF and $4016-$43FF"
        )
    near = nearest(name)
    fix = f"did you mean {', '.join(near)}?" if near else "names are those of the SNES development wiki, like INIDISP"
    raise AfsError("there is no register of this name", plain(name)[:60], fix)


def _json(one: "Register") -> dict[str, Any]:
    return {
        "address": one.address,
        "name": one.name,
        "access": one.access,
        "accesses_per_value": one.accesses_per_value,
        "bits": one.bits,
        "purpose": one.purpose,
        "aliases": list(one.aliases),
    }


def _check(source: str, as_json: bool) -> None:
    from afs_mlx.snes.registers.claims import claims

    found = claims(file_text(source))
    bad = [claim for claim in found if claim.verdict != "right"]
    if as_json:
        emit_json(
            {
                "claims": [
                    {
                        "line": claim.line,
                        "address": claim.address,
                        "name": plain(claim.name),
                        "verdict": claim.verdict,
                        "expected": claim.expected,
                    }
                    for claim in found
                ]
            }
        )
    else:
        for claim in bad:
            out().print(plain(claim.message()), markup=False)
        said = (
            f"{len(found) - len(bad)} of {len(found)} claims are right" if found else "no claims about registers found"
        )
        out().print(said, markup=False)
    if bad:
        raise typer.Exit(ExitCode.ERROR)


def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of vector files, OP.MODE.json, searched deep.")
    ],
    first: Annotated[int, typer.Option("--first", min=0, help="How many differences to show.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Run the core against single-step vectors.

    State, cycles and bus order of every case. Exit code 1 on any difference.
    """
    from afs_mlx.cli.render.progress import count_progress
    from afs_mlx.snes.vectors import verify as run_vectors

    with count_progress("  files") as progress:
        result = run_vectors(folder, first, lambda done, total: progress(done, total, ""))
    if as_json:
        emit_json(
            {
                "passed": result.passed,
                "total": result.total,
                "files": result.files,
                "mismatches": [
                    {"file": m.file, "case": m.case, "differences": list(m.differences)} for m in result.mismatches
                ],
            }
        )
    else:
        for mismatch in result.mismatches:
            out().print(plain(str(mismatch)), markup=False)
        out().print(f"{result.passed:,}/{result.total:,} in {result.files} files", markup=False)
    if result.passed != result.total:
        raise typer.Exit(ExitCode.ERROR)
