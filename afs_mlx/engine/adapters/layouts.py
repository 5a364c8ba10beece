"""How families of models name their layers, and how PEFT and MLX name what is trained: tables, read in both directions.

A further family is one more `Layout`; nothing else asks which model it is.
"""

import re
from dataclasses import dataclass

from afs_mlx.core.errors import UsageError

PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Layout:
    """One family: its model_types in config.json, its names, and where its modules lie in transformers and in mlx-lm.

    `linears` are paths within a block, `outside` linear layers outside the blocks; `prefixes` are pairs (transformers,
    mlx-lm) of how a path begins, for families in which the two differ.
    """

    model_types: tuple[str, ...]
    linears: tuple[str, ...]
    outside: tuple[str, ...] = ("lm_head",)
    blocks: str = "model.layers"
    embeddings: tuple[str, ...] = ("model.embed_tokens",)
    prefixes: tuple[tuple[str, str], ...] = ()

    def to_mlx(self, path: str) -> str:
        """A module's path in mlx-lm, from that in transformers."""
        return _swapped(path, self.prefixes)

    def to_peft(self, path: str) -> str:
        """A module's path in transformers, from that in mlx-lm."""
        return _swapped(path, tuple((mlx, torch) for torch, mlx in self.prefixes))

    def is_linear(self, path: str) -> bool:
        """Whether a path in mlx-lm is one of the family's linear layers, in whatever block."""
        block = re.fullmatch(rf"{re.escape(self.blocks)}\.\d+\.(.+)", path)
        return path in self.outside or bool(block and block[1] in self.linears)


SEVEN = (
    *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
LAYOUTS = (Layout(model_types=("qwen2", "qwen3", "llama", "mistral"), linears=SEVEN),)


@dataclass(frozen=True)
class Leaf:
    """What is trained in one layer: PEFT's name and MLX's, and whether one is the other transposed."""

    peft: str
    mlx: str
    transposed: bool


# A (r, in) ↔ a (in, r), B (out, r) ↔ b (r, out), magnitudes (out,) ↔ m.
LEAVES = (
    Leaf("lora_A.weight", "lora_a", transposed=True),
    Leaf("lora_B.weight", "lora_b", transposed=True),
    Leaf("lora_magnitude_vector", "m", transposed=False),
)


def layout_of(model_type: str, where: str = "") -> Layout:
    """The table of a base's family; raises UsageError that names the known ones."""
    for layout in LAYOUTS:
        if model_type in layout.model_types:
            return layout
    known = ", ".join(name for layout in LAYOUTS for name in layout.model_types)
    raise UsageError(
        f"no table of layer names for models of type {model_type!r}",
        where,
        f"give a base of a known type ({known}), or add its names to afs_mlx/engine/adapters/layouts.py",
    )


def _swapped(path: str, prefixes: tuple[tuple[str, str], ...]) -> str:
    for old, new in prefixes:
        if path.startswith(old):
            return new + path.removeprefix(old)
    return path
