"""How an adapter is trained. Every default of training lives here or, for one expert, in the catalog."""

from typing import Literal, Self

from pydantic import Field, model_validator

from afs_mlx.core.config import StrictModel


class Recipe(StrictModel):
    """A LoRA training recipe in the field's terms: rank and alpha; mlx-lm's `scale` is derived as alpha / rank."""

    rank: int = Field(default=8, ge=1, le=1024, description="LoRA rank r")
    alpha: float = Field(default=16.0, gt=0, description="LoRA alpha; the update is scaled by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the adapter's input")
    targets: tuple[str, ...] = Field(
        default=(), description="linear layers to adapt, such as q_proj; empty means every linear layer of a block"
    )
    layers: int = Field(default=-1, ge=-1, description="how many blocks to adapt, counted from the top; -1 means all")
    learning_rate: float = Field(default=1e-4, gt=0, le=1, description="peak learning rate of AdamW")
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="AdamW's decoupled weight decay")
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1, description="share of the steps with a rising rate")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="cosine", description="the rate after warmup; linear and cosine fall to a tenth of the peak"
    )
    epochs: int = Field(default=2, ge=1, le=1000, description="passes over the training rows")
    batch_tokens: int = Field(default=1024, ge=1, description="tokens of one micro-batch, padding included")
    accumulation: int = Field(default=1, ge=1, description="micro-batches per optimizer step, weighted by token")
    max_seq_tokens: int = Field(default=2048, ge=8, description="the longest row, prompt and answer together")
    over_long: Literal["error", "drop"] = Field(
        default="error", description="what happens to rows beyond max_seq_tokens; dropped rows are counted"
    )
    clip_norm: float = Field(default=1.0, gt=0, description="gradients are scaled down to this global norm")
    grad_checkpoint: bool = Field(
        default=False, description="recompute activations in the backward pass: less memory, slower"
    )
    validations_per_epoch: int = Field(default=1, ge=1, le=100, description="full validation passes in an epoch")
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of weights, dropout and row order")

    @model_validator(mode="after")
    def _layers_exist(self) -> Self:
        if self.layers == 0:
            raise ValueError("layers = 0 trains nothing; use -1 for all layers or a positive count")
        return self

    @property
    def scale(self) -> float:
        """mlx-lm's factor on the update: alpha / rank."""
        return self.alpha / self.rank
