"""What a model folder says of its chat format: end texts, and the system text that its template makes up."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx_lm.utils
import pytest

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.bases.chat_format import stop_texts
from afs_mlx.engine.bases.default_system import PROBE, default_system
from afs_mlx.engine.bases.tiny_qwen2 import DEFAULT_SYSTEM

PLAIN = (
    "{%- for message in messages %}{{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}"
    "{%- endfor %}"
)
LLAMA3 = (
    "{{- bos_token ~ '<|start_header_id|>system<|end_header_id|>\\n\\nBe brief.\\nToday.<|eot_id|>' }}"
    "{{- '<|start_header_id|>user<|end_header_id|>\\n\\n' ~ messages[0].content ~ '<|eot_id|>' }}"
)


def with_template(base: Path, folder: Path, template: Any) -> Path:
    """A copy of the base with another chat template."""
    shutil.copytree(base, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    return folder


def test_it_is_the_text_that_mlx_answers_under(tiny_base: Path) -> None:
    tokenizer = mlx_lm.utils.load_tokenizer(tiny_base)
    user = {"role": "user", "content": PROBE}
    bare = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    system = {"role": "system", "content": default_system(tiny_base)}
    assert default_system(tiny_base) == DEFAULT_SYSTEM
    assert tokenizer.apply_chat_template([system, user], tokenize=False, add_generation_prompt=True) == bare


@pytest.mark.smollm2
def test_smollm2_names_itself(smollm2_base: Path) -> None:
    assert default_system(smollm2_base) == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def test_a_template_that_makes_up_nothing(tiny_base: Path, tmp_path: Path) -> None:
    assert default_system(with_template(tiny_base, tmp_path / "plain", PLAIN)) == ""


def test_llama3(tiny_base: Path, tmp_path: Path) -> None:
    assert default_system(with_template(tiny_base, tmp_path / "llama", LLAMA3)) == "Be brief.\nToday."


def test_of_several_templates_the_default_one_counts(tiny_base: Path, tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": PLAIN}, {"name": "default", "template": LLAMA3}]
    assert default_system(with_template(tiny_base, tmp_path / "named", named)) == "Be brief.\nToday."


@pytest.mark.parametrize(
    "template",
    [
        "<|im_start|>{{ raise_exception('only with a system text') }}",
        "<|im_start|>{{ messages[0].content + 1 }}",
        "<|im_start|>{{ messages[7].content.text }}",
        "<|im_start|>{% if %}",
        "<|im_start|>{{ ''.__class__.__mro__ }}",
        "<|im_start|>{{ 1 / 0 }}",
        "<|im_start|>{% for i in range(10 ** 9) %}x{% endfor %}",
    ],
)
def test_a_template_that_cannot_be_rendered(tiny_base: Path, tmp_path: Path, template: str) -> None:
    assert default_system(with_template(tiny_base, tmp_path / "broken", template)) == ""


@pytest.mark.parametrize("added", ["none", ["x"], [{"id": "x", "content": "y"}], [{"content": "y"}]])
def test_stop_texts_of_tokens_of_another_form(tiny_base: Path, tmp_path: Path, added: Any) -> None:
    folder = with_template(tiny_base, tmp_path / "model", PLAIN)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"added_tokens": added}))
    with pytest.raises(AfsError, match="no list of tokens"):
        stop_texts(folder)


def test_an_end_token_of_another_form_is_passed_over(tiny_base: Path, tmp_path: Path) -> None:
    folder = with_template(tiny_base, tmp_path / "model", PLAIN)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": 5}))
    assert stop_texts(folder) == stop_texts(tiny_base)
