"""Splitting rows into training and validation so that nothing of one stands in the other."""

import hashlib
from dataclasses import dataclass

from afs_mlx.core.errors import AfsError
from afs_mlx.schema.example import Example


@dataclass(frozen=True)
class Split:
    """Training and validation rows; `duplicates` counts rows left out because the same conversation came before."""

    train: list[Example]
    valid: list[Example]
    duplicates: int = 0


def split(examples: list[Example], valid_share: float, seed: int, where: str) -> Split:
    """Put a whole group on one side by its own seeded hash alone, so that adding rows moves no other row.

    `valid_share` is therefore met on average, not exactly. Where chance holds out less than half of it, as happens in
    small sets, the nearest groups follow. Raises AfsError when there are fewer than two groups.
    """
    unique = _without_duplicates(examples)
    groups: dict[str, list[Example]] = {}
    for example in unique:
        groups.setdefault(example.group or _fingerprint(example), []).append(example)
    if len(groups) < 2:
        raise AfsError(
            "one row, or one group of rows, cannot be split", where, "add rows, or bring valid.jsonl in a folder"
        )
    places = {name: _place(seed, name) for name in groups}
    nearest = sorted(places, key=places.__getitem__)
    least = max(1, round(valid_share * len(groups) / 2))
    held_out = {name for name, place in places.items() if place < valid_share} | set(nearest[:least])
    if len(held_out) == len(groups):
        held_out.remove(nearest[-1])
    return Split(
        train=[e for name, rows in groups.items() if name not in held_out for e in rows],
        valid=[e for name, rows in groups.items() if name in held_out for e in rows],
        duplicates=len(examples) - len(unique),
    )


def refuse_overlap(train: list[Example], valid: list[Example], where: str) -> None:
    """Raise AfsError when a validation conversation, or another row of its group, stands in the training rows."""
    known = {_fingerprint(example) for example in train}
    groups = {example.group for example in train} - {""}
    shared = [
        number
        for number, example in enumerate(valid, start=1)
        if _fingerprint(example) in known or example.group in groups
    ]
    if shared:
        shown = ", ".join(map(str, shared[:10]))
        raise AfsError(
            f"{len(shared)} of {len(valid)} validation rows are training rows too, or of one group with some "
            f"(rows {shown})",
            where,
            "take them out of one of the two files; a validation loss over them would mean nothing",
        )


def _place(seed: int, group: str) -> float:
    """Where in [0, 1) a group falls."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8]) / 2**64


def _without_duplicates(examples: list[Example]) -> list[Example]:
    seen: dict[str, Example] = {}
    for example in examples:
        seen.setdefault(_fingerprint(example), example)
    return list(seen.values())


def _fingerprint(example: Example) -> str:
    """The conversation without its system message, spacing and case."""
    text = "\x1e".join(
        f"{m.role}\x1f{' '.join(m.content.lower().split())}" for m in example.messages if m.role != "system"
    )
    return hashlib.sha256(text.encode()).hexdigest()
