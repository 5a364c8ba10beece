"""What a person asked to train, put together from the catalog, a recipe file, options, or the run that goes on."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from afs_mlx.cli.recipes import data_path, recipe_for, recipe_over, suite_path, trainable
from afs_mlx.core.config import validate
from afs_mlx.core.errors import UsageError
from afs_mlx.core.paths import Workspace
from afs_mlx.core.ranks import rank_here
from afs_mlx.engine.bases.location import BaseFolder, choose_base
from afs_mlx.experts.catalog import Catalog, ChosenExpert
from afs_mlx.pipelines.prepare import PrepareConfig, PrepareResult, prepare
from afs_mlx.pipelines.train import HOUSEKEEPING, TrainConfig
from afs_mlx.runs.folder import Run
from afs_mlx.runs.resuming import resumable
from afs_mlx.schema.base import Base
from afs_mlx.schema.recipe import Recipe


@dataclass(frozen=True)
class Request:
    """A training that could start now."""

    expert: ChosenExpert
    recipe: Recipe
    base: BaseFolder
    base_name: str
    data: Path
    suite: Path | None
    catalog: Catalog
    workspace: Workspace
    out: Path | None
    resume: Run | None

    @classmethod
    def of(
        cls,
        workspace: Workspace,
        expert: str,
        base: str,
        data: Path | None,
        out: Path | None,
        config: Path | None,
        overrides: list[str] | None,
        *,
        resume: bool,
        find_base: Callable[[str, str, Mapping[str, Base]], BaseFolder] = choose_base,
    ) -> "Request":
        """Raises UsageError for a resume that would be another training."""
        catalog = Catalog.load(workspace)
        chosen = catalog.choose(expert)
        version = trainable(chosen)
        run = resumable(workspace, chosen.name, chosen.version_name, out) if resume else None
        if run is not None:
            base, data = _as_before(run, base, data)
        path, suite = data_path(version, data, workspace), suite_path(version, workspace)
        found = find_base(base, version.base, catalog.bases)
        recipe = _same_recipe(run, config, overrides) if run else recipe_for(version, found.demo, config, overrides)
        return cls(chosen, recipe, found, base, path, suite, catalog, workspace, out, run)

    @property
    def label(self) -> str:
        return self.expert.label

    @property
    def title(self) -> str:
        """What the live view says on top."""
        return f"{self.label} on {self.base.id}" + (" (demo)" if self.base.demo else "")

    @cached_property
    def rows(self) -> PrepareResult:
        """The rows, read, checked and split."""
        write = rank_here() == 0
        return prepare(PrepareConfig(self.data, self.workspace, self.suite, self.recipe.seed, write=write))

    def train_config(self, stop: threading.Event, *, force: bool = False) -> TrainConfig:
        """What the pipeline needs."""
        version = trainable(self.expert)
        return TrainConfig(
            expert=self.expert.name,
            version=self.expert.version_name,
            system=self.expert.system,
            recipe=self.recipe,
            base=self.base_name,
            own_base=version.base,
            bases=self.catalog.bases,
            train=self.rows.train,
            valid=self.rows.valid,
            data_record=self.rows.record,
            workspace=self.workspace,
            asked={"base": self.base_name, "data": str(self.data.absolute())},
            out=self.out,
            resume=self.resume,
            force=force,
            stop=stop,
        )


def _as_before(run: Run, base: str, data: Path | None) -> tuple[str, Path | None]:
    """The base and the rows that the run was started with, unless the person names them."""
    asked = run.record.get("asked")
    before = asked if isinstance(asked, dict) else {}
    if base == "auto":
        base = run.base or str(before.get("base", "auto"))
    if data is None and before.get("data"):
        data = Path(str(before["data"]))
    return base, data


def _same_recipe(run: Run, config: Path | None, overrides: list[str] | None) -> Recipe:
    """The run's own recipe; a person may name its keys again, and change those that never reach the weights."""
    where = str(run.path / "run.json")
    recipe = validate(Recipe, run.record.get("recipe"), where)
    asked = recipe_over(recipe, config, overrides)
    before, now = recipe.model_dump(), asked.model_dump()
    others = [
        f"{key} {before[key]} → {now[key]}" for key in before if before[key] != now[key] and key not in HOUSEKEEPING
    ]
    if others:
        raise UsageError(
            f"a resumed run keeps its recipe; asked for: {', '.join(others)}",
            str(run.path),
            "leave out these keys, or train anew without --resume",
        )
    return asked
