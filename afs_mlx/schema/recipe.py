"""How an adapter is trained. Every default of training lives here or, for one expert, in the catalog."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from afs_mlx.core.config import StrictModel

type OptimizerName = Literal[
    "adamw", "adam", "adamax", "adagrad", "adadelta", "rmsprop", "adafactor", "lion", "muon", "sgd"
]


class Speed(StrictModel):
    """What is computed how. Each switch changes time and memory; none changes what is learnt beyond rounding."""

    lean: bool = Field(
        default=True,
        description="our own forward pass for Llama, Qwen2 and Qwen3 layouts: no padding outside attention, the last "
        "block's feed-forward only where answers are; off, mlx-lm's own model is called on padded rows",
    )
    supervised_head: bool = Field(default=True, description="logits only where answers are")
    head_chunk: int = Field(
        default=500, ge=0, le=10_000_000, description="thousands of logits that exist at a time; 0 is all at once"
    )
    keep_frozen: bool = Field(
        default=True, description="run the blocks below the first adapted one once per row and keep what they gave"
    )
    shared_prompt: bool = Field(
        default=True, description="compute the tokens that every row begins with once per batch, not once per row"
    )
    fast_exp: bool = Field(
        default=True,
        description="on a CPU, exponentials from a polynomial (error below 4e-6) instead of mlx's slow one",
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto", description="compile the step; auto is on for Metal, off on a CPU, where it measures slower"
    )
    memory_gb: float = Field(
        default=2.0, ge=0, le=1024, description="what the kept frozen outputs may take in memory; more goes to disk"
    )
    disk_gb: float = Field(
        default=16.0, ge=0, le=65536, description="what they may take on disk; rows beyond that are computed each time"
    )


class Recipe(StrictModel):
    """A LoRA training recipe in the field's terms: rank and alpha; mlx-lm's `scale` is derived from them."""

    method: Literal["lora", "dora"] = Field(
        default="lora", description="LoRA, or DoRA, which learns the length of each weight row as well"
    )
    rank: int = Field(default=8, ge=1, le=1024, description="LoRA rank r")
    alpha: float = Field(default=16.0, gt=0, description="LoRA alpha; the update is scaled by alpha / rank")
    rslora: bool = Field(default=False, description="rank-stabilised: the update is scaled by alpha / √rank instead")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the adapter's input")
    targets: tuple[str, ...] = Field(
        default=(), description="linear layers to adapt, such as q_proj; empty means every linear layer of a block"
    )
    layers: int = Field(default=-1, ge=-1, description="how many blocks to adapt, counted from the top; -1 means all")
    optimizer: OptimizerName = Field(default="adamw", description="one of mlx's optimizers")
    optimizer_options: dict[str, bool | float | tuple[float, ...]] = Field(
        default_factory=dict, description="the optimizer's own options, such as betas, eps or momentum"
    )
    learning_rate: float = Field(default=1e-4, gt=0, le=1, description="peak learning rate")
    weight_decay: float = Field(default=0.01, ge=0, le=1, description="weight decay, for optimizers that have one")
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1, description="share of the steps with a rising rate")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="cosine", description="the rate after warmup; linear and cosine fall to `final_rate`"
    )
    final_rate: float = Field(
        default=0.1, ge=0, le=1, description="where linear and cosine end, as a share of learning_rate"
    )
    epochs: int = Field(default=2, ge=1, le=1000, description="passes over the training rows")
    batch_tokens: int = Field(
        default=1024, ge=1, description="tokens of one micro-batch: its rows times the longest of them"
    )
    accumulation: int = Field(default=1, ge=1, description="micro-batches per optimizer step, weighted by token")
    max_seq_tokens: int = Field(default=2048, ge=8, description="the longest row, prompt and answer together")
    over_long: Literal["error", "drop", "truncate"] = Field(
        default="error",
        description="rows beyond max_seq_tokens are an error, dropped, or lose the start of their prompt; counted",
    )
    clip_norm: float = Field(default=1.0, gt=0, description="gradients are scaled down to this global norm")
    grad_checkpoint: bool = Field(
        default=False, description="recompute activations in the backward pass: less memory, slower"
    )
    spike_factor: float = Field(
        default=3.0,
        ge=0,
        description="a loss above this many times the median of the last steps, or one that is not finite, rolls back "
        "to the last checkpoint; 0 looks at finiteness alone",
    )
    validations_per_epoch: int = Field(default=1, ge=1, le=100, description="full validation passes in an epoch")
    patience: int = Field(default=0, ge=0, description="stop after so many validations without a better one; 0 never")
    checkpoint_steps: int = Field(
        default=25, ge=1, le=1_000_000, description="steps between checkpoints: what a power cut can cost at most"
    )
    keep_checkpoints: int = Field(default=2, ge=1, le=1000, description="how many of the newest checkpoints stay")
    samples: int = Field(
        default=1, ge=0, le=20, description="validation questions that are answered, to be read, at each validation"
    )
    sample_tokens: int = Field(default=64, ge=1, le=4096, description="the longest of these answers")
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of weights, dropout and row order")
    speed: Speed = Field(default=Speed(), description="how it is computed: switches of time and memory")

    @model_validator(mode="after")
    def _layers_exist(self) -> Self:
        if self.layers == 0:
            raise ValueError("layers = 0 trains nothing; use -1 for all layers or a positive count")
        return self

    @property
    def scale(self) -> float:
        """mlx-lm's factor on the update: alpha / rank, alpha / √rank for rsLoRA."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
