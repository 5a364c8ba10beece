"""What a registration tells while it runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Begins now, in plain words."""

    text: str


@dataclass(frozen=True)
class Sent:
    """So many bytes of the GGUF have left for the server."""

    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Noted:
    """Something to know that is no failure."""

    text: str


type RegisterEvent = Stage | Sent | Noted
