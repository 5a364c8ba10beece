"""A conversation as it is saved. The file may come from anywhere: everything is checked when it is read."""

from typing import Literal, Self

from pydantic import Field, model_validator

from afs_mlx.core.config import StrictModel
from afs_mlx.schema.message import Message


class SavedSession(StrictModel):
    """One conversation. `expert` and `version` answered last (empty where nobody did); `automatic` chose them.

    `base` and `run` say what answered then; `system` is the person's own system text, None for the expert's.
    """

    schema_version: Literal[1] = 1
    saved_at: str
    expert: str = ""
    version: str = ""
    automatic: bool = True
    base: str = ""
    run: str = ""
    system: str | None = None
    messages: tuple[Message, ...] = Field(default=())

    @model_validator(mode="after")
    def _question_and_answer(self) -> Self:
        roles = [message.role for message in self.messages]
        if roles != ["user", "assistant"] * (len(roles) // 2):
            raise ValueError("questions (user) and answers (assistant) have to alternate, a question first")
        return self
