"""Which part of a conversation fits."""

from afs_mlx.pipelines.chat.window import first_kept
from afs_mlx.schema.message import Message
from afs_mlx.schema.sampling import Sampling


def turns(*sizes: int) -> list[Message]:
    found = []
    for size in sizes:
        found += [Message(role="user", content="q" * size), Message(role="assistant", content="a" * size)]
    return found


def kept(said: list[Message], limit: int, before: int = 0, question: int = 10, most: int = 1000) -> int:
    """With a token for each character."""
    sampling = Sampling(context_tokens=limit, max_tokens=most)
    return first_kept(said, before, lambda start: question + sum(len(t.content) for t in said[start:]), sampling)


def test_what_fits_stays_whole() -> None:
    assert kept(turns(10, 10, 10), 100) == 0, "70 tokens, 25 for the answer"
    assert kept([], 100) == 0


def test_what_overflows_is_cut_to_half_by_whole_exchanges() -> None:
    assert kept(turns(10, 10, 10, 10), 100) == 4, "90 are too many, 50 are half"
    assert kept(turns(10, 10, 10, 10), 100, most=10) == 0, "a short answer needs less room"


def test_what_was_cut_stays_cut() -> None:
    assert kept(turns(10, 10, 10, 10, 10), 100, before=4) == 4
    assert kept(turns(10, 10, 10, 10, 10, 10), 100, before=4) == 8


def test_a_question_that_fills_the_context_stands_alone() -> None:
    assert kept(turns(10, 10), 100, question=90) == 4
    assert kept(turns(1000, 1000), 20) == 4


def test_an_endless_history_is_not_counted() -> None:
    counted: list[int] = []
    said = turns(100_000, 100_000, 5)

    def tokens(start: int) -> int:
        counted.append(start)
        return 20

    assert first_kept(said, 0, tokens, Sampling(context_tokens=100)) == 4
    assert 0 not in counted
