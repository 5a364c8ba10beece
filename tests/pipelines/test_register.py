"""Registering in Ollama, against a server that speaks its protocol: what arrives, what is refused, what is left."""

import hashlib
import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from afs_mlx.clients.ollama.content import ModelfileContent, content_for
from afs_mlx.clients.ollama.events import Noted, Sent, Stage
from afs_mlx.clients.ollama.templates import CHATML_TEMPLATE
from afs_mlx.core.errors import AfsError, ExitCode
from afs_mlx.pipelines.register import RegisterConfig, RegisterResult, deployed, ready, register, remove, states
from afs_mlx.schema.expert import Shot
from afs_mlx.schema.sampling import Sampling

sys.path.insert(0, str(Path(__file__).parents[1] / "clients"))
from ollama_server import Faults, OllamaServer, running

DATA = b"GGUF" + bytes(range(256)) * 8192  # 2 MiB: more than one piece
EXOTIC = 'says """ and "quotes"\nand\x1b[31m controls\x00, no\u00a0break, é 日本語 🙂\n'


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with running(OllamaServer()) as found:
        yield found


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "din-v2-q8_0.gguf"
    path.write_bytes(DATA)
    return path


def content(system: str = "You are Din.", stop: tuple[str, ...] = ("###",)) -> ModelfileContent:
    return content_for(
        chat_format="chatml",
        stop_texts=["<|im_end|>", "<|endoftext|>"],
        system=system,
        sampling=Sampling(temperature=0.3, top_p=0.85, context_tokens=2048, max_tokens=99, stop=stop),
        shots=(Shot(user="LDA #$00", assistant="STZ"),),
        license_text="apache-2.0",
    )


def run(server: OllamaServer, gguf: Path, on_event: Any = lambda _: None, **changes: Any) -> RegisterResult:
    arguments: dict[str, Any] = {
        "gguf": gguf,
        "sha256": hashlib.sha256(DATA).hexdigest(),
        "tag": "din-v2",
        "content": content(),
        "record": gguf.parent / "deployed.json",
        "host": server.address,
        "expert": "din@v2",
    }
    return register(RegisterConfig(**(arguments | changes)), on_event)


def test_the_server_holds_what_the_modelfile_says(server: OllamaServer, gguf: Path) -> None:
    events: list[Any] = []
    result = run(server, gguf, events.append)
    model = server.models["din-v2:latest"]
    assert list(server.models) == ["din-v2:latest"], "nothing else is left"
    assert server.blobs[model["files"]["model.gguf"]] == DATA
    assert model["template"] == CHATML_TEMPLATE
    assert model["system"] == "You are Din."
    assert model["license"] == ["apache-2.0"]
    assert model["messages"] == [{"role": "user", "content": "LDA #$00"}, {"role": "assistant", "content": "STZ"}]
    assert model["parameters"] == {
        "temperature": 0.3,
        "top_p": 0.85,
        "num_ctx": 2048,
        "num_predict": 99,
        "top_k": 0,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "stop": ["<|im_end|>", "<|endoftext|>", "###"],
    }
    assert result.answer == "I count cycles."
    assert result.uploaded
    assert result.digest == server.digest("din-v2:latest")
    sent = [event for event in events if isinstance(event, Sent)]
    assert sent[-1] == Sent(len(DATA), len(DATA))
    assert len(sent) > 1
    assert next(event.text for event in events if isinstance(event, Stage)) == "check din-v2-q8_0.gguf"


def test_the_record_says_what_was_deployed(server: OllamaServer, gguf: Path) -> None:
    result = run(server, gguf, run="20260102-a")
    (entry,) = deployed(gguf.parent / "deployed.json")
    assert (entry.tag, entry.server, entry.digest) == ("din-v2", server.address, result.digest)
    assert (entry.expert, entry.run, entry.gguf_sha256) == ("din@v2", "20260102-a", hashlib.sha256(DATA).hexdigest())
    assert states((entry,)) == {entry: "there"}


@pytest.mark.parametrize("text", [EXOTIC, '"""', "\x00", " spaces around \n\n", "{{ .System }}", "# FROM x"])
def test_any_text_arrives_as_it_is(server: OllamaServer, gguf: Path, text: str) -> None:
    run(server, gguf, content=content(text, stop=(text,)))
    assert server.models["din-v2:latest"]["system"] == text
    assert server.models["din-v2:latest"]["parameters"]["stop"][-1] == text


def test_texts_that_no_modelfile_holds_give_a_note_in_its_place(server: OllamaServer, gguf: Path) -> None:
    events: list[Any] = []
    result = run(server, gguf, events.append, content=content(EXOTIC))
    assert any(isinstance(event, Noted) and "Modelfile" in event.text for event in events)
    lines = result.modelfile.splitlines()
    assert all(line.startswith("#") for line in lines), "ollama create must not read half a model from it"
    assert any("U+001B" in line for line in lines)
    assert "a Modelfile cannot hold this" in result.modelfile_problem


def test_a_file_that_is_there_is_not_sent_again(server: OllamaServer, gguf: Path) -> None:
    run(server, gguf)
    server.calls.clear()
    assert not run(server, gguf, tag="din-v2-b").uploaded
    assert "POST /api/blobs" not in server.calls


def test_our_own_model_is_replaced_and_the_old_digest_kept(server: OllamaServer, gguf: Path) -> None:
    first = run(server, gguf)
    second = run(server, gguf, content=content("You are the new Din."))
    assert second.previous_digest == first.digest != second.digest
    assert list(server.models) == ["din-v2:latest"]
    (entry,) = deployed(gguf.parent / "deployed.json")
    assert entry.previous_digest == first.digest


def test_the_old_file_goes_with_the_old_model(server: OllamaServer, gguf: Path) -> None:
    run(server, gguf)
    other = DATA + b"more"
    gguf.write_bytes(other)
    run(server, gguf, sha256=hashlib.sha256(other).hexdigest())
    assert list(server.blobs.values()) == [other]


@pytest.mark.parametrize("tag", ["din-v2", "DIN-V2", "din-v2:latest"])
def test_a_stranger_of_that_name_stays(server: OllamaServer, gguf: Path, tag: str) -> None:
    before = server.add("din-v2", system="Somebody's own.")
    with pytest.raises(AfsError, match="was not deployed from this workspace") as caught:
        run(server, gguf, tag=tag)
    assert caught.value.code == ExitCode.REFUSED
    assert "--force" in str(caught.value)
    assert server.digest("din-v2:latest") == before
    assert server.blobs == {}, "refused before anything was sent"


def test_a_model_that_was_changed_since_stays(server: OllamaServer, gguf: Path) -> None:
    run(server, gguf)
    server.add("din-v2", system="Changed by hand.")
    with pytest.raises(AfsError, match="was changed since it was deployed"):
        run(server, gguf)


def test_force_replaces_a_stranger(server: OllamaServer, gguf: Path) -> None:
    before = server.add("din-v2", system="Somebody's own.")
    assert run(server, gguf, force=True).previous_digest == before
    assert server.models["din-v2:latest"]["system"] == "You are Din."


FAULTS = [
    ({"refuse": {"POST /api/blobs": "disk_full"}}, "the disk of the Ollama server is full"),
    ({"damage_upload": True}, "the server received other bytes than were sent"),
    ({"break_upload": True}, "the connection broke while sending the GGUF"),
    ({"mid_create": "disk_full"}, "the disk of the Ollama server is full"),
    ({"mid_create": "adapter_gguf"}, "this Ollama no longer takes adapters"),
    ({"mid_create": "not_gguf"}, "supplied file was not in GGUF format"),
    ({"refuse": {"POST /api/create": "quantize"}}, "this Ollama no longer quantises a GGUF"),
    ({"end_after": 3}, "Ollama broke off while creating the model: its last word was 'creating new layer'"),
    ({"end_after": 0}, "Ollama broke off while creating the model: it said nothing"),
    ({"break_after": 2}, "the connection broke while creating the model"),
    ({"forget": ("system",)}, "the system text came back changed"),
    ({"forget": ("parameters",)}, "parameter temperature: 0.3 was given, none came back"),
    ({"forget": ("messages",)}, "2 messages were given, 0 came back"),
    ({"forget": ("template",)}, "the template came back changed"),
    ({"forget": ("license",)}, "the licence came back changed"),
    ({"refuse": {"POST /api/chat": "memory"}}, "the server has too little memory"),
    ({"refuse": {"POST /api/copy": "disk_full"}}, "the disk of the Ollama server is full"),
]


@pytest.mark.parametrize(("faults", "message"), FAULTS, ids=lambda value: str(value)[:50])
@pytest.mark.parametrize("replaces", [False, True], ids=["new", "old-there"])
def test_what_fails_leaves_all_as_it_was(
    server: OllamaServer, gguf: Path, faults: dict[str, Any], message: str, replaces: bool
) -> None:
    if replaces:
        run(server, gguf)
        gguf.write_bytes(DATA + b"2")
    data = gguf.read_bytes()
    before = dict(server.models)
    record = gguf.parent / "deployed.json"
    recorded = record.read_text() if record.exists() else ""
    server.faults = Faults(**faults)
    with pytest.raises(AfsError, match=message) as caught:
        run(server, gguf, sha256=hashlib.sha256(data).hexdigest())
    assert server.address in str(caught.value)
    assert "fix: " in str(caught.value)
    assert server.models == before
    assert (record.read_text() if record.exists() else "") == recorded


def test_ctrl_c_while_creating_leaves_the_old_model(server: OllamaServer, gguf: Path) -> None:
    run(server, gguf)
    before = dict(server.models)

    def interrupt(event: Any) -> None:
        if isinstance(event, Stage) and "writing manifest" in event.text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(server, gguf, interrupt, content=content("New."))
    assert server.models == before


@pytest.mark.parametrize("replaces", [False, True], ids=["new", "old-there"])
def test_a_record_that_cannot_be_written_takes_the_model_back(server: OllamaServer, gguf: Path, replaces: bool) -> None:
    if replaces:
        run(server, gguf)
    before = dict(server.models)
    blocked = gguf.parent / "file"
    blocked.write_text("")
    with pytest.raises(AfsError):
        run(server, gguf, record=blocked / "deployed.json", force=True, content=content("New."))
    assert server.models == before
    assert len(deployed(gguf.parent / "deployed.json")) == replaces


def test_a_reader_of_the_progress_that_leaves_is_no_failure_of_the_server(server: OllamaServer, gguf: Path) -> None:
    def leave(event: Any) -> None:
        if isinstance(event, Sent):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run(server, gguf, leave)
    assert server.models == {}


def test_what_a_killed_run_left_is_cleared_by_the_next(server: OllamaServer, gguf: Path) -> None:
    server.add("din-v2:afs-partial", system="half")
    run(server, gguf)
    assert list(server.models) == ["din-v2:latest"]


def test_a_server_with_the_gguf_own_template_is_noted(server: OllamaServer, gguf: Path) -> None:
    server.faults.own_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    events: list[Any] = []
    run(server, gguf, events.append)
    assert any(isinstance(event, Noted) and "OLLAMA_GO_TEMPLATE" in event.text for event in events)


def test_an_empty_answer_is_noted(server: OllamaServer, gguf: Path) -> None:
    server.faults.answer = ""
    events: list[Any] = []
    run(server, gguf, events.append)
    assert Noted("the model's answer was empty") in events


def test_force_keeps_a_model_that_cannot_answer_here(server: OllamaServer, gguf: Path) -> None:
    server.faults.refuse = {"POST /api/chat": "memory"}
    run(server, gguf, force=True)
    assert "din-v2:latest" in server.models


def test_without_a_question(server: OllamaServer, gguf: Path) -> None:
    assert run(server, gguf, smoke=False).answer == ""
    assert "POST /api/chat" not in server.calls


def test_no_server_is_told_with_its_address(gguf: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(AfsError, match="no Ollama answers") as caught:
            run(OllamaServer(address=address), gguf)
    assert caught.value.code == ExitCode.MISSING
    for part in (address, "ollama serve", "OLLAMA_HOST"):
        assert part in str(caught.value)


def test_the_address_can_come_from_the_environment(
    server: OllamaServer, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", server.address)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # is for the way out
    assert run(server, gguf, host="").server == server.address


@pytest.mark.parametrize("host", ["http://[bad", "http://h:port"])
def test_an_address_that_is_none_is_a_usage_error(gguf: Path, host: str) -> None:
    with pytest.raises(AfsError, match="not an address") as caught:
        run(OllamaServer(address=host), gguf)
    assert caught.value.code == ExitCode.USAGE


@pytest.mark.parametrize("version", ["0.1.32", "0.5.4"])
def test_an_old_server_says_what_is_needed(server: OllamaServer, gguf: Path, version: str) -> None:
    server.version, server.files_in_create = version, False
    with pytest.raises(AfsError, match=f"Ollama {version} is too old, 0.5.5 is needed") as caught:
        run(server, gguf)
    assert "ollama create TAG -f Modelfile" in str(caught.value)
    assert server.calls == ["GET /api/version"]


def test_an_old_server_with_a_version_of_its_own_is_known_by_its_refusal(server: OllamaServer, gguf: Path) -> None:
    server.version, server.files_in_create = "0.0.0", False
    with pytest.raises(AfsError, match="this Ollama is too old") as caught:
        run(server, gguf)
    assert "0.5.5" in str(caught.value)
    assert server.models == {}


@pytest.mark.parametrize("version", ["0.5.5", "0.12.10", "0.34.2-rc1", "1.0.0", "0.0.0", "main"])
def test_new_and_home_made_versions_are_tried(server: OllamaServer, gguf: Path, version: str) -> None:
    server.version = version
    assert run(server, gguf).version == version


def test_something_else_on_that_port_is_told(server: OllamaServer, gguf: Path) -> None:
    server.faults.not_ollama = True
    with pytest.raises(AfsError, match="what answers is no Ollama"):
        run(server, gguf)


@pytest.mark.parametrize("tag", ["", "din v2", "-din", "din/v2/x", "din:afs-partial", "../din", "a" * 81, "din\n"])
def test_bad_names_are_refused_before_any_call(server: OllamaServer, gguf: Path, tag: str) -> None:
    with pytest.raises(AfsError) as caught:
        run(server, gguf, tag=tag)
    assert caught.value.code == ExitCode.USAGE
    assert server.calls == []


def test_a_file_that_is_not_the_exported_one_is_not_sent(server: OllamaServer, gguf: Path) -> None:
    gguf.write_bytes(DATA[:-1])
    with pytest.raises(AfsError, match="the GGUF is not the one that was exported"):
        run(server, gguf)
    with pytest.raises(AfsError, match="is no sha256"):
        run(server, gguf, sha256="A" * 64)
    gguf.unlink()
    with pytest.raises(AfsError, match="there is no GGUF"):
        run(server, gguf)
    assert "POST /api/blobs" not in server.calls


def test_a_slow_server_is_waited_for(server: OllamaServer, gguf: Path) -> None:
    server.faults.hold = threading.Event()

    def release(event: Any) -> None:
        if isinstance(event, Stage) and "parsing GGUF" in event.text and server.faults.hold:
            server.faults.hold.set()

    assert run(server, gguf, release).answer


def test_a_dry_run_makes_no_call(server: OllamaServer, gguf: Path) -> None:
    result = run(server, gguf, dry_run=True)
    assert server.calls == []
    assert not (gguf.parent / "deployed.json").exists()
    assert result.size_bytes == len(DATA)
    assert result.modelfile.startswith('FROM "./din-v2-q8_0.gguf"\n')
    planned = [f"{call.method} {call.path}".partition("/sha256:")[0] for call in result.calls]
    run(server, gguf)
    assert planned == [call for number, call in enumerate(server.calls) if call != "GET /api/tags" or number == 1]
    create = next(call for call in result.calls if call.path == "/api/create")
    assert create.body is not None
    assert {**create.body, "stream": True} == server.bodies["/api/create"]


def test_a_dry_run_needs_no_file(server: OllamaServer, gguf: Path) -> None:
    gguf.unlink()
    result = run(server, gguf, dry_run=True, sha256="")
    assert result.size_bytes is None
    assert any("<of the GGUF>" in call.path for call in result.calls)


def test_a_caller_can_ask_before_it_works(server: OllamaServer, gguf: Path) -> None:
    record = gguf.parent / "deployed.json"
    assert ready("din-v2", record, host=server.address) == server.version
    server.add("din-v2", system="x")
    with pytest.raises(AfsError, match="was not deployed from this workspace"):
        ready("din-v2", record, host=server.address)
    assert ready("din-v2", record, host=server.address, force=True) == server.version
    assert {call.split()[0] for call in server.calls} == {"GET"}


def test_remove_takes_ours_only(server: OllamaServer, gguf: Path) -> None:
    record = gguf.parent / "deployed.json"
    run(server, gguf)
    server.add("other", system="x")
    with pytest.raises(AfsError, match="was not deployed from this workspace") as caught:
        remove("other", record, host=server.address)
    assert caught.value.code == ExitCode.REFUSED
    assert remove("din-v2", record, host=server.address) == server.address
    assert list(server.models) == ["other:latest"]
    assert deployed(record) == ()
    assert server.blobs == {}
    remove("other", record, host=server.address, force=True)
    assert server.models == {}
    with pytest.raises(AfsError, match="there is no model din-v2"):
        remove("din-v2", record, host=server.address)


def test_a_model_that_went_by_other_hands_leaves_the_list(server: OllamaServer, gguf: Path) -> None:
    record = gguf.parent / "deployed.json"
    run(server, gguf)
    server.models.clear()
    (entry,) = deployed(record)
    assert states((entry,)) == {entry: "gone"}
    remove("din-v2", record, host=server.address)
    assert deployed(record) == ()


def test_states_of_a_changed_model_and_of_a_server_that_is_off(server: OllamaServer, gguf: Path) -> None:
    run(server, gguf)
    (entry,) = deployed(gguf.parent / "deployed.json")
    server.add("din-v2", system="Changed.")
    assert states((entry,)) == {entry: "changed"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        off = entry.model_copy(update={"server": f"http://127.0.0.1:{free.getsockname()[1]}"})
        assert states((off,)) == {off: "server not reached"}


def test_a_damaged_list_is_told(server: OllamaServer, gguf: Path) -> None:
    record = gguf.parent / "deployed.json"
    record.write_text(json.dumps({"schema_version": 1, "models": [{"tag": "x"}]}))
    server.add("din-v2", system="x")
    with pytest.raises(AfsError, match=r"models\.0\.server"):
        run(server, gguf)


def test_two_at_once_take_turns(server: OllamaServer, gguf: Path) -> None:
    server.faults.hold = threading.Event()
    creating, waiting = threading.Event(), threading.Event()
    results: list[RegisterResult] = []

    def first(event: Any) -> None:
        if isinstance(event, Stage) and event.text.startswith("create"):
            creating.set()

    def second(event: Any) -> None:
        if isinstance(event, Noted) and "waits for it" in event.text:
            waiting.set()

    def work(system: str, on_event: Any) -> None:
        results.append(run(server, gguf, on_event, content=content(system)))

    threads = [threading.Thread(target=work, args=words) for words in (("One.", first), ("Two.", second))]
    threads[0].start()
    assert creating.wait(10)
    threads[1].start()
    try:
        assert waiting.wait(10)
    finally:
        server.faults.hold.set()
        for thread in threads:
            thread.join(30)
    assert [result.previous_digest for result in results] == ["", results[0].digest]
    assert list(server.models) == ["din-v2:latest"]
    assert server.models["din-v2:latest"]["system"] == "Two."
    (entry,) = deployed(gguf.parent / "deployed.json")
    assert states((entry,))[entry] == "there"
