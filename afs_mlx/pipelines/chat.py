"""A conversation with an expert: a session that the REPL and one-shot use drive."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from afs_mlx.core.errors import UsageError
from afs_mlx.core.paths import Workspace
from afs_mlx.experts.catalog import Catalog, ChosenExpert
from afs_mlx.experts.routing import FALLBACK, Route, route
from afs_mlx.schema.expert import opening_turns
from afs_mlx.schema.message import Message

if TYPE_CHECKING:
    from afs_mlx.engine.inference.generation import Generator, Usage

AUTO = "auto"


@dataclass(frozen=True)
class ChatConfig:
    """`expert` is a name, name@version or `auto`; `run` names an adapter of it; the rest overrides the expert's own."""

    catalog: Catalog
    workspace: Workspace
    expert: str = AUTO
    base: str = AUTO
    run: str = ""
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Routed:
    """`auto` chose an expert for this question."""

    route: Route


@dataclass(frozen=True)
class ExpertReady:
    """Who answers now, on what, and what the person should know about it."""

    label: str
    base: str
    demo: bool
    adapter: str
    notices: tuple[str, ...]


type ChatEvent = Routed | ExpertReady


class ChatSession:
    """Messages so far and the expert that answers. Models are loaded when the first question comes."""

    def __init__(self, config: ChatConfig, on_event: Callable[[ChatEvent], None]) -> None:
        self._config = config
        self._on_event = on_event
        self._generator: Generator | None = None
        self._ready: tuple[str, str, str] | None = None  # expert, base folder, adapter folder
        self.messages: list[Message] = []
        self.expert: ChosenExpert | None = None if config.expert == AUTO else config.catalog.choose(config.expert)
        self.automatic = config.expert == AUTO
        self.demo = False
        self._system: str | None = None
        if config.run and self.automatic:
            raise UsageError("--run needs an expert", "--run", "add --expert NAME")

    @property
    def expert_names(self) -> list[str]:
        """Everyone who can be asked."""
        return list(self._config.catalog.experts)

    @property
    def usage(self) -> "Usage | None":
        return self._generator.usage if self._generator else None

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
            self.expert = self._config.catalog.choose(name)
        self.automatic = name == AUTO

    def clear(self) -> None:
        """Forget what was said."""
        self.messages = []

    def prepare(self, question: str) -> None:
        """Choose the expert (in `auto`) and load what it needs."""
        if self.automatic:
            chosen = route(question, self._config.catalog.experts)
            # Sticky: a question that no keyword claims stays with whoever answered last.
            if self.expert is None or chosen.expert != FALLBACK:
                self.expert = self._config.catalog.choose(chosen.expert)
                self._on_event(Routed(chosen))
        self._load()

    def ask(self, question: str) -> Iterator[str]:
        """Stream the answer. Question and answer join the conversation, a broken-off answer with what came."""
        self.prepare(question)
        if self.expert is None or self._generator is None:
            raise RuntimeError("no expert is loaded")
        version = self.expert.version
        opening = opening_turns(self.system, version.shots if version else ())
        asked = [*self.messages, Message(role="user", content=question)]
        config = self._config
        overrides = {"temperature": config.temperature, "max_tokens": config.max_tokens}
        sampling = self.expert.sampling.model_copy(update={k: v for k, v in overrides.items() if v is not None})
        pieces: list[str] = []
        try:
            for piece in self._generator.stream([*opening, *asked], sampling, config.seed):
                pieces.append(piece)
                yield piece
        finally:
            if pieces:
                self.messages = [*asked, Message(role="assistant", content="".join(pieces))]

    def take_back(self) -> str | None:
        """Remove the last question and answer; returns the question."""
        if len(self.messages) < 2:
            return None
        question = self.messages[-2].content
        self.messages = self.messages[:-2]
        return question

    def _load(self) -> None:
        from afs_mlx.answering import for_expert
        from afs_mlx.engine.adapters.attaching import load_with_adapter
        from afs_mlx.engine.inference.generation import Generator

        expert, config = self.expert, self._config
        if expert is None:
            raise RuntimeError("no expert is chosen")
        # A run is named for the expert that the conversation began with.
        run = config.run if expert.name == config.expert.partition("@")[0] else ""
        found = for_expert(expert, config.base, run, config.catalog, config.workspace)
        adapter = found.run.path if found.run else None
        ready = (expert.label, str(found.base.folder), str(adapter or ""))
        if ready == self._ready:
            return
        # Two experts on the same weights share them; what is to be said of each differs.
        if self._ready is None or ready[1:] != self._ready[1:]:
            # Free the old model before the new one is read: two do not fit.
            self._generator = self._ready = None
            self._generator = Generator(load_with_adapter(found.base.folder, adapter))
        self._ready = ready
        self.demo = found.base.demo
        shown = f"{found.run.name} ({found.reason})" if found.run else ""
        self._on_event(ExpertReady(expert.label, found.base.id, found.base.demo, shown, found.notices))
