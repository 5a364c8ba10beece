"""Rows in the shapes in use become examples; a bad row is named with its line."""

import json
from pathlib import Path
from typing import Any

import pytest

from afs_mlx.core.errors import AfsError
from afs_mlx.dataset.reading import example_of, read_examples
from afs_mlx.schema.example import Example

CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
PAIR = {
    "id": "p-1",
    "family": "stz",
    "goal": "bytes",
    "entry": {"m": 8, "x": 8},
    "live": [],
    "code": "lda #$00\nsta $10",
    "better": "stz $10",
    "reason": "r",
    "not_when": "n",
}


def chat(question: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """A chat row with more keys on its messages."""
    first, second = CHAT["messages"]
    return {"messages": [{**first, **question}, {**second, **answer}]}


def dialogue(example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.messages]


@pytest.mark.parametrize(
    "row",
    [
        CHAT,
        {"prompt": "q", "completion": "a"},
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "input": "", "output": "a"},
        {"instruction": "q", "input": None, "output": "a"},
        {**CHAT, "_meta": {"source": "log", "domain": "asm", "confidence": 0.4}},
        {"instruction": "q", "output": "a", "domain": "snes", "source": "gemini", "thinking": None, "_metadata": {}},
    ],
)
def test_every_shape_is_the_same_conversation(row: dict[str, Any]) -> None:
    assert dialogue(example_of(row)) == [("user", "q"), ("assistant", "a")]


def test_the_input_stands_below_the_instruction() -> None:
    example = example_of({"instruction": "Optimise this.", "input": "lda #$00", "output": "stz"})
    assert dialogue(example)[0] == ("user", "Optimise this.\n\nlda #$00")


def test_what_a_row_says_besides_is_kept() -> None:
    example = example_of({"instruction": "q", "output": "a", "domain": "snes", "sample_id": 5})
    assert example.metadata == {"domain": "snes", "sample_id": 5}


def test_the_weight_of_an_answer_is_read() -> None:
    row = {"messages": [*chat({}, {"weight": 0})["messages"], *chat({}, {"weight": 2})["messages"], *CHAT["messages"]]}
    assert [message.weight for message in example_of(row).messages] == [1, 0, 1, 2, 1, 1]


def test_a_system_message_in_a_row_stays() -> None:
    row = {"messages": [{"role": "system", "content": "s"}, *CHAT["messages"]]}
    assert dialogue(example_of(row))[0] == ("system", "s")


def test_an_optimisation_pair_is_its_question_and_answer() -> None:
    example = example_of(PAIR)
    assert example.messages[0].content.startswith("Optimise for bytes. Entry: A 8-bit, X/Y 8-bit.")
    assert example.messages[1].content.startswith("```asm\nstz $10\n```")
    assert example.metadata == {"id": "p-1", "family": "stz", "code": PAIR["code"]}


def test_pairs_that_differ_in_addresses_alone_are_one_group() -> None:
    other = {**PAIR, "id": "p-2", "code": "lda.b #$00\nsta $7f", "better": "  STZ.b  $7F ; clear"}
    assert example_of(other).group == example_of(PAIR).group
    assert example_of({**PAIR, "better": "stz $10,x"}).group != example_of(PAIR).group


@pytest.mark.parametrize(
    ("row", "group"),
    [
        ({"group": "g"}, "g"),
        ({"parent": "p"}, "p"),
        ({"parent_id": 7}, "7"),
        ({"parent_id": 0}, "0"),  # the first parent is a parent
        ({"group": "g", "parent": "p"}, "g"),
        ({"group": "", "parent": "p"}, "p"),
        ({"group": None}, ""),
        ({}, ""),
    ],
)
def test_the_parent_of_a_paraphrase_is_its_group(row: dict[str, Any], group: str) -> None:
    assert example_of({**CHAT, **row}).group == group
    assert example_of({"prompt": "q", "completion": "a", **row}).group == group


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "the row is empty"),
        ({"prompt": "q"}, r"expected `messages`, `prompt` \+ `completion`.*\(the row has only 'prompt'\)"),
        ({"promt": "q", "completion": "a"}, r"'promt': did you mean 'prompt'\?"),
        ({"instruction": "q", "ouput": "a"}, r"'ouput': did you mean 'output'\?"),
        ({"prompt": "", "completion": "a"}, "prompt: a text that is not empty is expected"),
        ({"prompt": "q", "completion": " \n"}, "completion: a text that is not empty is expected"),
        ({"prompt": 5, "completion": "a"}, "prompt: a text"),
        ({"instruction": "q", "output": None}, "output: a text"),
        ({"instruction": "q", "input": ["x"], "output": "a"}, "input: a text"),
        ({"prompt": "same", "completion": " same\n"}, "the answer is the question"),
        ({"messages": "q"}, "messages must be a list"),
        ({"messages": {"role": "user"}}, "messages must be a list"),
        ({"messages": ["q", "a"]}, "messages must be a list"),
        ({"messages": []}, "the last message must be the assistant's answer"),
        ({"messages": [{"role": "user", "content": "q"}]}, "the last message must be the assistant's answer"),
        ({"messages": [{"role": "human", "content": "q"}]}, "role"),
        ({"messages": [{"content": "q"}]}, "role"),
        ({"messages": [{"role": "user", "content": None}]}, "content"),
        ({**PAIR, "goal": "speed"}, "goal"),
        ({**PAIR, "better": PAIR["code"]}, "code and better are the same routine"),
        ({**PAIR, "note": "x"}, "note"),
        (chat({"weight": 1}, {}), r"messages\[0\]: .*weight stands on a user message; only assistant messages"),
        (chat({}, {"weight": -1}), r"messages\[1\]: weight: .*greater than or equal to 0"),
        (chat({}, {"weight": "1"}), r"messages\[1\]: weight: .*number"),
        (chat({}, {"weight": 0}), "every answer weighs 0"),
        (chat({}, {"weigth": 0}), r"messages\[1\]: weigth: there is no such key; did you mean 'weight'\?"),
        (chat({"name": "x"}, {"tools": []}), r"messages\[0\]: name: .*; messages\[1\]: tools: "),
        ({**CHAT, "weight": 1}, "weight: .*put it on an assistant message"),
        ({"prompt": "q", "completion": "a", "weight": 0}, "weight: .*put it on an assistant message"),
    ],
)
def test_a_row_that_cannot_be_used(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        example_of(row)


def test_all_bad_rows_of_a_file_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    good = json.dumps(CHAT)
    twice = '{"messages": [{"role": "user", "content": "q", "content": "r"}]}'
    path.write_text("\n".join([good, '{"promt": 1}', twice, "", '{"prompt": "x", "completion": ""}', good]))
    with pytest.raises(AfsError) as caught:
        read_examples(path)
    found = [line.strip() for line in caught.value.what.splitlines()]
    assert found[0] == "bad rows (3 problems)"
    assert found[1].startswith("line 2: no known shape")
    assert found[2] == "line 3: key 'content' stands twice in one object"
    assert found[3] == "line 5: completion: a text that is not empty is expected"
