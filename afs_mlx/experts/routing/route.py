"""What a router answers: who is asked, how surely, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

FALLBACK = "general"


@dataclass(frozen=True)
class Route:
    """The chosen expert, the router's confidence in it, the score of each expert, the best first, and the reason.

    `confidence` is the calibrated probability that the choice is right, for keywords the share of all hits; `scores`
    are probabilities, for keywords counts. `words` are what spoke for the first against the second, with its weight,
    and `margin` the distance between the two. `likeliest` is the class with the highest probability, also where the
    query was not sent there; empty where there are no probabilities. `previous` is who answered before in a
    conversation.
    """

    expert: str
    confidence: float
    scores: Mapping[str, float]
    reason: str
    words: tuple[tuple[str, float], ...] = ()
    margin: float = 0.0
    likeliest: str = ""
    previous: str = ""

    @property
    def switched(self) -> bool:
        """Whether the conversation goes on with somebody else than before."""
        return bool(self.previous) and self.previous != self.expert


class Router(Protocol):
    """Chooses an expert for each query. `switch_threshold` is the confidence that a running conversation asks for."""

    @property
    def name(self) -> str: ...
    @property
    def switch_threshold(self) -> float: ...
    def routes(self, queries: Sequence[str]) -> list[Route]:
        """One route for each query, in order."""
        ...
