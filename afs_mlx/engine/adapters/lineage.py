"""Whether an adapter was made for this base: by lineage, then by the exact weights. Shapes are checked in `format`."""

from pathlib import Path

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.adapters.format import AdapterConfig
from afs_mlx.engine.bases.location import BaseFolder


def fit_notice(base: BaseFolder, adapter: Path) -> str:
    """Empty when the adapter was made on these weights, a sentence when on another variant of the same lineage.

    Raises AfsError naming both for another lineage. An adapter that records no base is judged by its shapes alone.
    """
    made_on = AdapterConfig.read(adapter, full=True).afs.base
    weights = base.identity["weights_sha256"]
    if not made_on.lineage or made_on.sha256 == weights:
        return ""
    if made_on.lineage != base.id:
        raise AfsError(
            f"the adapter was made for {made_on.lineage}, not for {base.id}",
            str(adapter),
            f"use --base {made_on.lineage}, or train an adapter on this base",
        )
    return (
        f"the adapter was made on another variant of {base.id} (weights {made_on.sha256[:12] or 'not recorded'}, here "
        f"{weights[:12]}): answers may differ a little"
    )
