"""The seed's keyword lists decide, and say by which words."""

import pytest

from afs_mlx.core.paths import Workspace
from afs_mlx.experts.catalog import Catalog
from afs_mlx.experts.routing import Route
from afs_mlx.experts.routing.keywords import KeywordRouter, by_keywords
from afs_mlx.schema.expert import Expert

SEED = {
    "din": "optimize, faster, smaller, reduce cycles, tighten, make more efficient, loop unroll, inline",
    "nayru": "write, generate, create, implement, code for, give me code, how to write",
    "farore": "bug, fix, debug, crash, wrong, not working, why doesn't this work, find the problem",
    "veran": "explain, what does this do, analyze, understand, disassemble, reverse engineer, ROM analysis",
    "majora": "optimize cycles, faster, performance, cycle count, timing, register usage, memory access, "
    "DMA optimization, how many cycles, reduce latency, improve performance",
    "farore-afs": "use afs, context as files, tool calling, agentic, file operations, shell commands, "
    "workspace navigation",
}


@pytest.fixture
def experts() -> dict[str, Expert]:
    return Catalog.load(Workspace.find()).experts


def expert(*keywords: str) -> Expert:
    return Expert(title="t", keywords=keywords)


@pytest.mark.parametrize("name", SEED)
def test_the_lists_are_the_seeds(experts: dict[str, Expert], name: str) -> None:
    assert ", ".join(experts[name].keywords) == SEED[name]


def test_general_is_looked_for_by_no_word(experts: dict[str, Expert]) -> None:
    assert experts["general"].keywords == ()


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("Optimize this loop, please make it smaller", "din"),
        ("How many cycles does this take?", "majora"),
        ("Write a routine that clears VRAM", "nayru"),
        ("my game will crash after the NMI", "farore"),
        ("why doesn't this work", "farore"),
        ("Explain register $2100", "veran"),
        ("rom ANALYSIS of the title screen", "veran"),
        ("do these file operations with tool calling", "farore-afs"),
    ],
)
def test_plain_questions(experts: dict[str, Expert], query: str, name: str) -> None:
    assert by_keywords(query, experts).expert == name


@pytest.mark.parametrize("query", ["", "   ", "hello there", "what is the capital of France?", "\x00", "*" * 10_000])
def test_no_match_goes_to_general(experts: dict[str, Expert], query: str) -> None:
    assert by_keywords(query, experts) == Route("general", 0.0, {}, "no keyword matched")


def test_a_tie_goes_to_general_and_names_the_rivals(experts: dict[str, Expert]) -> None:
    found = by_keywords("make it faster", experts)
    assert found == Route("general", 0.0, {"din": 1, "majora": 1}, "a tie between din and majora")


def test_a_tie_for_the_lead_only() -> None:
    found = by_keywords("a b c", {"one": expert("a", "b"), "two": expert("c"), "three": expert("a", "b")})
    assert found.expert == "general"
    assert found.reason == "a tie between one and three"
    assert found.scores == {"one": 2, "three": 2, "two": 1}


def test_the_words_that_decided_and_the_share(experts: dict[str, Expert]) -> None:
    found = by_keywords("Debug this crash and explain it", experts)
    assert found.expert == "farore"
    assert found.reason == "matched “debug”, “crash”"
    assert found.scores == {"farore": 2, "veran": 1}
    assert found.confidence == pytest.approx(2 / 3)


def test_the_one_expert_that_matches_is_sure() -> None:
    assert by_keywords("a", {"one": expert("a")}).confidence == 1.0


def test_a_keyword_counts_once_however_often_it_stands() -> None:
    assert by_keywords("fix fix fix", {"one": expert("fix"), "two": expert("nothing")}).scores == {"one": 1}


@pytest.mark.parametrize(
    ("query", "hit"),
    [
        ("bugs everywhere", True),
        ("(bug)", True),
        ("a\nbug", True),
        ("debugging", False),  # inside a word
        ("ladybug", False),
        ("_bug", False),
    ],
)
def test_a_keyword_begins_a_word(query: str, hit: bool) -> None:
    assert bool(by_keywords(query, {"one": expert("bug")}).scores) is hit


def test_spacing_and_case_do_not_matter() -> None:
    assert by_keywords("HOW  many\n\tCycles", {"one": expert("how many cycles")}).expert == "one"
    assert by_keywords("rom analysis", {"one": expert("ROM analysis")}).expert == "one"


def test_signs_in_a_keyword_are_signs_and_no_pattern() -> None:
    assert by_keywords("the axb register", {"one": expert("a.b")}).expert == "general"
    assert by_keywords("c++ code", {"one": expert("c++", "a(", "[")}).expert == "one"


def test_behind_the_interface_of_every_router(experts: dict[str, Expert]) -> None:
    queries = ["make it faster", "find the problem"]
    assert KeywordRouter(experts).routes(queries) == [by_keywords(query, experts) for query in queries]
