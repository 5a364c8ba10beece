"""Where an artifact comes from is recorded, with git and without."""

import hashlib
import json
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from afs_mlx import __version__
from afs_mlx.core import manifest
from afs_mlx.core.manifest import git_state, input_file, now, package_version, provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "a").write_text("1")
    git(folder, "add", "a")
    git(folder, "commit", "-q", "-m", "one", "--no-verify")
    monkeypatch.setattr(manifest, "checkout", lambda: folder)
    return folder


def test_provenance_names_code_packages_and_machine() -> None:
    record = provenance("train")
    assert record["schema_version"] == 1
    assert record["made_by"] == f"afs-mlx {__version__}: train"
    assert record["packages"]["mlx-lm"] == version("mlx-lm")
    assert record["machine"]["cores"] >= 1
    assert json.loads(json.dumps(record)) == record


def test_now_is_utc_to_the_second() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", now())


def test_an_absent_package_has_no_version() -> None:
    assert package_version("no-such-package-here") == ""


def test_an_input_is_named_hashed_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{}\n")
    entry = {"file": "rows.jsonl", "sha256": hashlib.sha256(b"{}\n").hexdigest(), "size_bytes": 3}
    assert input_file(path) == entry
    assert input_file(path, 1) == {**entry, "rows": 1}
    assert input_file(path, 0) == {**entry, "rows": 0}


def test_the_commit_and_whether_it_is_dirty(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    assert git_state() == {"commit": commit, "dirty": False}
    (repository / "untracked").write_text("results are not code")
    assert git_state() == {"commit": commit, "dirty": False}
    (repository / "a").write_text("2")
    assert git_state() == {"commit": commit, "dirty": True}


def test_no_git_no_repository_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state() == {}
    monkeypatch.undo()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "plain").mkdir()
    monkeypatch.setattr(manifest, "checkout", lambda: tmp_path / "plain")
    assert git_state() == {}
    monkeypatch.setattr(manifest, "checkout", lambda: None)
    assert git_state() == {}
