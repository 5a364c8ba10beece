"""A PEFT adapter in, an MLX adapter out: checked, placed among the expert's runs, ready to answer."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afs_mlx.core.errors import AfsError, UsageError
from afs_mlx.core.files import read_json, write_json
from afs_mlx.core.manifest import input_file, now, provenance
from afs_mlx.core.paths import Workspace
from afs_mlx.experts.catalog import Catalog
from afs_mlx.runs.folder import new_run_name

if TYPE_CHECKING:
    from afs_mlx.engine.adapters.peft import ConvertReport
    from afs_mlx.engine.bases.location import BaseFolder
    from afs_mlx.experts.catalog import ChosenExpert

# How repacks of one model are named after it: mlx, bitsandbytes, GPTQ, AWQ and half precision.
REPACK = re.compile(
    r"(-(mlx|unsloth|bnb|hqq|dwq|awq|gptq|quantized|q?[2-8]-?bits?|int[48]|bf16|fp16|f16|w4a16|g\d+))+$"
)


@dataclass(frozen=True)
class ConvertConfig:
    """`base` is a catalog id, a model folder or `auto` (the adapter's own); `expert` registers the result.

    `adapter` names one of several in the folder; `verify` compares logits with a reference before it is registered.
    """

    peft_folder: Path
    catalog: Catalog
    workspace: Workspace
    base: str = "auto"
    expert: str = ""
    out: Path | None = None
    adapter: str = ""
    verify: bool = False


@dataclass(frozen=True)
class ConvertResult:
    """The MLX adapter folder. `kind` is lora, dora or full (whole weights); `verification` is None if not asked for."""

    path: Path
    kind: str
    base: str
    expert: str
    rank: int
    alpha: float
    scale: float
    targets: tuple[str, ...]
    layers: tuple[int, ...]
    tensors: int
    notices: tuple[str, ...]
    verification: dict[str, Any] | None


def convert(config: ConvertConfig) -> ConvertResult:
    """Convert and register. Raises AfsError that lists every problem of the adapter, before any weight reaches mlx."""
    from afs_mlx.engine.adapters.peft_files import choose_adapter
    from afs_mlx.engine.bases.location import choose_base

    chosen = config.catalog.choose(config.expert) if config.expert else None
    source = choose_adapter(config.peft_folder, config.adapter).path
    named = _named_base(source)
    base = choose_base(config.base if config.base != "auto" else _inferred(named, config), "", config.catalog.bases)
    notices = _lineage_notices(named, base, config)
    _check_expert(chosen, base, config)
    name, version = (chosen.name, chosen.version_name) if chosen else ("", "")
    home = config.workspace.adapters / (name or "imported")
    target = config.out or home / new_run_name(version or source.name, base.id)
    if target.exists():
        raise AfsError("the folder exists already", str(target), "name another with --out")
    record = {
        **provenance("convert"),
        "expert": name,
        "version": version,
        "status": "running",
        "demo": base.demo,
        "started_at": now(),
        "base": base.identity,
        "system": chosen.system if chosen else "",
    }
    # Convert first: an adapter that is refused or cannot be written leaves no folder behind.
    try:
        report, inputs = _converted(config, base, source, target, name)
        verification = _verified(config, base.folder, target) if config.verify else None
        record |= {"inputs": inputs} | ({"verification": verification} if verification else {})
        write_json(target / "run.json", {**record, "status": "imported", "finished_at": now()})
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return ConvertResult(
        path=target,
        kind=report.kind,
        base=base.id,
        expert=chosen.label if chosen else "",
        rank=report.rank,
        alpha=report.alpha,
        scale=report.scale,
        targets=report.targets,
        layers=report.layers,
        tensors=report.tensors,
        notices=(*notices, *_report_notices(report)),
        verification=verification,
    )


def _converted(
    config: ConvertConfig, base: "BaseFolder", source: Path, target: Path, expert: str
) -> "tuple[ConvertReport, list[dict[str, Any]]]":
    """Write the adapter; what was written, and the manifest's list of inputs."""
    from afs_mlx.engine.adapters.format import AdapterBase
    from afs_mlx.engine.adapters.linears import base_identity
    from afs_mlx.engine.adapters.peft import convert_peft

    recorded = AdapterBase(
        id=base.id, lineage=base.id, sha256=base.identity["weights_sha256"], shapes=base_identity(base.folder)
    )
    with ThreadPoolExecutor(1) as hashing:  # beside the conversion, which reads the same pages
        inputs = [path for path in sorted(source.glob("adapter_*")) if path.is_file()]
        hashed = [hashing.submit(input_file, path) for path in inputs]
        report = convert_peft(
            config.peft_folder, base.folder, target, base=recorded, expert=expert, adapter=config.adapter
        )
        return report, [future.result() for future in hashed]


def _report_notices(report: "ConvertReport") -> list[str]:
    notices = []
    if report.others:
        notices.append(f"other adapters in this folder were left: {', '.join(report.others)}; --adapter names one")
    if report.kind == "full":
        notices.append("it trained whole tensors, so the folder holds whole weights: it runs, but cannot be exported")
    return notices


def _verified(config: ConvertConfig, base_folder: Path, target: Path) -> dict[str, Any]:
    """The comparison's record. Raises RefusedError (exit 4) where the logits do not agree."""
    from afs_mlx.engine.adapters.verifying import demand, verify

    verification = verify(config.peft_folder, base_folder, target, config.adapter)
    demand(verification, target)
    return verification.record()


def _check_expert(chosen: "ChosenExpert | None", base: "BaseFolder", config: ConvertConfig) -> None:
    """Raise where the expert's version stands on another base of the catalog."""
    if not (chosen and chosen.version and config.catalog.base_named(base.id)):
        return
    own = config.catalog.base_named(chosen.version.base)
    if own is not None and own.id != base.id and not base.demo:
        raise AfsError(
            f"the adapter belongs to {base.id}, {chosen.label} stands on {own.id}",
            str(config.peft_folder),
            f"name another expert or version, or set base = {base.id!r} for this version in experts.toml",
        )


def _named_base(folder: Path) -> str:
    """What the adapter's config calls its base."""
    value = read_json(folder / "adapter_config.json", "the adapter's config").get("base_model_name_or_path")
    return value.strip().rstrip("/") if isinstance(value, str) else ""


def _lineage_notices(named: str, base: "BaseFolder", config: ConvertConfig) -> list[str]:
    """What to say of a base that the adapter does not name. Raises AfsError for one of another lineage."""
    if config.base == "auto" or config.catalog.base_named(base.id) is None or not named:
        return []
    own = _lineage(named, config.catalog)
    if own == base.id:
        return []
    if own:
        raise AfsError(
            f"the adapter was made for {own} ({named}), not for {base.id}",
            str(config.peft_folder),
            f"leave --base out, or say --base {own}",
        )
    return [f"the adapter names {named!r} as its base, which is not in the catalog; {base.id} was taken at your word"]


def _lineage(named: str, catalog: Catalog) -> str:
    """The catalog id that a repository, a repack of it or a folder's name means; empty for a stranger.

    An id that is short for a repository of another name names no folder: Qwen2.5-Coder-3B is not the Instruct model.
    """
    lineages = catalog.lineages
    repositories = {
        name.rsplit("/")[-1]: base
        for name, base in lineages.items()
        if "/" in name or catalog.bases[base].source != "hub"
    }
    name = named.lower().replace("\\", "/")
    last = name.rsplit("/")[-1]
    plain = REPACK.sub("", last)
    return lineages.get(name) or repositories.get(last) or repositories.get(plain) or ""


def _inferred(named: str, config: ConvertConfig) -> str:
    """The base that the adapter's config names: a folder on this machine, a catalog id's repository or a repack."""
    if named and Path(named).is_dir():
        return named
    found = _lineage(named, config.catalog)
    if not found:
        said = (
            f"the adapter's base, {named!r}, is not in the catalog" if named else "the adapter does not name its base"
        )
        known = ", ".join(config.catalog.bases)
        raise UsageError(said, str(config.peft_folder), f"say which with --base (a model folder, or one of {known})")
    return found
