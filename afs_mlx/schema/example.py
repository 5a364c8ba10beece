"""A training example: a conversation whose assistant turns are to be learnt."""

from typing import Any, Self

from pydantic import Field, model_validator

from afs_mlx.core.config import StrictModel
from afs_mlx.schema.message import Message


class Example(StrictModel):
    """A conversation that ends with an assistant turn.

    `group` names what must not be split between training and validation (paraphrases of one parent share a group);
    `metadata` keeps what a row said beside its conversation.
    """

    messages: tuple[Message, ...]
    group: str = ""
    metadata: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _ends_with_an_answer(self) -> Self:
        if not self.messages or self.messages[-1].role != "assistant":
            raise ValueError("the last message must be the assistant's answer")
        if any(m.role == "assistant" and not m.content.strip() for m in self.messages):
            raise ValueError("an assistant message is empty")
        if not any(m.role == "user" for m in self.messages):
            raise ValueError("there is no user message")
        if any(m.role == "system" for m in self.messages[1:]):
            raise ValueError("a system message may only stand first")
        if not any(m.weight for m in self.messages if m.role == "assistant"):
            raise ValueError("every answer weighs 0, so nothing is learnt; give one a weight or leave the row out")
        return self

    def with_system(self, prompt: str) -> "Example":
        """The same conversation under `prompt`, unless it brings a system message of its own."""
        if not prompt or self.messages[0].role == "system":
            return self
        return self.model_copy(update={"messages": (Message(role="system", content=prompt), *self.messages)})
