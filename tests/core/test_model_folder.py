"""Whether a model folder is complete, told by names alone."""

import json
from pathlib import Path

import pytest

from afs_mlx.core.model_folder import missing_files

INDEX = "model.safetensors.index.json"


def folder_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).write_text("{}")
    return tmp_path


def test_a_built_base_is_complete(tiny_base: Path) -> None:
    assert missing_files(tiny_base) == []


def test_an_empty_folder_lacks_everything(tmp_path: Path) -> None:
    assert missing_files(tmp_path) == ["config.json", "tokenizer.json", "model.safetensors"]


def test_sentencepiece_is_a_tokenizer_too(tmp_path: Path) -> None:
    assert missing_files(folder_of(tmp_path, "config.json", "tokenizer.model", "model.safetensors")) == []


def test_the_index_names_the_shards(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "config.json", "tokenizer.json", "one.safetensors")
    (folder / INDEX).write_text(
        json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"}})
    )
    assert missing_files(folder) == ["two.safetensors"]


def test_numbered_shards_tell_their_number_without_an_index(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "config.json", "tokenizer.json", "model-00002-of-00003.safetensors")
    assert missing_files(folder) == ["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": ["model.safetensors"]}'])
def test_a_broken_index_is_missing_and_no_crash(tmp_path: Path, content: str) -> None:
    folder = folder_of(tmp_path, "config.json", "tokenizer.json", "model.safetensors")
    (folder / INDEX).write_text(content)
    assert missing_files(folder) == [f"{INDEX} with a weight_map"]


def test_folders_of_the_right_name_are_no_files(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).mkdir()
    assert missing_files(tmp_path) == ["config.json", "tokenizer.json", "model.safetensors"]


def test_a_download_that_broke_off_leaves_a_dangling_link(tmp_path: Path) -> None:
    """The Hub's cache links into blobs/; an interrupted download has the link's name and no blob."""
    folder = folder_of(tmp_path, "config.json", "tokenizer.json")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    (folder / "model.safetensors").symlink_to(tmp_path / "blobs" / "none")
    assert missing_files(folder) == ["model.safetensors"]
