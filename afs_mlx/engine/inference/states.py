"""What the bare base makes of a text half-way through: one vector for each query. Knows no experts and no labels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.bases.loading import LoadedBase, load_base

type States = np.ndarray[Any, np.dtype[np.float32]]

MAX_TOKENS = 256  # of a longer query the first and the last half of it are read
BATCH_TOKENS = 4096
_CHARS_PER_TOKEN = 16  # no token is longer, spaces aside: what is cut away unread keeps 10 MB from the tokenizer


class _Tap(Module):
    """Stands in a layer's place, keeps what it returns, and looks like it from outside."""

    def __init__(self, layer: Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._layer = layer
        self.seen: mx.array | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._layer(*args, **kwargs)
        self.seen = result[0] if isinstance(result, tuple) else result
        return result

    def __getattr__(self, name: str) -> Any:
        if name in ("_layer", "seen"):
            return super().__getattr__(name)
        return getattr(self._layer, name)


def layer_count(base: LoadedBase) -> int:
    """How many layers the model has."""
    return len(_layers(base))


def query_states(base: LoadedBase | Path, texts: Sequence[str], layer: int) -> States:
    """The output of layer `layer` (from 0), averaged over a text's tokens; shape (texts, hidden), float32.

    The text stands alone, without a template. An adapter that is attached to the model is part of the answer: hand over
    the bare base. Raises AfsError for a layer that the model does not have.
    """
    loaded = load_base(base) if isinstance(base, Path) else base
    layers = _layers(loaded)
    if not 0 <= layer < len(layers):
        raise AfsError(f"there is no layer {layer}", str(loaded.folder), f"name one from 0 to {len(layers) - 1}")
    rows = [_tokens(loaded, text) for text in texts]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    found: dict[int, States] = {}
    with _tapped(layers, layer) as tap:
        for batch in _batches(order, rows):
            for index, state in zip(batch, _averages(loaded, tap, [rows[i] for i in batch]), strict=True):
                found[index] = state
    hidden = int(loaded.config["hidden_size"]) if not found else found[order[0]].shape[0]
    return np.stack([found[i] for i in range(len(rows))]) if rows else np.zeros((0, hidden), np.float32)


def _averages(base: LoadedBase, tap: _Tap, rows: list[list[int]]) -> States:
    longest = max(map(len, rows))
    # Padded on the right: attention looks back only, so no token sees the padding.
    padded = mx.array([row + [0] * (longest - len(row)) for row in rows])
    base.model(padded)
    if tap.seen is None:
        raise RuntimeError("the model did not run the tapped layer")
    lengths = mx.array([len(row) for row in rows])
    mask = (mx.arange(longest)[None, :] < lengths[:, None])[..., None]
    # Only this is evaluated: the layers above the tap are never computed.
    states = mx.where(mask, tap.seen.astype(mx.float32), 0).sum(axis=1) / lengths[:, None]
    tap.seen = None
    return np.array(states, dtype=np.float32)


def _tokens(base: LoadedBase, text: str) -> list[int]:
    most = MAX_TOKENS * _CHARS_PER_TOKEN
    shown = text if len(text) <= most else text[: most // 2] + text[-most // 2 :]
    shown = shown.encode("utf-8", "replace").decode("utf-8")  # half of a surrogate pair is no text
    tokens = list(base.tokenizer.encode(shown, add_special_tokens=False))
    if len(tokens) > MAX_TOKENS:
        tokens = tokens[: MAX_TOKENS // 2] + tokens[-MAX_TOKENS // 2 :]
    return tokens or [0]


def _batches(order: list[int], rows: list[list[int]]) -> Iterator[list[int]]:
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * len(rows[index]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _layers(base: LoadedBase) -> list[Module]:
    """The list that the model itself walks through."""
    inner = getattr(base.model, "model", base.model)
    layers = getattr(inner, "layers", None)
    if not isinstance(layers, list):
        raise AfsError(
            f"the layers of a {base.config.get('model_type')} are not where they are looked for",
            str(base.folder),
            "use the router tfidf with this base",
        )
    return layers


@contextmanager
def _tapped(layers: list[Module], place: int) -> Iterator[_Tap]:
    tap = _Tap(layers[place])
    own = layers[place]
    layers[place] = tap
    try:
        yield tap
    finally:
        layers[place] = own
