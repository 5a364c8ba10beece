"""Messages and examples: what can be learnt from, and under which system text."""

from typing import Any

import pytest
from pydantic import ValidationError

from afs_mlx.schema.example import Example
from afs_mlx.schema.message import Message


def turns(*roles_and_texts: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in roles_and_texts]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "the last message must be the assistant's answer"),
        (turns(("user", "q")), "the last message must be the assistant's answer"),
        (turns(("assistant", "a"), ("user", "q")), "the last message must be the assistant's answer"),
        (turns(("user", "q"), ("assistant", " \n")), "an assistant message is empty"),
        (turns(("user", "q"), ("assistant", ""), ("user", "q"), ("assistant", "a")), "an assistant message is empty"),
        (turns(("assistant", "a")), "there is no user message"),
        (turns(("system", "s"), ("assistant", "a")), "there is no user message"),
        (turns(("user", "q"), ("system", "s"), ("assistant", "a")), "a system message may only stand first"),
        (
            turns(("system", "s"), ("system", "t"), ("user", "q"), ("assistant", "a")),
            "a system message may only stand first",
        ),
    ],
)
def test_what_cannot_be_learnt_from(messages: list[dict[str, str]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Example.model_validate({"messages": messages})


def test_a_conversation_of_several_turns() -> None:
    messages = turns(("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "q2"), ("assistant", "a2"))
    example = Example.model_validate({"messages": messages})
    assert [message.as_dict() for message in example.messages] == messages


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "x"},
        {"role": "User", "content": "x"},
        {"role": "user", "content": None},
        {"role": "user", "content": ["x"]},
        {"role": "user", "content": 5},
        {"role": "user"},
        {"role": "user", "content": "x", "name": "y"},
        {"role": "user", "content": "x", "weight": 1},
        {"role": "system", "content": "x", "weight": 0},
        {"role": "assistant", "content": "x", "weight": -0.5},
        {"role": "assistant", "content": "x", "weight": float("inf")},
        {"role": "assistant", "content": "x", "weight": float("nan")},
        {"role": "assistant", "content": "x", "weight": "1"},
        {"role": "assistant", "content": "x", "weight": True},
        {"role": "assistant", "content": "x", "weight": None},
    ],
)
def test_what_is_no_message(message: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Message.model_validate(message)


@pytest.mark.parametrize("weight", [0, 0.5, 1, 3])
def test_an_answer_may_bear_a_weight(weight: float) -> None:
    message = Message.model_validate({"role": "assistant", "content": "a", "weight": weight})
    assert message.weight == weight
    assert message.as_dict() == {"role": "assistant", "content": "a"}, "chat templates know no weight"
    assert message.as_row() == {**message.as_dict(), **({} if weight == 1 else {"weight": weight})}
    assert Message.model_validate(message.as_row()) == message


def test_a_weight_is_one_where_none_is_said() -> None:
    assert Message(role="assistant", content="a").weight == 1
    assert Message(role="user", content="a").as_row() == {"role": "user", "content": "a"}


def test_one_answer_at_least_has_to_weigh() -> None:
    silent = {"role": "assistant", "content": "a", "weight": 0}
    messages = [*turns(("user", "q")), silent, *turns(("user", "q2"))]
    with pytest.raises(ValidationError, match="every answer weighs 0"):
        Example.model_validate({"messages": [*messages, silent]})
    assert Example.model_validate({"messages": [*messages, {**silent, "weight": 0.1}]}).messages[-1].weight == 0.1


def test_the_system_text_stands_first_and_the_rest_stays() -> None:
    example = Example.model_validate({"messages": turns(("user", "q"), ("assistant", "a")), "group": "g"})
    dressed = example.with_system("You are Din.")
    assert dressed.messages == (Message(role="system", content="You are Din."), *example.messages)
    assert dressed.group == "g"
    assert len(example.messages) == 2
    assert example.with_system("") is example


def test_a_row_with_its_own_system_text_keeps_it() -> None:
    example = Example.model_validate({"messages": turns(("system", "own"), ("user", "q"), ("assistant", "a"))})
    assert example.with_system("You are Din.") is example
