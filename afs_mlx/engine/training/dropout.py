"""Dropout whose masks come from a key that is set for each step: the same in a resumed run and in a recomputed pass."""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn


@dataclass
class Keys:
    """The key that the next mask is drawn from; set before each forward pass."""

    current: mx.array

    def next(self) -> mx.array:
        """A key for one mask."""
        self.current, drawn = mx.random.split(self.current)
        return drawn


class KeyedDropout(nn.Module):
    """As `nn.Dropout`, with masks from `keys` instead of mlx's global generator."""

    def __init__(self, p: float, keys: Keys) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._keep = 1 - p
        self._keys = keys

    def __call__(self, x: mx.array) -> mx.array:
        if not self.training:
            return x
        mask = mx.random.bernoulli(self._keep, x.shape, key=self._keys.next())
        return (1 / self._keep) * mask * x


def key_dropouts(model: nn.Module, keys: Keys) -> int:
    """Put `KeyedDropout` where adapters drop; returns how many there are."""
    count = 0
    for module in model.modules():
        dropout = module.get("dropout") if hasattr(module, "lora_a") else None
        if isinstance(dropout, KeyedDropout):  # of an earlier training of this model
            dropout._keys = keys
            count += 1
        elif isinstance(dropout, nn.Dropout) and dropout._p_1 < 1:
            module.dropout = KeyedDropout(1 - dropout._p_1, keys)
            count += 1
    return count


def step_key(seed: int, step: int, part: int) -> mx.array:
    """The key of a micro-batch: a function of where it stands, so nothing has to be saved to draw the same again."""
    key = mx.random.key(seed)
    for number in (step, part):
        key = mx.random.split(mx.array([key[0] ^ number, key[1]], dtype=mx.uint32))[0]
    return key
