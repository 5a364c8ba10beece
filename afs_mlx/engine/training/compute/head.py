"""Cross-entropy without the matrix of logits: a slice of the vocabulary at a time, the gradient made with the loss.

Softmax over slices as in online softmax (Milakov and Gimelshein, 2018): each slice has a maximum, a sum and a product
with its rows of W of its own, put together at the end. The head is never trained here, so the gradient towards the
hidden states is all there is.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from afs_mlx.engine.training.compute.custom import with_gradient
from afs_mlx.engine.training.compute.exponential import softmax_parts

QUANTISED = nn.QuantizedLinear | nn.QuantizedEmbedding


class Head:
    """The model's last projection, `lm_head` or the tied embedding: logits = hidden · Wᵀ, W (vocabulary, width)."""

    def __init__(self, model: nn.Module) -> None:
        self._layer: Any = model.lm_head if hasattr(model, "lm_head") else model.model.embed_tokens

    @property
    def vocabulary(self) -> int:
        return int(self._layer.weight.shape[0])

    def summed_loss(
        self, hidden: mx.array, targets: mx.array, weights: mx.array, cells: int, *, fast_exp: bool
    ) -> mx.array:
        """Σ weight · -log p(target), float32 scalar, of hidden states (n, width); made together with its gradient.

        About `cells` logits exist at a time, all for 0.
        """

        def loss(hidden: mx.array) -> tuple[mx.array, mx.array]:
            return self._loss_and_gradient(hidden, targets, weights, cells, fast_exp)

        def gradient(_: mx.array, cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]) -> mx.array:
            return (cotangents[0] * outputs[1]).astype(hidden.dtype)

        return with_gradient(loss, gradient)(hidden)[0]

    def _loss_and_gradient(
        self, hidden: mx.array, targets: mx.array, weights: mx.array, cells: int, fast_exp: bool
    ) -> tuple[mx.array, mx.array]:
        highest, total, pulled = self._over_vocabulary(hidden, cells, fast_exp)
        rows = self._rows(targets).astype(mx.float32)
        chosen = mx.sum(hidden.astype(mx.float32) * rows, axis=-1) + self._bias(targets)
        loss = mx.sum(weights * ((mx.log(total) + highest).squeeze(-1) - chosen))
        # d(-log p) = Σ p W - W[target]
        return loss, weights[:, None] * (pulled / total - rows)

    def _over_vocabulary(self, hidden: mx.array, cells: int, fast_exp: bool) -> tuple[mx.array, mx.array, mx.array]:
        """Max (n, 1), Σ e^(logit - max) (n, 1) and Σ e^(logit - max) · W (n, width), float32."""
        n, size = hidden.shape[0], self.vocabulary
        step = min(size, max(256, cells // n)) if cells else size
        highest = total = pulled = None
        for start in range(0, size, step):
            part = slice(start, min(start + step, size))
            # One slice after the other: else all logits would exist at once.
            waiting = hidden if pulled is None or total is None else mx.depends([hidden], [pulled, total])[0]
            logits = self._logits(waiting, part).astype(mx.float32)
            powers, summed, peak = softmax_parts(logits, fast_exp=fast_exp)
            pull = self._pull(powers.astype(hidden.dtype), part).astype(mx.float32)
            if highest is None or total is None or pulled is None:
                highest, total, pulled = peak, summed, pull
                continue
            new = mx.maximum(highest, peak)
            old_share, new_share = mx.exp(highest - new), mx.exp(peak - new)
            total, pulled = total * old_share + summed * new_share, pulled * old_share + pull * new_share
            highest = new
        if highest is None or total is None or pulled is None:
            raise ValueError("a head without a vocabulary")
        return highest, total, pulled

    def _logits(self, hidden: mx.array, part: slice) -> mx.array:
        logits = self._times(hidden, part, transpose=True)
        bias = self._layer.get("bias")
        return logits if bias is None else logits + bias[part]

    def _pull(self, powers: mx.array, part: slice) -> mx.array:
        """(n, slice) · W[slice] → (n, width)."""
        return self._times(powers, part, transpose=False)

    def _times(self, x: mx.array, part: slice, *, transpose: bool) -> mx.array:
        layer = self._layer
        weight = layer.weight[part]
        if not isinstance(layer, QUANTISED):
            plain: mx.array = x @ (weight.T if transpose else weight)
            return plain
        biases = layer.get("biases")
        product: mx.array = mx.quantized_matmul(
            x,
            weight,
            layer.scales[part],
            None if biases is None else biases[part],
            transpose=transpose,
            group_size=layer.group_size,
            bits=layer.bits,
            mode=layer.mode,
        )
        return product

    def _rows(self, targets: mx.array) -> mx.array:
        """The targets' rows of W, (n, width)."""
        layer = self._layer
        rows: mx.array = layer.weight[targets]
        if not isinstance(layer, QUANTISED):
            return rows
        biases = layer.get("biases")
        whole: mx.array = mx.dequantize(
            rows,
            layer.scales[targets],
            None if biases is None else biases[targets],
            group_size=layer.group_size,
            bits=layer.bits,
            mode=layer.mode,
        )
        return whole

    def _bias(self, targets: mx.array) -> mx.array | float:
        bias = self._layer.get("bias")
        return 0.0 if bias is None else bias[targets].astype(mx.float32)
