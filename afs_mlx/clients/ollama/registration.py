"""A model on a server, whole or not at all.

It is made under a tag of its own, read back and asked a question there; only then does it get its name, and the old
model of that name goes. What fails or is interrupted leaves the old one in place.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from afs_mlx.clients.ollama.content import ModelfileContent
from afs_mlx.clients.ollama.events import Noted, RegisterEvent, Sent, Stage
from afs_mlx.clients.ollama.read_back import OWN_TEMPLATE, differences, uses_own_template
from afs_mlx.clients.ollama.server import Server, full
from afs_mlx.core.errors import AfsError, problems

PARTIAL, PREVIOUS = "afs-partial", "afs-previous"
QUESTION = "In one sentence: what do you do?"
MAX_ANSWER_TOKENS = 32

type OnEvent = Callable[[RegisterEvent], None]


@dataclass(frozen=True)
class Model:
    """What is registered: the file with its digest, the name, and what it says. `smoke` asks it a question."""

    gguf: Path
    digest: str
    tag: str
    content: ModelfileContent
    smoke: bool = True
    tolerant: bool = False  # a question that fails is a notice


def send(server: Server, model: Model, on_event: OnEvent) -> bool:
    """Bring the file to the server; False where it was there already."""
    if server.has_blob(model.digest):
        return False
    on_event(Stage(f"send {model.gguf.name}"))
    server.upload(model.gguf, model.digest, lambda done, total: on_event(Sent(done, total)))
    return True


def place(server: Server, model: Model, replaces: bool, finish: Callable[[str], None], on_event: OnEvent) -> str:
    """Create the model and give it its name; returns its answer to the question.

    `replaces` says that a model of that name is there. `finish(digest)` runs when all is in place; what it raises takes
    everything back.
    """
    partial = sibling(model.tag, PARTIAL)
    try:
        on_event(Stage(f"create {model.tag}"))
        server.create(partial, model.digest, model.content, lambda text: on_event(Stage(f"  {text}")))
        _check(server, model, partial, on_event)
        answer = _asked(server, model, partial, on_event) if model.smoke else ""
        _name(server, partial, model.tag, replaces, finish, on_event)
    finally:
        _discard(server, partial, on_event)
    return answer


def sibling(tag: str, name: str) -> str:
    """A tag of the same model for our own use, one that no expert has."""
    return f"{full(tag).rpartition(':')[0]}:{name}"


def _check(server: Server, model: Model, partial: str, on_event: OnEvent) -> None:
    shown = server.show(partial)
    if found := differences(model.content, shown):
        raise problems(
            found,
            "Ollama does not hold what it was given",
            server.address,
            "install a newer Ollama, or report this with `ollama --version`; nothing was registered",
        )
    if uses_own_template(shown):
        on_event(Noted(OWN_TEMPLATE))


def _asked(server: Server, model: Model, partial: str, on_event: OnEvent) -> str:
    on_event(Stage(f"ask {model.tag}: {QUESTION}"))
    try:
        answer = server.ask(partial, QUESTION, MAX_ANSWER_TOKENS)
    except AfsError as error:
        if not model.tolerant:
            raise
        on_event(Noted(f"the model gave no answer: {error.what}"))
        return ""
    if not answer.strip():
        on_event(Noted("the model's answer was empty"))
    return answer


def _name(
    server: Server, partial: str, tag: str, replaces: bool, finish: Callable[[str], None], on_event: OnEvent
) -> None:
    """`partial` becomes `tag`; the old model of that name waits under another until all is done."""
    previous = sibling(tag, PREVIOUS)
    if replaces:
        server.copy(tag, previous)
    try:
        server.copy(partial, tag)
        digest = server.digests().get(full(tag))
        if digest is None:
            raise AfsError(f"Ollama does not list {tag} after creating it", server.address, "try again")
        finish(digest)
    except BaseException:  # also Ctrl-C: the copy may or may not have happened
        _take_back(server, tag, previous if replaces else "", on_event)
        raise
    if replaces:
        _discard(server, previous, on_event)


def _take_back(server: Server, tag: str, previous: str, on_event: OnEvent) -> None:
    if not previous:
        _discard(server, tag, on_event)
        return
    try:
        server.copy(previous, tag)
    except AfsError as error:
        on_event(
            Noted(f"{tag} could not be put back ({error.what}); it lies as {previous}: ollama cp {previous} {tag}")
        )
        return
    _discard(server, previous, on_event)


def _discard(server: Server, tag: str, on_event: OnEvent) -> None:
    try:
        server.delete(tag)
    except AfsError as error:
        with suppress(BrokenPipeError):  # the reader of our events may be gone too
            on_event(Noted(f"{tag} may be left on the server ({error.what}): ollama rm {tag}"))
