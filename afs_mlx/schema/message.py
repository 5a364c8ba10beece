"""One turn of a conversation."""

from typing import Literal

from afs_mlx.core.config import StrictModel


class Message(StrictModel):
    """Who speaks, and what they say."""

    role: Literal["system", "user", "assistant"]
    content: str

    def as_dict(self) -> dict[str, str]:
        """The shape that chat templates and JSONL rows use."""
        return {"role": self.role, "content": self.content}
