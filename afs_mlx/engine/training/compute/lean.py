"""The forward pass of Llama, Qwen2 and Qwen3 blocks over tokens without padding, with the model's own modules.

Padding exists in attention only. The last block's output projection and feed-forward run where answers are. Tokens
that all rows share are computed once. The same numbers as mlx-lm's own forward pass but for rounding (tests).
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.llama import LlamaModel
from mlx_lm.models.qwen2 import Qwen2Model
from mlx_lm.models.qwen3 import Qwen3Model

from afs_mlx.engine.training.compute.attention import causal_attention
from afs_mlx.engine.training.compute.exponential import swiglu
from afs_mlx.engine.training.compute.layout import Layout
from afs_mlx.engine.training.dropout import Keys

# Their blocks have the same parts under the same names (read in mlx-lm's source).
BACKBONES = (LlamaModel, Qwen2Model, Qwen3Model)

type KeysAndValues = tuple[mx.array, mx.array]


def is_lean(model: nn.Module) -> bool:
    """Whether this file knows the model's blocks; sliding windows it does not."""
    backbone = getattr(model, "model", None)
    return type(backbone) in BACKBONES and not any(getattr(b, "use_sliding", False) for b in model.layers)


class LeanForward:
    """Runs blocks of one model. `fast_exp` takes our exponential (CPU); `recompute` holds no activation of a block."""

    def __init__(self, model: nn.Module, keys: Keys, *, fast_exp: bool, recompute: bool) -> None:
        self._backbone: Any = model.model
        self._keys, self._fast_exp, self._recompute = keys, fast_exp, recompute
        # mlx computes in the width of the norms' weights; float32 is what the polynomial knows.
        self._fast_exp &= self._backbone.norm.weight.dtype == mx.float32

    @property
    def blocks(self) -> int:
        return len(self._backbone.layers)

    def embed(self, tokens: mx.array) -> mx.array:
        """(n,) → (n, width)."""
        embedded: mx.array = self._backbone.embed_tokens(tokens)
        return embedded

    def norm(self, hidden: mx.array) -> mx.array:
        """The norm before the head."""
        normed: mx.array = self._backbone.norm(hidden)
        return normed

    def run(self, hidden: mx.array, layout: Layout, start: int, stop: int, picked: mx.array | None = None) -> mx.array:
        """Blocks `start` to `stop` over (n, width); with `picked` (m,) the last of them gives those positions alone."""
        for number in range(start, stop):
            chosen = picked if number == stop - 1 else None
            hidden = self._block(self._backbone.layers[number], hidden, layout, chosen)
        return hidden

    def run_shared(self, tokens: mx.array, depth: int) -> tuple[mx.array, list[KeysAndValues]]:
        """The first `depth` blocks over the shared tokens alone: output (n, width), keys and values by block."""
        hidden, kept = self.embed(tokens), list[KeysAndValues]()
        alone = Layout(0, 1, None, None, None)
        for block in self._backbone.layers[:depth]:
            q, k, v = self._heads(block, hidden)
            queries, keys, values = self._beside(block, alone, 0, q, k, v)
            kept.append((keys, values))
            hidden = self._finish(block, hidden, alone.one_after_the_other(self._attend(block, queries, keys, values)))
        return hidden, kept

    def run_after(self, hidden: mx.array, layout: Layout, shared: list[KeysAndValues]) -> mx.array:
        """The first blocks over the rows' own tokens (n, width), looking back at what `run_shared` kept."""
        for block, (shared_keys, shared_values) in zip(self._backbone.layers, shared, strict=False):
            q, k, v = self._heads(block, hidden)
            offset = shared_keys.shape[2]
            queries, keys, values = self._beside(block, layout, offset, q, k, v)
            keys, values = _behind(shared_keys, keys), _behind(shared_values, values)
            hidden = self._finish(block, hidden, layout.one_after_the_other(self._attend(block, queries, keys, values)))
        return hidden

    def _block(self, block: Any, hidden: mx.array, layout: Layout, picked: mx.array | None) -> mx.array:
        if not self._recompute:
            return self._plain_block(block, hidden, layout, picked)

        def again(parameters: dict[str, Any], hidden: mx.array, key: mx.array) -> mx.array:
            # The backward pass must drop what the forward pass dropped: its gradient is wrong for any other mask.
            self._keys.current = mx.stop_gradient(key)
            block.update(parameters)
            return self._plain_block(block, hidden, layout, picked)

        run: Callable[..., mx.array] = mx.checkpoint(again)
        key = self._keys.next()
        following = self._keys.current
        output = run(block.trainable_parameters(), hidden, key)
        self._keys.current = following
        return output

    def _plain_block(self, block: Any, hidden: mx.array, layout: Layout, picked: mx.array | None) -> mx.array:
        q, k, v = self._heads(block, hidden)
        n = layout.shared
        queries, keys, values = self._beside(block, layout, n, q[n:], k[n:], v[n:])
        if n:
            alone = Layout(0, 1, None, None, None)
            first_queries, first_keys, first_values = self._beside(block, alone, 0, q[:n], k[:n], v[:n])
            first = alone.one_after_the_other(self._attend(block, first_queries, first_keys, first_values))
            keys, values = _behind(first_keys, keys), _behind(first_values, values)
        attended = layout.one_after_the_other(self._attend(block, queries, keys, values))
        if n:
            attended = mx.concatenate([first, attended])
        if picked is not None:
            attended, hidden = attended[picked], hidden[picked]
        return self._finish(block, hidden, attended)

    def _heads(self, block: Any, hidden: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Queries (n, heads, d), keys and values (n, kv heads, d), not yet rotated."""
        attention = block.self_attn
        normed = block.input_layernorm(hidden)
        n = hidden.shape[0]
        queries = attention.q_proj(normed).reshape(n, attention.n_heads, -1)
        keys = attention.k_proj(normed).reshape(n, attention.n_kv_heads, -1)
        values = attention.v_proj(normed).reshape(n, attention.n_kv_heads, -1)
        if "q_norm" in attention:
            queries, keys = attention.q_norm(queries), attention.k_norm(keys)
        return queries, keys, values

    def _beside(
        self, block: Any, layout: Layout, offset: int, queries: mx.array, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        """The three as (rows, heads, longest, d), queries and keys rotated from position `offset` on."""
        q, k, v = (layout.side_by_side(each).swapaxes(1, 2) for each in (queries, keys, values))
        rope = block.self_attn.rope
        return rope(q, offset=offset), rope(k, offset=offset), v

    def _attend(self, block: Any, queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        """(rows, longest, heads, d)."""
        scale = block.self_attn.scale
        return causal_attention(queries, keys, values, scale, fast_exp=self._fast_exp).swapaxes(1, 2)

    def _finish(self, block: Any, hidden: mx.array, attended: mx.array) -> mx.array:
        """A block's rest: output projection and feed-forward, each added to what came in."""
        hidden = hidden + block.self_attn.o_proj(attended.reshape(hidden.shape[0], -1))
        mlp = block.mlp
        normed = block.post_attention_layernorm(hidden)
        gate, up = mlp.gate_proj(normed), mlp.up_proj(normed)
        activated = swiglu(gate, up) if self._fast_exp else nn.silu(gate) * up
        output: mx.array = hidden + mlp.down_proj(activated)
        return output


def _behind(shared: mx.array, own: mx.array) -> mx.array:
    """The shared keys or values (1, heads, n, d) before every row's own (rows, heads, longest, d)."""
    return mx.concatenate([mx.broadcast_to(shared, (own.shape[0], *shared.shape[1:])), own], axis=2)
