"""The real `afs-mlx chat` whose answers are scripted: `python scripted_chat.py ANSWERS.json [OPTIONS]`.

ANSWERS is a list of answers, each a list of pieces. WAIT in a piece stops there for a Ctrl-C, HEAVY tells what is
imported.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from afs_mlx.cli.app import main
from afs_mlx.pipelines.chat import AnswerUsage, ExpertReady
from afs_mlx.pipelines.chat.local import LocalBackend

HEAVY = ("mlx", "mlx_lm", "transformers", "numpy", "huggingface_hub", "ollama")


class Scripted:
    holds_opening = False
    notices = ()
    usage = AnswerUsage(7, 3, 12.5, 0.25, "stop")

    def __init__(self, answers: list[list[str]], label: str) -> None:
        self._answers = answers
        self.facts = ExpertReady(label, "tiny", False, "", ())

    def count(self, messages: Any) -> int:
        return len(messages)

    def stream(self, *_: Any) -> Iterator[str]:
        for piece in self._answers.pop(0):
            if piece == "HEAVY":
                yield " ".join(name for name in HEAVY if name in sys.modules) or "nothing heavy"
            elif piece == "WAIT":
                yield "waiting"
                deadline = time.monotonic() + 30
                while time.monotonic() < deadline:
                    time.sleep(0.01)
                    yield "."
            else:
                yield piece


def run() -> None:
    answers = json.loads(Path(sys.argv.pop(1)).read_text())
    LocalBackend.speaker = lambda _, expert: Scripted(answers, expert.label)  # type: ignore[method-assign,assignment]

    def warm(_: Any, first: Any) -> None:
        def chatter() -> None:
            first()
            print("a library says hello", file=sys.stderr)

        threading.Thread(target=chatter).start()

    LocalBackend.warm = warm  # type: ignore[method-assign]
    main()


if __name__ == "__main__":
    run()
