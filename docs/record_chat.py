"""Records docs/chat-session.txt: the real `afs-mlx chat` on a terminal, on the embedded base, with scripted keys.

Needs the embedded base (`afs-mlx pull smollm2-135m`); workspace and state are folders of its own. Answers are greedy.
"""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cli"))
from terminal import ENTER, Terminal

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "chat-session.txt"
COMMAND = ["chat", "--base", "smollm2-135m", "--set", "temperature=0", "--set", "max_tokens=48"]
LINES = (
    "Explain what this does:  lda $4210",
    "/why",
    "/system Answer in one short sentence.",
    "and what is NMI?",
    "@din make this smaller: lda #$00, sta $10",
    "/retyr",
    "/save nmi",
    "/stats",
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "AFS_MLX_HOME": f"{folder}/workspace", "XDG_STATE_HOME": f"{folder}/state"}
        with Terminal([sys.executable, "-m", "afs_mlx.cli.app", *COMMAND], env, columns=100, rows=40) as terminal:
            terminal.until("auto>")
            for number, line in enumerate(LINES, start=2):
                terminal.type(line + ENTER)
                terminal.read_until(lambda count=number: _prompts(terminal) >= count, 120, "the next prompt")
            terminal.leave()
        shown = terminal.screen.text.replace(folder, "~")
    TARGET.write_text(f"$ afs-mlx {' '.join(COMMAND)}\n{shown}\n", encoding="utf-8")
    sys.stdout.write(f"wrote {TARGET.relative_to(ROOT)}\n")


def _prompts(terminal: Terminal) -> int:
    return sum(line.startswith(("auto>", "auto (demo)>")) for line in terminal.screen.text.splitlines())


if __name__ == "__main__":
    main()
