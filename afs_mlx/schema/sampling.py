"""How an answer is drawn from the model."""

from pydantic import Field

from afs_mlx.core.config import StrictModel


class Sampling(StrictModel):
    """Sampling defaults; an expert's own stand in the catalog."""

    temperature: float = Field(default=0.4, ge=0, le=5, description="0 is greedy")
    top_p: float = Field(
        default=0.9, gt=0, le=1, description="nucleus sampling: the smallest set with this probability"
    )
    context_tokens: int = Field(default=4096, ge=16, description="prompt and answer together")
    max_tokens: int = Field(default=1024, ge=1, description="the longest answer")
    stop: tuple[str, ...] = Field(default=(), description="texts that end an answer, beside the model's own end tokens")
