"""Cross-entropy where answers are: logits exist only for supervised positions."""

import mlx.core as mx
import mlx.nn as nn

from afs_mlx.engine.training.batches import Batch
from afs_mlx.engine.training.frozen_prefix import FrozenPrefix


def summed_loss(
    model: nn.Module, batch: Batch, prefix: FrozenPrefix | None = None, start: mx.array | None = None
) -> mx.array:
    """The sum over `batch`'s supervised tokens of -log p(token), float32 scalar.

    Hidden states (rows, seq, width) are gathered before the LM head, so the (tokens, vocabulary) matrix holds no
    row that nobody asked for. With `start`, the output of `prefix`'s blocks, these are not run again.
    """
    # Every text model of mlx-lm keeps its backbone in `.model`.
    hidden = model.model(mx.array(batch.inputs)) if prefix is None or start is None else prefix.finish(batch, start)
    picked = hidden.reshape(-1, hidden.shape[-1])[mx.array(batch.positions)]
    logits = _head(model, picked).astype(mx.float32)
    return nn.losses.cross_entropy(logits, mx.array(batch.targets), reduction="sum")


def _head(model: nn.Module, hidden: mx.array) -> mx.array:
    """Hidden states (n, width) → logits (n, vocabulary), through `lm_head` or the tied embedding."""
    project = model.lm_head if hasattr(model, "lm_head") else model.model.embed_tokens.as_linear
    logits: mx.array = project(hidden)
    return logits
