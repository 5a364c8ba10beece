"""A PEFT adapter in, an MLX adapter out: checked, placed among the expert's runs, ready to answer."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from afs_mlx.core.errors import AfsError, UsageError
from afs_mlx.core.files import read_json, write_json
from afs_mlx.core.manifest import input_file, now, provenance
from afs_mlx.core.paths import Workspace
from afs_mlx.experts.catalog import Catalog
from afs_mlx.runs.folder import new_run_name


@dataclass(frozen=True)
class ConvertConfig:
    """`base` is a catalog id, a model folder or `auto` (the adapter's own); `expert` registers the result."""

    peft_folder: Path
    catalog: Catalog
    workspace: Workspace
    base: str = "auto"
    expert: str = ""
    out: Path | None = None


@dataclass(frozen=True)
class ConvertResult:
    """The MLX adapter folder."""

    path: Path
    base: str
    expert: str
    rank: int
    alpha: float
    scale: float
    targets: tuple[str, ...]
    layers: tuple[int, ...]
    tensors: int


def convert(config: ConvertConfig) -> ConvertResult:
    """Convert and register. Raises AfsError that lists every problem of the adapter, before any weight reaches mlx."""
    from afs_mlx.engine.adapters.format import AdapterBase
    from afs_mlx.engine.adapters.linears import base_identity
    from afs_mlx.engine.adapters.peft import convert_peft
    from afs_mlx.engine.bases.location import choose_base

    chosen = config.catalog.choose(config.expert) if config.expert else None
    base = choose_base(_base_of(config), "", config.catalog.bases)
    if chosen and chosen.version and config.catalog.base_named(base.id) is not None:
        own = config.catalog.base_named(chosen.version.base)
        if own is not None and own.id != base.id and not base.demo:
            raise AfsError(
                f"the adapter belongs to {base.id}, {chosen.label} stands on {own.id}",
                str(config.peft_folder),
                f"name another expert or version, or set base = {base.id!r} for this version in experts.toml",
            )
    name, version = (chosen.name, chosen.version_name) if chosen else ("", "")
    home = config.workspace.adapters / (name or "imported")
    target = config.out or home / new_run_name(version or config.peft_folder.name, base.id)
    record = {
        **provenance("convert"),
        "expert": name,
        "version": version,
        "status": "running",
        "demo": base.demo,
        "started_at": now(),
        "base": base.identity,
        "system": chosen.system if chosen else "",
        "inputs": [input_file(path) for path in sorted(config.peft_folder.glob("adapter_*")) if path.is_file()],
    }
    # Convert first: an adapter that is refused or cannot be written leaves no folder behind.
    if target.exists():
        raise AfsError("the folder exists already", str(target), "name another with --out")
    recorded = AdapterBase(
        id=base.id, lineage=base.id, sha256=base.identity["weights_sha256"], shapes=base_identity(base.folder)
    )
    try:
        report = convert_peft(config.peft_folder, base.folder, target, base=recorded, expert=name)
        write_json(target / "run.json", {**record, "status": "imported", "finished_at": now()})
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return ConvertResult(
        path=target,
        base=base.id,
        expert=chosen.label if chosen else "",
        rank=report.rank,
        alpha=report.alpha,
        scale=report.scale,
        targets=report.targets,
        layers=report.layers,
        tensors=report.tensors,
    )


def _base_of(config: ConvertConfig) -> str:
    """The base id that the adapter's config names, by id, repack or folder name."""
    if config.base != "auto":
        return config.base
    value = read_json(config.peft_folder / "adapter_config.json", "the adapter's config").get("base_model_name_or_path")
    named = str(value or "").rstrip("/")
    if named and Path(named).is_dir():
        return named
    lineages = config.catalog.lineages
    by_folder_name = {name.rsplit("/")[-1]: base for name, base in lineages.items()}
    found = lineages.get(named.lower()) or by_folder_name.get(named.lower().rsplit("/")[-1])
    if not found:
        said = (
            f"the adapter's base, {named!r}, is not in the catalog" if named else "the adapter does not name its base"
        )
        known = ", ".join(config.catalog.bases)
        raise UsageError(said, str(config.peft_folder), f"say which with --base (a model folder, or one of {known})")
    return found
