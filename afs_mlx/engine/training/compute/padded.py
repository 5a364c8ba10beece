"""The forward pass through mlx-lm's own model, for layouts that `lean` does not know and to measure against."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from afs_mlx.engine.training.compute.layout import Layout
from afs_mlx.engine.training.dropout import Keys


def padded_hidden(model: nn.Module, tokens: mx.array, layout: Layout, picked: mx.array | None) -> mx.array:
    """The backbone's output (n, width) at the batch's tokens, at `picked` alone where given; nothing is shared."""
    # Every text model of mlx-lm keeps its backbone in `.model`.
    hidden = layout.one_after_the_other(model.model(layout.side_by_side(tokens)))
    return hidden if picked is None else hidden[picked]


def padded_logits(model: nn.Module, tokens: mx.array, layout: Layout) -> mx.array:
    """The whole model's logits (n, vocabulary)."""
    return layout.one_after_the_other(model(layout.side_by_side(tokens)))


def head_is_plain(model: nn.Module) -> bool:
    """Whether the logits are the backbone's output times `lm_head` or the embedding, tried on a few tokens.

    Some models scale or cap them after that.
    """
    if not hasattr(model, "model") or not (hasattr(model, "lm_head") or hasattr(model.model, "embed_tokens")):
        return False
    tokens = mx.array([[1, 2, 3, 4]])
    project: Any = model.lm_head if hasattr(model, "lm_head") else model.model.embed_tokens.as_linear
    try:
        logits = project(model.model(tokens))
    except (TypeError, ValueError, AttributeError):  # a backbone that wants to be called in another way
        return False
    return logits.shape == model(tokens).shape and bool(mx.allclose(logits, model(tokens), rtol=1e-3, atol=1e-3))


@contextmanager
def recomputed_blocks(model: nn.Module, keys: Keys) -> Iterator[None]:
    """Recompute each block in the backward pass; the block class gets its own call back afterwards."""
    block = type(model.layers[0])
    original: Any = block.__call__

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        def inner(parameters: dict[str, Any], key: mx.array, *args: Any, **kwargs: Any) -> Any:
            # The backward pass must drop what the forward pass dropped: its gradient is wrong for any other mask.
            keys.current = mx.stop_gradient(key)
            self.update(parameters)
            return original(self, *args, **kwargs)

        key = keys.next()
        following = keys.current
        output = mx.checkpoint(inner)(self.trainable_parameters(), key, *args, **kwargs)
        keys.current = following
        return output

    block.__call__ = call
    try:
        yield
    finally:
        block.__call__ = original
