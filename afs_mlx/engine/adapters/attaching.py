"""A base with an adapter on it, checked before mlx reads a byte of it.

The only file of this package that imports mlx.
"""

from dataclasses import replace
from pathlib import Path

from mlx_lm.utils import load_adapters

from afs_mlx.engine.adapters.format import check_adapter_folder
from afs_mlx.engine.bases.loading import LoadedBase, load_base


def load_with_adapter(base_folder: Path, adapter: Path | None) -> LoadedBase:
    """Load a base and, where one is named, put an MLX adapter on it.

    Raises AfsError for an adapter that is malformed or made for other shapes, naming both.
    """
    if adapter is not None:
        check_adapter_folder(adapter, base_folder)
    base = load_base(base_folder)
    if adapter is None:
        return base
    model = load_adapters(base.model, str(adapter))
    model.eval()
    return replace(base, model=model)
