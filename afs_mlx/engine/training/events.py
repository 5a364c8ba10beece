"""What the trainer reports while it runs. Rates are per second of training; validation and sleep are left out."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Planned:
    """Known before the first step."""

    total_steps: int
    train_rows: int
    valid_rows: int
    dropped_rows: int
    truncated_rows: int
    train_tokens: int
    supervised_tokens: int
    shared_tokens: int
    trainable_parameters: int
    padding_share: float


@dataclass(frozen=True)
class Prepared:
    """The frozen blocks have been run over `done` of `total` rows; `reused`: an earlier run had left what they gave."""

    done: int
    total: int
    kept_bytes: int
    on_disk: bool
    reused: bool


@dataclass(frozen=True)
class Resumed:
    """Training goes on after `step`, with `elapsed_s` behind it; `best_loss` of validation was seen at `best_step`."""

    step: int
    total_steps: int
    elapsed_s: float
    best_loss: float = math.inf
    best_step: int = 0


@dataclass(frozen=True)
class Stepped:
    """After an optimizer step; `loss` is the mean over this step's supervised tokens.

    `eta_s` is what is left of steps and validations at the speed so far.
    """

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
    eta_s: float


@dataclass(frozen=True)
class Validated:
    """After a pass over the whole validation set; `best` says whether this is the lowest loss so far."""

    step: int
    loss: float
    supervised_tokens: int
    best: bool
    elapsed_s: float


@dataclass(frozen=True)
class Sampled:
    """What the model now answers, greedily, to a question of the validation set; `expected` is the row's answer."""

    step: int
    question: str
    answer: str
    expected: str


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint of `step` is on disk."""

    step: int
    name: str


@dataclass(frozen=True)
class RolledBack:
    """Step `failed_step` went wrong: on after `step`, at `rate_factor` times the rate, without the rows that did it."""

    failed_step: int
    step: int
    reason: str
    rate_factor: float


@dataclass(frozen=True)
class StoppedEarly:
    """`validations` in a row brought nothing better than the best one."""

    step: int
    validations: int


@dataclass(frozen=True)
class Warned:
    """The machine needs attention: battery, swap, time asleep, memory."""

    text: str


type TrainingEvent = (
    Planned | Prepared | Resumed | Stepped | Validated | Sampled | Saved | RolledBack | StoppedEarly | Warned
)
