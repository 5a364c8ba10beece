"""What a model says to Ollama, how it is read back, and what a refusal means."""

import json
from pathlib import Path
from typing import Any

import pytest

from afs_mlx.clients.ollama.content import content_for, modelfile_or_note, modelfile_text
from afs_mlx.clients.ollama.read_back import parameters
from afs_mlx.clients.ollama.refusals import LONGEST_TEXT, REFUSALS, refused, too_old
from afs_mlx.clients.ollama.server import full
from afs_mlx.core.errors import UsageError
from afs_mlx.schema.expert import Shot
from afs_mlx.schema.sampling import Sampling

PROTOCOL: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "ollama" / "protocol.json").read_text(encoding="utf-8")
)
UNKNOWN = {"not_gguf", "no_blob", "bad_digest", "no_model"}  # shown as they come: no remedy of ours fits


def content(**changes: Any) -> Any:
    arguments: dict[str, Any] = {"chat_format": "chatml", "stop_texts": ["<|im_end|>"], "system": "You are Din."}
    return content_for(**(arguments | {"sampling": Sampling(stop=("###",))} | changes))


def test_stop_texts_are_stated_once() -> None:
    assert content(sampling=Sampling(stop=("<|im_end|>", "###"))).stop == ("<|im_end|>", "###")


def test_shots_are_messages_in_order() -> None:
    shots = (Shot(user="a", assistant="b"), Shot(user="c", assistant="d"))
    found = content(shots=shots).messages
    assert found == (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))


def test_sampling_that_mlx_does_not_do_is_switched_off() -> None:
    lines = modelfile_text(content(), "./x.gguf").splitlines()
    for line in ("PARAMETER top_k 0", "PARAMETER min_p 0.0", "PARAMETER repeat_penalty 1.0"):
        assert line in lines


def test_an_unknown_chat_format_is_told() -> None:
    with pytest.raises(UsageError, match="no Ollama template for the chat format 'alpaca'"):
        content(chat_format="alpaca")


def test_a_text_that_fits_gives_a_modelfile_and_no_note() -> None:
    assert modelfile_or_note(content(), "./x.gguf") == (modelfile_text(content(), "./x.gguf"), "")


def test_a_text_that_does_not_fit_gives_comments_alone() -> None:
    text, problem = modelfile_or_note(
        content(system='a """ b\x00', shots=(Shot(user="\x1b", assistant="x"),)), "./x.gguf"
    )
    assert "(3 problems)" in problem
    assert [line[:2] for line in text.splitlines()] == ["# "] * 5
    assert "MESSAGE 1" in text
    assert "afs-mlx export ollama" in text


def test_parameters_are_read_as_go_writes_them() -> None:
    text = (
        "num_ctx                        1.048576e+06\n"
        "temperature                    0.3\n"
        'stop                           "<|im_end|>"\n'
        'stop                           "a \\"quoted\\"  text\\n\\t\\x00\\u200b\\U0001f642"\n'
        "use_mmap                       true"
    )
    numbers, stops = parameters(text)
    assert numbers == {"num_ctx": 1048576.0, "temperature": 0.3}
    assert stops == ["<|im_end|>", 'a "quoted"  text\n\t\x00\u200b\U0001f642']


@pytest.mark.parametrize("value", ["", "stop", 'stop  "open', "stop  __import__('os')", "x  y\nz"])
def test_parameters_of_any_text_are_no_crash(value: str) -> None:
    numbers, _ = parameters(value)
    assert numbers == {}


@pytest.mark.parametrize("name", sorted(PROTOCOL["errors"]))
def test_every_recorded_refusal_is_explained_or_shown(name: str) -> None:
    said = PROTOCOL["errors"][name]["error"]
    error = refused(said, "creating the model", "http://server")
    assert said[:100] in error.what
    assert error.where == "http://server"
    assert any(refusal.fix == error.fix for refusal in REFUSALS) == (name not in UNKNOWN)


def test_the_recorded_texts_have_sources() -> None:
    assert {entry["source"] for entry in PROTOCOL["errors"].values()} <= set(PROTOCOL["sources"])


def test_a_servers_text_is_cut_and_cleaned() -> None:
    what = refused("\x1b[31m" + "x" * 10_000 + "\n", "listing", "http://server").what
    assert "\x1b" not in what
    assert len(what) < LONGEST_TEXT + 100


@pytest.mark.parametrize(
    ("version", "old"),
    [
        *((version, True) for version in ("0.1.32", "0.5.4", "0.5.4-rc1", "v0.5.4")),
        *((version, False) for version in ("0.5.5", "0.5.13", "0.34.2-rc0", "1.0.0", "0.0.0", "main", "")),
    ],
)
def test_versions(version: str, old: bool) -> None:
    assert too_old(version) is old


@pytest.mark.parametrize(
    ("tag", "whole"),
    [
        ("din", "din:latest"),
        ("Din:V2", "din:v2"),
        ("me/din", "me/din:latest"),
        ("host:5000/me/din", "host:5000/me/din:latest"),
    ],
)
def test_whole_tags(tag: str, whole: str) -> None:
    assert full(tag) == whole
