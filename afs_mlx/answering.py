"""Who answers: the base and the adapter for an expert, a run folder or a model folder.

Joins the catalog, the runs and what is on disk; chat, eval, fuse and export all ask here, so they cannot disagree.
"""

from dataclasses import dataclass
from pathlib import Path

from afs_mlx.core.errors import AfsError, MissingError, UsageError
from afs_mlx.core.files import read_json
from afs_mlx.core.paths import Workspace
from afs_mlx.engine.adapters.lineage import fit_notice
from afs_mlx.engine.bases.location import AUTO, BaseFolder, choose_base, is_model_folder
from afs_mlx.experts.catalog import Catalog, ChosenExpert
from afs_mlx.runs.folder import Run
from afs_mlx.runs.selection import select, usable_run
from afs_mlx.schema.expert import DEFAULT_BASE


@dataclass(frozen=True)
class Answerer:
    """What answers: a base, perhaps with a run's adapter on it, perhaps as an expert.

    `reason` says why this run; `notices` is for the person; `fused` marks a folder that holds its adapter already.
    """

    expert: ChosenExpert | None
    base: BaseFolder
    run: Run | None
    reason: str
    notices: tuple[str, ...]
    fused: bool = False

    @property
    def system(self) -> str:
        """The system text to answer under: the expert's, else the one the run was trained with."""
        if self.expert is not None:
            return self.expert.system
        return str(self.run.record.get("system", "")) if self.run else ""

    @property
    def label(self) -> str:
        """A name for results: the run, the fused model, or the base under a version's prompt."""
        if self.run is not None:
            return self.run.name
        if self.fused or self.expert is None:
            return self.base.label
        return "-".join(part for part in ("base", self.base.label, self.expert.version_name) if part)

    def require_run(self) -> Run:
        """The run, for what needs an adapter; raises MissingError with the commands that make one."""
        if self.run is not None:
            return self.run
        if self.fused or self.expert is None:
            raise UsageError(
                "this is a whole model, there is no adapter beside it", str(self.base.folder), "name a run"
            )
        if not _is_trained(self.expert):
            fix = "name an expert with a lora version"
            raise UsageError(f"{self.expert.label} has no adapter: nothing is trained for it", "", fix)
        raise MissingError(
            f"{self.expert.label} has no adapter for {self.base.id}",
            f"adapters/{self.expert.name}",
            f"afs-mlx train {self.expert.label}, or afs-mlx convert PEFT_FOLDER --expert {self.expert.label}",
        )


def for_target(
    target: str, base: str, run: str, catalog: Catalog, workspace: Workspace, *, adapter: bool = True
) -> Answerer:
    """What a person names: an expert (also when a folder of that name lies here), a run folder or a model folder."""
    if target.partition("@")[0] in catalog.experts or not Path(target).expanduser().is_dir():
        return for_expert(catalog.choose(target), base, run, catalog, workspace, adapter=adapter)
    if run:
        raise UsageError("a folder is named already", "--run", "leave --run out, or name an expert")
    folder = Path(target).expanduser().resolve()
    if is_model_folder(folder):
        if base != AUTO or not adapter:
            raise UsageError("a whole model has neither another base nor an adapter", target, "leave the option out")
        return _model(folder, catalog)
    found = Run.read(folder)
    expert = _expert(found.expert, str(found.record.get("version") or ""), catalog)
    return _with_run(expert, _base_of(found, base, catalog), found if adapter else None, "named", ())


def for_expert(
    expert: ChosenExpert, base: str, run: str, catalog: Catalog, workspace: Workspace, *, adapter: bool = True
) -> Answerer:
    """The base and the best run of an expert; a named or pinned run brings its own base with it."""
    own = expert.version.base if expert.version else DEFAULT_BASE
    if not adapter:
        if run:
            raise UsageError("an adapter is both named and left out", "--run", "choose one of the two")
        found = choose_base(base, own, catalog.bases)
        return _with_run(expert, found, None, "", (found.notice,))
    trained, pinned = _is_trained(expert), expert.expert.pinned
    if run or (trained and pinned):
        named = usable_run(workspace, expert.name, run or pinned)
        return _with_run(expert, _base_of(named, base, catalog), named, "named" if run else "pinned", ())
    found = choose_base(base, own, catalog.bases)
    if not trained:
        return _with_run(expert, found, None, "", (found.notice,))
    selection = select(workspace, expert.name, expert.version_name, found.id)
    if selection is not None:
        return _with_run(expert, found, selection.run, selection.reason, (found.notice,))
    without = (
        f"{expert.label} has no adapter for {found.id}: the base answers under its prompt. "
        f"Train one: afs-mlx train {expert.label}; import one: afs-mlx convert PEFT_FOLDER --expert {expert.label}"
    )
    return _with_run(expert, found, None, "", (found.notice, without))


def _with_run(
    expert: ChosenExpert | None, base: BaseFolder, run: Run | None, reason: str, notices: tuple[str, ...]
) -> Answerer:
    variant = fit_notice(base, run.path) if run is not None else ""
    return Answerer(expert, base, run, reason, tuple(text for text in (*notices, variant) if text))


def _model(folder: Path, catalog: Catalog) -> Answerer:
    """A model folder; one that we fused says whose it is and whether it is a demo."""
    manifest = folder / "manifest.json"
    record = read_json(manifest, "the model's manifest") if manifest.is_file() else {}
    expert = _expert(str(record.get("expert") or ""), str(record.get("version") or ""), catalog)
    return Answerer(expert, choose_base(str(folder), "", catalog.bases), None, "", (), fused=True)


def _base_of(run: Run, wanted: str, catalog: Catalog) -> BaseFolder:
    """The base a run belongs to, unless another is asked for."""
    if wanted == AUTO and not run.base:
        raise AfsError("run.json does not name a base", str(run.path), "name it with --base")
    return choose_base(run.base if wanted == AUTO else wanted, run.base, catalog.bases)


def _expert(name: str, version: str, catalog: Catalog) -> ChosenExpert | None:
    """The catalogued expert that a record names, None for a stranger or a version that is gone."""
    if name not in catalog.experts:
        return None
    known = version in catalog.experts[name].versions
    return catalog.choose(f"{name}@{version}" if known else name)


def _is_trained(expert: ChosenExpert) -> bool:
    return expert.version is not None and expert.version.kind == "lora"
