"""The general.* keys of a file: its name, its licence, and what it was made from.

The package's own keys stand where GGUF has none; what they hold is in the manifest too, but the file travels alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
from gguf import GGUFWriter

from afs_mlx import __version__
from afs_mlx.core.files import read_json
from afs_mlx.engine.gguf.mixes import Kind

# A key of the model folder's manifest → its key in the file. Empty or absent values are left out.
SOURCES: dict[tuple[str, ...], str] = {
    ("expert",): gguf.Keys.General.FINETUNE,
    ("version",): gguf.Keys.General.VERSION,
    ("base", "revision"): gguf.Keys.General.BASE_MODEL_VERSION.format(id=0),
    ("base", "weights_sha256"): "afs_mlx.base.weights_sha256",
    ("base", "fused_into_sha256"): "afs_mlx.base.fused_into_sha256",
    ("parent", "run"): "afs_mlx.run",
    ("parent", "sha256"): "afs_mlx.adapter_sha256",
    ("weights_sha256",): "afs_mlx.weights_sha256",  # of the folder that was exported
    ("made_by",): "afs_mlx.made_by",
}
CARD_KEYS = ("license", "license_name", "license_link", "base_model")


def add_general(
    writer: GGUFWriter, folder: Path, kind: Kind, name: str, description: str, source: Mapping[str, Any] | None
) -> None:
    """Write name, licence, quantisation and provenance; `source` is read from the folder's manifest when None."""
    path = folder / "manifest.json"
    manifest = source if source is not None else read_json(path, "the manifest") if path.is_file() else {}
    card = _card(folder)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_description(description)
    writer.add_license(_text(manifest, ("license",)) or card.get("license", ""))
    for key, add in (("license_name", writer.add_license_name), ("license_link", writer.add_license_link)):
        if card.get(key):
            add(card[key])
    writer.add_file_type(kind.file)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_quantized_by(f"afs-mlx {__version__}")
    base = _text(manifest, ("base", "id")) or card.get("base_model", "")
    if base:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, base)
    for keys, name_in_file in SOURCES.items():
        if text := _text(manifest, keys):
            writer.add_string(name_in_file, text)


def _text(manifest: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """One text of the manifest, empty where there is none."""
    value: Any = manifest
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else ""


def _card(folder: Path) -> dict[str, str]:
    """The plain values at the head of the model card."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    head = lines[1 : lines.index("---", 1)] if lines[:1] == ["---"] and "---" in lines[1:] else []
    pairs = (line.partition(":") for line in head)
    found = {key: value.strip().strip("\"'") for key, _, value in pairs if key in CARD_KEYS}
    return {key: value for key, value in found.items() if value and value[0] not in "[{|>"}
