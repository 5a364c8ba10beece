"""An expert is data: who it is, how it samples, and the versions that were or will be made."""

import re
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from afs_mlx.core.config import StrictModel
from afs_mlx.schema.message import Message
from afs_mlx.schema.recipe import Recipe
from afs_mlx.schema.sampling import Sampling

DEFAULT_BASE = "qwen2.5-coder-3b"
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*\Z")


class Shot(StrictModel):
    """One solved example that a few-shot version shows before the question."""

    user: str
    assistant: str


class ExpertVersion(StrictModel):
    """One version: how it is made and what proves it."""

    kind: Literal["lora", "fewshot", "prompt"]
    base: str = DEFAULT_BASE
    recipe: Recipe = Recipe()
    demo_recipe: Recipe | None = Field(default=None, description="the recipe on the embedded base, which learns slower")
    data: str = Field(default="", description="data/curated/<data>.jsonl")
    suite: str = Field(default="", description="evals/suites/<suite>.toml")
    threshold: float = Field(default=0.0, ge=0, le=1, description="the gate: the least score on the suite")
    sampling: Sampling | None = Field(default=None, description="instead of the expert's own")
    prompt: str = Field(default="", description="prompts/<prompt>.md instead of the expert's own")
    shots: tuple[Shot, ...] = ()
    tags: tuple[str, ...] = ()
    note: str = ""

    @model_validator(mode="after")
    def _shots_fit_the_kind(self) -> Self:
        if (self.kind == "fewshot") != bool(self.shots):
            raise ValueError("a fewshot version needs shots, and only a fewshot version has them")
        return self


class Expert(StrictModel):
    """A named expert with its versions; the latest is used when none is asked for."""

    title: str = Field(description="what it does, for lists")
    prompt: str = Field(
        default="", description="prompts/<prompt>.md, the workspace's own first; empty means no system text"
    )
    keywords: tuple[str, ...] = Field(default=(), description="what the keyword router looks for")
    sampling: Sampling = Sampling()
    versions: dict[str, ExpertVersion] = Field(default_factory=dict)
    default: str = Field(default="", description="the version used when none is named; empty means the last one")
    pinned: str = Field(default="", description="a run in adapters/<expert>/ that answers whatever the scores say")

    @field_validator("versions")
    @classmethod
    def _version_names(cls, versions: dict[str, ExpertVersion]) -> dict[str, ExpertVersion]:
        for name in versions:
            if not NAME.match(name):
                raise ValueError(f"version {name!r}: write lower-case letters, digits and single hyphens, such as v2")
        return versions

    @model_validator(mode="after")
    def _default_exists(self) -> Self:
        if self.default and self.default not in self.versions:
            raise ValueError(
                f"default {self.default!r} is not one of the versions: {', '.join(self.versions) or 'none'}"
            )
        return self

    @property
    def default_version(self) -> str:
        """The version that an unqualified name means; empty for an expert without versions."""
        return self.default or (list(self.versions)[-1] if self.versions else "")


def opening_turns(system: str, shots: Sequence[Shot]) -> list[Message]:
    """What stands before the question: the expert's system text and its solved examples."""
    messages = [Message(role="system", content=system)] if system else []
    for shot in shots:
        messages += [Message(role="user", content=shot.user), Message(role="assistant", content=shot.assistant)]
    return messages
