"""One Ollama server: the calls that we make, with their failures in words. Decides nothing.

The calls go through the `ollama` client; what that leaves out (the version, progress of an upload, what /api/show says
of system text and messages) goes through the HTTP client inside it.
"""

import json
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, Field, ValidationError

from afs_mlx.clients.ollama.content import ModelfileContent
from afs_mlx.clients.ollama.refusals import MIN_VERSION, TOO_OLD_FIX, refused, shown, too_old
from afs_mlx.core.errors import AfsError, MissingError, UsageError

if TYPE_CHECKING:
    import httpx

DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
FILE_NAME = "model.gguf"  # the server tells the kind of a file by the end of its name
CHUNK_BYTES = 1 << 20
CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 600.0  # a server that reads gigabytes from a slow disk says nothing for minutes
LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")
START = "start it with `ollama serve` or the Ollama app; for another address use --host or OLLAMA_HOST"


class Turn(BaseModel):
    """A message as /api/show gives it."""

    role: str = ""
    content: str = ""


class Shown(BaseModel):
    """What /api/show says of a model, as far as we look."""

    template: str = ""
    system: str = ""
    parameters: str = ""
    messages: list[Turn] = Field(default_factory=list)
    license: str = ""


class Server:
    """The Ollama at `host`; an empty one is OLLAMA_HOST, else this machine's port 11434."""

    def __init__(self, host: str = "") -> None:
        import httpx
        from ollama import Client

        timeout = httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        try:
            self._client = Client(host or None, timeout=timeout, follow_redirects=False)
            if self._client._client.base_url.host in LOOPBACK:  # a proxy is for the way out
                self._client = Client(host or None, timeout=timeout, follow_redirects=False, trust_env=False)
        except (ValueError, httpx.InvalidURL) as error:
            raise UsageError(f"not an address of a server: {error}", host or "OLLAMA_HOST", START) from error
        self._http: httpx.Client = self._client._client
        self.address = str(self._http.base_url).rstrip("/")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def version(self) -> str:
        """The server's version; raises MissingError where none answers, AfsError where it is too old for us."""
        with self._talking("asking for the version"):
            answer = self._http.get("/api/version", timeout=CONNECT_TIMEOUT_S)
            version = _object(answer).get("version")
        if not isinstance(version, str):
            raise self._no_ollama("it names no version")
        if too_old(version):
            needed = ".".join(map(str, MIN_VERSION))
            raise AfsError(f"Ollama {version} is too old, {needed} is needed", self.address, TOO_OLD_FIX)
        return version

    def digests(self) -> dict[str, str]:
        """The models on the server: full tag → digest of its manifest."""
        with self._talking("listing its models"):
            models = self._client.list().models
            return {full(model.model): model.digest or "" for model in models if model.model}

    def has_blob(self, digest: str) -> bool:
        """Whether the server holds this file already."""
        with self._talking("looking for the GGUF"):
            answer = self._http.head(f"/api/blobs/{digest}")
            if answer.status_code == 404:
                return False
            _object(answer, empty=True)
            return True

    def upload(self, path: Path, digest: str, on_sent: Callable[[int, int], None]) -> None:
        """Send the file; the server compares the digest. `on_sent(done, total)` counts bytes."""
        total = path.stat().st_size
        with self._talking("sending the GGUF"):
            chunks = _chunks(path, total, on_sent)
            answer = self._http.post(f"/api/blobs/{digest}", content=chunks, headers={"Content-Length": str(total)})
            _object(answer, empty=True)

    def create(self, tag: str, digest: str, content: ModelfileContent, on_status: Callable[[str], None]) -> None:
        """Make a model of a file that the server holds; whole only where the server said success."""
        parts = self._client.create(
            model=tag,
            files={FILE_NAME: digest},
            template=content.template,
            system=content.system or None,
            parameters={**content.parameters, "stop": list(content.stop)},
            messages=[{"role": role, "content": text} for role, text in content.messages],
            license=[content.license_text] if content.license_text else None,
            stream=True,
        )
        last = ""
        for part in self._each(parts, "creating the model"):
            last = part.status or last
            on_status(shown(last))
        if last != "success":
            said = f"its last word was {shown(last)!r}" if last else "it said nothing"
            raise AfsError(f"Ollama broke off while creating the model: {said}", self.address, "try again")

    def show(self, tag: str) -> Shown:
        """What the server holds of a model."""
        with self._talking("reading the model back"):
            answer = self._http.post("/api/show", json={"model": tag})
            return Shown.model_validate({key: value for key, value in _object(answer).items() if value is not None})

    def copy(self, source: str, destination: str) -> None:
        """Give a model a second tag; an old one of that tag is replaced."""
        with self._talking(f"copying {source} to {destination}"):
            self._client.copy(source, destination)

    def delete(self, tag: str) -> bool:
        """Remove a tag, and the files that no other needs; False where there was none."""
        from ollama import ResponseError

        with self._talking(f"removing {tag}"):
            try:
                self._client.delete(tag)
            except ResponseError as error:
                if error.status_code == 404:
                    return False
                raise
            return True

    def ask(self, tag: str, question: str, max_tokens: int) -> str:
        """One short answer."""
        with self._talking("asking the model a question"):
            answer = self._client.chat(
                tag, [{"role": "user", "content": question}], options={"num_predict": max_tokens}, stream=False
            )
            return answer.message.content or ""

    def _each[Part](self, parts: Iterator[Part], doing: str) -> Iterator[Part]:
        """The parts of a stream, its failures in words; what the reader does with a part is not ours to explain."""
        try:
            while True:
                with self._talking(doing):
                    part = next(parts, None)
                if part is None:
                    return
                yield part
        finally:
            if isinstance(parts, Generator):
                parts.close()  # ends the request when the reader was interrupted

    @contextmanager
    def _talking(self, doing: str) -> Iterator[None]:
        """Turns what the libraries raise into what happened and what helps."""
        import httpx
        from ollama import ResponseError

        try:
            yield
        except BrokenPipeError:  # of who reads our progress; the server's come as httpx's own
            raise
        except (httpx.ConnectError, httpx.ConnectTimeout, ConnectionError) as error:
            raise MissingError("no Ollama answers", self.address, START) from error
        except httpx.TimeoutException as error:
            raise AfsError(
                f"Ollama gave no answer while {doing}", self.address, "see what it does: `ollama ps`"
            ) from error
        except httpx.HTTPError as error:
            raise AfsError(
                f"the connection broke while {doing}: {shown(str(error))}",
                self.address,
                "see whether Ollama is still running (`ollama ps`), and try again",
            ) from error
        except ResponseError as error:
            raise refused(str(error.error), doing, self.address) from error
        except (json.JSONDecodeError, UnicodeDecodeError, ValidationError, AttributeError, TypeError) as error:
            raise self._no_ollama(f"its answer while {doing} cannot be read") from error

    def _no_ollama(self, why: str) -> AfsError:
        return AfsError(f"what answers is no Ollama: {why}", self.address, START)


def full(tag: str) -> str:
    """A tag as Ollama compares them: with `:latest` where it names none, in lower case."""
    return (tag if ":" in tag.rpartition("/")[2] else f"{tag}:latest").lower()


def _object(answer: "httpx.Response", *, empty: bool = False) -> dict[str, Any]:
    """The JSON object of an answer; raises the client's own error for a refusal."""
    from ollama import ResponseError

    if answer.status_code >= 400:
        raise ResponseError(answer.text, answer.status_code)
    if answer.status_code >= 300:
        raise ResponseError(f"redirected to {answer.headers.get('location', 'nowhere')}", answer.status_code)
    value = {} if empty else answer.json()
    if not isinstance(value, dict):
        raise TypeError("not a JSON object")
    return value


def _chunks(path: Path, total: int, on_sent: Callable[[int, int], None]) -> Iterator[bytes]:
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
            done += len(chunk)
            on_sent(done, total)
