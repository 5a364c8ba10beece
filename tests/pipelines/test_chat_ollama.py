"""Deployed experts behind the same session, on a server that speaks Ollama's protocol."""

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from afs_mlx.clients.ollama import record
from afs_mlx.clients.ollama.record import Deployed
from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.paths import Workspace
from afs_mlx.experts.catalog import Catalog
from afs_mlx.pipelines.chat import ChatConfig, ChatEvent, ChatSession, ExpertReady, LeftOut

sys.path.insert(0, str(Path(__file__).parents[1] / "clients"))
import ollama_server
from ollama_server import OllamaServer, running

DONE = {"done": True, "done_reason": "stop", "prompt_eval_count": 40, "eval_count": 3, "eval_duration": 1_500_000_000}


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the server streams for a question; a test may change it."""
    found = [{"text": text} for text in ("I ", "count ", "cycles.")] + [{"text": "", **DONE}]

    def post_chat(self: Any) -> None:
        self._body()
        parts = []
        for line in found:
            rest = {key: value for key, value in line.items() if key != "text"}
            message = {"role": "assistant", "content": line.get("text", "")}
            parts.append({"model": "m", "created_at": "2026-01-02T03:04:05Z", "message": message, "done": False} | rest)
        self._send(200, b"".join(json.dumps(part).encode() + b"\n" for part in parts), "application/x-ndjson")

    monkeypatch.setattr(ollama_server.Handler, "post_chat", post_chat)
    return found


@pytest.fixture
def server(lines: list[dict[str, Any]]) -> Iterator[OllamaServer]:
    with running(OllamaServer()) as found:
        yield found


def deploy(server: OllamaServer, expert: str = "din@v2", tag: str = "din-v2", **changes: Any) -> Deployed:
    digest = server.digest(ollama_server.full(tag)) if server.add(tag) else ""
    known = {"gguf": "din.gguf", "gguf_sha256": "0" * 64, "size_bytes": 1, "created": "2026-01-01", "run": "one"}
    entry = Deployed(tag=tag, server=server.address, digest=digest, expert=expert, **{**known, **changes})
    record.put(Workspace.find().fused / record.FILE_NAME, entry)
    return entry


class Talk:
    def __init__(self, expert: str = "din", **changes: Any) -> None:
        workspace = Workspace.find()
        self.events: list[ChatEvent] = []
        config = ChatConfig(Catalog.load(workspace), workspace, expert, backend="ollama", **changes)
        self.session = ChatSession(config, self.events.append)

    def ask(self, question: str) -> str:
        return "".join(self.session.ask(question))


def test_a_deployed_expert_answers(server: OllamaServer) -> None:
    deploy(server)
    talk = Talk()
    assert talk.ask("how many?") == "I count cycles."
    (ready,) = talk.events
    assert isinstance(ready, ExpertReady)
    assert (ready.label, ready.base, ready.run, ready.where) == ("din@v2", "din-v2", "one", server.address)
    usage = talk.session.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.answer_tokens, usage.tokens_per_s, usage.finish) == (40, 3, 2.0, "stop")
    talk.ask("and now?")
    body = server.bodies["/api/chat"]
    assert [m["role"] for m in body["messages"]] == ["user", "assistant", "user"], "the system text is in the model"
    assert body["options"] == {}


def test_what_the_person_sets_goes_over(server: OllamaServer) -> None:
    deploy(server)
    talk = Talk(sampling={"temperature": 0.0, "max_tokens": 5, "stop": ("END",)}, seed=3)
    talk.session.use_system("Be brief.")
    talk.ask("how many?")
    body = server.bodies["/api/chat"]
    assert body["options"] == {"temperature": 0.0, "num_predict": 5, "stop": ["END"], "seed": 3}
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}


def test_the_last_one_deployed_or_the_named_run(server: OllamaServer) -> None:
    deploy(server, tag="old", created="2026-01-01", run="old")
    deploy(server, tag="new", created="2026-02-01", run="new")
    talk, named = Talk(), Talk(run="old")
    talk.ask("hello")
    named.ask("hello")
    assert talk.session.ready is not None
    assert named.session.ready is not None
    assert (talk.session.ready.base, named.session.ready.base) == ("new", "old")


def test_no_ollama_names_the_address_and_keeps_the_session(server: OllamaServer) -> None:
    deploy(server)
    talk = Talk()
    talk.ask("first")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        entry = deploy(server, tag="away", created="2027-01-01")
        record.put(Workspace.find().fused / record.FILE_NAME, entry.model_copy(update={"server": address}))
        record.drop(Workspace.find().fused / record.FILE_NAME, entry)
        with pytest.raises(MissingError, match="no Ollama answers") as caught:
            talk.ask("second")
    assert caught.value.where == address
    assert len(talk.session.messages) == 2
    record.drop(Workspace.find().fused / record.FILE_NAME, entry.model_copy(update={"server": address}))
    assert talk.ask("third") == "I count cycles."


def test_what_was_not_deployed_names_the_command_and_what_was(server: OllamaServer) -> None:
    with pytest.raises(MissingError, match="din@v2 is not deployed") as caught:
        Talk().ask("hello")
    assert caught.value.fix == "afs-mlx export ollama din@v2; deployed: none"
    deploy(server, "veran@v4", "veran-v4")
    with pytest.raises(MissingError) as caught:
        Talk().ask("hello")
    assert "deployed: veran@v4" in caught.value.fix


def test_a_model_that_is_gone_or_changed(server: OllamaServer) -> None:
    entry = deploy(server)
    server.add("din-v2", system="other")
    talk = Talk()
    talk.ask("hello")
    assert talk.session.ready is not None
    assert f"was changed on {entry.server}" in talk.session.ready.notices[0]
    del server.models["din-v2:latest"]
    with pytest.raises(MissingError, match="has no model din-v2 any more"):
        talk.ask("hello")


def test_an_answer_that_breaks_off_is_an_error_and_stays_as_far_as_it_came(
    server: OllamaServer, lines: list[dict[str, Any]]
) -> None:
    deploy(server)
    del lines[-1]
    talk = Talk()
    with pytest.raises(AfsError, match="broke off"):
        talk.ask("hello")
    assert [m.content for m in talk.session.messages] == ["hello", "I count cycles."]
    assert talk.session.usage is not None
    assert talk.session.usage.finish == "interrupted"


def test_an_error_in_the_stream_is_told(server: OllamaServer, lines: list[dict[str, Any]]) -> None:
    deploy(server)
    lines[:] = [{"text": "I "}, {"error": "model requires more system memory (9 GiB) than is available"}]
    with pytest.raises(AfsError, match="too little memory"):
        Talk().ask("hello")


def test_a_full_context_is_cut_here_and_said(server: OllamaServer) -> None:
    """Ollama would cut it without a word."""
    deploy(server)
    talk = Talk(sampling={"context_tokens": 200})
    for number in range(5):
        talk.ask(f"{number} " + "lda $10 " * 10)
    assert any(isinstance(event, LeftOut) for event in talk.events)
    assert len(server.bodies["/api/chat"]["messages"]) < 9
