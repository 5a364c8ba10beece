"""What a conversation tells beside the answers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from afs_mlx.experts.routing import Route


@dataclass(frozen=True)
class Routed:
    """`auto` looked at this question; `route.previous` answered before, and answers on where it did not switch."""

    route: "Route"


@dataclass(frozen=True)
class ExpertReady:
    """Who answers now, on what. `adapter` is a run with the reason for it; `where` names a server."""

    label: str
    base: str
    demo: bool
    adapter: str
    notices: tuple[str, ...]
    run: str = ""
    fused: bool = False
    where: str = ""


@dataclass(frozen=True)
class LeftOut:
    """The oldest questions, with their answers, are no longer part of the prompt: the context is full."""

    questions: int
    context_tokens: int


@dataclass(frozen=True)
class Noted:
    """Something that the person should know."""

    text: str


type ChatEvent = Routed | ExpertReady | LeftOut | Noted


@dataclass(frozen=True)
class AnswerUsage:
    """What an answer cost, wherever it was computed. `finish` is "stop", "length" or "interrupted".

    `cached_tokens` of the prompt were not computed again; `waited_s` of `first_token_s` the model was not yet there.
    """

    prompt_tokens: int
    answer_tokens: int
    tokens_per_s: float
    first_token_s: float
    finish: str
    cached_tokens: int = 0
    waited_s: float = 0.0
