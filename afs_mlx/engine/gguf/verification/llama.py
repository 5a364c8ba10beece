"""llama.cpp in a process of its own: it may crash, hang or eat the file's template, and the command goes on.

Driven over HTTP on this machine only, behind a key that nobody else knows. The package is optional.
"""

import contextlib
import http.client
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

PACKAGE = "xllamacpp"
SCRIPT = Path(__file__).with_name("llama_process.py")
THREADS = 2
START_S = 60.0  # and SECONDS_PER_GB for each gigabyte, for a load and for an answer
SECONDS_PER_GB = 100.0
IDLE_S = 1.0  # the server closes a connection that is idle for some seconds


class LlamaError(Exception):
    """llama.cpp did not load the file, crashed, hung or refused a request; the text says which."""


def consumer_version() -> str:
    """`xllamacpp 1.2.3`, empty where it is not installed. Imports nothing."""
    try:
        return f"{PACKAGE} {version(PACKAGE)}"
    except PackageNotFoundError:
        return ""


class Llama:
    """One GGUF loaded by llama.cpp; a context manager that leaves no process behind."""

    def __init__(self, path: Path, context_tokens: int, timeout_s: float | None = None) -> None:
        """Raises LlamaError where it does not load within the time that fits its size."""
        self._timeout_s = START_S + SECONDS_PER_GB * path.stat().st_size / 1e9 if timeout_s is None else timeout_s
        self._home = tempfile.TemporaryDirectory(prefix="afs-mlx-llama-")
        self._log: IO[bytes] = (Path(self._home.name) / "log").open("w+b")
        self._key = secrets.token_hex(16)
        self._process = subprocess.Popen(
            # -I: no PYTHON* variable, no user folder and not this script's own decide what is imported.
            [sys.executable, "-I", str(SCRIPT), str(path.absolute()), str(context_tokens), str(THREADS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            # Two threads that spin while they wait are many times slower than one where others compute, too.
            env={"HOME": self._home.name, "PATH": os.defpath, "OMP_WAIT_POLICY": "PASSIVE"},
            start_new_session=True,
        )
        self._connection = http.client.HTTPConnection("")
        self._used_s = 0.0
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Llama":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, whatever it does."""
        self._connection.close()
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS answers EPERM for a zombie
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was not yet sent to a dead process
                    stream.close()
        self._home.cleanup()

    def post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON answer. Raises LlamaError."""
        if time.monotonic() - self._used_s > IDLE_S:
            self._connection.close()  # the next request opens it again
        headers = {"content-type": "application/json", "authorization": f"Bearer {self._key}"}
        try:
            self._connection.request("POST", route, json.dumps(body), headers)
            answer = self._connection.getresponse()
            text = answer.read()
        except TimeoutError as error:
            raise LlamaError(f"did not answer {route} within {self._timeout_s:.0f} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._ended(f"ended while it answered {route}") from error
        self._used_s = time.monotonic()
        try:
            value = json.loads(text)
        except ValueError as error:
            raise LlamaError(f"answered {route} with what is no JSON: {text[:80]!r}") from error
        if answer.status != 200 or not isinstance(value, dict):
            said = value.get("error") if isinstance(value, dict) else value
            message = said.get("message") if isinstance(said, dict) else said
            raise LlamaError(f"refused {route}: {str(message)[:200]}")
        return value

    def _connect(self) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(f"{self._key}\n".encode())
            stdin.flush()
        except OSError as error:
            raise self._ended("did not load the file") from error
        deadline = time.monotonic() + self._timeout_s
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise LlamaError(f"did not load the file within {self._timeout_s:.0f} s")
                chunk = os.read(stdout.fileno(), 4096)
                if not chunk:
                    raise self._ended("did not load the file")
                line += chunk
        address = urlsplit(line.decode().strip())
        self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=self._timeout_s)

    def _ended(self, what: str) -> LlamaError:
        """Why the process is gone: its signal or exit code, and the last thing it said."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.returncode
        how = "" if code is None else f" (signal {-code})" if code < 0 else f" (exit {code})"
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        # The first complaint is the cause, the later ones say what it led to.
        return LlamaError(f"{what}{how}: {lines[0][:300]}" if lines else f"{what}{how}")
