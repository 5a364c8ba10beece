"""Who answers: names, a user's own experts, abstention, and a conversation that stays where it is."""

from collections.abc import Sequence

import pytest

from afs_mlx.core.errors import UsageError
from afs_mlx.core.paths import Workspace
from afs_mlx.experts.catalog import Catalog
from afs_mlx.experts.routing import FALLBACK, Route, decide, default_router, route
from afs_mlx.experts.routing.calibration import Calibration
from afs_mlx.experts.routing.choosing import ExpertRouter, router_named
from afs_mlx.experts.routing.learned import choice
from afs_mlx.schema.expert import Expert

CLASSES = ("din", "farore", "general")
CALIBRATION = Calibration(
    temperature=1, route_threshold=0.5, switch_threshold=0.8, wrong_rate=0.2, switch_wrong_rate=0.1
)


class Fixed:
    """Answers every query with the same probabilities."""

    name = "fixed"
    switch_threshold = CALIBRATION.switch_threshold

    def __init__(self, *probabilities: float) -> None:
        self.asked: list[str] = []
        self._probabilities = probabilities

    def routes(self, queries: Sequence[str]) -> list[Route]:
        self.asked += queries
        return [choice(CLASSES, self._probabilities, CALIBRATION) for _ in queries]


@pytest.fixture
def experts() -> dict[str, Expert]:
    return Catalog.load(Workspace.find()).experts


@pytest.mark.parametrize(
    ("probabilities", "expert", "reason"),
    [
        ((0.7, 0.2, 0.1), "din", "din 0.70, next farore 0.20"),
        ((0.45, 0.4, 0.15), FALLBACK, "not sure enough: din 0.45 of the 0.50 asked for, farore 0.40"),
        ((0.1, 0.2, 0.7), FALLBACK, "a question for none of the experts"),
    ],
)
def test_choice(probabilities: tuple[float, ...], expert: str, reason: str) -> None:
    found = choice(CLASSES, probabilities, CALIBRATION)
    assert found.expert == expert
    assert reason in found.reason
    assert found.confidence == found.scores[expert]
    assert list(found.scores.values()) == sorted(found.scores.values(), reverse=True)
    assert found.likeliest == next(iter(found.scores))


@pytest.mark.parametrize("query", ["@veran what is this", "Veran: what is this", "veran, what is this", "  @VERAN"])
def test_a_name_wins(experts: dict[str, Expert], query: str) -> None:
    inner = Fixed(1, 0, 0)
    [found] = ExpertRouter(inner, experts, CLASSES).routes([query])
    assert (found.expert, found.confidence) == ("veran", 1.0)
    assert not inner.asked


@pytest.mark.parametrize("query", ["@veranda", "what would veran: say", "farore-afsx: hm", "dino, write it"])
def test_what_is_no_name(experts: dict[str, Expert], query: str) -> None:
    inner = Fixed(1, 0, 0)
    ExpertRouter(inner, experts, tuple(experts)).routes([query])
    assert inner.asked == [query]


def test_the_longer_name_is_meant(experts: dict[str, Expert]) -> None:
    [found] = ExpertRouter(Fixed(1, 0, 0), experts, CLASSES).routes(["farore-afs: list the files"])
    assert found.expert == "farore-afs"


def test_a_users_own_expert_is_found_by_its_keywords() -> None:
    own = {"zelda": Expert(title="t", keywords=("triforce",)), "din": Expert(title="t", keywords=("loop",))}
    router = ExpertRouter(Fixed(0.9, 0.1, 0), own, CLASSES)
    assert [found.expert for found in router.routes(["the triforce loop", "a loop"])] == ["zelda", "din"]


def test_an_expert_that_is_not_in_the_catalog_gets_nothing() -> None:
    [found] = ExpertRouter(Fixed(0.1, 0.9, 0), {"din": Expert(title="t")}, CLASSES).routes(["x"])
    assert found.expert == FALLBACK
    assert "farore is not in the catalog" in found.reason


@pytest.mark.parametrize(
    ("query", "expert"),
    [
        ("Optimize this loop, it has to be faster and smaller", "din"),
        ("How many cycles does lda ($10),y take?", "majora"),
        ("Write me a routine that clears VRAM", "nayru"),
        ("my game crashes after the NMI, find the bug", "farore"),
        ("Explain what register $2100 does", "veran"),
        ("rename the label in all files of my project and commit it", "farore-afs"),
        ("What is the capital of France?", "general"),
        ("give me a recipe for tomato soup", "general"),
    ],
)
def test_plain_questions_by_the_shipped_router(experts: dict[str, Expert], query: str, expert: str) -> None:
    found = route(query, experts)
    assert found.expert == expert, found.reason
    assert found.words


@pytest.mark.parametrize("query", ["", "\x00", "x" * 10**7, "?" * 999], ids=["empty", "nul", "10 MB", "signs"])
def test_any_text_is_routed(experts: dict[str, Expert], query: str) -> None:
    found = route(query, experts)
    assert found.expert in experts
    assert sum(found.scores.values()) == pytest.approx(1, abs=1e-3)
    assert ("the beginning and the end" in found.reason) == (len(query) > 10**6)


def test_many_are_routed_as_one_by_one(experts: dict[str, Expert]) -> None:
    queries = ["explain this", "@din x", "optimize it"]
    router = default_router(experts)
    assert router.routes(queries) == [router.routes([query])[0] for query in queries]


def test_an_unknown_router_is_named(experts: dict[str, Expert]) -> None:
    with pytest.raises(UsageError, match="no router 'tfid'"):
        router_named("tfid", experts)


@pytest.mark.parametrize(
    ("probabilities", "query", "current", "expert", "reason"),
    [
        ((0.6, 0.3, 0.1), "q", None, "din", "din 0.60"),
        ((0.6, 0.3, 0.1), "q", "din", "din", "stays with din"),
        ((0.6, 0.3, 0.1), "q", "farore", "farore", "stays with farore: din 0.60, a switch asks for 0.80"),
        ((0.9, 0.1, 0.0), "q", "farore", "din", "from farore to din"),
        ((0.6, 0.3, 0.1), "q", "general", "din", "from general to din"),
        ((0.4, 0.3, 0.3), "and the next one?", "din", "din", "stays with din"),
        ((0.0, 0.1, 0.9), "a question about the weather", "din", "general", "from din to general"),
        ((0.0, 0.1, 0.9), "thanks a lot", "din", "din", "stays with din"),
    ],
)
def test_a_conversation(
    probabilities: tuple[float, ...], query: str, current: str | None, expert: str, reason: str
) -> None:
    found = decide(query, Fixed(*probabilities), current)
    assert found.expert == expert
    assert found.reason.startswith(reason)
    assert found.previous == (current or "")
    assert found.switched == (current is not None and current != expert)


def test_a_name_ends_a_conversation_with_another(experts: dict[str, Expert]) -> None:
    found = decide("@veran and you?", ExpertRouter(Fixed(1, 0, 0), experts, CLASSES), "din")
    assert (found.expert, found.switched) == ("veran", True)


def test_keywords_stay_without_a_match_and_on_a_tie(experts: dict[str, Expert]) -> None:
    router = router_named("keywords", experts)
    assert decide("hello there you two", router, "din").expert == "din"
    assert decide("make all of it faster", router, "veran").expert == "veran"
    assert decide("find the problem", router, "veran").expert == "farore"
