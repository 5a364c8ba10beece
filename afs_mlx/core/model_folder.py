"""Whether a folder is a complete Hugging Face or mlx-lm model. Looks at names only, never at weights."""

import re
from pathlib import Path

from afs_mlx.core.errors import AfsError
from afs_mlx.core.files import read_json

INDEX = "model.safetensors.index.json"
NUMBERED_SHARD = re.compile(r"model-\d+-of-(\d+)\.safetensors")


def missing_files(folder: Path) -> list[str]:
    """What a model folder lacks to be complete: configuration, tokenizer, every weight file that its index names."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        missing.append("tokenizer.json")
    shards = _expected_shards(folder)
    return missing + [name for name in shards if not (folder / name).is_file()]


def _expected_shards(folder: Path) -> list[str]:
    index = folder / INDEX
    if index.is_file():
        try:
            weight_map = read_json(index, "the list of weight files").get("weight_map")
        except AfsError:
            weight_map = None
        names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
        return names or [f"{index.name} with a weight_map"]
    present = sorted(path.name for path in folder.glob("model*.safetensors"))
    for name in present:
        if numbered := NUMBERED_SHARD.fullmatch(name):
            count = int(numbered[1])
            return [f"model-{shard:05d}-of-{count:05d}.safetensors" for shard in range(1, count + 1)]
    return present or ["model.safetensors"]
