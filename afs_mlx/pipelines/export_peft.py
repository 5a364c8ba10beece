"""An MLX adapter out as a PEFT folder, for Windows and CUDA, with a manifest beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.files import folder_size_bytes, read_json, write_folder, write_json
from afs_mlx.core.manifest import input_file, provenance
from afs_mlx.runs.folder import WEIGHTS, Run
from afs_mlx.schema.base import Base

MADE_BY = "export peft"


@dataclass(frozen=True)
class ExportPeftConfig:
    """`adapter` is a run folder or any MLX adapter folder; without `out` the export lies in its `peft` folder.

    `base_name` is what the config names as base, instead of the catalog's original repository.
    """

    adapter: Path
    bases: Mapping[str, Base]
    out: Path | None = None
    base_name: str = ""


@dataclass(frozen=True)
class ExportPeftResult:
    """The PEFT folder; `notice` is for the person. `blocks` are None where all were adapted or targets are paths."""

    path: Path
    base_name: str
    rank: int
    alpha: float
    scale: float
    rslora: bool
    dora: bool
    targets: tuple[str, ...]
    blocks: tuple[int, ...] | None
    layers: int
    left_out: int
    parameters: int
    dtypes: tuple[str, ...]
    size_bytes: int
    notice: str


def export_peft(config: ExportPeftConfig) -> ExportPeftResult:
    """Check the adapter and write the folder whole; an earlier export there is replaced, anything else is not touched.

    Raises AfsError that lists every problem of the adapter.
    """
    from afs_mlx.engine.adapters import peft_export
    from afs_mlx.engine.adapters.inspection import read_adapter

    run = _run(config.adapter)
    target = config.out or config.adapter / "peft"
    _check_free(target)
    adapter = read_adapter(config.adapter)
    if adapter.kind != "MLX":
        raise AfsError("this is a PEFT adapter already", str(config.adapter), "use it as it is")
    base_name, notice = _base_name(config, adapter.base.lineage or adapter.base.id or (run.base if run else ""))
    reports: list[peft_export.ExportReport] = []

    def fill(folder: Path) -> None:
        report = peft_export.export_peft(adapter, folder, base_name)
        reports.append(report)
        record = {
            **provenance(MADE_BY),
            "expert": run.expert if run else "",
            "version": run.record.get("version", "") if run else "",
            "demo": run.record.get("demo", False) if run else False,
            "base": adapter.base.model_dump(mode="json") | {"name": base_name},
            "parent": {"folder": config.adapter.name, **input_file(config.adapter / WEIGHTS)},
            "adapter": vars(report),
            "files": [input_file(path) for path in sorted(folder.glob("adapter_*"))],
        }
        write_json(folder / "manifest.json", record)

    write_folder(target, fill)
    return ExportPeftResult(
        path=target, base_name=base_name, size_bytes=folder_size_bytes(target), notice=notice, **vars(reports[0])
    )


def _run(folder: Path) -> Run | None:
    """What run.json says, None for an adapter that is no run of ours."""
    if not (folder / "run.json").is_file():
        return None
    run = Run.read(folder)
    if not run.usable:
        raise MissingError(f"the run holds no finished adapter ({run.status})", str(run.path), "name another run")
    return run


def _check_free(target: Path) -> None:
    """Refuse a folder with anything but an earlier export in it: the folder is replaced whole."""
    if not target.exists():
        return
    manifest = target / "manifest.json"
    record: dict[str, Any] = read_json(manifest, "the manifest there") if manifest.is_file() else {}
    ours = str(record.get("made_by", "")).endswith(f": {MADE_BY}")
    if not (ours or (target.is_dir() and not any(target.iterdir()))):
        raise AfsError("something else is there", str(target), "name another folder with --out, or remove that one")


def _base_name(config: ExportPeftConfig, recorded: str) -> tuple[str, str]:
    """What PEFT shall load below the adapter, the base's original on the Hub, and what to say where it is not known."""
    if config.base_name:
        return config.base_name, ""
    base = next((base for base in config.bases.values() if recorded.lower() in base.lineage), None)
    if base is not None and (original := base.original or next(iter(base.aliases), "")):
        return original, ""
    if not recorded:
        return "", "the adapter records no base: name it with --base-name, or load the base yourself before the adapter"
    if base is None and "/" in recorded and not Path(recorded).exists():
        return recorded, f"{recorded} is not in the catalog: is it the unquantised original? --base-name names another"
    return recorded, f"{recorded} is no repository: load the base yourself before the adapter, or use --base-name"
