"""Prompt caches: a beginning is computed once, copies are nobody else's, and no adapter sees another's."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache, RotatingKVCache
from pool_experts import EXPERTS, GREEDY, asked, make_expert, tiny

from afs_mlx.engine.inference.budget import Budget
from afs_mlx.engine.inference.pool import ExpertPool
from afs_mlx.engine.inference.prompt_cache import PromptCaches, reusable
from afs_mlx.engine.inference.voice import Voice
from afs_mlx.schema.message import Message

SYSTEM = "You are Din. You make 65816 code smaller and faster, and you say why in one line."
ONE, OTHER = ("model", ""), ("model", "adapter")


@pytest.fixture
def pool() -> Iterator[ExpertPool]:
    with ExpertPool() as opened:
        yield opened


@pytest.fixture
def adapter(tiny_base: Path, tmp_path: Path) -> Path:
    return make_expert(tiny_base, tmp_path / "adapter", EXPERTS["wide"], 1)


def layers(tokens: list[int], spare: int = 0) -> list[KVCache]:
    """Two layers whose keys are the tokens themselves."""
    filled = []
    for sign in (1, -1):
        layer = KVCache()
        layer.step = max(1, len(tokens) + spare)
        values = mx.array(tokens, mx.float32)[None, None, :, None] * sign
        layer.update_and_fetch(mx.concatenate([values, values], axis=1), mx.concatenate([values, values], axis=1))
        filled.append(layer)
    return filled


def held(layer: KVCache) -> list[int]:
    keys, _ = layer.keys_and_values()
    return [int(value) for value in np.array(keys)[0, 0, :, 0]]


def grow(cache: list[KVCache], token: int) -> None:
    for layer in cache:
        part = mx.full((1, 2, 1, 1), token)
        layer.update_and_fetch(part, part)


def cached(voice: Voice) -> int:
    assert voice.usage is not None
    return voice.usage.cached_tokens


def said(voice: Voice, messages: list[Message]) -> str:
    return "".join(voice.stream(messages, GREEDY))


# The store


def test_the_longest_beginning_is_found_and_leaves_one_token_to_compute() -> None:
    store = PromptCaches(1 << 20)
    store.keep_opening(ONE, [1, 2, 3], layers([1, 2, 3, 4, 5]))
    assert store.take(ONE, [9, 1, 2]) is None
    for prompt, expected in (([1, 2, 3, 7], [1, 2, 3]), ([1, 2, 3], [1, 2]), ([1, 2, 9, 9], [1, 2])):
        cache, length = store.take(ONE, prompt) or ([], 0)
        assert length == len(expected)
        assert [held(layer) for layer in cache] == [expected, [-token for token in expected]]
    assert store.take(ONE, [1]) is None
    assert store.take(OTHER, [1, 2, 3, 7]) is None


def test_what_one_conversation_writes_no_other_reads() -> None:
    store = PromptCaches(1 << 20)
    mine = layers([1, 2, 3], spare=8)
    store.keep_opening(ONE, [1, 2, 3], mine)
    first, _ = store.take(ONE, [1, 2, 3, 4]) or ([], 0)
    second, _ = store.take(ONE, [1, 2, 3, 4]) or ([], 0)
    shorter, _ = store.take(ONE, [1, 2, 9]) or ([], 0)
    for cache, token in ((mine, 40), (first, 41), (second, 42), (shorter, 43)):
        grow(cache, token)
    grow(first, 51)
    assert held(mine[0]) == [1, 2, 3, 40]
    assert held(first[0]) == [1, 2, 3, 41, 51]
    assert held(second[0]) == [1, 2, 3, 42]
    assert held(shorter[0]) == [1, 2, 43]
    again, _ = store.take(ONE, [1, 2, 3, 4]) or ([], 0)
    assert held(again[0]) == [1, 2, 3]


def test_a_conversation_that_goes_on_takes_its_own_cache_out() -> None:
    store = PromptCaches(1 << 20)
    mine = layers([1, 2, 3])
    store.keep(ONE, [1, 2, 3], mine)
    cache, length = store.take(ONE, [1, 2, 3, 4]) or ([], 0)
    assert [held(layer) for layer in cache] == [[1, 2, 3], [-1, -2, -3]]
    assert length == 3
    assert store.kept() == []
    store.keep(ONE, [1, 2, 3], cache)
    assert store.take(ONE, [1, 2, 7]) is not None
    assert len(store.kept()) == 1, "what goes on elsewhere leaves it"


def test_a_later_state_replaces_the_earlier_one_of_the_same_expert() -> None:
    store = PromptCaches(1 << 20)
    store.keep_opening(ONE, [1], layers([1]))
    store.keep(ONE, [1, 2], layers([1, 2]))
    store.keep(OTHER, [1, 2], layers([1, 2]))
    store.keep(ONE, [1, 2, 3], layers([1, 2, 3]))
    assert [(kept.key, len(kept.tokens)) for kept in store.kept()] == [(ONE, 1), (OTHER, 2), (ONE, 3)]


def test_conversations_go_before_openings_and_the_oldest_first() -> None:
    one = sum(layer.nbytes for layer in layers([1]))
    store = PromptCaches(3 * one)
    store.keep_opening(ONE, [1], layers([1]))
    store.keep(ONE, [2], layers([2]))
    store.keep(ONE, [3], layers([3]))
    store.keep(ONE, [4], layers([4]))
    assert [list(kept.tokens) for kept in store.kept()] == [[1], [3], [4]]
    for token in (5, 6, 7):
        store.keep_opening(ONE, [token], layers([token]))
    assert [list(kept.tokens) for kept in store.kept()] == [[5], [6], [7]]
    assert store.covers(ONE, [5])
    store.keep_opening(ONE, [8], layers([8]))
    assert [list(kept.tokens) for kept in store.kept()] == [[7], [5], [8]], "what was used stays longer"
    store.keep(ONE, [1] * 40, layers([1] * 40))
    assert len(store.kept()) == 3, "what is larger than the limit is not kept and drives nobody out"
    assert sum(kept.size_bytes for kept in store.kept()) <= store.limit_bytes


def test_an_opening_is_kept_without_spare_room() -> None:
    store = PromptCaches(1 << 20)
    store.keep_opening(ONE, [1, 2, 3], layers([1, 2, 3, 4, 5], spare=200))
    (kept,) = store.kept()
    assert kept.size_bytes == sum(layer.nbytes for layer in layers([1, 2, 3]))
    store.keep_opening(ONE, [1, 2, 3], layers([1, 2, 3]))
    assert len(store.kept()) == 1


def test_a_conversation_keeps_only_what_follows_its_opening() -> None:
    store = PromptCaches(1 << 20)
    store.keep_opening(ONE, [1], layers([1]))
    store.keep_opening(ONE, [1, 2, 3], layers([1, 2, 3]))
    store.keep_opening(OTHER, [1, 2, 3, 4], layers([1, 2, 3, 4]))
    store.keep(ONE, [1, 2, 3, 4, 5], layers([1, 2, 3, 4, 5], spare=9))
    talk = store.kept()[-1]
    assert talk.size_bytes == sum(layer.nbytes for layer in layers([4, 5]))
    for length in range(1, 6):
        expected = [1, 2, 3, 4, 5][:length]
        assert [held(layer) for layer in talk.restored(length)] == [expected, [-token for token in expected]]
    (first, _), (other, _) = (store.take(ONE, [1, 2, 3, 4, 9]) or ([], 0) for _ in range(2))
    grow(first, 40)
    grow(other, 41)
    assert held(first[0]) == [1, 2, 3, 4, 40]
    assert held(other[0]) == [1, 2, 3, 4, 41]
    assert held(talk.restored(5)[0]) == [1, 2, 3, 4, 5]


def test_caches_that_slide_are_not_kept() -> None:
    sliding = RotatingKVCache(max_size=4)
    for token in (1, 2):
        part = mx.full((1, 1, 1, 1), token)
        sliding.update_and_fetch(part, part)
    assert not reusable([*layers([1, 2]), sliding])
    assert not reusable([KVCache()]), "empty"
    assert not reusable([])
    store = PromptCaches(1 << 20)
    store.keep(ONE, [1, 2], [sliding])
    store.keep_opening(ONE, [1, 2], [sliding])
    assert store.kept() == []


# Conversations


def test_the_system_prompt_is_computed_once_and_the_answer_is_the_same(pool: ExpertPool, tiny_base: Path) -> None:
    voice = pool.voice(tiny(tiny_base))
    opening = [Message(role="system", content=SYSTEM)]
    tokens = pool.warm(voice, opening).result()
    assert tokens == len(voice._prompts.opening(opening))
    warm = said(voice, asked("rep #$20", SYSTEM))
    assert cached(voice) == tokens > 40
    with ExpertPool() as cold_pool:
        cold = cold_pool.voice(tiny(tiny_base))
        assert said(cold, asked("rep #$20", SYSTEM)) == warm
        assert cached(cold) == 0
        assert said(cold, asked("lda #$00", SYSTEM)) == said(voice, asked("lda #$00", SYSTEM))
        assert cached(cold) == cached(voice) == tokens, "the first question kept its system prompt"
    assert pool.warm(voice, opening).result() == tokens
    assert pool.stats().openings == 1


def test_few_shot_turns_are_part_of_the_opening(pool: ExpertPool, tiny_base: Path) -> None:
    voice = pool.voice(tiny(tiny_base))
    shots = [Message(role="user", content="clear $10"), Message(role="assistant", content="stz $10")]
    opening = [Message(role="system", content=SYSTEM), *shots]
    tokens = pool.warm(voice, opening).result()
    said(voice, [*opening, Message(role="user", content="clear $11")])
    assert cached(voice) == tokens > len(voice._prompts.opening(opening[:1]))
    said(voice, asked("clear $12", SYSTEM))
    assert cached(voice) >= len(voice._prompts.opening(opening[:1])), "a shorter opening is a beginning of it"


def test_a_conversation_reuses_what_was_computed_of_it(pool: ExpertPool, tiny_base: Path) -> None:
    voice = pool.voice(tiny(tiny_base))
    talk = asked("what does lda #$00 do?", SYSTEM)
    before = 0
    for _ in range(3):
        text = said(voice, talk)
        with ExpertPool() as fresh:
            assert said(fresh.voice(tiny(tiny_base)), talk) == text
        assert cached(voice) >= before
        before = len(voice.prompt_tokens(talk))
        talk = [*talk, Message(role="assistant", content="It loads 0."), Message(role="user", content="and then?")]
    retried = said(voice, talk[:-2])
    assert retried == text
    assert cached(voice) == len(voice.prompt_tokens(talk[:-2])) - 1, "asked again, all but one token are known"


def test_a_switch_and_back_reuses_the_experts_own_and_nobody_elses(
    pool: ExpertPool, tiny_base: Path, adapter: Path
) -> None:
    bare, expert = pool.voice(tiny(tiny_base)), pool.voice(tiny(tiny_base), adapter)
    talk = asked("what does lda #$00 do?", SYSTEM)
    first = said(bare, talk)
    other = said(expert, talk)
    assert cached(expert) == 0, "the bare base's cache is not valid under an adapter"
    assert other != first
    longer = [*talk, Message(role="assistant", content=first), Message(role="user", content="more")]
    said(expert, longer)
    said(bare, longer)
    assert cached(bare) >= len(bare.prompt_tokens(talk)), "back again, its own is there"
    with ExpertPool() as fresh:
        assert said(fresh.voice(tiny(tiny_base)), longer) == said(bare, longer)
        assert said(fresh.voice(tiny(tiny_base), adapter), longer) == said(expert, longer)


def test_the_same_adapter_in_two_folders_shares(pool: ExpertPool, tiny_base: Path, adapter: Path) -> None:
    copy = adapter.with_name("copy")
    copy.mkdir()
    for file in adapter.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    said(pool.voice(tiny(tiny_base), adapter), asked("a", SYSTEM))
    voice = pool.voice(tiny(tiny_base), copy)
    said(voice, asked("a", SYSTEM))
    assert cached(voice) == len(voice.prompt_tokens(asked("a", SYSTEM))) - 1


def test_a_broken_off_answer_leaves_a_cache_that_fits_what_was_said(pool: ExpertPool, tiny_base: Path) -> None:
    voice = pool.voice(tiny(tiny_base))
    talk = asked("what does lda #$00 do?", SYSTEM)
    stream = voice.stream(talk, GREEDY)
    for _ in range(4):
        next(stream)
    stream.close()
    longest = max(pool._caches.kept(), key=lambda kept: len(kept.tokens))
    assert len(longest.tokens) > len(voice.prompt_tokens(talk))
    assert {layer.offset for layer in longest.restored(len(longest.tokens))} == {len(longest.tokens)}
    text = said(voice, talk)
    assert cached(voice) == len(voice.prompt_tokens(talk)) - 1
    with ExpertPool() as fresh:
        assert said(fresh.voice(tiny(tiny_base)), talk) == text


def test_an_answer_that_fails_keeps_nothing_of_itself(
    monkeypatch: pytest.MonkeyPatch, pool: ExpertPool, tiny_base: Path
) -> None:
    voice = pool.voice(tiny(tiny_base))
    stream = voice.stream(asked("a", SYSTEM), GREEDY)
    next(stream)
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)
    assert pool.stats().conversations == 0
    assert pool.stats().openings == 1
    assert voice.usage is not None
    assert voice.usage.finish == "interrupted"
    assert said(voice, asked("a", SYSTEM))


def test_a_model_with_a_sliding_window_answers_without_reuse(pool: ExpertPool, tiny_base: Path) -> None:
    voice = pool.voice(tiny(tiny_base))
    with voice._computing() as resident:
        count = len(resident.loaded.model.layers)
        resident.loaded.model.make_cache = lambda: [RotatingKVCache(max_size=32) for _ in range(count)]
    assert pool.warm(voice, [Message(role="system", content=SYSTEM)]).result() == 0
    first = said(voice, asked("a", SYSTEM))
    assert said(voice, asked("a", SYSTEM)) == first
    assert cached(voice) == 0
    assert pool.stats().openings == pool.stats().conversations == 0


def test_a_small_budget_for_caches_computes_again(tiny_base: Path) -> None:
    with ExpertPool(replace(Budget.here(), caches_bytes=1000)) as pool:
        voice = pool.voice(tiny(tiny_base))
        first = said(voice, asked("a", SYSTEM))
        assert said(voice, asked("a", SYSTEM)) == first
        assert cached(voice) == 0
        assert pool.stats().caches_bytes == 0
