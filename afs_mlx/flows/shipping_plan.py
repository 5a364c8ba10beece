"""What shipping an expert would do: which folder, which files, under which tag, and what is there already."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afs_mlx.answering import Answerer, for_target
from afs_mlx.clients.ollama.content import ModelfileContent, content_for
from afs_mlx.core.errors import MissingError
from afs_mlx.core.files import read_json, sha256_of
from afs_mlx.core.paths import Workspace
from afs_mlx.engine.bases.chat_format import chat_format, stop_texts
from afs_mlx.engine.bases.default_system import default_system
from afs_mlx.engine.bases.location import AUTO
from afs_mlx.experts.catalog import Catalog
from afs_mlx.runs.folder import WEIGHTS, Run
from afs_mlx.schema.gguf import GgufType
from afs_mlx.schema.sampling import Sampling
from afs_mlx.schema.verification import Verify

RECORD = "deployed.json"  # below fused/: everything that was registered from this workspace
GENERAL = "general"


@dataclass(frozen=True)
class ShipConfig:
    """What to ship, named as for `answering.for_target`; an empty `tag` is `name-vN`, an empty `host` Ollama's own.

    Without `file_type` a demo is written as f16 and all else as q8_0. `fuse` fuses a run that is not fused yet, which
    is an error otherwise. `force` also replaces a model of that tag that is not ours and keeps a fused model that
    agrees too little; `overrode` is what a person overrode to come here, for the records. `verify` is for a new GGUF.
    """

    target: str
    catalog: Catalog
    workspace: Workspace
    file_type: GgufType | None = None
    base: str = AUTO
    run: str = ""
    host: str = ""
    tag: str = ""
    fuse: bool = False
    dry_run: bool = False
    smoke: bool = True
    force: bool = False
    overrode: str = ""
    verify: Verify = "quick"


@dataclass(frozen=True)
class ShipPlan:
    """What there is and what is still to do.

    `gguf` need not be there yet, `model_folder` neither where `fuse`. `bare` marks a base that answers under a prompt:
    its GGUF is shared by every expert, so the Modelfile lies with the expert.
    """

    answerer: Answerer
    tag: str
    name: str
    file_type: GgufType
    model_folder: Path
    gguf: Path
    modelfile: Path
    bare: bool
    fuse: bool
    content: ModelfileContent

    @property
    def gguf_from_modelfile(self) -> str:
        """The path in the Modelfile's FROM."""
        return f"./{self.gguf.relative_to(self.modelfile.parent, walk_up=True).as_posix()}"


def tag_of(found: Answerer) -> str:
    """`din-v2`, `din-v3-fewshot`, `din-v2-demo`: what a model is called outside."""
    return f"{name_of(found)}-demo" if is_demo(found) else name_of(found)


def name_of(found: Answerer) -> str:
    """The same for files, which lie below the demo's run anyway; a model folder keeps its name."""
    expert = found.expert
    name = "-".join(part for part in (expert.name, expert.version_name) if part) if expert else ""
    return name or re.sub(r"[^a-z0-9._-]+", "-", found.label.lower()).strip("-._") or "model"


def is_demo(found: Answerer) -> bool:
    """Whether it stands on the embedded base."""
    return found.base.demo or bool(found.run and found.run.record.get("demo"))


def model_folder_of(found: Answerer, workspace: Workspace) -> Path:
    """The whole model that answers: a model folder itself, a run's fused folder (which may not be there), or the base.

    Raises MissingError, as `Answerer.require_run`, for a trained version without a run.
    """
    if found.fused:
        return found.base.folder
    trained = found.expert is None or (found.expert.version is not None and found.expert.version.kind == "lora")
    if found.run is None and not trained:
        return found.base.folder
    run = found.require_run()
    return workspace.fused / (run.expert or "adapter") / run.name


def fused_folder_of(found: Answerer, workspace: Workspace, target: str) -> Path:
    """As `model_folder_of`; raises MissingError for a run that is not fused as it is now, with the command."""
    folder = model_folder_of(found, workspace)
    if found.run is not None and not is_fused(folder, found.run):
        what = "this run was trained on since it was fused" if folder.is_dir() else "this run is not fused yet"
        raise MissingError(what, found.run.name, f"afs-mlx fuse {target}")
    return folder


def gguf_folder_of(found: Answerer, workspace: Workspace) -> Path:
    """Where the GGUFs of what answers lie; a bare base's are shared by every expert."""
    if found.run is None and not found.fused:
        return workspace.fused / GENERAL / found.base.label / "gguf"
    return model_folder_of(found, workspace) / "gguf"


def is_fused(folder: Path, run: Run) -> bool:
    """Whether the folder holds this run's adapter as it is now."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return False
    parent = read_json(manifest, "the fused model's manifest").get("parent")
    return isinstance(parent, dict) and parent.get("sha256") == sha256_of(run.path / WEIGHTS)


def plan(config: ShipConfig) -> ShipPlan:
    """What `ship` would do. Raises as it does for a target that is not there or not fused."""
    workspace = config.workspace
    found = for_target(config.target, config.base, config.run, config.catalog, workspace)
    tag = config.tag or tag_of(found)
    file_type: GgufType = config.file_type or ("f16" if is_demo(found) else "q8_0")
    folder = model_folder_of(found, workspace) if config.fuse else fused_folder_of(found, workspace, config.target)
    bare = found.run is None and not found.fused
    name = found.base.label if bare else name_of(found)
    gguf = gguf_folder_of(found, workspace) / f"{name}-{file_type}.gguf"
    return ShipPlan(
        answerer=found,
        tag=tag,
        name=name,
        file_type=file_type,
        model_folder=folder,
        gguf=gguf,
        modelfile=_modelfile_path(found, gguf, workspace) if bare else gguf.with_name("Modelfile"),
        bare=bare,
        fuse=found.run is not None and not is_fused(folder, found.run),
        content=_content(found, folder if folder.is_dir() else found.base.folder, config.catalog),
    )


def _modelfile_path(found: Answerer, gguf: Path, workspace: Workspace) -> Path:
    """Of a base that answers under a prompt: beside the expert, since all of them share the file."""
    if found.expert is None or found.expert.name == GENERAL:
        return gguf.with_name("Modelfile")
    version = f"{found.expert.version_name or 'prompt'}-{found.base.label}"
    return workspace.fused / found.expert.name / version / "Modelfile"


def _content(found: Answerer, folder: Path, catalog: Catalog) -> ModelfileContent:
    """What the model says beside its weights; the folder's own licence, else the catalogued base's."""
    manifest = folder / "manifest.json"
    record: dict[str, Any] = read_json(manifest, "the model's manifest") if manifest.is_file() else {}
    base = catalog.bases.get(found.run.base if found.run else found.base.id)
    version = found.expert.version if found.expert else None
    return content_for(
        chat_format=chat_format(folder),
        stop_texts=stop_texts(folder),
        system=found.system,
        sampling=found.expert.sampling if found.expert else Sampling(),
        shots=version.shots if version else (),
        license_text=str(record.get("license") or (base.license if base else "")),
        default_system=default_system(folder),
    )
