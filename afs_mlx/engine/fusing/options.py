"""How a model is stored after fusing, and how well it must agree. Imports no mlx: the command line reads it."""

from typing import Literal

from pydantic import Field

from afs_mlx.core.config import StrictModel

type Quantize = Literal["none", "8", "4", "mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"]
type Changed = Literal["8", "16", "same"]

QUANTIZE: tuple[Quantize, ...] = ("none", "8", "4", "mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")
CHANGED: tuple[Changed, ...] = ("8", "16", "same")


class StorageOptions(StrictModel):
    """`quantize` is for the whole model: none is the base's own 16 or 32 bits, the mixtures are mlx-lm's.

    `changed` counts where only a quantised base is there: the layers that the adapter changed get 8 or 16 bits, or the
    same as all others. `group_size` is the quantised base's own where none is given, else 64.
    """

    quantize: Quantize = "none"
    changed: Changed = "8"
    group_size: Literal[32, 64, 128] | None = None
    shard_bytes: int = Field(5_000_000_000, ge=1)


class Limits(StrictModel):
    """What holds a fused model back, measured against base + adapter on up to `rows` conversations.

    `min_survival` is for the median over the changed layers: what `mlx_lm.fuse` keeps of a small update on a 4-bit base
    is .1 to .2. `min_top1` is lenient, for a plain 4-bit copy of a small model already loses that much (.83 for 135M).
    """

    min_survival: float = Field(0.9, ge=0, le=1)
    min_top1: float = Field(0.75, ge=0, le=1)
    rows: int = Field(8, ge=1)
