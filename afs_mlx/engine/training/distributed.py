"""Several ranks that train as one: who we are among them, sums, copies and agreement. Knows no model and no recipe.

A step is the same for any number of ranks: each computes the summed loss, the summed gradients and the token count of
its `share` of the micro-batch, `World.sum` and `World.sum_numbers` add them up, and everyone divides by the same count.
Every rank must make the same calls in the same order. Each call tells the launcher's watchdog that this rank waits,
and then that it works again.
"""

import hashlib
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path

from afs_mlx.core.errors import AfsError
from afs_mlx.core.rank_process import ALIVE, LOST, WAITING
from afs_mlx.core.ranks import beat

BUFFER_BYTES = 1 << 26  # of one transfer: large enough to fill a link, small beside a model


@dataclass(frozen=True)
class World:
    """The ranks that train together; `alone()` is the world of one, in which nothing is sent."""

    rank: int
    size: int
    backend: str
    group: Any = None

    @classmethod
    def alone(cls) -> "World":
        return cls(0, 1, "none")

    @classmethod
    def join(cls) -> "World":
        """The world that the environment names, as MLX's backends read it; alone where it names none.

        Blocks until all ranks are here (the ring gives up connecting after 31 s, so join before anything slow).
        Raises AfsError when the environment is half set, MLX lacks the backend, or the others are not reached.
        """
        backend = _named_backend(os.environ)
        if backend is None:
            return cls.alone()
        if not mx.distributed.is_available(backend):
            raise AfsError(
                f"this mlx has no {backend} backend",
                "the environment",
                "use the ring, or see docs/distributed.md for what the others need",
            )
        with _waiting(f"the ranks did not find each other ({backend})"):
            group = mx.distributed.init(strict=True, backend=backend)
        return cls(group.rank(), group.size(), backend, group) if group.size() > 1 else cls.alone()

    @property
    def first(self) -> bool:
        """Whether this rank writes files and speaks."""
        return self.rank == 0

    def sum(self, tree: Any) -> Any:
        """The element-wise sum over ranks of a tree of arrays, float32, the same bits on every rank and every time.

        Every rank gives the same names and shapes, zeros where it has nothing to add.
        """
        flat = {name: array.astype(mx.float32) for name, array in _flat(tree).items()}
        if self.size > 1:
            self._same_layout(flat)
            for names in _buffers(flat):
                flat.update(_unpacked(self._all_sum(_packed([flat[name] for name in names])), flat, names))
        return tree_map_with_path(lambda path, _: flat[path], tree)

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        """Each number summed over the ranks, correctly rounded: the same for any order of the ranks."""
        if self.size == 1:
            return [float(number) for number in numbers]
        width = len(numbers)
        gathered = [struct.unpack(f"<{width}d", row) for row in self._gather(struct.pack(f"<{width}d", *numbers))]
        return [_exact_sum(column) for column in zip(*gathered, strict=True)]

    def sum_number(self, number: float) -> float:
        """A number summed over the ranks; token counts stay exact."""
        return self.sum_numbers([number])[0]

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank: a rank that is asked to stop takes all with it, after the same step."""
        return self.sum_number(float(flag)) > 0

    def broadcast(self, tree: Any) -> Any:
        """Rank 0's arrays, bit for bit, of any dtype; the others give a tree of the same names, shapes and dtypes."""
        if self.size == 1:
            return tree
        flat = _flat(tree)
        self._same_layout(flat)
        data = {name: array.reshape(-1).view(mx.uint8) for name, array in flat.items() if array.size}
        if not self.first:
            data = {name: mx.zeros_like(array) for name, array in data.items()}
        for names in _buffers(data):
            data.update(_unpacked(self._all_sum(_packed([data[name] for name in names])), data, names))
        received = {
            name: data[name].view(array.dtype).reshape(array.shape) if name in data else array
            for name, array in flat.items()
        }
        return tree_map_with_path(lambda path, _: received[path], tree)

    def agree(self, **facts: str) -> None:
        """Raise AfsError on every rank unless all have the same text for each fact, such as recipe, data and base."""
        if self.size == 1:
            return
        names = sorted(facts)
        rows = self._gather(b"".join(hashlib.sha256(facts[name].encode()).digest() for name in names))
        found = []
        for place, name in enumerate(names):
            digests = [row[32 * place : 32 * place + 32] for row in rows]
            if others := [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]:
                found.append(f"{name} on rank {', '.join(others)}")
        if found:
            raise AfsError(
                f"the ranks differ from rank 0: {'; '.join(found)}",
                f"rank {self.rank} of {self.size}",
                "give every machine the same version of afs-mlx, the same files and the same recipe",
            )

    def barrier(self) -> None:
        """Return when every rank has come here."""
        if self.size > 1:
            self._gather(b"\0")

    def _gather(self, data: bytes) -> list[bytes]:
        """Every rank's bytes, in the order of ranks. By a sum, which every backend has for every dtype."""
        rows = np.zeros((self.size, len(data)), dtype=np.int32)
        rows[self.rank] = np.frombuffer(data, dtype=np.uint8)
        gathered = np.array(self._all_sum(mx.array(rows).reshape(-1))).reshape(rows.shape)
        return [row.astype(np.uint8).tobytes() for row in gathered]

    def _all_sum(self, buffer: mx.array) -> mx.array:
        mx.eval(buffer)  # what leads to it is our own work, not waiting
        with _waiting("the connection to another rank was lost"):
            summed = mx.distributed.all_sum(buffer, group=self.group)
            mx.eval(summed)  # one transfer at a time: the order is then the same on every rank
        return summed

    def _same_layout(self, flat: Mapping[str, mx.array]) -> None:
        """Buffers of different layouts would be added up without an error, or wait for each other for ever."""
        layout = ";".join(f"{name}:{flat[name].dtype}:{flat[name].shape}" for name in sorted(flat))
        self.agree(**{"the arrays' names, shapes and types": layout})


def share(lengths: Sequence[int], rank: int, size: int) -> list[int]:
    """The row numbers of one micro-batch that fall to `rank`; lengths are in tokens.

    The shares of all ranks are the whole, each row once. The largest padded share (rows times the longest) is as small
    as it can be; a rank may get none. The same for the same lengths, in ascending order.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    lowest, highest = 0, max(lengths, default=0) * len(lengths)
    while lowest < highest:
        middle = (lowest + highest) // 2
        if len(_parts(lengths, order, middle)) <= size:
            highest = middle
        else:
            lowest = middle + 1
    parts = _parts(lengths, order, lowest)
    return sorted(parts[rank]) if rank < len(parts) else []


def _parts(lengths: Sequence[int], order: Sequence[int], limit: int) -> list[list[int]]:
    """Longest first, each part as long as its padded size is within the limit; a row above it stands alone."""
    parts: list[list[int]] = []
    for row in order:
        if parts and lengths[parts[-1][0]] * (len(parts[-1]) + 1) <= limit:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


def _flat(tree: Any) -> dict[str, mx.array]:
    pairs: Any = tree_flatten(tree)
    return dict(pairs)


def _buffers(flat: Mapping[str, mx.array]) -> Iterator[list[str]]:
    """The names in alphabetical order, in groups that fill a transfer; a larger array goes alone."""
    group: list[str] = []
    size = 0
    for name in sorted(flat):
        if group and size + flat[name].nbytes > BUFFER_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += flat[name].nbytes
    if group:
        yield group


def _packed(arrays: Sequence[mx.array]) -> mx.array:
    return mx.concatenate([array.reshape(-1) for array in arrays])


def _unpacked(buffer: mx.array, like: Mapping[str, mx.array], names: Sequence[str]) -> dict[str, mx.array]:
    ends = np.cumsum([like[name].size for name in names])
    pieces = mx.split(buffer, [int(end) for end in ends[:-1]])
    return {name: piece.reshape(like[name].shape) for name, piece in zip(names, pieces, strict=True)}


def _exact_sum(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) if all(math.isfinite(number) for number in numbers) else sum(numbers)


@contextmanager
def _waiting(what: str) -> Iterator[None]:
    """The watchdog knows that we wait; MLX's errors become ours."""
    beat(WAITING)
    try:
        yield
    except (RuntimeError, ValueError) as error:
        beat(LOST)
        raise AfsError(
            f"{what}: {error}",
            "distributed training",
            "look at what the other ranks say; when all run again, go on with --resume",
        ) from error
    beat(ALIVE)


def _named_backend(env: Mapping[str, str]) -> str | None:
    """ring, jaccl or mpi, by the variables that MLX's backends themselves read (mlx 0.32)."""
    ranked = bool(env.get("MLX_RANK"))
    hosts, devices = env.get("MLX_HOSTFILE"), env.get("MLX_IBV_DEVICES") or env.get("JACCL_IBV_DEVICES")
    coordinator = env.get("MLX_JACCL_COORDINATOR") or env.get("JACCL_COORDINATOR")
    if (ranked or env.get("JACCL_RANK")) and devices and coordinator:
        return "jaccl"
    if ranked and hosts:
        return "ring"
    if any(env.get(name, "1").strip() not in ("", "0", "1") for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")):
        return "mpi"
    given = sorted(
        name for name in ("MLX_RANK", "MLX_HOSTFILE", "MLX_IBV_DEVICES", "MLX_JACCL_COORDINATOR") if env.get(name)
    )
    if given:
        raise AfsError(
            f"only a part of what names a world is set: {', '.join(given)}",
            "the environment",
            "set MLX_RANK with MLX_HOSTFILE (ring), or with MLX_IBV_DEVICES and MLX_JACCL_COORDINATOR (JACCL), or none",
        )
    return None
