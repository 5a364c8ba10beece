"""What the trainer reports while it runs. Rates are per second of training, validation left out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Planned:
    """Known before the first step."""

    total_steps: int
    train_rows: int
    valid_rows: int
    dropped_rows: int
    train_tokens: int
    supervised_tokens: int
    trainable_parameters: int
    padding_share: float


@dataclass(frozen=True)
class Stepped:
    """After an optimizer step; `loss` is the mean over this step's supervised tokens."""

    step: int
    total_steps: int
    epoch: int
    loss: float
    learning_rate: float
    grad_norm: float
    supervised_tokens: int
    tokens_per_s: float
    peak_memory_gb: float
    elapsed_s: float


@dataclass(frozen=True)
class Validated:
    """After a pass over the whole validation set; `best` says whether this is the lowest loss so far."""

    step: int
    loss: float
    supervised_tokens: int
    best: bool
    elapsed_s: float


type TrainingEvent = Planned | Stepped | Validated
