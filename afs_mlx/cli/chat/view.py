"""What a conversation shows: the answer on stdout, who answers and why on stderr."""

import sys

from afs_mlx.cli.render.console import err, notice, plain
from afs_mlx.pipelines.chat import ChatEvent, ChatSession, ExpertReady, Routed


class ChatView:
    """Receives the session's events; repeats no notice."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self.route: Routed | None = None

    def __call__(self, event: ChatEvent) -> None:
        if isinstance(event, Routed):
            self.route = event
            err().print(f"[{event.route.expert}] {event.route.reason}", style="dim", markup=False)
        elif isinstance(event, ExpertReady):
            for text in event.notices:
                if text not in self._said:
                    self._said.add(text)
                    notice(text)
            adapter = f", adapter {event.adapter}" if event.adapter else ""
            demo = " (demo)" if event.demo else ""
            err().print(f"{event.label} on {event.base}{demo}{adapter}", style="dim", markup=False)


def answer(session: ChatSession, question: str) -> None:
    """Stream one answer to stdout, controls stripped, and end the line; Ctrl-C passes through after the newline."""
    try:
        for piece in session.ask(question):
            sys.stdout.write(plain(piece))
            sys.stdout.flush()
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()
