"""The pool: every expert answers as mlx-lm answers with its adapter alone, whoever was asked before."""

import random
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model, quantize_model, save_config, save_model
from pool_experts import DORA, EXPERTS, GREEDY, alone, asked, logits_alone, make_expert, make_experts, tiny

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.adapters import attaching
from afs_mlx.engine.bases.location import BaseFolder
from afs_mlx.engine.inference import residents
from afs_mlx.engine.inference.pool import ExpertPool
from afs_mlx.engine.inference.slots import NOTHING, Factors, fold_scale
from afs_mlx.engine.inference.voice import Voice

QUESTION = "what does lda #$00 sta $10 do?"


@pytest.fixture(scope="module")
def experts(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("experts")
    return make_experts(tiny_base, folder) | {"dora": make_expert(tiny_base, folder / "dora", DORA, 7)}


@pytest.fixture
def pool() -> Iterator[ExpertPool]:
    with ExpertPool() as opened:
        yield opened


def answered(voice: Voice, question: str = QUESTION) -> str:
    return "".join(voice.stream(asked(question), GREEDY))


def text_alone(voice: Voice, base: Path, adapter: Path | None, question: str = QUESTION) -> str:
    tokens = alone(base, adapter, voice.prompt_tokens(asked(question)), GREEDY.max_tokens)
    tokenizer = voice._prompts._tokenizer
    return str(tokenizer.decode([t for t in tokens if t not in tokenizer.eos_token_ids]))


def test_every_expert_answers_as_mlx_lm_with_its_adapter_alone(
    pool: ExpertPool, tiny_base: Path, experts: dict[str, Path]
) -> None:
    base = tiny(tiny_base)
    bare = pool.voice(base)
    voices = {name: pool.voice(base, path) for name, path in experts.items()}
    expected = {name: text_alone(bare, tiny_base, path) for name, path in experts.items()}
    expected["bare"] = text_alone(bare, tiny_base, None)
    assert len(set(expected.values())) == len(expected), "noise that changes nothing would prove nothing"
    assert {name: answered(voice) for name, voice in {**voices, "bare": bare}.items()} == expected

    chance = random.Random(0)
    short = GREEDY.model_copy(update={"max_tokens": 3})
    for _ in range(100):
        name = chance.choice(list(voices))
        voice = pool.voice(base, experts[name])
        "".join(voice.stream(asked(chance.choice(["a", "rep #$20"])), short))
    assert {name: answered(voice) for name, voice in {**voices, "bare": bare}.items()} == expected
    assert answered(pool.voice(base)) == expected["bare"], "a bare base stays bare with slots around its layers"


@pytest.mark.parametrize("name", [*EXPERTS, "dora"])
def test_logits_are_mlx_lms_bit_for_bit(pool: ExpertPool, tiny_base: Path, experts: dict[str, Path], name: str) -> None:
    """Nothing is padded and nothing reordered; all slots of all experts are there."""
    for path in experts.values():
        pool.voice(tiny(tiny_base), path)
    voice = pool.voice(tiny(tiny_base), experts[name])
    prompt = voice.prompt_tokens(asked(QUESTION))
    with voice._computing() as resident:
        ours = np.array(resident.loaded.model(mx.array(prompt)[None]))
    assert np.array_equal(ours, logits_alone(tiny_base, experts[name], prompt))
    with pool.borrow(tiny(tiny_base)) as loaded:
        assert np.array_equal(np.array(loaded.model(mx.array(prompt)[None])), logits_alone(tiny_base, None, prompt))


def test_a_base_is_read_once_and_slots_grow_in_place(
    monkeypatch: pytest.MonkeyPatch, pool: ExpertPool, tiny_base: Path, experts: dict[str, Path]
) -> None:
    loads: list[Path] = []
    real = attaching.load_with_adapter
    monkeypatch.setattr(residents, "load_with_adapter", lambda *paths: loads.append(paths[0]) or real(*paths))
    slots = []
    for name in ("single", "small", "wide", "odd", "dora"):
        answered(pool.voice(tiny(tiny_base), experts[name]))
        slots.append(pool.stats().models[0].slots)
    assert slots == [1, 1 + 8, 28, 28, 28], "one for each layer that any adapter changes"
    assert loads == [tiny_base]
    stats = pool.stats()
    assert len(stats.models) == 1
    assert [folder.name for folder, _ in stats.adapters] == ["single", "small", "wide", "odd", "dora"]
    assert stats.adapters_bytes == sum(size for _, size in stats.adapters) > 0


def test_one_base_in_two_folders_is_read_once(pool: ExpertPool, tiny_base: Path, tmp_path: Path) -> None:
    other = tmp_path / "copy"
    other.mkdir()
    for file in tiny_base.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert answered(pool.voice(tiny(tiny_base))) == answered(pool.voice(tiny(other)))
    assert len(pool.stats().models) == 1
    (other / "generation_config.json").write_text('{"eos_token_id": [5]}')
    pool.voice(tiny(other))
    assert len(pool.stats().models) == 2, "the same weights that end elsewhere are another model"


def test_outside_an_answer_the_model_is_the_bare_base(
    pool: ExpertPool, tiny_base: Path, experts: dict[str, Path]
) -> None:
    voice = pool.voice(tiny(tiny_base), experts["wide"])
    stream = voice.stream(asked(QUESTION), GREEDY)
    next(stream)
    (resident,) = pool._residents.models()
    assert resident.slots.active is not NOTHING
    stream.close()
    assert resident.slots.active is NOTHING
    assert not resident.users


def test_a_quantised_base(
    monkeypatch: pytest.MonkeyPatch, tiny_base: Path, tmp_path: Path, experts: dict[str, Path]
) -> None:
    """On a CPU it is held in float32; here its layers stay packed, as on Metal."""
    repack = tmp_path / "4bit"
    repack.mkdir()
    for file in tiny_base.iterdir():
        (repack / file.name).write_bytes(file.read_bytes())
    model, config = quantize_model(*load_model(tiny_base), group_size=32, bits=4)
    save_model(repack, model)
    save_config(config, repack / "config.json")
    monkeypatch.setattr("afs_mlx.engine.bases.loading._in_float32", lambda loaded: loaded)
    with ExpertPool() as pool:
        bare = pool.voice(BaseFolder("tiny-qwen2", repack, True))
        prompt = bare.prompt_tokens(asked(QUESTION))
        for name in ("wide", "odd", "dora"):
            voice = pool.voice(BaseFolder("tiny-qwen2", repack, True), experts[name])
            with voice._computing() as resident:
                ours = np.array(resident.loaded.model(mx.array(prompt)[None]))
            expected = logits_alone(repack, experts[name], prompt)
            if name == "dora":  # mlx-lm unpacks the weight for each product, we multiply with the packed one
                assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()
            else:
                assert np.array_equal(ours, expected)


def test_an_adapter_of_whole_weights_is_a_model_of_its_own(pool: ExpertPool, tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    folder.mkdir()
    weights = mx.load(str(tiny_base / "model.safetensors"))
    name = "model.layers.1.mlp.up_proj.weight"
    mx.save_safetensors(str(folder / "adapters.safetensors"), {name: -weights[name]})
    (folder / "adapter_config.json").write_text(
        '{"fine_tune_type": "full", "num_layers": -1, "lora_parameters": {"rank": 1, "scale": 1.0, "dropout": 0.0}}'
    )
    bare, voice = pool.voice(tiny(tiny_base)), pool.voice(tiny(tiny_base), folder)
    assert answered(voice) == text_alone(voice, tiny_base, folder) != answered(bare)
    assert len(pool.stats().models) == 2
    assert voice.key != bare.key


def test_a_scale_is_folded_only_where_that_changes_no_bit() -> None:
    a, b = mx.random.normal((8, 2)), mx.random.normal((2, 8))
    x = mx.random.normal((3, 8))

    def product(factors: Factors) -> np.ndarray:
        return np.array(factors.scale * ((x @ factors.a) @ factors.b))

    for scale in (2.0, 4.0, 32.0, 0.5, 1.0, 3.0, 0.0, -2.0):
        folded = fold_scale(a, b, scale)
        assert folded.scale == (1.0 if scale in (2.0, 4.0, 32.0, 1.0) else scale)
        assert np.array_equal(product(folded), product(Factors(a, b, scale)))
    assert fold_scale(a, b * 1e38, 8.0).scale == 8.0, "folding must not overflow"


def test_a_closed_pool_says_so(tiny_base: Path) -> None:
    pool = ExpertPool()
    voice = pool.voice(tiny(tiny_base))
    pool.close()
    pool.close()
    assert pool.stats().models == ()
    with pytest.raises(AfsError, match="the pool of models is closed"):
        pool.voice(tiny(tiny_base))
    with pytest.raises(AfsError, match="closed"):
        pool.warm(voice, [])


@pytest.mark.smollm2
def test_six_experts_on_the_embedded_base(smollm2_base: Path, tmp_path: Path) -> None:
    """The same on a real model of 30 layers: alone, in turn, and after 100 random switches."""
    base = BaseFolder("smollm2-135m", smollm2_base, demo=True)
    paths = make_experts(smollm2_base, tmp_path)
    question = asked("How many bits has the accumulator of a 65816?")
    sampling = GREEDY.model_copy(update={"max_tokens": 12})
    with ExpertPool() as pool:
        voices = {name: pool.voice(base, path) for name, path in paths.items()}
        prompt = next(iter(voices.values())).prompt_tokens(question)
        tokenizer = next(iter(voices.values()))._prompts._tokenizer
        expected = {}
        for name, path in paths.items():
            tokens = alone(smollm2_base, path, prompt, sampling.max_tokens)
            expected[name] = tokenizer.decode([t for t in tokens if t not in tokenizer.eos_token_ids])
        assert {name: "".join(voice.stream(question, sampling)) for name, voice in voices.items()} == expected
        assert len(set(expected.values())) > 3
        chance = random.Random(1)
        for name in chance.choices(list(paths), k=100):
            with pool.voice(base, paths[name])._computing():
                pass
        assert {name: "".join(voice.stream(question, sampling)) for name, voice in voices.items()} == expected
        stats = pool.stats()
        assert stats.models_bytes + stats.adapters_bytes < 1.25 * stats.models_bytes
