"""A server that speaks Ollama's protocol as its source has it (tests/golden/ollama/protocol.json), in memory.

It keeps files and models as Ollama does: a tag is a manifest over layers, a copy is a second manifest, and a file goes
with the last model that needs it. `Faults` are what can go wrong.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PROTOCOL: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "ollama" / "protocol.json").read_text(encoding="utf-8")
)
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass
class Faults:
    """What goes wrong; the names of errors are those of the protocol file."""

    refuse: dict[str, str] = field(default_factory=dict)  # "POST /api/create" → error, before anything is done
    mid_create: str = ""  # an error line in the stream
    end_after: int | None = None  # create ends cleanly after so many lines
    break_after: int | None = None  # create's connection breaks after so many lines
    break_upload: bool = False
    damage_upload: bool = False
    own_template: str = ""  # /api/show answers with the GGUF's chat template
    forget: tuple[str, ...] = ()  # what /api/show leaves out
    answer: str = "I count cycles."
    not_ollama: bool = False
    hold: threading.Event | None = None  # create waits for it after its first line


@dataclass
class OllamaServer:
    """The state behind the handler; `calls` are "METHOD /path" in order, `bodies` the last JSON of each path."""

    version: str = "0.34.2"
    files_in_create: bool = True
    faults: Faults = field(default_factory=Faults)
    blobs: dict[str, bytes] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    bodies: dict[str, Any] = field(default_factory=dict)
    created: threading.Event = field(default_factory=threading.Event)
    address: str = ""

    def add(self, tag: str, **content: Any) -> str:
        """A model that somebody else made; gives its digest."""
        self.models[full(tag)] = {"files": {}, **content}
        return self.digest(full(tag))

    def digest(self, tag: str) -> str:
        """A manifest's sha256, which is that of what it says."""
        return hashlib.sha256(json.dumps(self.models[tag], sort_keys=True).encode()).hexdigest()

    def prune(self) -> None:
        """Files that no model needs go, as after a delete."""
        needed = {digest for model in self.models.values() for digest in model["files"].values()}
        self.blobs = {digest: data for digest, data in self.blobs.items() if digest in needed}


@contextmanager
def running(server: OllamaServer) -> Iterator[OllamaServer]:
    """The server on a free port of this machine."""
    handler = type("BoundHandler", (Handler,), {"state": server})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads = True
        server.address = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


def full(tag: str) -> str:
    return tag if ":" in tag.rpartition("/")[2] else f"{tag}:latest"


class Handler(BaseHTTPRequestHandler):
    """One request; `do_…` finds the method of its path."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: OllamaServer

    def do_GET(self) -> None:
        self._dispatch()

    def do_POST(self) -> None:
        self._dispatch()

    def do_HEAD(self) -> None:
        self._dispatch()

    def do_DELETE(self) -> None:
        self._dispatch()

    def log_message(self, *_: object) -> None:
        pass

    def _dispatch(self) -> None:
        path = "/api/blobs" if self.path.startswith("/api/blobs/") else self.path
        call = f"{self.command} {path}"
        self.state.calls.append(call)
        if self.state.faults.not_ollama:
            self._send(200, b"<html>It works!</html>", "text/html")
        elif error := self.state.faults.refuse.get(call):
            self._refuse(error)  # without reading what is still coming, as Go does
            self.close_connection = True
        else:
            getattr(self, f"{self.command.lower()}_{path.removeprefix('/api/')}")()

    def _body(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.state.bodies[self.path] = value
        return value

    def _send(self, status: int, data: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode())

    def _refuse(self, error: str, *values: str) -> None:
        entry = PROTOCOL["errors"][error]
        self._json({"error": entry["error"] % values if values else entry["error"]}, entry["status"])

    def get_version(self) -> None:
        self._json({"version": self.state.version})

    def get_tags(self) -> None:
        models = [
            {
                "name": tag,
                "model": tag,
                "modified_at": "2026-01-02T03:04:05Z",
                "size": 1,
                "digest": self.state.digest(tag),
            }
            for tag in self.state.models
        ]
        self._json({"models": models})

    def head_blobs(self) -> None:
        digest = self.path.rpartition("/")[2]
        if not DIGEST.fullmatch(digest):
            self._refuse("bad_digest")
        elif digest not in self.state.blobs:
            self._refuse("no_blob", digest)
        else:
            self._send(200, b"")

    def post_blobs(self) -> None:
        wanted, size = self.path.rpartition("/")[2], int(self.headers["Content-Length"])
        if self.state.faults.break_upload:
            self.rfile.read(size // 2)
            self.connection.close()
            self.close_connection = True
            return
        data = self.rfile.read(size)
        if self.state.faults.damage_upload:
            data = data[:-1] + bytes([data[-1] ^ 1])
        got = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if got != wanted:
            self._refuse("digest", wanted, got)
            return
        self.state.blobs[got] = data
        self._send(201, b"")

    def post_create(self) -> None:
        body = self._body()
        if not self.state.files_in_create and not body.get("modelfile"):
            self._refuse("no_modelfile")
            return
        files = body.get("files") or {}
        if error := self._create_error(body, files):
            self._refuse(error)
            return
        lines = [line % next(iter(files.values()), "") if "%s" in line else line for line in self._statuses()]
        faults = self.state.faults
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, line in enumerate(lines):
            if faults.break_after == number:
                self.close_connection = True
                return
            if faults.end_after == number:
                break
            if faults.mid_create and number == 1:
                self._line({"error": PROTOCOL["errors"][faults.mid_create]["error"]})
                break
            if number == 1 and faults.hold is not None:
                faults.hold.wait(30)
            if line == "success":
                kept = ("files", "template", "system", "parameters", "messages", "license")
                self.state.models[full(body["model"])] = {"files": {}} | {k: body[k] for k in kept if body.get(k)}
                self.state.created.set()
            self._line({"status": line})
        self.wfile.write(b"0\r\n\r\n")

    def _create_error(self, body: dict[str, Any], files: dict[str, str]) -> str:
        if body.get("adapters"):
            return "adapters"
        if body.get("quantize"):
            return "quantize"
        if not files and self.state.files_in_create:
            return "no_files"
        data = [self.state.blobs.get(digest, b"") for digest in files.values()]
        return "not_gguf" if any(not part.startswith(b"GGUF") for part in data) else ""

    def _statuses(self) -> list[str]:
        found: list[str] = PROTOCOL["create_statuses"]["new" if self.state.files_in_create else "old"]
        return found

    def _line(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode() + b"\n"
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def post_show(self) -> None:
        tag = self._body()["model"]
        model = self.state.models.get(full(tag))
        if model is None:
            self._refuse("no_model", tag)
            return
        faults = self.state.faults
        shown = {
            "license": "\n".join(model.get("license", ())),
            "modelfile": '# Modelfile generated by "ollama show"',
            "parameters": parameter_lines(model.get("parameters", {})),
            "template": faults.own_template or model.get("template", ""),
            "system": model.get("system", ""),
            "messages": model.get("messages"),
            "model_info": {},
        }
        self._json({key: value for key, value in shown.items() if key not in faults.forget and value != ""})

    def post_chat(self) -> None:
        body = self._body()
        if full(body["model"]) not in self.state.models:
            self._refuse("no_model", body["model"])
            return
        message = {"role": "assistant", "content": self.state.faults.answer}
        self._json({"model": body["model"], "created_at": "2026-01-02T03:04:05Z", "message": message, "done": True})

    def post_copy(self) -> None:
        body = self._body()
        source = self.state.models.get(full(body["source"]))
        if source is None:
            self._refuse("no_model", body["source"])
            return
        self.state.models[full(body["destination"])] = source
        self._send(200, b"")

    def delete_delete(self) -> None:
        tag = self._body()["model"]
        if self.state.models.pop(full(tag), None) is None:
            self._refuse("no_model", tag)
            return
        self.state.prune()
        self._send(200, b"")


def parameter_lines(parameters: dict[str, Any]) -> str:
    """As Go's `%-30s %#v` writes them."""
    lines = []
    for name, value in parameters.items():
        for one in value if isinstance(value, list) else [value]:
            lines.append(f"{name:<30} {go_quoted(one) if isinstance(one, str) else f'{one:g}'}")
    return "\n".join(lines)


def go_quoted(text: str) -> str:
    """As strconv.Quote: printable characters stay, the others get Go's escapes."""
    named = {
        '"': '\\"',
        "\\": "\\\\",
        "\n": "\\n",
        "\r": "\\r",
        "\t": "\\t",
        "\a": "\\a",
        "\b": "\\b",
        "\f": "\\f",
        "\v": "\\v",
    }
    parts = []
    for c in text:
        if c in named:
            parts.append(named[c])
        elif c.isprintable():
            parts.append(c)
        else:
            code = ord(c)
            parts.append(f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return f'"{"".join(parts)}"'
