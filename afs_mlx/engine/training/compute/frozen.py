"""What the blocks below the first adapted one give, once per row: in memory, else in a memory-mapped file.

The file lies in the cache folder under a key of base, rows, depth and arithmetic, and is used again by the next run
that has the same. Rows are always run in the same groups, so a resumed run sees the same bits.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from afs_mlx.engine.training.batches import Batch, batch_of, group_by_length
from afs_mlx.engine.training.compute.layout import Layout
from afs_mlx.engine.training.compute.lean import KeysAndValues, LeanForward
from afs_mlx.engine.training.compute.row_file import RowFile
from afs_mlx.engine.training.events import Prepared
from afs_mlx.engine.training.rows import Row

REPORT_EVERY = 8  # groups


@dataclass(frozen=True)
class Budget:
    """What may be kept where; `key` tells apart what a file was made from."""

    memory_bytes: int
    disk_bytes: int
    folder: Path | None
    key: str


class FrozenRows:
    """The first `depth` blocks' output for every row of `rows`, (own tokens, width) each, beside the shared tokens'."""

    def __init__(
        self, forward: LeanForward, rows: Sequence[Row], depth: int, shared: int, batch_tokens: int, budget: Budget
    ) -> None:
        self._forward, self._rows, self._depth, self._shared = forward, rows, depth, shared
        self._lengths = [int(np.flatnonzero(row.supervised)[-1]) - shared for row in rows]
        self._groups = group_by_length(rows, range(len(rows)), batch_tokens)
        tokens = mx.array(rows[0].tokens[: shared or 1])
        self._shared_hidden: mx.array | None = None
        self._shared_keys: list[KeysAndValues] = []
        probe = forward.embed(tokens)
        self._width, self._dtype = int(probe.shape[1]), probe.dtype
        if shared:
            self._shared_hidden, self._shared_keys = forward.run_shared(tokens, depth)
            mx.eval(self._shared_hidden, self._shared_keys)
        self._memory: dict[int, mx.array] = {}
        self._file: RowFile | None = None
        self._kept = self._fitting(budget)

    def prepare(self, on_event: Callable[[Prepared], None]) -> None:
        """Run every row that fits the budget, or find the file of an earlier run."""
        size = sum(self._bytes(row) for row in self._kept)
        if self._file and self._file.whole:
            on_event(Prepared(len(self._kept), len(self._rows), size, True, True))
            return
        done = 0
        groups = [[row for row in group if row in self._kept] for group in self._groups]
        groups = [group for group in groups if group]
        for number, group in enumerate(groups, start=1):
            for row, hidden in zip(group, self._run(group), strict=True):
                self._keep(row, hidden)
            done += len(group)
            if number % REPORT_EVERY == 0 or number == len(groups):
                on_event(Prepared(done, len(self._rows), size, self._file is not None, False))
        if self._file:
            self._file.finish()

    def hidden(self, batch: Batch) -> mx.array:
        """The frozen blocks' output (n, width) for a batch; rows that were not kept are run now."""
        missing = [row for row in batch.rows if row not in self._kept]
        fresh = dict(zip(missing, self._run(missing), strict=True)) if missing else {}
        parts = [self._shared_hidden] if self._shared_hidden is not None else []
        for row, length in zip(batch.rows, batch.lengths, strict=True):
            hidden = fresh[row] if row in fresh else self._find(row)
            if int(length) > hidden.shape[0]:  # the batch is padded
                hidden = mx.pad(hidden, [(0, int(length) - hidden.shape[0]), (0, 0)])
            parts.append(hidden)
        return mx.concatenate(parts)

    def _run(self, numbers: Sequence[int]) -> list[mx.array]:
        batch = batch_of(self._rows, numbers, self._shared)
        layout = Layout.of(batch)
        own = self._forward.embed(mx.array(batch.tokens[self._shared :]))
        if self._shared:
            hidden = self._forward.run_after(own, layout, self._shared_keys)
        else:
            hidden = self._forward.run(own, layout, 0, self._depth)
        mx.eval(hidden)
        ends = np.cumsum(batch.lengths)[:-1].tolist()
        return [part + 0 for part in mx.split(hidden, ends)]  # a copy: a view would hold the whole group

    def _fitting(self, budget: Budget) -> frozenset[int]:
        """Which rows are kept: decided by sizes alone, never by what is free at the moment."""
        order = [row for group in self._groups for row in group]
        total = sum(map(self._bytes, order))
        if total <= budget.memory_bytes:
            return frozenset(order)
        on_disk = budget.folder is not None and budget.disk_bytes > budget.memory_bytes
        limit = budget.disk_bytes if on_disk else budget.memory_bytes
        kept, size = [], 0
        for row in order:
            size += self._bytes(row)
            if size > limit:
                break
            kept.append(row)
        if on_disk and budget.folder is not None and kept:
            elements = {row: self._lengths[row] * self._width for row in kept}
            self._file = RowFile.open(budget.folder, budget.key, elements, self._dtype, budget.disk_bytes)
        return frozenset(kept)

    def _bytes(self, row: int) -> int:
        return self._lengths[row] * self._width * int(self._dtype.size)

    def _keep(self, row: int, hidden: mx.array) -> None:
        if self._file:
            self._file.write(row, hidden)
        else:
            mx.eval(hidden)
            self._memory[row] = hidden

    def _find(self, row: int) -> mx.array:
        if self._file:
            return self._file.read(row).reshape(-1, self._width)
        return self._memory[row]


def rows_hash(rows: Sequence[Row]) -> str:
    """sha256 over the rows' tokens and weights, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row.tokens).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(row.tokens, dtype=np.int32))
        digest.update(np.ascontiguousarray(row.weights, dtype=np.float32))
    return digest.hexdigest()


def cache_key(facts: dict[str, Any]) -> str:
    """A name for what a file was made from."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
