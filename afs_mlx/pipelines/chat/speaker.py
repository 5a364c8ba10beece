"""What a session needs of whatever answers: models in this process, or a server."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from afs_mlx.experts.catalog import ChosenExpert
from afs_mlx.pipelines.chat.events import AnswerUsage, ExpertReady
from afs_mlx.schema.message import Message
from afs_mlx.schema.sampling import Sampling

type First = Callable[[], tuple[ChosenExpert, Sequence[Message]]]  # who will answer, under which opening


class Speaker(Protocol):
    """Answers as one expert. `notices` say what happened to it since it was last asked."""

    facts: ExpertReady
    notices: tuple[str, ...]
    holds_opening: bool  # system text and solved examples are part of the model

    @property
    def usage(self) -> AnswerUsage | None:
        """The cost of its last answer."""
        ...

    def count(self, messages: Sequence[Message]) -> int:
        """The tokens of a prompt, exactly or as an upper estimate."""
        ...

    def stream(self, messages: Sequence[Message], sampling: Sampling, seed: int | None) -> Iterator[str]:
        """The answer piece by piece; raises AfsError for a prompt that is too long."""
        ...


class Backend(Protocol):
    """Finds and loads speakers. An error leaves what was loaded as it was."""

    def warm(self, first: First) -> None:
        """Begin to load in the background what the first question will need; errors are left to `speaker`."""
        ...

    def speaker(self, expert: ChosenExpert) -> Speaker:
        """Whoever answers for this expert now; raises AfsError where nobody can."""
        ...

    def choose_anew(self, expert: ChosenExpert) -> None:
        """Look for the expert's run again when it is next asked."""
        ...

    def facts(self) -> list[str]:
        """What is in memory, in lines."""
        ...

    def close(self) -> None:
        """Let everything go."""
        ...
