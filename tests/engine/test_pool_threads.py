"""The pool from several threads: one answer at a time for each model, loading beside typing, a clean end."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
from pool_experts import EXPERTS, GREEDY, asked, make_experts, tiny

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.engine.bases.tiny_qwen2 import build_tiny_qwen2
from afs_mlx.engine.inference import residents
from afs_mlx.engine.inference.background import Background, release_thread
from afs_mlx.engine.inference.pool import ExpertPool
from afs_mlx.engine.inference.voice import Voice
from afs_mlx.schema.message import Message

pytestmark = pytest.mark.slow

SYSTEM = "You are Din. You make 65816 code smaller and faster, and you say why in one line."
PATIENCE_S = 60


@pytest.fixture
def pool() -> Iterator[ExpertPool]:
    with ExpertPool() as opened:
        yield opened


@pytest.fixture(scope="module")
def experts(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_experts(tiny_base, tmp_path_factory.mktemp("experts"))


def answered(voice: Voice) -> str:
    return "".join(voice.stream(asked("rep #$20", SYSTEM), GREEDY))


def together(*tasks: Callable[[], None]) -> None:
    """Run tasks at once, each on a thread of its own; raises what they raise."""
    errors: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            errors.append(error)
        finally:
            release_thread()

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    for error in errors:
        raise error


def test_threads_that_ask_different_experts_get_each_ones_answer(
    pool: ExpertPool, tiny_base: Path, experts: dict[str, Path]
) -> None:
    expected = {name: answered(pool.voice(tiny(tiny_base), path)) for name, path in experts.items()}
    found: list[tuple[str, str]] = []

    def ask(name: str) -> None:
        for _ in range(3):
            found.append((name, answered(pool.voice(tiny(tiny_base), experts[name]))))

    together(*(lambda name=name: ask(name) for name in EXPERTS))
    assert len(found) == 3 * len(EXPERTS)
    assert set(found) == set(expected.items())


def test_a_base_is_read_once_however_many_ask(
    monkeypatch: pytest.MonkeyPatch, pool: ExpertPool, tiny_base: Path, experts: dict[str, Path]
) -> None:
    loads: list[Path] = []
    real = residents.load_with_adapter
    monkeypatch.setattr(residents, "load_with_adapter", lambda *paths: loads.append(paths[0]) or real(*paths))
    start = threading.Barrier(4)

    def load() -> None:
        start.wait(PATIENCE_S)
        pool.voice(tiny(tiny_base), experts["odd"])

    together(*[load] * 4)
    assert loads == [tiny_base]
    assert len(pool.stats().adapters) == 1


def test_a_second_answer_of_a_model_waits_and_one_of_another_does_not(
    pool: ExpertPool, tiny_base: Path, tmp_path: Path
) -> None:
    build_tiny_qwen2(tmp_path / "other", 1)
    voice, other = pool.voice(tiny(tiny_base)), pool.voice(tiny(tmp_path / "other"))
    stream = voice.stream(asked("a"), GREEDY)
    next(stream)
    done = threading.Event()

    def second() -> None:
        answered(pool.voice(tiny(tiny_base)))
        done.set()

    waiting = threading.Thread(target=lambda: (second(), release_thread()))
    waiting.start()
    together(lambda: (answered(other), None)[1])
    assert not done.is_set()
    stream.close()
    assert done.wait(PATIENCE_S)
    waiting.join(PATIENCE_S)


def test_a_thread_that_would_wait_for_itself_is_told(pool: ExpertPool, tiny_base: Path) -> None:
    voice = pool.voice(tiny(tiny_base))
    stream = voice.stream(asked("a"), GREEDY)
    next(stream)
    with pytest.raises(AfsError, match="an answer of this model is still being written"):
        answered(voice)
    with pytest.raises(AfsError, match="still being written"), pool.borrow(tiny(tiny_base)):
        pass
    stream.close()
    assert answered(voice)


def test_a_room_is_waited_for_while_another_thread_answers(pool: ExpertPool, tiny_base: Path, tmp_path: Path) -> None:
    build_tiny_qwen2(tmp_path / "other", 1)
    size = pool.budget.models_bytes
    with ExpertPool(type(pool.budget)(1, 1 << 20, size)) as small:
        voice = small.voice(tiny(tiny_base))
        begun, go_on = threading.Event(), threading.Event()

        def slow() -> None:
            stream = voice.stream(asked("a"), GREEDY)
            next(stream)
            begun.set()
            go_on.wait(PATIENCE_S)
            list(stream)

        def second() -> None:
            begun.wait(PATIENCE_S)
            threading.Timer(0, go_on.set).start()
            small.voice(tiny(tmp_path / "other"))

        together(slow, second)
        assert [model.folder.name for model in small.stats().models] == ["other"]


def test_a_voice_is_prepared_in_the_background(pool: ExpertPool, tiny_base: Path, experts: dict[str, Path]) -> None:
    opening = [Message(role="system", content=SYSTEM)]
    voice = pool.prepare(tiny(tiny_base), experts["wide"], opening).result(PATIENCE_S)
    said = answered(voice)
    assert voice.usage is not None
    assert voice.usage.cached_tokens > 40
    with ExpertPool() as fresh:
        assert answered(fresh.voice(tiny(tiny_base), experts["wide"])) == said
    missing = pool.prepare(tiny(tiny_base / "none"))
    with pytest.raises(MissingError):
        missing.result(PATIENCE_S)


def test_tasks_run_in_order_and_closing_cancels_those_that_wait() -> None:
    background = Background("test")
    begun, go_on = threading.Event(), threading.Event()
    order: list[int] = []

    def first() -> int:
        begun.set()
        go_on.wait(PATIENCE_S)
        order.append(1)
        return 1

    running, waiting = background.submit(first), background.submit(lambda: order.append(2))
    begun.wait(PATIENCE_S)
    closing = threading.Thread(target=background.close)
    closing.start()
    while not background.closed():
        go_on.wait(0.001)
    go_on.set()
    closing.join(PATIENCE_S)
    assert running.result(PATIENCE_S) == 1
    with pytest.raises(CancelledError):
        waiting.result(PATIENCE_S)
    assert order == [1]
    with pytest.raises(RuntimeError, match="closed"):
        background.submit(first)


@pytest.mark.parametrize("ending", ["pool.close()", "", "raise SystemExit(0)"])
def test_a_process_that_prepared_ends_without_a_crash(tiny_base: Path, ending: str) -> None:
    """Without `release_thread`, mlx 0.32.4 aborts in more than half of all endings on Python 3.12."""
    program = f"""
from pathlib import Path
import afs_mlx.engine
from afs_mlx.engine.bases.location import BaseFolder
from afs_mlx.engine.inference.pool import ExpertPool
from afs_mlx.schema.message import Message
pool = ExpertPool()
base = BaseFolder("tiny-qwen2", Path({str(tiny_base)!r}), True)
pool.prepare(base, None, [Message(role="system", content="You are Din.")]).result()
print("ready", flush=True)
{ending}
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert (done.returncode, done.stdout) == (0, "ready\n"), done.stderr
