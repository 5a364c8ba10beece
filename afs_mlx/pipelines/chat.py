"""A conversation with an expert: a session that the REPL and one-shot use drive."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from afs_mlx.core.errors import UsageError
from afs_mlx.core.paths import Workspace
from afs_mlx.experts.catalog import Catalog, ChosenExpert
from afs_mlx.experts.routing import FALLBACK, Route, route
from afs_mlx.runs.folder import find_run
from afs_mlx.runs.selection import Selection, select
from afs_mlx.schema.expert import DEFAULT_BASE, opening_turns
from afs_mlx.schema.message import Message

if TYPE_CHECKING:
    from afs_mlx.engine.bases.location import BaseFolder
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
        from afs_mlx.engine.adapters.attaching import load_with_adapter
        from afs_mlx.engine.adapters.lineage import fit_notice
        from afs_mlx.engine.inference.generation import Generator

        expert = self.expert
        if expert is None:
            raise RuntimeError("no expert is chosen")
        base, selection = self._chosen_parts(expert)
        ready = (expert.label, str(base.folder), str(selection.run.path) if selection else "")
        if ready == self._ready:
            return
        variant = fit_notice(base, selection.run.path) if selection else ""
        # Two experts on the same weights share them; what is to be said of each differs.
        if self._ready is None or ready[1:] != self._ready[1:]:
            # Free the old model before the new one is read: two do not fit.
            self._generator = self._ready = None
            self._generator = Generator(load_with_adapter(base.folder, selection.run.path if selection else None))
        self._ready = ready
        self.demo = base.demo
        notices = tuple(text for text in (base.notice, variant, _without_adapter(expert, base.id, selection)) if text)
        adapter = f"{selection.run.name} ({selection.reason})" if selection else ""
        self._on_event(ExpertReady(expert.label, base.id, base.demo, adapter, notices))

    def _chosen_parts(self, expert: ChosenExpert) -> "tuple[BaseFolder, Selection | None]":
        """The base, and the adapter that fits it: a named or pinned run brings its own base with it."""
        from afs_mlx.engine.bases.location import choose_base

        config = self._config
        own = expert.version.base if expert.version else DEFAULT_BASE
        # A run is named for the expert that the conversation began with.
        explicit = config.run if expert.name == config.expert.partition("@")[0] else ""
        wanted, pinned = config.base, expert.expert.pinned
        if wanted == AUTO and (explicit or pinned):
            wanted = find_run(config.workspace, expert.name, explicit or pinned).base
        base = choose_base(wanted, own, config.catalog.bases)
        if expert.version is not None and expert.version.kind != "lora" and not explicit:
            return base, None
        version = expert.version_name
        return base, select(config.workspace, expert.name, version, base.id, explicit=explicit, pinned=pinned)


def _without_adapter(expert: ChosenExpert, base: str, selection: Selection | None) -> str:
    if selection is not None or expert.version is None or expert.version.kind != "lora":
        return ""
    return (
        f"{expert.label} has no adapter for {base}: the base answers under its prompt. "
        f"Train one: afs-mlx train {expert.label}; import one: afs-mlx convert PEFT_FOLDER --expert {expert.label}"
    )
