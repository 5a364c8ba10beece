"""mlx's own answer in float32, one layer in memory at a time: a 3B model would need 12 GB at once.

The tokens are given, so that one pass over all of them shows what a greedy run would have chosen at every step.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx_lm.utils import dequantize_model, load_model

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.bases.loading import check_weights

type Rows = np.ndarray[Any, np.dtype[np.float32]]


def log_probabilities(folder: Path, sequences: Sequence[Sequence[int]], first: Sequence[int]) -> Iterator[Rows]:
    """For each sequence the log-probabilities of what follows its tokens, from place `first` on.

    Each is (tokens − first, vocabulary), and one is in memory at a time. The folder's weights may be of any type or
    quantised. To be used within `on_cpu`. Raises AfsError for a folder that mlx-lm cannot load.
    """
    check_weights(folder)
    try:
        model = _in_float32(load_model(folder, lazy=True, trust_remote_code=False)[0])
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RuntimeError, ImportError) as error:
        raise AfsError(f"mlx-lm cannot load this model: {error}", str(folder), "make the model folder again") from error
    model.eval()
    inner = model.model
    hidden = [inner.embed_tokens(mx.array([list(tokens)])) for tokens in sequences]
    for number in range(len(inner.layers)):
        hidden = [inner.layers[number](state, "causal" if state.shape[1] > 1 else None, None) for state in hidden]
        mx.eval(hidden)
        inner.layers[number] = None  # its weights go
    for state, start in zip(hidden, first, strict=True):
        last = inner.norm(state[:, start:])
        logits = inner.embed_tokens.as_linear(last) if model.args.tie_word_embeddings else model.lm_head(last)
        yield np.array((logits - mx.logsumexp(logits, axis=-1, keepdims=True))[0])


@contextmanager
def on_cpu() -> Iterator[None]:
    """There float32 products are float32; Metal may shorten them."""
    device = mx.default_device()
    mx.set_default_device(mx.cpu)
    try:
        yield
    finally:
        mx.set_default_device(device)


def _in_float32(model: Module) -> Module:
    """Nothing is computed yet: the weights are read when their layer is."""
    model = dequantize_model(model)
    model.apply(lambda weight: weight.astype(mx.float32) if mx.issubdtype(weight.dtype, mx.floating) else weight)
    return model
