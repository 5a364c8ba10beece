"""Two ranks on MLX's ring: sums, copies, agreement, the same gradients as one, and what is said when a rank is lost."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from afs_mlx.core.errors import AfsError, ExitCode
from afs_mlx.core.hosts import read_hosts
from afs_mlx.core.ranks import launch
from afs_mlx.engine.training.distributed import World, share

pytestmark = pytest.mark.slow

# The working folder comes as the first word; `tell` leaves a result there.
PRELUDE = """
import json, os, sys, time
from pathlib import Path
import afs_mlx.engine
import mlx.core as mx
import numpy as np
from afs_mlx.core.errors import AfsError
from afs_mlx.engine.training.distributed import World, share
folder = Path(sys.argv[1])
def tell(name, value):
    (folder / f".{name}").write_text(json.dumps(value))
    (folder / f".{name}").rename(folder / name)
"""
JOIN = PRELUDE + "world = World.join()\n"
WORLD_NAMES = (
    *("MLX_RANK", "MLX_HOSTFILE", "MLX_IBV_DEVICES", "MLX_JACCL_COORDINATOR", "JACCL_RANK", "JACCL_IBV_DEVICES"),
    *("JACCL_COORDINATOR", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"),
)


@pytest.fixture(autouse=True)
def _no_world(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WORLD_NAMES:
        monkeypatch.delenv(name, raising=False)


def ring(folder: Path, code: str, size: int = 2, *words: str) -> list[Any]:
    """Run `code` on `size` ranks; what each told under its own number."""
    command = [sys.executable, "-c", JOIN + code, str(folder), *words]
    assert launch(command, read_hosts(str(size)), stall_s=60) == ExitCode.OK
    return [json.loads((folder / str(rank)).read_text()) for rank in range(size)]


def test_alone_nothing_is_sent() -> None:
    world = World.join()
    assert world == World.alone()
    assert (world.rank, world.size, world.first) == (0, 1, True)
    tree = {"a": mx.array([1.5, 2.0]).astype(mx.bfloat16), "b": [mx.array(3)]}
    summed = world.sum(tree)
    assert summed["a"].dtype == mx.float32
    assert summed["a"].tolist() == [1.5, 2.0]
    assert summed["b"][0].item() == 3.0
    assert world.broadcast(tree) is tree
    assert world.sum_numbers([1, 2.5]) == [1.0, 2.5]
    assert (world.any(True), world.any(False)) == (True, False)
    world.agree(recipe="x")
    world.barrier()


def test_sum_and_numbers(tmp_path: Path) -> None:
    code = """
def tree(rank):
    rng = np.random.default_rng(rank)
    normal = lambda *shape: mx.array(rng.standard_normal(shape).astype(np.float32))
    return {"z": {"w": normal(300, 7)}, "layers": [{"0": normal(5)}, {}, normal()], "empty": mx.zeros((0, 3))}
flat = lambda t: [t["z"]["w"], t["layers"][0]["0"], t["layers"][2], t["empty"]]
summed = world.sum(tree(world.rank))
again = world.sum(tree(world.rank))
expected = [a + b for a, b in zip(flat(tree(0)), flat(tree(1)))]
tell(str(world.rank), {
    "world": [world.rank, world.size, world.backend, world.first],
    "equal": all(mx.array_equal(a, b).item() for a, b in zip(flat(summed), expected)),
    "again": all(mx.array_equal(a, b).item() for a, b in zip(flat(summed), flat(again))),
    "same": [type(summed["layers"][0]).__name__, summed["layers"][1], list(summed["empty"].shape)],
    "half": world.sum({"h": mx.array([1.0, 2.0]).astype(mx.bfloat16)})["h"].tolist(),
    "numbers": world.sum_numbers([2.0**53 - 1 if world.first else 1.0, 0.1, -3]),
    "nan": str(world.sum_number(float("nan") if world.first else 1.0)),
    "inf": str(world.sum_number(float("inf") if world.first else 1.0)),
    "any": [world.any(world.rank == 1), world.any(False)],
})
"""
    first, second = ring(tmp_path, code)
    assert first.pop("world") == [0, 2, "ring", True]
    assert second.pop("world") == [1, 2, "ring", False]
    assert first == second
    assert first == {
        "equal": True,
        "again": True,
        "same": ["dict", {}, [0, 3]],
        "half": [2.0, 4.0],
        "numbers": [2.0**53, 0.2, -6.0],
        "nan": "nan",
        "inf": "inf",
        "any": [True, False],
    }


def test_a_sum_in_several_buffers_is_the_same(tmp_path: Path) -> None:
    code = """
import hashlib
from afs_mlx.engine.training import distributed
rng = np.random.default_rng(world.rank)
tree = {f"{i}": mx.array(rng.standard_normal((50, i + 1)).astype(np.float32)) for i in range(40)}
def digest():
    summed = world.sum(tree)
    return hashlib.sha256(b"".join(np.array(summed[name]).tobytes() for name in summed)).hexdigest()
whole = digest()
distributed.BUFFER_BYTES = 4000
tell(str(world.rank), [whole, digest()])
"""
    told = ring(tmp_path, code)
    assert len({digest for digests in told for digest in digests}) == 1


def test_three_ranks_hold_the_same_bits(tmp_path: Path) -> None:
    code = """
import hashlib
rng = np.random.default_rng(world.rank)
array = mx.array(rng.standard_normal(10_000).astype(np.float32))
digests = [hashlib.sha256(np.array(world.sum({"a": array})["a"]).tobytes()).hexdigest() for _ in range(3)]
tell(str(world.rank), digests)
"""
    told = ring(tmp_path, code, 3)
    assert len({digest for digests in told for digest in digests}) == 1


def test_broadcast_is_bit_for_bit(tmp_path: Path) -> None:
    code = """
def tree(first):
    pick = lambda a, b: a if first else b
    half = mx.array(np.array(pick([0x7FC1, 0x3F80], [1, 1]), dtype=np.uint16)).view(mx.bfloat16)
    return {
        "int": mx.array(pick([-1, 2**31 - 1], [5, 5])),
        "key": mx.array(np.array(pick([2**64 - 1, 7], [3, 3]), dtype=np.uint64)),
        "nan": mx.array(np.array(pick([0x7FC00001, 0x80000000], [9, 9]), dtype=np.uint32)).view(mx.float32),
        "inner": {"half": half, "flag": mx.array(first), "empty": mx.zeros((0, 2))},
        "matrix": mx.arange(6).reshape(2, 3).T * pick(1, 0),
    }
names = lambda t: [t["int"], t["key"], t["nan"], t["matrix"], *(t["inner"][n] for n in ("half", "flag", "empty"))]
received, expected = names(world.broadcast(tree(world.first))), names(tree(True))
tell(str(world.rank), [
    (a.dtype, a.shape) == (b.dtype, b.shape)
    and (a.size == 0 or mx.array_equal(a.reshape(-1).view(mx.uint8), b.reshape(-1).view(mx.uint8)).item())
    for a, b in zip(received, expected)
])
"""
    assert ring(tmp_path, code) == [[True] * 7] * 2


def test_agreement_names_the_ranks_and_what_differs(tmp_path: Path) -> None:
    code = """
world.agree(recipe="same", data="same")
world.barrier()
try:
    world.agree(recipe="same", data=f"data {world.rank // 2}", base=f"base {world.rank}")
except AfsError as error:
    tell(str(world.rank), str(error))
"""
    for rank, message in enumerate(ring(tmp_path, code, 3)):
        assert message.startswith(
            f"rank {rank} of 3: the ranks differ from rank 0: base on rank 1, 2; data on rank 2\nfix: give every"
        )


def test_trees_of_different_layout_are_not_added(tmp_path: Path) -> None:
    """Above all the empty tree of a rank without rows: the ring would wait for ever, or add what does not belong."""
    code = """
messages = []
for theirs in ({}, {"b": mx.ones((2, 3))}, {"a": mx.ones((3, 2))}):
    try:
        world.sum({"a": mx.ones((2, 3))} if world.first else theirs)
    except AfsError as error:
        messages.append(error.what)
tell(str(world.rank), messages)
"""
    expected = "the ranks differ from rank 0: the arrays' names, shapes and types on rank 1"
    assert ring(tmp_path, code) == [[expected] * 3] * 2


# A hand-written loss on padded rows; one program for any number of ranks and several micro-batches.
GRADIENTS = """
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from afs_mlx.engine.bases.loading import load_base

model = load_base(Path(sys.argv[2])).model

def summed_loss(model, some):
    width = max(len(row) for row in some)
    tokens = mx.array(np.array([np.pad(row, (0, width - len(row))) for row in some]))
    mask = mx.array(np.array([[i + 1 < len(row) for i in range(width - 1)] for row in some]))
    losses = nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
    return (losses * mask).sum()

def step(lengths):
    rng = np.random.default_rng(7)
    rows = [rng.integers(1, 300, length) for length in lengths]
    mine = [rows[i] for i in share(lengths, world.rank, world.size)]
    if mine:
        loss, gradients = nn.value_and_grad(model, summed_loss)(model, mine)
    else:
        loss, gradients = mx.array(0.0), tree_map(mx.zeros_like, model.trainable_parameters())
    gradients = world.sum(gradients)
    loss, tokens = world.sum_numbers([loss.item(), sum(len(row) - 1 for row in mine)])
    return {name: array / tokens for name, array in tree_flatten(gradients)}, loss / tokens, tokens

told = []
for number, lengths in enumerate(json.loads(sys.argv[3])):
    gradients, loss, tokens = step(lengths)
    told.append([loss, tokens])
    if world.first:
        mx.save_safetensors(str(folder / f"{world.size}.{number}.safetensors"), gradients)
tell(str(world.rank), told)
"""


def test_gradients_are_those_of_one_rank(tmp_path: Path, tiny_base: Path) -> None:
    """Rows of uneven lengths, and a micro-batch of one row, of which a rank gets none."""
    batches = [[5, 19, 3, 11, 7], [12]]
    words = str(tiny_base), json.dumps(batches)
    subprocess.run([sys.executable, "-c", JOIN + GRADIENTS, str(tmp_path), *words], check=True)
    alone = json.loads((tmp_path / "0").read_text())
    assert [tokens for _, tokens in alone] == [40, 11]
    assert ring(tmp_path, GRADIENTS, 2, *words) == [[[pytest.approx(loss, rel=1e-6), n] for loss, n in alone]] * 2
    for number in range(len(batches)):
        one, two = (mx.load(str(tmp_path / f"{size}.{number}.safetensors")) for size in (1, 2))
        assert one.keys() == two.keys()
        assert max(mx.abs(one[name] - two[name]).max().item() for name in one) <= 1e-5
        # So the line above says something.
        assert max(mx.abs(array).max().item() for array in one.values()) > 1e-2


def test_a_lost_rank_is_an_error_not_a_hang(tmp_path: Path) -> None:
    code = """
import signal
signal.signal(signal.SIGTERM, lambda *_: None)  # as the trainer does, which finishes its step
world.barrier()
if world.rank == 1:
    os._exit(3)
try:
    for _ in range(3):
        world.sum({"a": mx.ones(100_000)})
except AfsError as error:
    tell("lost", str(error))
    raise
"""
    command = [sys.executable, "-c", JOIN + code, str(tmp_path)]
    with pytest.raises(AfsError, match="ended with exit code 3") as caught:
        launch(command, read_hosts("2"), stall_s=60)
    assert caught.value.where == "rank 1 of 2 on localhost"
    message = json.loads((tmp_path / "lost").read_text())
    assert message.startswith("distributed training: the connection to another rank was lost: ")
    assert "--resume" in message


def test_a_rank_that_never_comes_is_named(tmp_path: Path) -> None:
    """Rank 0 waits inside MLX, which holds the interpreter's lock there."""
    code = (
        PRELUDE
        + """
tell("pid" + os.environ["MLX_RANK"], os.getpid())
if os.environ["MLX_RANK"] == "1":
    time.sleep(600)
world = World.join()
"""
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with pytest.raises(AfsError, match="no sign of life for 4 s") as caught:
        launch(command, read_hosts("2"), stall_s=4)
    assert caught.value.where == "rank 1 of 2 on localhost"


def test_no_rank_outlives_its_launcher_while_it_joins(tmp_path: Path) -> None:
    code = (
        PRELUDE
        + """
import signal
signal.signal(signal.SIGTERM, lambda *_: None)
tell("pid" + os.environ["MLX_RANK"], os.getpid())
if os.environ["MLX_RANK"] == "1":
    signal.pause(), signal.pause()
world = World.join()
"""
    )
    launcher_code = (
        "import sys; from afs_mlx.core.hosts import read_hosts; from afs_mlx.core.ranks import launch;"
        "launch([sys.executable, *sys.argv[1:]], read_hosts('2'), grace_s=0.5)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", launcher_code, "-c", code, str(tmp_path)])
    pids = []
    try:
        for rank in range(2):
            until((tmp_path / f"pid{rank}").exists)
            pids.append(json.loads((tmp_path / f"pid{rank}").read_text()))
        until(lambda: listening(pids[0]))
    finally:
        launcher.kill()
        launcher.wait()
    until(lambda: not any(alive(pid) for pid in pids))


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def listening(pid: int) -> bool:
    """Whether a process of Linux has a listening socket; elsewhere we do not look."""
    folder = Path(f"/proc/{pid}")
    if not folder.exists():
        return True
    links = {str(link.readlink()) for link in (folder / "fd").iterdir()}
    table = [line.split() for line in (folder / "net" / "tcp").read_text().splitlines()[1:]]
    return any(row[3] == "0A" and f"socket:[{row[9]}]" in links for row in table)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"MLX_RANK": "0"}, "only a part of what names a world is set: MLX_RANK"),
        ({"MLX_HOSTFILE": "x"}, "only a part of what names a world is set: MLX_HOSTFILE"),
        ({"MLX_RANK": "0", "MLX_IBV_DEVICES": "x", "MLX_JACCL_COORDINATOR": "y:1"}, "this mlx has no jaccl backend"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "this mlx has no mpi backend"),
        ({"MLX_RANK": "0", "MLX_HOSTFILE": "/no/such/file"}, "the ranks did not find each other \\(ring\\)"),
    ],
)
def test_an_environment_that_is_half_set(
    names: Mapping[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(mx.distributed, "is_available", lambda backend: backend == "ring")
    with pytest.raises(AfsError, match=message):
        World.join()


@pytest.mark.parametrize(
    ("names", "backend"),
    [
        ({"MLX_RANK": "1", "MLX_IBV_DEVICES": "x", "MLX_JACCL_COORDINATOR": "y:1"}, "jaccl"),
        ({"JACCL_RANK": "1", "JACCL_IBV_DEVICES": "x", "JACCL_COORDINATOR": "y:1"}, "jaccl"),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, "mpi"),
        ({"PMI_SIZE": "3"}, "mpi"),
    ],
)
def test_other_backends_are_handed_to_mlx(
    names: Mapping[str, str], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Group:
        def rank(self) -> int:
            return 1

        def size(self) -> int:
            return 3

    asked: list[Any] = []

    def init(**options: Any) -> Group:
        asked.append(options)
        return Group()

    for name, value in names.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(mx.distributed, "is_available", lambda _: True)
    monkeypatch.setattr(mx.distributed, "init", init)
    world = World.join()
    assert asked == [{"strict": True, "backend": backend}]
    assert (world.rank, world.size, world.backend) == (1, 3, backend)


def test_mpirun_with_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
    assert World.join() == World.alone()


def padded(lengths: list[int], rows: list[int]) -> int:
    return len(rows) * max((lengths[row] for row in rows), default=0)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_the_whole(size: int) -> None:
    rng = np.random.default_rng(size)
    for count in (0, 1, 2, 5, 40):
        lengths = [int(length) for length in rng.lognormal(4, 1, count).astype(int) + 1]
        shares = [share(lengths, rank, size) for rank in range(size)]
        assert sorted(row for rows in shares for row in rows) == list(range(count))
        assert all(rows == sorted(rows) for rows in shares)
        assert shares == [share(lengths, rank, size) for rank in range(size)]


def test_shares_are_balanced_as_well_as_can_be() -> None:
    """Against every way to cut the rows, sorted by length, in three."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        lengths = [int(length) for length in rng.integers(1, 60, 9)]
        largest = max(padded(lengths, share(lengths, rank, 3)) for rank in range(3))
        order = sorted(range(9), key=lambda row: -lengths[row])
        cuts = [(order[:a], order[a:b], order[b:]) for a in range(10) for b in range(a, 10)]
        assert largest == min(max(padded(lengths, part) for part in cut) for cut in cuts)


def test_equal_rows_are_dealt_evenly() -> None:
    assert [len(share([8] * 8, rank, 4)) for rank in range(4)] == [2, 2, 2, 2]
    assert [share([3], rank, 2) for rank in range(2)] == [[0], []]
