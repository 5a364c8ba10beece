"""Every test gets an empty workspace and empty caches, so that none touches or depends on the person's own."""

import os
import tempfile

# Before huggingface_hub is first imported: it reads these once.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="afs-mlx-tests-hf-")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from pathlib import Path

import pytest

import afs_mlx.engine  # noqa: F401  (OpenBLAS, before any test imports mlx)
from afs_mlx.core.paths import cache_folder
from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2


@pytest.fixture(autouse=True)
def _own_folders(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFS_MLX_HOME", str(tmp_path / "workspace"))
    monkeypatch.delenv("AFS_MLX_DEBUG", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    # The embedded base is large and read only; its tests use the one that `afs-mlx pull` made.
    if request.node.get_closest_marker("smollm2") is None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny-qwen2 model folder, built once."""
    folder = tmp_path_factory.mktemp("bases") / "tiny-qwen2"
    build_tiny_qwen2(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2_base() -> Path:
    """The embedded base; a test that uses it carries the smollm2 marker."""
    folder = cache_folder() / "bases" / "smollm2-135m"
    if not folder.is_dir():
        pytest.fail("the embedded base is not here: run `afs-mlx pull smollm2-135m` or `make test-smollm2`")
    return folder
