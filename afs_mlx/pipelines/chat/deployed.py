"""Answers from models that were deployed from this workspace into an Ollama."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from afs_mlx.clients.ollama import record
from afs_mlx.clients.ollama.record import Deployed
from afs_mlx.clients.ollama.server import Server, full
from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.experts.catalog import ChosenExpert
from afs_mlx.pipelines.chat.config import ChatConfig
from afs_mlx.pipelines.chat.events import AnswerUsage, ExpertReady
from afs_mlx.pipelines.chat.speaker import First
from afs_mlx.schema.message import Message
from afs_mlx.schema.sampling import Sampling

if TYPE_CHECKING:
    from ollama import ChatResponse

CHARACTERS_PER_TOKEN = 2  # fewer than any text of ours has, code too: the server would cut without a word
TURN_TOKENS = 8
OPTIONS = {"temperature": "temperature", "top_p": "top_p", "context_tokens": "num_ctx", "max_tokens": "num_predict"}


class ChatServer(Server):
    """An Ollama that answers in pieces."""

    def chat(self, tag: str, messages: Sequence[Message], options: Mapping[str, Any]) -> "Iterator[ChatResponse]":
        """The parts of an answer, the last one with its figures; raises AfsError where it breaks off."""
        turns = [message.as_dict() for message in messages]
        parts = self._client.chat(tag, turns, options=dict(options), stream=True)
        yield from self._each(parts, "answering")


class DeployedSpeaker:
    """A model on a server, which holds the expert's system text, examples and sampling."""

    holds_opening = True
    notices: tuple[str, ...] = ()

    def __init__(self, facts: ExpertReady, entry: Deployed, changes: Mapping[str, Any]) -> None:
        self.facts = facts
        self.usage: AnswerUsage | None = None
        self._entry = entry
        options = {OPTIONS[key]: value for key, value in changes.items() if key in OPTIONS}
        self._options = options | ({"stop": list(changes["stop"])} if "stop" in changes else {})

    def count(self, messages: Sequence[Message]) -> int:
        return sum(TURN_TOKENS + len(message.content) // CHARACTERS_PER_TOKEN for message in messages)

    def stream(self, messages: Sequence[Message], sampling: Sampling, seed: int | None) -> Iterator[str]:
        # The rest of the sampling stands in the model.
        options = self._options if seed is None else {**self._options, "seed": seed}
        began_s, first_s = time.monotonic(), 0.0
        pieces, last = 0, None
        try:
            with ChatServer(self._entry.server) as server:
                for last in server.chat(self._entry.tag, messages, options):
                    if text := last.message.content:
                        first_s = first_s or time.monotonic() - began_s
                        pieces += 1
                        yield text
            if last is None or not last.done:
                raise AfsError("Ollama broke off the answer", self._entry.server, "/retry asks again")
        finally:
            self.usage = _usage(last, pieces, first_s)


class DeployedBackend:
    """The list of what was deployed, and the servers that it names."""

    def __init__(self, config: ChatConfig) -> None:
        self._config = config
        self._path = config.workspace.fused / record.FILE_NAME

    def warm(self, first: First) -> None:
        """The server loads its models itself."""

    def choose_anew(self, expert: ChosenExpert) -> None:
        """The list is read for each question."""

    def facts(self) -> list[str]:
        return [f"deployed: {e.tag} at {e.server} ({e.expert or 'no expert'})" for e in record.read(self._path)]

    def close(self) -> None:
        """Nothing is held open between answers."""

    def speaker(self, expert: ChosenExpert) -> DeployedSpeaker:
        entry = self._entry(expert)
        with Server(entry.server) as server:
            there = server.digests().get(full(entry.tag))
        if there is None:
            fix = f"afs-mlx export ollama {expert.label} deploys it again"
            raise MissingError(f"the server has no model {entry.tag} any more", entry.server, fix)
        changed = f"{entry.tag} was changed on {entry.server} since it was deployed from here"
        facts = ExpertReady(
            label=expert.label,
            base=entry.tag,
            demo=False,
            adapter="",
            notices=() if there == entry.digest else (changed,),
            run=entry.run,
            fused=True,
            where=entry.server,
        )
        return DeployedSpeaker(facts, entry, self._config.sampling)

    def _entry(self, expert: ChosenExpert) -> Deployed:
        """The last one deployed of this expert's version, and of the named run where one is named."""
        entries = record.read(self._path)
        config = self._config
        run = config.run if expert.name == config.expert.partition("@")[0] else ""
        named = [e for e in entries if e.expert in (expert.label, expert.name) and run in ("", e.run)]
        if named:
            return max(named, key=lambda entry: entry.created)
        others = ", ".join(dict.fromkeys(e.expert for e in entries if e.expert)) or "none"
        what = f"{expert.label} is not deployed" if not run else f"the run {run} of {expert.label} is not deployed"
        fix = f"afs-mlx export ollama {expert.label}; deployed: {others}"
        raise MissingError(what, config.workspace.shown(self._path), fix)


def _usage(last: "ChatResponse | None", pieces: int, first_s: float) -> AnswerUsage:
    """The server's own figures where it came to an end."""
    if last is None or not last.done:
        return AnswerUsage(0, pieces, 0.0, first_s, "interrupted")
    tokens, duration_ns = last.eval_count or pieces, last.eval_duration or 0
    speed = tokens / duration_ns * 1e9 if duration_ns else 0.0
    return AnswerUsage(last.prompt_eval_count or 0, tokens, speed, first_s, last.done_reason or "stop")
