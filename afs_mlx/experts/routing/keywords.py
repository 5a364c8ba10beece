"""Question → expert by the seed's keyword lists: the reported baseline for every later router."""

import re
from collections.abc import Mapping, Sequence

from afs_mlx.experts.routing.route import FALLBACK, Route
from afs_mlx.schema.expert import Expert


def by_keywords(query: str, experts: Mapping[str, Expert]) -> Route:
    """Count the keywords that begin a word of the query, per expert; a tie or no hit goes to `general`."""
    text = " ".join(query.lower().split())
    hits = {name: _hits(text, expert.keywords) for name, expert in experts.items()}
    hits = {name: words for name, words in hits.items() if words}
    scores = {name: len(words) for name, words in sorted(hits.items(), key=lambda item: -len(item[1]))}
    if not scores:
        return Route(FALLBACK, 0.0, {}, "no keyword matched")
    best = max(scores.values())
    leaders = [name for name, score in scores.items() if score == best]
    if len(leaders) > 1:
        return Route(FALLBACK, 0.0, scores, f"a tie between {' and '.join(leaders)}")
    words = ", ".join(f"“{word}”" for word in hits[leaders[0]])
    return Route(leaders[0], best / sum(scores.values()), scores, f"matched {words}")


def _hits(text: str, keywords: tuple[str, ...]) -> list[str]:
    return [word for word in keywords if re.search(rf"(?<!\w){re.escape(word.lower())}", text)]


class KeywordRouter:
    """The baseline behind the interface of every router."""

    name = "keywords"
    switch_threshold = 1e-9  # any match; neither a tie nor its absence leaves a conversation

    def __init__(self, experts: Mapping[str, Expert]) -> None:
        self._experts = experts

    def routes(self, queries: Sequence[str]) -> list[Route]:
        """One route for each query."""
        return [by_keywords(query, self._experts) for query in queries]
