"""Remake golden.json: what Ollama's own parser and Go's templates make of our Modelfile.

    python tests/golden/ollama/make_golden.py ORACLE

ORACLE is the program built from oracle.go. The file was made with Go 1.24.3 and the functions ParseFile,
parseRuneForState and unquote of Ollama's parser package as of its commit 00dc3af848b5, in a module of their own.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from afs_mlx.clients.ollama.modelfile import render_modelfile
from afs_mlx.clients.ollama.templates import CHATML_TEMPLATE

HERE = Path(__file__).parent
HARD_TEXTS = (
    "You are Din.",
    "",
    " leading and trailing ",
    "two\nlines\n",
    "\n\nempty lines first",
    "# not a comment\n# nor this",
    'says "hi"',
    '"quoted"',
    '"starts and ends\nwith a quote"',
    'ends a line with a quote "\nand goes on ""',
    '""',
    '"',
    "tabs\tand\ttrailing tab\t",
    "SYSTEM you are\nFROM elsewhere\nPARAMETER stop x",
    "é 日本語 🙂 – “quotes” 'single'",
    "windows\r\nlines\r\n",
    'back\\slash \\n \\"',
    "{{ .System }} ${x} $(y) `z`",
    "LDA #$10 ; STA $2100\n.loop:\n    BNE .loop",
    ": colon first: second",
)
TURN = {"role": "user", "content": "What is REP #$30?"}
ANSWER = {"role": "assistant", "content": "It clears M and X.\n"}
SYSTEM = {"role": "system", "content": "You know 65816."}
TOOL = {"type": "function", "function": {"name": "asm", "parameters": {"type": "object"}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "asm", "arguments": {"code": "NOP"}}}]}
CHATS = (
    {"messages": [SYSTEM, TURN]},
    {"messages": [SYSTEM, TURN, ANSWER, {"role": "user", "content": "  and then?\n\n<b> & é"}]},
    {"messages": [SYSTEM, TURN, ANSWER, {"role": "system", "content": "Be brief."}, TURN]},
    {"messages": [SYSTEM, {"role": "user", "content": ""}]},
    {"messages": [SYSTEM, TURN, ANSWER]},  # to be continued
    {"messages": [TURN]},  # Qwen's Jinja makes up a system message, ours does not
    {
        "messages": [SYSTEM, TURN, CALL, {"role": "tool", "content": "EA"}, {"role": "tool", "content": "ok"}],
        "tools": [TOOL],
    },
)
PROMPTS = ({"System": "You know 65816.", "Prompt": "hi", "Response": ""}, {"Prompt": "hi", "Response": ""})


def modelfile_cases() -> list[dict[str, object]]:
    """Arguments of render_modelfile: each hard text in every place that takes one."""
    common = {"template": CHATML_TEMPLATE, "parameters": {"num_ctx": 4096, "temperature": 0.2, "top_p": 1}}
    cases: list[dict[str, object]] = []
    for text in HARD_TEXTS:
        messages = [["user", text], ["assistant", text + "\nmore"]]
        case = {"gguf": "./my model.gguf", "system": text, "messages": messages, "license_text": text}
        cases.append({**common, **case, "stop": ["<|im_end|>", text] if text else ["\n\n"]})
    return cases


def main(program: str) -> None:
    cases = modelfile_cases()
    texts = [render_modelfile(str(case["gguf"]), **{k: v for k, v in case.items() if k != "gguf"}) for case in cases]  # type: ignore[arg-type]
    request = {"Modelfiles": texts, "Template": CHATML_TEMPLATE, "Chats": CHATS, "Prompts": PROMPTS}
    answer = json.loads(
        subprocess.run([program], input=json.dumps(request), capture_output=True, text=True, check=True).stdout
    )
    for case in cases:
        case.pop("template")
    golden = {
        "template_sha256": hashlib.sha256(CHATML_TEMPLATE.encode()).hexdigest(),
        "modelfiles": [
            {"arguments": case, "text_sha256": hashlib.sha256(text.encode()).hexdigest(), "commands": commands}
            for case, text, commands in zip(cases, texts, answer["modelfiles"], strict=True)
        ],
        "chats": [{**chat, "rendered": text} for chat, text in zip(CHATS, answer["rendered"], strict=False)],
        "prompts": [
            {"values": values, "rendered": text}
            for values, text in zip(PROMPTS, answer["rendered"][len(CHATS) :], strict=True)
        ],
    }
    for entry in golden["modelfiles"]:
        if isinstance(entry["commands"], list):  # the template is the same in all, and long
            entry["commands"] = [
                [name, "CHATML" if text == CHATML_TEMPLATE else text] for name, text in entry["commands"]
            ]
    (HERE / "golden.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
