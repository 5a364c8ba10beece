"""Where things lie: the workspace that a person owns, and the caches that can be made again."""

import os
from dataclasses import dataclass
from pathlib import Path

from afs_mlx.core.errors import MissingError


@dataclass(frozen=True)
class Workspace:
    """The folder with data/, adapters/, fused/ and evals/."""

    root: Path

    @classmethod
    def find(cls) -> "Workspace":
        """`AFS_MLX_HOME`, else the current folder when it holds a workspace, else the XDG data folder."""
        named = os.environ.get("AFS_MLX_HOME")
        if named:
            return cls(Path(named).expanduser().resolve())
        here = Path.cwd()
        if any((here / name).is_dir() for name in ("adapters", "fused")) or (here / "experts.toml").is_file():
            return cls(here)
        data = os.environ.get("XDG_DATA_HOME")
        return cls((Path(data).expanduser() if data else Path.home() / ".local" / "share") / "afs-mlx")

    @property
    def adapters(self) -> Path:
        return self.root / "adapters"

    @property
    def fused(self) -> Path:
        return self.root / "fused"

    @property
    def splits(self) -> Path:
        return self.root / "data" / "splits"

    @property
    def results(self) -> Path:
        return self.root / "evals" / "results"

    @property
    def experts_file(self) -> Path:
        """The user's own experts, added to the catalog key by key."""
        return self.root / "experts.toml"

    def find_file(self, relative: str) -> Path:
        """A tracked file (`data/curated/…`, `evals/suites/…`): the workspace's own, else the one in this checkout."""
        found = self._tracked(relative)
        if found is None:
            raise MissingError(
                f"{relative} is neither in the workspace nor in the checkout",
                str(self.root),
                "add the file, run from a checkout of afs-mlx, or set AFS_MLX_HOME to one",
            )
        return found

    def has_file(self, relative: str) -> bool:
        """Whether `find_file` would find it."""
        return self._tracked(relative) is not None

    def _tracked(self, relative: str) -> Path | None:
        roots = (self.root, checkout())
        return next((root / relative for root in roots if root is not None and (root / relative).exists()), None)

    def shown(self, path: Path) -> str:
        """A path as a person would type it from here."""
        for base in (Path.cwd(), self.root):
            if path.is_relative_to(base):
                return str(path.relative_to(base)) if base == Path.cwd() else str(path)
        return str(path)


def checkout() -> Path | None:
    """The source tree this package runs from, None when it was installed from a wheel."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() else None


def cache_folder() -> Path:
    """The user's cache, for what can be made again (the embedded base)."""
    named = os.environ.get("XDG_CACHE_HOME")
    return (Path(named).expanduser() if named else Path.home() / ".cache") / "afs-mlx"


def state_folder() -> Path:
    """The user's state, for what nobody can make again but no project owns: saved conversations, typed lines."""
    named = os.environ.get("XDG_STATE_HOME")
    return (Path(named).expanduser() if named else Path.home() / ".local" / "state") / "afs-mlx"
