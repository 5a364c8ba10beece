"""Which of the known chat formats a model folder uses, and the texts that end its turns. Reads files only."""

import json
from pathlib import Path
from typing import Any, Literal

from afs_mlx.core.errors import AfsError
from afs_mlx.core.files import read_json

type ChatFormat = Literal["chatml", "llama3"]

# A text that occurs in the template and nowhere else.
MARKERS: tuple[tuple[str, ChatFormat], ...] = (("<|im_start|>", "chatml"), ("<|start_header_id|>", "llama3"))


def chat_format(folder: Path) -> ChatFormat:
    """The format of the folder's chat template; raises AfsError for one that we do not know."""
    template = chat_template(folder)
    for marker, name in MARKERS:
        if marker in template:
            return name
    known = ", ".join(name for _, name in MARKERS)
    raise AfsError("the chat template is of no known format", str(folder), f"known formats: {known}")


def stop_texts(folder: Path) -> list[str]:
    """The end-of-turn tokens as text: every id that config and generation config name as `eos_token_id`."""
    names = _added_tokens(folder)
    found: list[str] = []
    for file in ("generation_config.json", "config.json"):
        if (folder / file).is_file():
            value = read_json(folder / file, file).get("eos_token_id")
            found += [
                names[i] for i in (value if isinstance(value, list) else [value]) if isinstance(i, int) and i in names
            ]
    own = _tokenizer_config(folder).get("eos_token")
    found.append(own if isinstance(own, str) else str(own.get("content", "")) if isinstance(own, dict) else "")
    stops = [text for text in dict.fromkeys(found) if text]
    if not stops:
        raise AfsError("the model names no end token", str(folder), "set eos_token in tokenizer_config.json")
    return stops


def chat_template(folder: Path) -> str:
    """The folder's Jinja text, empty where it has none; of several the default one, as transformers takes it."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    value = _tokenizer_config(folder).get("chat_template", "")
    if isinstance(value, list):
        named = {part.get("name"): part.get("template") for part in value if isinstance(part, dict)}
        value = named.get("default", value)
    return value if isinstance(value, str) else json.dumps(value)


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "tokenizer_config.json", "tokenizer_config.json")


def _added_tokens(folder: Path) -> dict[int, str]:
    path = folder / "tokenizer.json"
    added = read_json(path, "tokenizer.json").get("added_tokens") or []
    try:
        return {int(token["id"]): str(token["content"]) for token in added}
    except (TypeError, ValueError, LookupError) as error:
        raise AfsError(
            "added_tokens is no list of tokens with id and content", str(path), "download or make the model again"
        ) from error
