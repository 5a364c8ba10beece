"""One thread for loading and prefilling while a person types, which ends so that the process can.

mlx's streams belong to threads. A thread that ends with streams of its own takes Python's lock while it is torn down,
and where the interpreter ends meanwhile, the process aborts ("terminate called without an active exception").
"""

import atexit
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

import mlx.core as mx


def release_thread() -> None:
    """What a thread that computed has to do last; afterwards it cannot compute any more. Not for the main thread."""
    mx.clear_streams()


class Background:
    """Tasks one after another on a thread that starts with the first of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def closed(self) -> bool:
        """Whether `close` was called; a long task should look."""
        return self._closed.is_set()

    def submit[T](self, task: Callable[[], T]) -> "Future[T]":
        """Run a task after those before it; its error stays in the future. One that `close` overtakes is cancelled."""
        future: Future[T] = Future()

        def run() -> None:
            if self.closed():
                future.cancel()
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(task())
            except BaseException as error:  # noqa: BLE001  # whoever asks for the result gets it
                future.set_exception(error)

        with self._lock:
            if self.closed():
                raise RuntimeError("the background thread is closed")
            if self._thread is None:
                # A daemon, since other threads are joined before anybody could close this one.
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
                atexit.register(self.close)
            self._tasks.put(run)
        return future

    def close(self) -> None:
        """Cancel what has not begun and wait for what has. May be called again."""
        with self._lock:
            self._closed.set()
            self._tasks.put(None)
        if self._thread is not None:
            self._thread.join()
            atexit.unregister(self.close)

    def _work(self) -> None:
        while (run := self._tasks.get()) is not None:
            run()
            del run  # with it go the arrays that it holds
        release_thread()
