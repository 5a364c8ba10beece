"""A base model: where its weights come from, and which names mean the same lineage."""

from typing import Literal

from afs_mlx.core.config import StrictModel


class Base(StrictModel):
    """One entry of the base catalog.

    `hub` is the repository to train and run on (4-bit where one exists), `original` the unquantised one to fuse into,
    `aliases` every other repository of the same lineage (8-bit and bnb repacks); an adapter of any of them fits.
    """

    id: str
    source: Literal["hub", "wheel", "built"]
    layout: Literal["qwen2", "llama"]
    parameters: int
    license: str
    hub: str = ""
    original: str = ""
    aliases: tuple[str, ...] = ()
    demo: bool = False

    @property
    def lineage(self) -> frozenset[str]:
        """Every name an adapter may give for this base, lower case."""
        return frozenset(name.lower() for name in (self.id, self.hub, self.original, *self.aliases) if name)
