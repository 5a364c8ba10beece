"""Reads the catalog of experts and bases, with the user's own experts.toml laid over it.

Knows nothing of weights or runs: which adapter answers is decided in `runs`, which base is on disk in `engine`.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from afs_mlx.core.config import load_toml, merged, validate
from afs_mlx.core.errors import AfsError, UsageError, closest, problems
from afs_mlx.core.paths import Workspace
from afs_mlx.schema.base import Base
from afs_mlx.schema.expert import NAME, Expert, ExpertVersion
from afs_mlx.schema.sampling import Sampling

HERE = Path(__file__).parent


@dataclass(frozen=True)
class ChosenExpert:
    """An expert at one version, with the text and settings that hold for it. `version` is None for the bare base."""

    name: str
    version_name: str
    expert: Expert
    version: ExpertVersion | None
    system: str

    @property
    def sampling(self) -> Sampling:
        return (self.version.sampling if self.version else None) or self.expert.sampling

    @property
    def label(self) -> str:
        """`din@v2`, or the plain name for an expert without versions."""
        return f"{self.name}@{self.version_name}" if self.version_name else self.name


class Catalog:
    """Experts by name and bases by id."""

    def __init__(self, experts: dict[str, Expert], bases: dict[str, Base], prompt_folders: list[Path]) -> None:
        self.experts = experts
        self.bases = bases
        self._prompt_folders = prompt_folders

    @classmethod
    def load(cls, workspace: Workspace) -> "Catalog":
        """Read the shipped catalog and the user's overlay; every problem of a file is reported at once."""
        tables = load_toml(HERE / "catalog.toml")
        where = "afs_mlx/experts/catalog.toml"
        if workspace.experts_file.is_file():
            tables = merged(tables, load_toml(workspace.experts_file))
            where = str(workspace.experts_file)
        found = [
            f"{name}: an expert is a table, such as [{name}]" for name, t in tables.items() if not isinstance(t, dict)
        ]
        found += [
            f"{name}: write lower-case letters, digits and single hyphens" for name in tables if not NAME.match(name)
        ]
        experts: dict[str, Expert] = {}
        for name, table in tables.items():
            if not isinstance(table, dict):
                continue
            try:
                experts[name] = validate(Expert, table, name)
            except AfsError as error:
                found += [f"{name}.{line.strip()}" for line in error.what.splitlines()[1:]]
        if found:
            raise problems(
                found, "bad experts", where, "mend these keys; `afs-mlx experts show din` shows the known ones"
            )
        bases = {key: validate(Base, {"id": key, **table}, f"bases.toml: {key}") for key, table in _bases().items()}
        return cls(experts, bases, [workspace.root / "prompts", HERE / "prompts"])

    def choose(self, name: str) -> ChosenExpert:
        """`din` or `din@v2`; raises UsageError with the nearest known name."""
        expert_name, _, version_name = name.partition("@")
        expert = self.experts.get(expert_name)
        if expert is None:
            raise UsageError(f"there is no expert {expert_name!r}", "", closest(expert_name, list(self.experts)))
        version_name = version_name or expert.default_version
        version = expert.versions.get(version_name)
        if version_name and version is None:
            known = list(expert.versions)
            fix = closest(version_name, known) if known else f"{expert_name} has no versions"
            raise UsageError(f"{expert_name} has no version {version_name!r}", "", fix)
        prompt = (version.prompt if version else "") or expert.prompt
        return ChosenExpert(expert_name, version_name, expert, version, self.prompt(prompt))

    def prompt(self, name: str) -> str:
        """The system text in prompts/<name>.md; the one home that training, chat and the Modelfile read."""
        if not name:
            return ""
        for folder in self._prompt_folders:
            path = folder / f"{name}.md"
            if path.is_file():
                return _text(path)
        raise AfsError(
            f"the prompt {name!r} does not exist",
            " or ".join(str(folder / f"{name}.md") for folder in self._prompt_folders),
            "write the file, or correct the key `prompt`",
        )

    @cached_property
    def lineages(self) -> dict[str, str]:
        """Every name of every base, lower case, to its id."""
        return {name: base.id for base in self.bases.values() for name in base.lineage}

    def base_named(self, name: str) -> Base | None:
        """The base that an id, repository or alias means; None for a stranger."""
        return self.bases.get(self.lineages.get(name.lower(), ""))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise AfsError(
            f"not UTF-8: {error.reason} at byte {error.start}", str(path), "save the file as UTF-8"
        ) from error
    except OSError as error:
        raise AfsError(f"cannot read: {error.strerror}", str(path), "check the file's rights") from error


def _bases() -> dict[str, dict[str, object]]:
    return load_toml(HERE / "bases.toml")
