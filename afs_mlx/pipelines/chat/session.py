"""The conversation itself: what was said, who answers next, and what of it still fits."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from afs_mlx.core.errors import UsageError
from afs_mlx.core.manifest import now
from afs_mlx.experts.catalog import ChosenExpert
from afs_mlx.pipelines.chat.config import AUTO, ChatConfig
from afs_mlx.pipelines.chat.events import AnswerUsage, ChatEvent, ExpertReady, LeftOut, Noted, Routed
from afs_mlx.pipelines.chat.speaker import Backend, Speaker
from afs_mlx.pipelines.chat.window import MOST_CHARACTERS, first_kept
from afs_mlx.schema.expert import opening_turns
from afs_mlx.schema.message import Message
from afs_mlx.schema.sampling import Sampling
from afs_mlx.schema.session import SavedSession

if TYPE_CHECKING:
    from afs_mlx.experts.routing import Route, Router


class ChatSession:
    """Messages so far and the expert that answers. Models are loaded when the first question comes, or by `warm`.

    Whatever fails, what was said stays: the next question goes on from there.
    """

    def __init__(
        self, config: ChatConfig, on_event: Callable[[ChatEvent], None], backend: Backend | None = None
    ) -> None:
        self._config = config
        self._on_event = on_event
        self._backend = backend or _backend(config)
        self._router: Router | None = None
        self._speaker: Speaker | None = None
        self._system: str | None = None
        self._left_out = 0  # messages
        self.messages: list[Message] = []
        self.expert: ChosenExpert | None = None if config.expert == AUTO else config.catalog.choose(config.expert)
        self.automatic = config.expert == AUTO
        self.route: Route | None = None

    @property
    def titles(self) -> dict[str, str]:
        """What each expert does."""
        return {name: expert.title for name, expert in self._config.catalog.experts.items()}

    @property
    def ready(self) -> ExpertReady | None:
        """Who answered last, on what; None before the first answer."""
        return self._speaker.facts if self._speaker else None

    @property
    def demo(self) -> bool:
        return self._speaker is not None and self._speaker.facts.demo

    @property
    def usage(self) -> AnswerUsage | None:
        return self._speaker.usage if self._speaker else None

    @property
    def system(self) -> str:
        """The system text that holds now: the person's own, else the expert's."""
        if self._system is not None:
            return self._system
        return self.expert.system if self.expert else ""

    def use_system(self, text: str | None) -> None:
        """Answer under another system text; None returns to the expert's."""
        self._system = text

    def switch(self, name: str) -> None:
        """Continue with another expert, or with `auto`; what was said stays."""
        if name != AUTO:
            expert = self._config.catalog.choose(name)
            if self.expert is None or expert.label != self.expert.label:
                self._left_out = 0
            self._backend.choose_anew(expert)
            self.expert = expert
        self.automatic = name == AUTO

    def clear(self) -> None:
        """Forget what was said."""
        self.messages = []
        self._left_out = 0

    def warm(self) -> None:
        """Load models and router in the background; errors are met, and told, at the first question."""
        named = self.expert
        opening = tuple(self._opening(named)) if named else ()

        def first() -> tuple[ChosenExpert, Sequence[Message]]:
            if named is not None:
                return named, opening
            from afs_mlx.experts.routing import FALLBACK, default_router

            self._router = default_router(self._config.catalog.experts)
            return self._config.catalog.choose(FALLBACK), ()

        self._backend.warm(first)

    def ask(self, question: str) -> Iterator[str]:
        """Stream the answer. Question and answer join the conversation, a broken-off answer with what came."""
        speaker = self._next_speaker(question)
        sampling = self._sampling()
        asked = [*self.messages, Message(role="user", content=question)]
        prompt = self._prompt(speaker, sampling, asked)
        pieces: list[str] = []
        try:
            for piece in speaker.stream(prompt, sampling, self._config.seed):
                pieces.append(piece)
                yield piece
        finally:
            if pieces:
                self.messages = [*asked, Message(role="assistant", content="".join(pieces))]

    def ask_again(self, question: str | None = None) -> Iterator[str]:
        """Ask the last question again, or another in its place; the exchange is kept until a new answer has begun."""
        kept = self.messages
        last = self.take_back()
        if last is None:
            raise UsageError("there is nothing to ask again", "", "ask something first")
        taken_back = self.messages
        try:
            yield from self.ask(last if question is None else question)
        finally:
            if self.messages is taken_back:
                self.messages = kept

    @property
    def last_question(self) -> str | None:
        return self.messages[-2].content if len(self.messages) > 1 else None

    def take_back(self) -> str | None:
        """Remove the last question and answer; returns the question."""
        question = self.last_question
        if question is not None:
            self.messages = self.messages[:-2]
            self._left_out = min(self._left_out, len(self.messages))
        return question

    def snapshot(self) -> SavedSession:
        """The conversation as it can be saved."""
        expert, ready = self.expert, self.ready
        return SavedSession(
            saved_at=now(),
            expert=expert.name if expert else "",
            version=expert.version_name if expert else "",
            automatic=self.automatic,
            base=ready.base if ready else "",
            run=ready.run if ready else "",
            system=self._system,
            messages=tuple(self.messages),
        )

    def restore(self, saved: SavedSession) -> None:
        """Continue a saved conversation, in place of this one; an expert that was named at the start stays."""
        if self._config.expert == AUTO:
            self._restore_expert(saved)
        self.clear()
        self._system = saved.system
        self.messages = list(saved.messages)

    def facts(self) -> list[str]:
        """What is in memory, in lines."""
        return self._backend.facts()

    def close(self) -> None:
        """Let models go and end what runs in the background."""
        self._backend.close()

    def _restore_expert(self, saved: SavedSession) -> None:
        name = f"{saved.expert}@{saved.version}" if saved.version else saved.expert
        try:
            self.expert = self._config.catalog.choose(name) if name else None
        except UsageError as error:
            self._on_event(Noted(f"{name} answered then: {error.what}; the router chooses"))
            self.expert = None
        self.automatic = saved.automatic or self.expert is None

    def _next_speaker(self, question: str) -> Speaker:
        """Whoever answers this question; the expert changes only once it is loaded."""
        expert = self._routed(question) if self.automatic else self.expert
        if expert is None:
            raise RuntimeError("no expert is chosen")
        speaker = self._backend.speaker(expert)
        before, told = (self._speaker.facts, self._speaker.notices) if self._speaker else (None, ())
        if self.expert is None or self.expert.label != expert.label:
            self._left_out = 0
        self.expert, self._speaker = expert, speaker
        if speaker.facts != before:
            self._on_event(speaker.facts)
        for text in speaker.notices:
            if text not in told:
                self._on_event(Noted(text))
        return speaker

    def _routed(self, question: str) -> ChosenExpert:
        from afs_mlx.experts.routing import decide, default_router

        catalog = self._config.catalog
        self._router = self._router or default_router(catalog.experts)
        current = self.expert
        self.route = decide(question, self._router, current.name if current else None)
        self._on_event(Routed(self.route))
        # Who stays keeps the version that was named.
        return current if current and current.name == self.route.expert else catalog.choose(self.route.expert)

    def _sampling(self) -> Sampling:
        if self.expert is None:
            raise RuntimeError("no expert is chosen")
        return self.expert.sampling.model_copy(update=dict(self._config.sampling))

    def _opening(self, expert: ChosenExpert) -> list[Message]:
        system = expert.system if self._system is None else self._system
        return opening_turns(system, expert.version.shots if expert.version else ())

    def _prompt(self, speaker: Speaker, sampling: Sampling, asked: list[Message]) -> list[Message]:
        """The opening and as much of the conversation as fits; tells when older questions are left out."""
        own = [] if self._system is None else [Message(role="system", content=self._system)]
        opening = own if speaker.holds_opening or self.expert is None else self._opening(self.expert)
        turns, question = asked[:-1], asked[-1]
        before = self._left_out
        if len(question.content) > MOST_CHARACTERS * sampling.context_tokens:
            return [*opening, question]  # which the speaker refuses, without reading all of it

        def tokens(start: int) -> int:
            return speaker.count([*opening, *turns[start:], question])

        start = first_kept(turns, before, tokens, sampling)
        if start > before and tokens(start) < sampling.context_tokens:
            self._left_out = start
            questions = sum(turn.role == "user" for turn in turns[:start])
            self._on_event(LeftOut(questions, sampling.context_tokens))
        return [*opening, *turns[start:], question]


def _backend(config: ChatConfig) -> Backend:
    if config.backend == "ollama":
        from afs_mlx.pipelines.chat.deployed import DeployedBackend

        return DeployedBackend(config)
    from afs_mlx.pipelines.chat.local import LocalBackend

    return LocalBackend(config)
