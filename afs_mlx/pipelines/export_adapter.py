"""A run's LoRA alone → a GGUF of megabytes in <run>/gguf/, for consumers that add it to a base GGUF at load."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from afs_mlx.core.errors import MissingError
from afs_mlx.core.files import atomic_path, write_json
from afs_mlx.core.manifest import input_file, provenance
from afs_mlx.runs.folder import WEIGHTS, Run
from afs_mlx.schema.verification import Verification, Verify

type AdapterType = Literal["f32", "f16"]


@dataclass(frozen=True)
class ExportAdapterConfig:
    """`adapter` is a run folder or any MLX LoRA folder, `base_folder` the base it belongs to.

    Without `out` the file lies in the adapter's own gguf folder. `verify` is how much may be written to compare: a base
    above 2 GB as float32 only where it is thorough.
    """

    adapter: Path
    base_folder: Path
    base: dict[str, str]
    name: str
    file_type: AdapterType = "f16"
    out: Path | None = None
    verify: Verify = "quick"


@dataclass(frozen=True)
class Checking:
    """The file is written and is now held against mlx."""


@dataclass(frozen=True)
class AdapterTensorWritten:
    """The export has come this far."""

    done: int
    total: int


type ExportAdapterEvent = AdapterTensorWritten | Checking


@dataclass(frozen=True)
class ExportAdapterResult:
    """The files, and what the checks found; None where none were asked for."""

    gguf: Path
    manifest: Path
    size_bytes: int
    tensors: int
    sha256: str
    verification: Verification | None


def export_adapter(config: ExportAdapterConfig, on_event: Callable[[ExportAdapterEvent], None]) -> ExportAdapterResult:
    """Write the adapter's GGUF and a manifest beside it, then check it with llama.cpp where that is installed.

    The file gets its name only when no check has failed; one that was there stays until then. Raises AfsError for what
    a GGUF adapter cannot hold, with the remedy, and for a file that fails its checks.
    """
    from afs_mlx.engine.gguf.adapter import export_adapter_gguf
    from afs_mlx.engine.gguf.adapter_check import check_adapter_gguf, demand

    run = Run.read(config.adapter) if (config.adapter / "run.json").is_file() else None
    if run is not None and not run.usable:
        raise MissingError(f"the run holds no finished adapter ({run.status})", str(run.path), "name another run")
    target = config.out or config.adapter / "gguf" / f"{config.name}-adapter-{config.file_type}.gguf"
    verification: Verification | None = None
    with atomic_path(target) as temporary:
        report = export_adapter_gguf(
            config.adapter,
            config.base_folder,
            temporary,
            config.file_type,
            name=config.name,
            on_tensor=lambda done, total: on_event(AdapterTensorWritten(done, total)),
        )
        if config.verify != "none":
            on_event(Checking())
            verification = check_adapter_gguf(
                temporary, config.adapter, config.base_folder, config.file_type, config.verify
            )
            demand(verification, target)
    manifest = target.with_suffix(".json")
    write_json(manifest, _record(config, run, report.size_bytes, report.tensors, report.sha256, verification))
    return ExportAdapterResult(target, manifest, report.size_bytes, report.tensors, report.sha256, verification)


def _record(
    config: ExportAdapterConfig,
    run: Run | None,
    size_bytes: int,
    tensors: int,
    sha256: str,
    verification: Verification | None,
) -> dict[str, Any]:
    name = (config.out or Path(f"{config.name}-adapter-{config.file_type}.gguf")).name
    return {
        **provenance("export gguf --adapter"),
        "name": config.name,
        "type": config.file_type,
        "expert": run.expert if run else "",
        "version": run.record.get("version", "") if run else "",
        "demo": run.record.get("demo", False) if run else False,
        "base": config.base,
        "parent": {"folder": config.adapter.name, **input_file(config.adapter / WEIGHTS)},
        "gguf": {"file": name, "size_bytes": size_bytes, "sha256": sha256, "tensors": tensors},
        "verification": verification.model_dump(mode="json") if verification else None,
    }
