"""What `afs-mlx eval` is to ask: an expert, a run folder or a model folder, with its suite."""

from pathlib import Path
from typing import TYPE_CHECKING

from afs_mlx.core.errors import MissingError, UsageError
from afs_mlx.core.paths import Workspace
from afs_mlx.experts.catalog import Catalog, ChosenExpert
from afs_mlx.runs.folder import Run, find_run
from afs_mlx.runs.selection import results_folder, select
from afs_mlx.schema.expert import DEFAULT_BASE

if TYPE_CHECKING:
    from afs_mlx.pipelines.evaluate import EvaluateConfig


def resolve(
    target: str, suite: str, base: str, run: str, without_adapter: bool, catalog: Catalog, workspace: Workspace
) -> "tuple[EvaluateConfig, list[str]]":
    """The evaluation to run and what to tell the person first."""
    from afs_mlx.engine.adapters.lineage import fit_notice
    from afs_mlx.engine.bases.location import choose_base, is_model_folder
    from afs_mlx.pipelines.evaluate import EvaluateConfig

    notices: list[str] = []
    folder = Path(target).expanduser()
    found: Run | None = None
    chosen: ChosenExpert | None
    if folder.is_dir() and is_model_folder(folder):
        chosen, chosen_base = None, choose_base(target, "", catalog.bases)
    elif folder.is_dir():
        found = Run.read(folder.resolve())
        version = str(found.record.get("version", ""))
        chosen = catalog.choose(f"{found.expert}@{version}" if version else found.expert)
        chosen_base = choose_base(found.base if base == "auto" else base, found.base, catalog.bases)
    else:
        chosen = catalog.choose(target)
        own = chosen.version.base if chosen.version else DEFAULT_BASE
        named = find_run(workspace, chosen.name, run) if run else None
        chosen_base = choose_base(named.base if named and base == "auto" else base, own, catalog.bases)
        if not without_adapter and chosen.version is not None and chosen.version.kind == "lora":
            pinned = chosen.expert.pinned
            selection = select(workspace, chosen.name, chosen.version_name, chosen_base.id, explicit=run, pinned=pinned)
            found = selection.run if selection else None
            if found is None:
                notices.append(
                    f"{chosen.label} has no adapter for {chosen_base.id}: the bare base is asked under its prompt"
                )
    if found and (variant := fit_notice(chosen_base, found.path)):
        notices.append(variant)
    if chosen_base.notice:
        notices.insert(0, chosen_base.notice)
    expert_name = chosen.name if chosen else folder.resolve().name
    label = found.name if found else (f"base-{chosen_base.label}" if chosen else expert_name)
    suite_name = suite or (chosen.version.suite if chosen and chosen.version else "")
    if not suite_name:
        raise UsageError("this target names no suite", "--suite", "name one of evals/suites/")
    relative = f"evals/suites/{suite_name.removesuffix('.toml')}.toml"
    if not workspace.has_file(relative):
        raise MissingError(
            f"the suite {suite_name!r} does not exist", relative, "name one of evals/suites/ with --suite"
        )
    home = results_folder(workspace, expert_name, label)
    bare = results_folder(workspace, expert_name, f"base-{chosen_base.label}") / f"{Path(relative).stem}.json"
    config = EvaluateConfig(
        suite=workspace.find_file(relative),
        model_folder=chosen_base.folder,
        base=chosen_base.identity,
        demo=chosen_base.demo,
        system=chosen.system if chosen else "",
        shots=chosen.version.shots if chosen and chosen.version else (),
        out=home / f"{Path(relative).stem}.json",
        adapter=found.path if found else None,
        threshold=chosen.version.threshold if chosen and chosen.version else 0.0,
        before=bare if found and bare.is_file() else None,
        label=label,
    )
    return config, notices
