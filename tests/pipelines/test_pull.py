"""Pulling with the network and the conversion faked: what is fetched, kept, verified, thrown away."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.paths import Workspace
from afs_mlx.engine.bases import loading, smollm2
from afs_mlx.engine.bases.loading import WrongAnswerError
from afs_mlx.engine.bases.location import own_folder
from afs_mlx.experts.catalog import Catalog
from afs_mlx.pipelines.pull import Note, PullConfig, PullResult, Size, pull

COMMIT = "a" * 40


@pytest.fixture
def catalog() -> Catalog:
    return Catalog.load(Workspace.find())


@pytest.fixture
def wheel(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that is always there and converts to the tiny base."""
    path = tmp_path / "a.whl"
    path.touch()
    monkeypatch.setattr("afs_mlx.clients.wheel.fetch_wheel", lambda *_: path)
    monkeypatch.setattr(smollm2, "convert_wheel", lambda _, folder: shutil.copytree(tiny_base, folder))
    return path


def run(catalog: Catalog, base: str, **options: bool) -> tuple[PullResult, list[Any]]:
    events: list[Any] = []
    return pull(PullConfig(catalog.bases[base], **options), events.append), events


def test_the_wheel_is_converted_verified_and_removed(
    catalog: Catalog, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "verify_base", lambda _: None)
    result, events = run(catalog, "smollm2-135m")
    assert (result.folder, result.fetched) == (own_folder("smollm2-135m"), True)
    assert "token for token" in result.verified
    assert isinstance(events[0], Size)
    assert not wheel.exists()
    again, _ = run(catalog, "smollm2-135m")
    assert (again.folder, again.fetched) == (result.folder, False)


def test_a_dry_run_fetches_nothing(catalog: Catalog, wheel: Path) -> None:
    result, events = run(catalog, "smollm2-135m", dry_run=True)
    assert result.folder is None
    assert events[0].size_bytes == smollm2.WHEEL_SIZE_BYTES
    assert wheel.exists()


def test_a_base_that_answers_wrongly_is_thrown_away(
    catalog: Catalog, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(_: Path) -> None:
        raise WrongAnswerError("it answers otherwise")

    monkeypatch.setattr(loading, "verify_base", wrong)
    with pytest.raises(WrongAnswerError):
        run(catalog, "smollm2-135m")
    assert not own_folder("smollm2-135m").exists()


@pytest.mark.parametrize(
    "error",
    [AfsError("no device", "a folder", "a fix"), RuntimeError("no device"), OSError("no device")],
    ids=["while loading", "while answering", "while reading"],
)
def test_where_mlx_fails_the_base_is_kept_unverified(
    catalog: Catalog, wheel: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Path) -> None:
        raise error

    monkeypatch.setattr(loading, "verify_base", broken)
    result, _ = run(catalog, "smollm2-135m")
    assert (result.verified, result.fetched) == ("not verified: no device", True)
    assert own_folder("smollm2-135m").is_dir()


def test_where_mlx_cannot_be_imported_the_base_is_kept_unverified(
    catalog: Catalog, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "afs_mlx.engine.bases.loading", None)
    result, _ = run(catalog, "smollm2-135m")
    assert result.verified.startswith("not verified: mlx does not start here")
    assert own_folder("smollm2-135m").is_dir()


@pytest.fixture
def hub(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache of the test's own and a Hub that lists one commit."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    listing = SimpleNamespace(size_bytes=7, files=("config.json",), commit=COMMIT)
    monkeypatch.setattr("afs_mlx.clients.hub.hub_size", lambda *_: listing)
    monkeypatch.setattr("afs_mlx.clients.hub.hub_download", lambda *_: Path("downloaded"))
    return tmp_path / "hub"


def snapshot(hub: Path, repository: str, base: Path, commit: str = COMMIT) -> Path:
    folder = hub / f"models--{repository.replace('/', '--')}" / "snapshots" / commit
    shutil.copytree(base, folder)
    return folder


def test_a_hub_base_is_fetched_once(catalog: Catalog, hub: Path, tiny_base: Path) -> None:
    result, _ = run(catalog, "qwen2.5-coder-3b")
    assert (result.folder, result.fetched) == (Path("downloaded"), True)
    here = snapshot(hub, catalog.bases["qwen2.5-coder-3b"].hub, tiny_base)
    result, _ = run(catalog, "qwen2.5-coder-3b")
    assert (result.folder, result.fetched) == (here, False)


def test_a_newer_commit_is_fetched_and_half_of_one_continued(catalog: Catalog, hub: Path, tiny_base: Path) -> None:
    repository = catalog.bases["qwen2.5-coder-3b"].hub
    old = snapshot(hub, repository, tiny_base, "b" * 40)
    result, _ = run(catalog, "qwen2.5-coder-3b", dry_run=True)
    assert (result.folder, result.fetched) == (old, False)
    half = snapshot(hub, repository, tiny_base)
    (half / "model.safetensors").unlink()
    result, _ = run(catalog, "qwen2.5-coder-3b")
    assert (result.folder, result.fetched) == (Path("downloaded"), True)


def test_a_commit_that_is_here_is_kept_though_main_stood_for_another(
    catalog: Catalog, hub: Path, tiny_base: Path
) -> None:
    repository = catalog.bases["qwen2.5-coder-3b"].hub
    old = snapshot(hub, repository, tiny_base, "b" * 40)
    here = snapshot(hub, repository, tiny_base)
    refs = old.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(old.name)
    result, _ = run(catalog, "qwen2.5-coder-3b")
    assert (result.folder, result.fetched, result.verified) == (here, False, f"revision {COMMIT}")


def test_offline_a_complete_copy_stays(
    catalog: Catalog, hub: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object) -> None:
        raise MissingError("the Hub cannot be reached")

    monkeypatch.setattr("afs_mlx.clients.hub.hub_size", offline)
    with pytest.raises(MissingError):
        run(catalog, "qwen2.5-coder-3b")
    here = snapshot(hub, catalog.bases["qwen2.5-coder-3b"].hub, tiny_base)
    result, events = run(catalog, "qwen2.5-coder-3b")
    assert (result.folder, result.fetched) == (here, False)
    assert isinstance(events[0], Note)


def test_the_original_is_another_repository(
    catalog: Catalog, hub: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("afs_mlx.clients.hub.hub_download", lambda repository, *_: asked.append(repository))
    run(catalog, "qwen2.5-coder-3b", original=True)
    assert asked == ["Qwen/Qwen2.5-Coder-3B-Instruct"]
