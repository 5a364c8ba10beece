"""Looks at the machine: what is here, what works, what to install. Answers also where mlx is broken."""

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from afs_mlx.core.files import existing_parent, folder_size_bytes
from afs_mlx.core.machine import Machine
from afs_mlx.core.manifest import PACKAGES, package_version
from afs_mlx.core.paths import Workspace
from afs_mlx.experts.catalog import Catalog

# In a process of its own: a broken library may end the process that loads it.
PROBE = [sys.executable, "-c", "import mlx.core as mx; mx.eval(mx.zeros(1)); print(mx.default_device())"]
PROBE_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Check:
    """One thing that should be here; `fix` is empty where it is."""

    name: str
    passed: bool
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class BaseState:
    """A catalogued base; `folder` is None when it is not on disk."""

    id: str
    folder: Path | None
    size_bytes: int


@dataclass(frozen=True)
class Diagnosis:
    """Everything `doctor` shows."""

    machine: Machine
    packages: dict[str, str]
    workspace: Path
    free_bytes: int
    bases: list[BaseState]
    checks: list[Check]

    def as_dict(self) -> dict[str, Any]:
        return {
            "machine": self.machine.as_dict(),
            "packages": self.packages,
            "workspace": str(self.workspace),
            "free_bytes": self.free_bytes,
            "bases": [{**asdict(base), "folder": str(base.folder or "")} for base in self.bases],
            "checks": [asdict(check) for check in self.checks],
        }


def diagnose() -> Diagnosis:
    """Look at everything; nothing here raises for what is merely missing."""
    from afs_mlx.engine.bases.location import locate

    workspace = Workspace.find()
    machine = Machine.here()
    folders = {key: locate(base) for key, base in Catalog.load(workspace).bases.items() if base.source != "built"}
    return Diagnosis(
        machine=machine,
        packages={name: package_version(name) for name in PACKAGES},
        workspace=workspace.root,
        free_bytes=shutil.disk_usage(existing_parent(workspace.root)).free,
        bases=[BaseState(key, folder, folder_size_bytes(folder) if folder else 0) for key, folder in folders.items()],
        checks=[_mlx(machine), _blas(machine), _asar(), _ollama()],
    )


def _mlx(machine: Machine) -> Check:
    if machine.rosetta:
        fix = "install an arm64 Python (brew install python@3.13 in an arm64 terminal), then make clean setup"
        return Check("mlx", False, "this Python runs under Rosetta, where mlx has no wheel", fix)
    if importlib.util.find_spec("mlx") is None or importlib.util.find_spec("mlx_lm") is None:
        return Check("mlx", False, "not installed", "make setup")
    try:
        done = subprocess.run(PROBE, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("mlx", False, f"does not start: {error}", "make clean setup")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Check("mlx", False, f"does not start: {last}", "make clean setup")
    return Check("mlx", True, "trains and runs on " + ("Metal" if "gpu" in done.stdout else "this CPU, in float32"))


def _blas(machine: Machine) -> Check:
    from afs_mlx.engine.blas import preload_openblas

    if not machine.system.startswith("Linux"):
        return Check("BLAS", True, "Accelerate")
    found = preload_openblas()
    if found:
        return Check("BLAS", True, found)
    fix = "install libopenblas0-pthread (Debian, Ubuntu) or openblas (Fedora, Arch)"
    return Check("BLAS", False, "OpenBLAS is missing: training is about 20 times slower", fix)


def _asar() -> Check:
    from afs_mlx.snes.asar import asar_path

    found = asar_path()
    if found:
        return Check("Asar", True, str(found))
    fix = "install a C++ compiler and cmake, then make clean setup; or put asar on PATH"
    return Check("Asar", False, "assembly in data and answers will be reported as not verified", fix)


def _ollama() -> Check:
    found = shutil.which("ollama")
    if found:
        return Check("Ollama", True, found)
    return Check(
        "Ollama", False, "optional: serves exported experts to other programs", "install Ollama to use exports with it"
    )
