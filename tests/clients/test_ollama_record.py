"""The list of what was deployed, written by several processes at once."""

import multiprocessing
from pathlib import Path

from afs_mlx.clients.ollama import record
from afs_mlx.clients.ollama.record import Deployed

EACH = 20


def entry(tag: str) -> Deployed:
    return Deployed(
        tag=tag, server="http://s", digest="d", gguf="/g", gguf_sha256="s", size_bytes=1, created="2026-01-01T00:00:00Z"
    )


def put_many(path: Path, name: str, barrier: "multiprocessing.synchronize.Barrier") -> None:
    barrier.wait()
    for number in range(EACH):
        record.put(path, entry(f"{name}{number}"))


def test_no_entry_is_lost_between_processes(tmp_path: Path) -> None:
    path = tmp_path / "fused" / "deployed.json"
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(3)
    others = [spawn.Process(target=put_many, args=(path, name, barrier)) for name in "abc"]
    for process in others:
        process.start()
    for process in others:
        process.join()
        assert process.exitcode == 0
    assert {one.tag for one in record.read(path)} == {f"{name}{number}" for name in "abc" for number in range(EACH)}


def test_an_entry_takes_the_place_of_its_tags_older_one(tmp_path: Path) -> None:
    path = tmp_path / "deployed.json"
    record.put(path, entry("din"))
    record.put(path, entry("din:latest"))
    assert [one.tag for one in record.read(path)] == ["din:latest"]
    record.drop(path, entry("din"))
    assert record.read(path) == ()


def test_this_machine_has_one_name(tmp_path: Path) -> None:
    path = tmp_path / "deployed.json"
    record.put(path, entry("din").model_copy(update={"server": "http://127.0.0.1:11434"}))
    entries = record.read(path)
    for server in ("http://localhost:11434", "http://0.0.0.0:11434", "http://[::1]:11434"):
        assert record.find(entries, server, "din") == entries[0]
    for server in ("http://localhost:11435", "http://10.0.0.1:11434"):
        assert record.find(entries, server, "din") is None
