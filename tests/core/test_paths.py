"""Where the workspace and the caches are taken from."""

from pathlib import Path

import pytest

from afs_mlx.core import paths
from afs_mlx.core.errors import MissingError
from afs_mlx.core.paths import Workspace, cache_folder, checkout

TRACKED = "evals/suites/optimisation.toml"


def test_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "adapters").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("AFS_MLX_HOME", str(tmp_path / "named"))
    assert Workspace.find().root == (tmp_path / "named").resolve()


def test_a_relative_or_home_path_in_the_environment_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("AFS_MLX_HOME", "ws")
    assert Workspace.find().root == tmp_path.resolve() / "ws"
    monkeypatch.setenv("AFS_MLX_HOME", "~/ws")
    assert Workspace.find().root == (tmp_path / "me" / "ws").resolve()


@pytest.mark.parametrize("sign", ["adapters", "fused", "experts.toml"])
def test_the_current_folder_when_it_holds_a_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: str
) -> None:
    monkeypatch.delenv("AFS_MLX_HOME")
    here = tmp_path / "here"
    (here / sign).mkdir(parents=True) if sign != "experts.toml" else (here.mkdir(), (here / sign).touch())
    monkeypatch.chdir(here)
    assert Workspace.find().root == here


def test_else_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AFS_MLX_HOME")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert Workspace.find().root == tmp_path / "data" / "afs-mlx"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert Workspace.find().root == tmp_path / "me" / ".local" / "share" / "afs-mlx"


def test_an_empty_environment_variable_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFS_MLX_HOME", "")
    monkeypatch.chdir(tmp_path)
    assert Workspace.find().root == tmp_path / "data" / "afs-mlx"


def test_a_tracked_file_of_the_workspace_hides_the_shipped_one(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    shipped = checkout()
    assert shipped is not None
    assert workspace.find_file(TRACKED) == shipped / TRACKED
    own = tmp_path / TRACKED
    own.parent.mkdir(parents=True)
    own.touch()
    assert workspace.find_file(TRACKED) == own


def test_a_file_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path)
    assert not workspace.has_file("data/curated/none.jsonl")
    with pytest.raises(MissingError, match=r"data/curated/none\.jsonl is neither"):
        workspace.find_file("data/curated/none.jsonl")
    monkeypatch.setattr(paths, "checkout", lambda: None)  # installed from a wheel
    assert not workspace.has_file(TRACKED)


def test_paths_are_shown_as_they_would_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    workspace = Workspace(tmp_path / "ws")
    assert workspace.shown(tmp_path / "here" / "adapters" / "din") == "adapters/din"
    assert workspace.shown(tmp_path / "ws" / "adapters") == str(tmp_path / "ws" / "adapters")
    assert workspace.shown(Path("/elsewhere/x")) == "/elsewhere/x"


def test_the_cache_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache" / "afs-mlx"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache_folder() == tmp_path / "me" / ".cache" / "afs-mlx"
