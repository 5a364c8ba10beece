"""`afs-mlx doctor` and `afs-mlx pull`: what this machine has, and getting a base. No mlx is imported here."""

from typing import TYPE_CHECKING, Annotated

import typer

from afs_mlx.cli.options import AsJson
from afs_mlx.cli.render.console import emit_json, err, out, size, step

if TYPE_CHECKING:
    from afs_mlx.pipelines.pull import PullResult
    from afs_mlx.schema.base import Base


def doctor(as_json: AsJson = False) -> None:
    """Show what works on this machine and what to install."""
    from afs_mlx.pipelines.diagnose import diagnose

    report = diagnose()
    if as_json:
        emit_json(report.as_dict())
        return
    console = out()
    console.print(
        f"machine    {report.machine.processor}, {report.machine.cores} cores, {size(report.machine.memory_bytes)}",
        markup=False,
    )
    console.print(f"system     {report.machine.system}, Python {report.machine.python}", markup=False)
    console.print("packages   " + ", ".join(f"{n} {v}" for n, v in report.packages.items() if v), markup=False)
    console.print(f"workspace  {report.workspace} ({size(report.free_bytes)} free)", markup=False)
    console.print("bases")
    for base in report.bases:
        where = f"{base.folder} ({size(base.size_bytes)})" if base.folder else f"not here: afs-mlx pull {base.id}"
        console.print(f"  {base.id:<20} {where}", markup=False)
    console.print("checks")
    for check in report.checks:
        mark = {True: "ok", False: "missing"}[check.passed]
        console.print(f"  {mark:<8} {check.name}: {check.detail}", markup=False)
        if check.fix:
            console.print(f"           fix: {check.fix}", markup=False)


def pull(
    base: Annotated[str, typer.Argument(metavar="BASE", help="A base id, such as smollm2-135m or qwen2.5-coder-3b.")],
    original: Annotated[bool, typer.Option("--original", help="The unquantised weights, to fuse into.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be fetched and how large it is.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a base; nothing downloads unless told to.

    The size is shown first. What is there already is kept, what is half there is continued.
    """
    from afs_mlx.core.errors import UsageError, closest
    from afs_mlx.core.paths import Workspace
    from afs_mlx.experts.catalog import Catalog

    catalog = Catalog.load(Workspace.find())
    wanted = catalog.base_named(base)
    if wanted is None:
        raise UsageError(f"there is no base {base!r}", "pull", closest(base, list(catalog.bases)))
    # Who names the unquantised repository means it.
    result, size_bytes = fetch(wanted, original or base.lower() == wanted.original.lower(), dry_run)
    if as_json:
        emit_json(
            {
                "base": wanted.id,
                "folder": str(result.folder or ""),
                "fetched": result.fetched,
                "verified": result.verified,
                "size_bytes": size_bytes,
            }
        )
    elif result.folder is not None:
        out().print(str(result.folder), markup=False)


def fetch(base: "Base", original: bool = False, dry_run: bool = False) -> "tuple[PullResult, int]":
    """Pull with everything said on stderr; returns the result and the size in bytes."""
    from afs_mlx.cli.render.progress import bytes_progress
    from afs_mlx.pipelines.pull import Fetched, Note, PullConfig, PullEvent, Size
    from afs_mlx.pipelines.pull import pull as pull_base

    sizes: list[Size] = []
    with bytes_progress() as progress:

        def on_event(event: PullEvent) -> None:
            if isinstance(event, Size):
                sizes.append(event)
                files = "1 file" if event.files == 1 else f"{event.files} files"
                step(f"{base.id} from {event.source}: {size(event.size_bytes)}, {files}, {base.license}")
            elif isinstance(event, Fetched):
                progress(event.done_bytes, event.total_bytes)
            elif isinstance(event, Note):
                err().print(f"  {event.text}", markup=False)

        result = pull_base(PullConfig(base, original, dry_run), on_event)
    state = "is ready" if result.fetched else "was here already"
    if result.folder is None:
        err().print("nothing fetched (dry run)")
    else:
        err().print(f"{base.id} {state}" + (f": {result.verified}" if result.verified else ""), markup=False)
    return result, sizes[0].size_bytes if sizes else 0
