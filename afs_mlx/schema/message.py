"""One turn of a conversation."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from afs_mlx.core.config import StrictModel


class Message(StrictModel):
    """Who speaks, and what they say.

    `weight` is how much an answer's tokens count in training, 0 for context alone: the key that OpenAI's fine-tuning
    format has on assistant messages, there 0 or 1.
    """

    role: Literal["system", "user", "assistant"]
    content: str
    weight: float = Field(default=1.0, ge=0, strict=True)

    @model_validator(mode="after")
    def _only_answers_weigh(self) -> Self:
        if "weight" in self.model_fields_set and self.role != "assistant":
            raise ValueError(f"weight stands on a {self.role} message; only assistant messages are learnt")
        return self

    def as_dict(self) -> dict[str, str]:
        """The shape that chat templates use."""
        return {"role": self.role, "content": self.content}

    def as_row(self) -> dict[str, Any]:
        """The shape that JSONL rows use: as for templates, with the weight where it is not 1."""
        return self.as_dict() if self.weight == 1 else {**self.as_dict(), "weight": self.weight}
