"""Who answers: a name wins, then a user's own expert by its keywords, then the router; a conversation is sticky."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from afs_mlx.core.errors import UsageError, closest
from afs_mlx.experts.routing.head import Head, HeadRouter, MeanRouter
from afs_mlx.experts.routing.keywords import KeywordRouter, by_keywords
from afs_mlx.experts.routing.learned import States, TfidfRouter, shipped
from afs_mlx.experts.routing.route import FALLBACK, Route, Router
from afs_mlx.schema.expert import Expert

DEFAULT_ROUTER = TfidfRouter.name
NEED_A_BASE = (HeadRouter.name, MeanRouter.name)
ROUTERS = (KeywordRouter.name, TfidfRouter.name, *NEED_A_BASE)
# A conversation is left for `general` only by a message that can stand alone; shorter ones refer to what was said.
_STANDS_ALONE_WORDS = 4


class ExpertRouter:
    """A learned router among a catalog's experts.

    `@din …` and `din: …` name their expert. Experts that the router was not fitted with are found by their keywords,
    which were written for them: they win where one matches.
    """

    def __init__(self, router: Router, experts: Mapping[str, Expert], known: Sequence[str]) -> None:
        self._router = router
        self._experts = experts
        self._own = {name: expert for name, expert in experts.items() if name not in known and name != FALLBACK}
        names = "|".join(re.escape(name) for name in sorted(experts, key=len, reverse=True))
        self._named = re.compile(rf"\s*(?:@({names})(?![\w-])|({names})\s*[:,](?=\s))", re.I)

    @property
    def name(self) -> str:
        return self._router.name

    @property
    def switch_threshold(self) -> float:
        return self._router.switch_threshold

    def routes(self, queries: Sequence[str]) -> list[Route]:
        """One route for each query."""
        found = [self._without_router(query) for query in queries]
        rest = iter(self._router.routes([q for q, route in zip(queries, found, strict=True) if route is None]))
        return [route or self._among_experts(next(rest)) for route in found]

    def _without_router(self, query: str) -> Route | None:
        named = self._named.match(query)
        if named:
            expert = (named[1] or named[2]).lower()
            return Route(expert, 1.0, {expert: 1.0}, f"{expert} is named")
        own = by_keywords(query, self._own) if self._own else None
        return own if own and own.expert != FALLBACK else None

    def _among_experts(self, route: Route) -> Route:
        if route.expert in self._experts or route.expert == FALLBACK:
            return route
        return replace(route, expert=FALLBACK, reason=f"{route.expert} is not in the catalog; {route.reason}")


def router_named(
    name: str, experts: Mapping[str, Expert], head: Head | None = None, states: States | None = None
) -> Router:
    """One of `ROUTERS`; head and mean need a fitted head and the function that computes its states."""
    if name == KeywordRouter.name:
        return KeywordRouter(experts)
    if name == TfidfRouter.name:
        return default_router(experts)
    if name not in ROUTERS:
        raise UsageError(f"there is no router {name!r}", "--router", closest(name, list(ROUTERS)))
    if head is None or states is None:
        raise ValueError(f"the router {name} needs a fitted head")
    router = HeadRouter(head, states) if name == HeadRouter.name else MeanRouter(shipped(), head, states)
    return ExpertRouter(router, experts, head.classes)


def default_router(experts: Mapping[str, Expert]) -> ExpertRouter:
    """The router that works everywhere: the shipped TF-IDF among these experts."""
    tfidf = shipped()
    return ExpertRouter(tfidf, experts, tfidf.classes)


def route(query: str, experts: Mapping[str, Expert]) -> Route:
    """Who a single question is for, by the default router."""
    return default_router(experts).routes([query])[0]


def decide(query: str, router: Router, current: str | None) -> Route:
    """Who answers the next message of a conversation, where `current` answered last (None at its beginning).

    The conversation stays where it is unless another expert is named or is surer than `switch_threshold`; it is left
    for `general` only where the message can stand alone. `previous` and `reason` of the route say what happened.
    """
    found = router.routes([query])[0]
    if current is None:
        return found
    stayed = replace(found, expert=current, confidence=found.scores.get(current, 0.0), previous=current)
    if found.expert == current:
        return replace(stayed, reason=f"stays with {current}: {found.reason}")
    if current == FALLBACK and found.expert != FALLBACK:
        return replace(found, previous=current, reason=f"from {current} to {found.expert}: {found.reason}")
    if found.confidence < router.switch_threshold:
        asked = f"a switch asks for {router.switch_threshold:.2f}"
        return replace(stayed, reason=f"stays with {current}: {found.expert} {found.confidence:.2f}, {asked}")
    if found.expert == FALLBACK and len(query.split()) < _STANDS_ALONE_WORDS:
        return replace(stayed, reason=f"stays with {current}: {found.reason}")
    return replace(found, previous=current, reason=f"from {current} to {found.expert}: {found.reason}")
