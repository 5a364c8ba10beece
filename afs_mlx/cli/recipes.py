"""A recipe from the catalog, a --config file and --set, in that order."""

from pathlib import Path

from afs_mlx.core.config import apply_overrides, load_toml, merged, validate
from afs_mlx.core.errors import UsageError
from afs_mlx.core.paths import Workspace
from afs_mlx.experts.catalog import ChosenExpert
from afs_mlx.schema.expert import ExpertVersion
from afs_mlx.schema.recipe import Recipe


def trainable(expert: ChosenExpert) -> ExpertVersion:
    """The version to train; raises UsageError for an expert or a version that is not trained."""
    if expert.version is None or expert.version.kind != "lora":
        kind = expert.version.kind if expert.version else "the bare base"
        raise UsageError(
            f"{expert.label} is not trained ({kind})", "", f"talk to it: afs-mlx chat --expert {expert.label}"
        )
    return expert.version


def recipe_for(version: ExpertVersion, demo: bool, config: Path | None, overrides: list[str] | None) -> Recipe:
    """The recipe for the real base, or `demo_recipe` on the embedded one, with the person's keys laid over it."""
    start = version.demo_recipe if demo and version.demo_recipe else version.recipe
    return recipe_over(start, config, overrides)


def recipe_over(start: Recipe, config: Path | None, overrides: list[str] | None) -> Recipe:
    """`start` with a --config file's keys laid over it, then those of --set."""
    value = start.model_dump(mode="json")
    where = "recipe"
    if config is not None:
        value = merged(value, load_toml(config))
        where = str(config)
    return validate(Recipe, apply_overrides(value, overrides or []), where)


def data_path(version: ExpertVersion, data: Path | None, workspace: Workspace) -> Path:
    """The person's rows, else the version's curated set."""
    if data is not None:
        return data
    if not version.data:
        raise UsageError("this version names no data", "", "bring rows with --data PATH")
    return workspace.find_file(f"data/curated/{version.data}.jsonl")


def suite_path(version: ExpertVersion, workspace: Workspace) -> Path | None:
    """The version's suite; None when it is not written yet."""
    relative = f"evals/suites/{version.suite}.toml"
    return workspace.find_file(relative) if version.suite and workspace.has_file(relative) else None
