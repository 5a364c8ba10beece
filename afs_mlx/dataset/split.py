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
    """Put whole groups on one side by a seeded hash of the group, so that adding rows moves no other row.

    At least one group lands on each side. Raises AfsError when there are fewer than two groups.
    """
    unique = _without_duplicates(examples)
    groups: dict[str, list[Example]] = {}
    for example in unique:
        groups.setdefault(example.group or _fingerprint(example), []).append(example)
    if len(groups) < 2:
        raise AfsError(
            "one row, or one group of rows, cannot be split", where, "add rows, or bring valid.jsonl in a folder"
        )
    ranked = sorted(groups, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest())
    wanted = min(len(groups) - 1, max(1, round(valid_share * len(groups))))
    held_out = set(ranked[:wanted])
    return Split(
        train=[e for name, rows in groups.items() if name not in held_out for e in rows],
        valid=[e for name, rows in groups.items() if name in held_out for e in rows],
        duplicates=len(examples) - len(unique),
    )


def refuse_overlap(train: list[Example], valid: list[Example], where: str) -> None:
    """Raise AfsError when a validation conversation also stands in the training rows."""
    known = {_fingerprint(example) for example in train}
    shared = [number for number, example in enumerate(valid, start=1) if _fingerprint(example) in known]
    if shared:
        shown = ", ".join(map(str, shared[:10]))
        raise AfsError(
            f"{len(shared)} of {len(valid)} validation rows are training rows too (rows {shown})",
            where,
            "take them out of one of the two files; a validation loss over them would mean nothing",
        )


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
