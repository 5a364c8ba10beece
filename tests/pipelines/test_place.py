"""A model folder or its GGUFs in LM Studio's folder: what goes along, what stays, what a person is told."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from afs_mlx.clients.lmstudio import MARKER
from afs_mlx.core.errors import ExitCode, MissingError
from afs_mlx.core.files import sha256_of, write_json
from afs_mlx.core.machine import Machine
from afs_mlx.engine.bases.loading import load_base
from afs_mlx.engine.bases.location import weights_hash
from afs_mlx.pipelines.place import PlaceConfig, place


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """LM Studio's folder of models in a home of this test's own."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    folder = tmp_path / "user" / ".lmstudio" / "models"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def config(tiny_base: Path, tmp_path: Path) -> PlaceConfig:
    """A fused folder with what lies beside a model there: GGUFs, a hidden file, weights of another library."""
    folder = tmp_path / "fused"
    shutil.copytree(tiny_base, folder)
    (folder / "gguf").mkdir()
    (folder / "gguf" / "din-v2-q8_0.gguf").write_bytes(b"GGUF 8")
    (folder / "gguf" / "din-v2-f16.gguf").write_bytes(b"GGUF 16")
    (folder / "gguf" / "Modelfile").write_text("FROM")
    (folder / ".hidden").write_text("")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    return PlaceConfig(folder, "din-v2", "You are Din.", {"expert": "din", "version": "v2"})


def test_the_mlx_folder_as_it_is_loaded(config: PlaceConfig, models: Path, tiny_base: Path) -> None:
    result = place(config)
    assert result.kind == "MLX"
    assert result.placed.path == models / "afs-mlx" / "din-v2"
    assert set(result.placed.files) == {path.name for path in tiny_base.iterdir() if path.is_file()}
    marker = json.loads((result.placed.path / MARKER).read_text())
    assert marker["made_by"].endswith("export lmstudio")
    assert (marker["expert"], marker["version"], marker["kind"]) == ("din", "v2", "MLX")
    assert marker["source"] == str(config.model_folder)
    assert marker["weights_sha256"] == weights_hash(config.model_folder) == weights_hash(result.placed.path)
    loaded = load_base(result.placed.path)
    assert loaded.tokenizer.encode("lda") == load_base(tiny_base).tokenizer.encode("lda")


def test_the_ggufs_in_a_folder_of_their_own(config: PlaceConfig, models: Path) -> None:
    place(config)
    gguf = config.model_folder / "gguf"
    result = place(replace(config, gguf_folder=gguf))
    assert result.kind == "GGUF"
    assert result.placed.path == models / "afs-mlx" / "din-v2-GGUF"
    assert result.placed.files == ("din-v2-f16.gguf", "din-v2-q8_0.gguf")
    marker = json.loads((result.placed.path / MARKER).read_text())
    assert marker["weights_sha256"] == {name: sha256_of(gguf / name) for name in result.placed.files}
    assert {path.name for path in (models / "afs-mlx").iterdir()} == {"din-v2", "din-v2-GGUF"}


def test_a_gguf_of_other_weights_is_left_out(config: PlaceConfig, models: Path) -> None:
    gguf = config.model_folder / "gguf"
    now, before = ({"source": {"weights_sha256": text}} for text in (weights_hash(config.model_folder), "0" * 64))
    write_json(gguf / "manifest.json", {"exports": {"din-v2-f16.gguf": before, "din-v2-q8_0.gguf": now}})
    result = place(replace(config, gguf_folder=gguf))
    assert result.placed.files == ("din-v2-q8_0.gguf",)
    assert any("din-v2-f16.gguf" in text for text in result.notices)
    write_json(gguf / "manifest.json", {"exports": {"din-v2-f16.gguf": before, "din-v2-q8_0.gguf": before}})
    with pytest.raises(MissingError, match="no GGUF was made of these weights"):
        place(replace(config, gguf_folder=gguf))
    (gguf / "manifest.json").write_text("{")  # tells nothing
    assert len(place(replace(config, gguf_folder=gguf)).placed.files) == 2


def test_what_is_not_there_is_named(config: PlaceConfig, models: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError, match="no GGUF was made") as caught:
        place(replace(config, gguf_folder=tmp_path / "empty"))
    assert "afs-mlx export gguf" in caught.value.fix
    (config.model_folder / "tokenizer.json").unlink()
    with pytest.raises(MissingError, match=r"tokenizer\.json missing"):
        place(config)
    assert list(models.iterdir()) == []


def test_without_lm_studio(config: PlaceConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(MissingError, match="not installed") as caught:
        place(config)
    assert caught.value.code == ExitCode.MISSING


@pytest.mark.parametrize("apple", [True, False])
@pytest.mark.parametrize("gguf", [True, False])
def test_what_a_person_is_told(
    config: PlaceConfig, models: Path, monkeypatch: pytest.MonkeyPatch, apple: bool, gguf: bool
) -> None:
    system = "Darwin 25.0 arm64" if apple else "Linux 6.1 x86_64"
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls: cls(system, "p", 2, 1, "3.12")))
    folder = config.model_folder / "gguf" if gguf else None
    notices = place(replace(config, gguf_folder=folder, shots=8)).notices
    assert any("Apple Silicon only" in text for text in notices) == (not apple and not gguf)
    assert any("8 solved examples" in text for text in notices)
    assert models.is_dir()
