"""What the model answers to questions of the validation set while it learns; read by a person, never a score."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.generate import generate_step

from afs_mlx.engine.training.events import Sampled
from afs_mlx.engine.training.rows import Row


def sampler(
    model: nn.Module, tokenizer: Any, rows: Sequence[Row], questions: Sequence[str], count: int, max_tokens: int
) -> Callable[[int], list[Sampled]]:
    """A function from the step to the greedy answers to `count` rows spread over the set.

    Each row is asked up to its first answer; `questions` (one a row) are what is shown for it.
    """
    numbers = sorted({round(i * (len(rows) - 1) / max(1, count - 1)) for i in range(min(count, len(rows)))})
    ends = set(getattr(tokenizer, "eos_token_ids", None) or {tokenizer.eos_token_id})

    def text(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode([token for token in tokens if token not in ends])).strip()

    def answer(row: Row) -> str:
        start = int(np.argmax(row.supervised))
        tokens: list[int] = []
        for token, _ in generate_step(mx.array(row.tokens[:start]), model, max_tokens=max_tokens):
            if int(token) in ends:
                break
            tokens.append(int(token))
        return text(tokens)

    def expected(row: Row) -> str:
        learnt = row.supervised
        start = int(np.argmax(learnt))
        length = int(np.argmin(learnt[start:])) or len(learnt) - start
        return text([int(token) for token in row.tokens[start : start + length]])

    def sample(step: int) -> list[Sampled]:
        model.eval()
        return [Sampled(step, questions[i], answer(rows[i]), expected(rows[i])) for i in numbers]

    return sample
