"""Base + adapter → fused/<expert>/<run>/, a complete mlx-lm model folder with a manifest."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.files import sha256_of, write_folder, write_json
from afs_mlx.core.manifest import input_file, provenance
from afs_mlx.core.paths import Workspace
from afs_mlx.runs.folder import WEIGHTS, Run
from afs_mlx.schema.base import Base


@dataclass(frozen=True)
class FuseConfig:
    """Which run to fuse; the base is the one it was trained on, its unquantised original where that is on disk."""

    run: Run
    bases: Mapping[str, Base]
    workspace: Workspace


@dataclass(frozen=True)
class FuseResult:
    """The model folder; `notice` says what a quantised base cost."""

    path: Path
    layers: int
    size_bytes: int
    dtype: str
    notice: str


def fuse(config: FuseConfig) -> FuseResult:
    """Fuse and write the folder whole; an earlier fused folder of the same run stays until the new one is complete."""
    from afs_mlx.engine import fusing
    from afs_mlx.engine.bases.location import choose_base, locate_original, weights_hash

    run = config.run
    if not run.usable:
        raise MissingError(f"the run holds no finished adapter ({run.status})", str(run.path), "train it again")
    base = choose_base(run.base, run.base, config.bases)
    catalogued = config.bases.get(run.base)
    original = locate_original(catalogued) if catalogued else base.folder
    target = config.workspace.fused / (run.expert or "adapter") / run.name
    fused: list[fusing.Fused] = []

    def fill(folder: Path) -> None:
        done = fusing.fuse(original or base.folder, run.path, folder)
        fused.append(done)
        record = {
            **provenance("fuse"),
            "expert": run.expert,
            "version": run.record.get("version", ""),
            "demo": run.record.get("demo", False),
            "system": run.record.get("system", ""),
            "license": catalogued.license if catalogued else "",
            "base": {**base.identity, "fused_into_sha256": weights_hash(original or base.folder)},
            "parent": {"run": run.name, **input_file(run.path / WEIGHTS)},
            "dtype": done.dtype,
            "dequantised_base": done.dequantised,
            "layers_changed": done.layers,
            "weights_sha256": _new_weights_hash(folder),
        }
        write_json(folder / "manifest.json", record)

    try:
        write_folder(target, fill)
    except RuntimeError as error:  # how mlx reports a failed write
        raise AfsError(f"the model could not be written: {error}", str(target), "check the free disk space") from error
    notice = ""
    if fused[0].dequantised:
        notice = (
            f"only the quantised {run.base} is on this machine: it was dequantised and kept in {fused[0].dtype}. "
            f"For full quality pull the original: afs-mlx pull {run.base} --original"
        )
    return FuseResult(target, fused[0].layers, fused[0].size_bytes, fused[0].dtype, notice)


def _new_weights_hash(folder: Path) -> str:
    """What `weights_hash` will say of the finished folder; not through its cache, for this path is about to vanish."""
    lines = [f"{path.name}:{sha256_of(path)}" for path in sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
