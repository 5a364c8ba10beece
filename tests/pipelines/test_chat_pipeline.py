"""A conversation: what is said stays, who answers is chosen, loaded once and told."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from afs_mlx.core.errors import AfsError, MissingError, UsageError
from afs_mlx.core.files import write_json
from afs_mlx.core.paths import Workspace
from afs_mlx.engine.bases.location import own_folder
from afs_mlx.engine.inference import loaded_adapter, residents
from afs_mlx.engine.inference.voice import Voice
from afs_mlx.experts.catalog import Catalog
from afs_mlx.experts.routing.keywords import KeywordRouter
from afs_mlx.pipelines.chat import ChatConfig, ChatEvent, ChatSession, ExpertReady, Routed
from afs_mlx.pipelines.convert import ConvertConfig, convert
from afs_mlx.schema.message import Message
from afs_mlx.schema.sampling import Sampling

QV = Path(__file__).parents[1] / "golden" / "peft" / "qv-r4"


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Message], Sampling, int | None]]:
    """Every prompt; the answer is `answer N`, in two pieces. Models are loaded as ever."""
    prompts: list[tuple[list[Message], Sampling, int | None]] = []

    def stream(self: Voice, messages: Any, sampling: Sampling, seed: int | None = None) -> Iterator[str]:
        prompts.append((list(messages), sampling, seed))
        yield "answer "
        yield str(len(prompts))

    monkeypatch.setattr(Voice, "stream", stream)
    return prompts


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folder of every model and every adapter that is read."""
    seen: list[str] = []
    model, adapter = residents.load_with_adapter, loaded_adapter.read_adapter

    def load(folder: Path, whole: Path | None) -> Any:
        seen.append(folder.name)
        return model(folder, whole)

    def read(base: Any, folder: Path, table: Any) -> Any:
        seen.append(folder.name)
        return adapter(base, folder, table)

    monkeypatch.setattr(residents, "load_with_adapter", load)
    monkeypatch.setattr(loaded_adapter, "read_adapter", read)
    return seen


@pytest.fixture
def by_keywords(monkeypatch: pytest.MonkeyPatch) -> None:
    """The router that is the same whatever was learnt."""
    monkeypatch.setattr("afs_mlx.experts.routing.default_router", KeywordRouter)


class Talk:
    """A session on the tiny base with the events it gave."""

    def __init__(self, expert: str = "din", **changes: Any) -> None:
        workspace = Workspace.find()
        self.events: list[ChatEvent] = []
        settings = {"base": "tiny-qwen2", "expert": expert, **changes}
        self.session = ChatSession(ChatConfig(Catalog.load(workspace), workspace, **settings), self.events.append)

    def ask(self, question: str) -> str:
        return "".join(self.session.ask(question))

    @property
    def ready(self) -> list[ExpertReady]:
        return [event for event in self.events if isinstance(event, ExpertReady)]

    @property
    def routed(self) -> list[str]:
        return [event.route.expert for event in self.events if isinstance(event, Routed)]

    @property
    def said(self) -> list[tuple[str, str]]:
        return [(message.role, message.content) for message in self.session.messages]


def registered(name: str, expert: str = "din@v2") -> Path:
    """A run of this name, from the golden adapter."""
    workspace = Workspace.find()
    out = workspace.adapters / expert.partition("@")[0] / name
    return convert(ConvertConfig(QV, Catalog.load(workspace), workspace, expert=expert, out=out)).path


def roles(messages: list[Message]) -> list[str]:
    return [message.role for message in messages]


def test_what_was_said_goes_with_the_next_question(asked: list[Any]) -> None:
    talk = Talk()
    assert talk.ask("first") == "answer 1"
    assert talk.ask("second") == "answer 2"
    assert roles(asked[1][0]) == ["system", "user", "assistant", "user"]
    assert [m.content for m in asked[1][0]][1:] == ["first", "answer 1", "second"]
    assert asked[1][0][0].content == Catalog.load(Workspace.find()).prompt("din")
    assert talk.said == [("user", "first"), ("assistant", "answer 1"), ("user", "second"), ("assistant", "answer 2")]


def test_an_answer_that_is_broken_off_stays_as_far_as_it_came() -> None:
    talk = Talk()
    stream = talk.session.ask("first")
    next(stream)
    stream.close()
    assert talk.said == [("user", "first"), ("assistant", "answer ")]


def test_a_question_without_an_answer_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Voice, *rest: Any) -> Iterator[str]:
        raise AfsError("the prompt has 9000 tokens", "context_tokens", "shorten it")
        yield ""

    monkeypatch.setattr(Voice, "stream", refuse)
    talk = Talk()
    with pytest.raises(AfsError, match="9000 tokens"):
        talk.ask("too long")
    assert talk.said == []


def test_a_question_can_be_taken_back() -> None:
    talk = Talk()
    assert talk.session.take_back() is None
    talk.ask("first")
    talk.ask("second")
    assert talk.session.take_back() == "second"
    assert talk.said == [("user", "first"), ("assistant", "answer 1")]
    talk.session.clear()
    assert talk.said == []
    assert talk.session.take_back() is None


def test_the_persons_own_system_text_holds_until_it_is_taken_back(asked: list[Any]) -> None:
    talk = Talk()
    talk.session.use_system("Speak French.")
    talk.ask("one")
    talk.session.use_system("")
    talk.ask("two")
    talk.session.use_system(None)
    talk.ask("three")
    assert asked[0][0][0].content == "Speak French."
    assert roles(asked[1][0])[0] == "user", "an empty text is none"
    assert asked[2][0][0].content == Catalog.load(Workspace.find()).prompt("din")


def test_sampling_is_the_experts_unless_the_person_says_otherwise(asked: list[Any]) -> None:
    Talk().ask("one")
    Talk(sampling={"temperature": 0.0, "max_tokens": 7}, seed=5).ask("two")
    own = Catalog.load(Workspace.find()).choose("din").sampling
    assert asked[0][1:] == (own, None)
    assert asked[1][1:] == (own.model_copy(update={"temperature": 0.0, "max_tokens": 7}), 5)


def test_a_switch_keeps_what_was_said_and_changes_the_system_text(asked: list[Any]) -> None:
    talk = Talk("din")
    talk.ask("first")
    talk.session.switch("veran")
    talk.ask("second")
    catalog = Catalog.load(Workspace.find())
    assert asked[1][0][0].content == catalog.prompt("veran") != catalog.prompt("din")
    assert [m.content for m in asked[1][0]][1:] == ["first", "answer 1", "second"]
    assert talk.session.expert is not None
    assert talk.session.expert.label == "veran@v4"


def test_a_switch_on_the_same_base_loads_nothing_but_is_told(loads: list[Any]) -> None:
    talk = Talk("din")
    talk.ask("first")
    talk.session.switch("veran")
    talk.ask("second")
    talk.ask("third")
    assert loads == ["tiny-qwen2"]
    assert [event.label for event in talk.ready] == ["din@v2", "veran@v4"], "once for each, not for each question"
    assert "veran@v4 has no adapter for tiny-qwen2" in talk.ready[1].notices[0]


def test_a_switch_to_an_expert_with_an_adapter_loads_it(loads: list[Any]) -> None:
    registered("trained", "din@v2")
    talk = Talk("veran")
    talk.ask("first")
    talk.session.switch("din")
    talk.ask("second")
    talk.session.switch("veran")
    talk.ask("third")
    assert loads == ["tiny-qwen2", "trained"]


def test_an_unknown_expert_changes_nothing() -> None:
    talk = Talk("din")
    with pytest.raises(UsageError, match="there is no expert 'vera'"):
        talk.session.switch("vera")
    assert talk.session.expert is not None
    assert talk.session.expert.name == "din"
    assert not talk.session.automatic


def test_auto_is_sticky_and_says_when_it_switches(by_keywords: None) -> None:
    talk = Talk("auto")
    talk.ask("hello there")
    talk.ask("explain the hardware register $2100")
    talk.ask("and the next one?")
    talk.ask("find the bug, it will crash")
    assert talk.routed == ["general", "veran", "veran", "farore"]
    assert [event.route.previous for event in talk.events if isinstance(event, Routed)] == [
        "",
        "general",
        "veran",
        "veran",
    ]
    assert talk.session.automatic
    talk.session.switch("din")
    talk.ask("explain this")
    assert talk.session.expert is not None
    assert talk.session.expert.name == "din", "who is named answers everything"
    talk.session.switch("auto")
    talk.ask("and then?")
    assert talk.session.expert.name == "din", "whoever was named goes on until a question is somebody else's"
    talk.ask("explain this")
    assert talk.session.expert.name == "veran"


def test_an_expert_that_cannot_be_loaded_is_not_switched_to(by_keywords: None) -> None:
    broken = registered("broken", "veran@v4")
    (broken / "adapters.safetensors").write_bytes(b"not tensors")
    talk = Talk("auto")
    talk.ask("optimize this")
    with pytest.raises(AfsError):
        talk.ask("explain this")
    assert talk.session.expert is not None
    assert talk.session.expert.name == "din"
    assert talk.ask("make it smaller") == "answer 2"


def test_nobody_answers_before_the_first_question() -> None:
    assert Talk("auto").session.expert is None
    assert Talk("auto").session.system == ""


def test_without_an_adapter_the_notice_names_the_commands() -> None:
    talk = Talk("din")
    talk.ask("one")
    (ready,) = talk.ready
    assert ready.adapter == ""
    (notice,) = ready.notices
    assert "din@v2 has no adapter for tiny-qwen2" in notice
    assert "afs-mlx train din@v2" in notice
    assert "--expert din@v2" in notice


@pytest.mark.parametrize("expert", ["general", "din@v3-fewshot"])
def test_who_needs_no_adapter_gets_no_notice(expert: str, asked: list[Any]) -> None:
    talk = Talk(expert)
    talk.ask("one")
    assert talk.ready[0].notices == ()
    if expert != "general":
        assert roles(asked[0][0]) == ["system", *["user", "assistant"] * 8, "user"]


def test_what_the_demo_base_says_is_labelled(tiny_base: Path, tmp_path: Path) -> None:
    talk = Talk("din")
    talk.ask("one")
    assert talk.session.demo
    assert talk.ready[0].demo
    shutil.copytree(tiny_base, tmp_path / "real")
    real = Talk("din", base=str(tmp_path / "real"))
    real.ask("one")
    assert not real.session.demo
    assert not real.ready[0].demo


def test_auto_base_falls_back_with_a_notice_or_names_the_command(tiny_base: Path) -> None:
    with pytest.raises(MissingError, match=r"qwen2\.5-coder-3b is not on this machine") as caught:
        Talk("din", base="auto").ask("one")
    assert "afs-mlx pull smollm2-135m" in caught.value.fix

    shutil.copytree(tiny_base, own_folder("smollm2-135m"))
    talk = Talk("din", base="auto")
    talk.ask("one")
    (ready,) = talk.ready
    assert (ready.base, ready.demo) == ("smollm2-135m", True)
    assert "qwen2.5-coder-3b is not on this machine" in ready.notices[0]


def test_the_latest_adapter_answers_and_is_named(loads: list[Any]) -> None:
    older, newer = registered("b-older"), registered("a-newer")
    for path, at in ((older, "2026-01-01T00:00:00Z"), (newer, "2026-01-02T00:00:00Z")):
        write_json(path / "run.json", {**json.loads((path / "run.json").read_text()), "started_at": at})
    talk = Talk("din")
    talk.ask("one")
    assert loads == ["tiny-qwen2", "a-newer"]
    assert talk.ready[0].adapter == "a-newer (latest; none has passed its gate)"
    assert talk.ready[0].notices == ()


def test_a_named_run_is_taken_and_brings_its_base(loads: list[Any]) -> None:
    registered("one")
    registered("two")
    talk = Talk("din", run="one", base="auto")
    talk.ask("hello")
    assert loads == ["tiny-qwen2", "one"]
    assert talk.ready[0].adapter == "one (named)"
    assert talk.ready[0].base == "tiny-qwen2"


def test_a_named_run_is_that_experts_alone(loads: list[Any]) -> None:
    """Another expert, switched to, has no run of that name and needs none."""
    registered("one", "din@v2")
    registered("other", "veran@v4")
    talk = Talk("din@v2", run="one")
    talk.ask("hello")
    talk.session.switch("veran")
    talk.ask("hello")
    talk.session.switch("din")
    talk.ask("hello")
    assert loads == ["tiny-qwen2", "one", "other"]


def test_a_named_run_that_is_not_there_is_told_with_the_known_ones() -> None:
    registered("one")
    with pytest.raises(MissingError, match="din has no run 'two'") as caught:
        Talk("din", run="two").ask("hello")
    assert caught.value.fix == "runs: one"


def test_a_run_needs_an_expert() -> None:
    with pytest.raises(UsageError, match="--run needs an expert"):
        Talk("auto", run="one")


def test_a_failed_run_does_not_answer() -> None:
    path = registered("one")
    write_json(path / "run.json", {**json.loads((path / "run.json").read_text()), "status": "failed"})
    talk = Talk("din")
    talk.ask("hello")
    assert talk.ready[0].adapter == ""
    with pytest.raises(MissingError, match="holds no finished adapter"):
        Talk("din", run="one").ask("hello")


def test_a_switch_that_fails_leaves_a_session_that_goes_on(loads: list[Any]) -> None:
    broken = registered("broken", "din@v2")
    (broken / "adapters.safetensors").write_bytes(b"not tensors")
    talk = Talk("veran")
    talk.ask("one")
    talk.session.switch("din")
    with pytest.raises(AfsError):
        talk.ask("two")
    talk.session.switch("veran")
    assert talk.ask("three") == "answer 2"
    assert [content for _, content in talk.said] == ["one", "answer 1", "three", "answer 2"]


def test_models_are_read_with_the_first_question_only(loads: list[Any]) -> None:
    talk = Talk("din")
    assert loads == []
    assert talk.session.usage is None
    talk.ask("one")
    talk.ask("two")
    assert loads == ["tiny-qwen2"]
