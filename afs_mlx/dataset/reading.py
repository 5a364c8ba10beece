"""Rows in the shapes in use, read as examples: chat, prompt/completion, instruction/input/output, optimisation pair."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from afs_mlx.core.errors import closest
from afs_mlx.core.jsonl import read_jsonl
from afs_mlx.schema.example import Example
from afs_mlx.schema.message import Message
from afs_mlx.schema.optimisation import OptimisationPair, skeleton


def read_examples(path: Path) -> list[Example]:
    """Every row of a JSONL file; raises AfsError that lists each bad line."""
    return read_jsonl(path, example_of)


def example_of(row: dict[str, Any]) -> Example:
    """The example in one row, its shape told by its keys; raises ValueError for none of the known shapes."""
    if "weight" in row:
        raise ValueError("weight: it says nothing beside a conversation; put it on an assistant message of `messages`")
    for keys, read in SHAPES:
        if keys <= row.keys():
            return read(row)
    wanted = ["messages", "prompt", "completion", "instruction", "output"]
    near = "; ".join(f"{key!r}: {closest(key, wanted)}" for key in row if key not in wanted)
    near = near or (f"the row has only {', '.join(map(repr, row))}" if row else "the row is empty")
    raise ValueError(
        f"no known shape: expected `messages`, `prompt` + `completion`, or `instruction` + `output` ({near[:200]})"
    )


def _chat(row: dict[str, Any]) -> Example:
    messages = row["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("messages must be a list of {role, content} objects")
    found = [f"messages[{i}]: {text}" for i, message in enumerate(messages) for text in _message_problems(message)]
    if found:
        raise ValueError("; ".join(found))
    turns = tuple(Message.model_validate(message) for message in messages)
    return Example(messages=turns, group=_group(row), metadata=_rest(row, "messages"))


def _message_problems(message: dict[str, Any]) -> list[str]:
    """What keeps a chat row's message from being one, each with its key."""
    known = list(Message.model_fields)
    strange = [f"{key}: there is no such key; {closest(key, known)}" for key in message if key not in known]
    try:
        Message.model_validate({key: value for key, value in message.items() if key in known})
    except ValidationError as error:
        strange += [
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" if e["loc"] else str(e["msg"])
            for e in error.errors(include_url=False)
        ]
    return strange


def _completion(row: dict[str, Any]) -> Example:
    return _pair(_text(row, "prompt"), _text(row, "completion"), row, "prompt", "completion")


def _instruction(row: dict[str, Any]) -> Example:
    question = _text(row, "instruction")
    if row.get("input"):
        question = f"{question}\n\n{_text(row, 'input')}"
    return _pair(question, _text(row, "output"), row, "instruction", "input", "output")


def _optimisation(row: dict[str, Any]) -> Example:
    pair = OptimisationPair.model_validate(row)
    messages = (Message(role="user", content=pair.question()), Message(role="assistant", content=pair.answer()))
    facts = {"id": pair.id, "family": pair.family, "code": pair.code}
    # Rows with the same answer but for its addresses stay on one side of a split.
    return Example(messages=messages, group=skeleton(pair.better), metadata=facts)


def _pair(question: str, answer: str, row: dict[str, Any], *keys: str) -> Example:
    if question.strip() == answer.strip():
        raise ValueError("the answer is the question")
    messages = (Message(role="user", content=question), Message(role="assistant", content=answer))
    return Example(messages=messages, group=_group(row), metadata=_rest(row, *keys))


def _text(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key}: a text that is not empty is expected")
    return value


def _group(row: dict[str, Any]) -> str:
    """Paraphrases of one parent must not be split; files name the parent in one of these keys."""
    return next((str(row[key]) for key in ("group", "parent", "parent_id") if row.get(key) not in (None, "")), "")


def _rest(row: dict[str, Any], *used: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in used}


SHAPES: tuple[tuple[set[str], Callable[[dict[str, Any]], Example]], ...] = (
    ({"messages"}, _chat),
    ({"code", "better", "goal"}, _optimisation),
    ({"prompt", "completion"}, _completion),
    ({"instruction", "output"}, _instruction),
)
