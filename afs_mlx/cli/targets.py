"""What a person names on the command line: an expert, a version, a run folder."""

from pathlib import Path

from afs_mlx.core.errors import MissingError, UsageError
from afs_mlx.core.paths import Workspace
from afs_mlx.experts.catalog import Catalog
from afs_mlx.runs.folder import Run, find_run
from afs_mlx.runs.selection import select


def run_for(target: str, base: str, run: str, catalog: Catalog, workspace: Workspace) -> Run:
    """The run that `target` means: a run folder, or the one that would answer for an expert on `base`."""
    from afs_mlx.engine.bases.location import choose_base

    folder = Path(target).expanduser()
    if folder.is_dir():
        return Run.read(folder.resolve())
    chosen = catalog.choose(target)
    if run:
        return find_run(workspace, chosen.name, run)
    if chosen.version is None or chosen.version.kind != "lora":
        raise UsageError(
            f"{chosen.label} has no adapter: nothing is trained for it", "", "name an expert with a lora version"
        )
    chosen_base = choose_base(base, chosen.version.base, catalog.bases)
    found = select(workspace, chosen.name, chosen.version_name, chosen_base.id, pinned=chosen.expert.pinned)
    if found is None:
        raise MissingError(
            f"{chosen.label} has no adapter for {chosen_base.id}",
            str(workspace.adapters / chosen.name),
            f"afs-mlx train {chosen.label}, or afs-mlx convert PEFT_FOLDER --expert {chosen.label}",
        )
    return found.run
