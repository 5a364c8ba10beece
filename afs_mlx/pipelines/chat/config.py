"""What a conversation is started with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from afs_mlx.core.errors import UsageError, closest
from afs_mlx.core.paths import Workspace
from afs_mlx.experts.catalog import Catalog
from afs_mlx.schema.sampling import Sampling

AUTO = "auto"
BACKENDS = ("mlx", "ollama")


@dataclass(frozen=True)
class ChatConfig:
    """`expert` is a name, name@version or `auto`; `run` names an adapter of it, `fused` takes the run's fused model.

    `sampling` holds what replaces the expert's own, by the keys of `Sampling`. On the backend `ollama` the models
    answer that were deployed from this workspace. Raises UsageError for what does not go together.
    """

    catalog: Catalog
    workspace: Workspace
    expert: str = AUTO
    base: str = AUTO
    run: str = ""
    fused: bool = False
    backend: str = BACKENDS[0]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            fix = closest(self.backend, list(BACKENDS))
            raise UsageError(f"there is no backend {self.backend!r}", "--backend", fix)
        if self.run and self.expert == AUTO:
            raise UsageError("--run needs an expert", "--run", "add --expert NAME")
        if self.backend == "ollama" and (self.fused or self.base != AUTO):
            option = "--fused" if self.fused else "--base"
            raise UsageError("a deployed model is whole and has its base in it", option, "leave the option out")
        if self.fused and self.base != AUTO:
            raise UsageError("a fused model has its base in it", "--base", "leave --base or --fused out")


def sampling_changes(wanted: Mapping[str, Any]) -> tuple[dict[str, Any], int | None]:
    """The changes to an expert's sampling, and the seed; raises UsageError for an unknown key or a bad value."""
    changes = dict(wanted)
    seed = changes.pop("seed", None)
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
        raise UsageError(f"{seed!r} is no seed", "seed", "a whole number from 0")
    known = list(Sampling.model_fields)
    for key in changes:
        if key not in known:
            raise UsageError(f"there is no setting {key!r}", "--set", closest(key, [*known, "seed"]))
    try:
        checked = Sampling.model_validate(changes)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        raise UsageError(f"{changes[key]!r} is no {key}: {first['msg']}", key, _remedy(key)) from error
    return {key: getattr(checked, key) for key in changes}, seed


def _remedy(key: str) -> str:
    if key == "temperature":
        return "a number from 0 to 5; 0 is greedy"
    return "a number above 0" if key != "stop" else 'a list of texts, such as stop=["END"]'
