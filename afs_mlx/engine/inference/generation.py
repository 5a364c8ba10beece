"""One loaded model that answers: streamed for a person, batched for an evaluation."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, stream_generate
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tokenizer_utils import NaiveStreamingDetokenizer

from afs_mlx.core.errors import AfsError
from afs_mlx.engine.bases.loading import LoadedBase
from afs_mlx.schema.message import Message
from afs_mlx.schema.sampling import Sampling

BATCH = 32  # answers generated together


@dataclass(frozen=True)
class Usage:
    """What an answer cost. `finish` is "stop", "length" or, when the person ended it, "interrupted"."""

    prompt_tokens: int
    answer_tokens: int
    tokens_per_s: float
    first_token_s: float
    finish: str


class Generator:
    """Turns conversations into answers."""

    def __init__(self, base: LoadedBase) -> None:
        self._base = base
        self.usage: Usage | None = None

    def prompt_tokens(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation up to where the answer begins."""
        rendered = self._base.tokenizer.apply_chat_template(
            [message.as_dict() for message in messages], tokenize=False, add_generation_prompt=True
        )
        return list(self._base.tokenizer.encode(rendered, add_special_tokens=False))

    def stream(self, messages: Sequence[Message], sampling: Sampling, seed: int | None = None) -> Iterator[str]:
        """Yield the answer piece by piece; `usage` tells the cost afterwards, also of an answer that was cut off.

        Raises AfsError when the prompt leaves no room within `sampling.context_tokens`.
        """
        tokens = self.prompt_tokens(messages)
        room = min(sampling.max_tokens, sampling.context_tokens - len(tokens))
        if room < 1:
            raise AfsError(
                f"the prompt has {len(tokens)} tokens, the limit is {sampling.context_tokens}",
                "context_tokens",
                "shorten the question, /clear the conversation, or raise sampling.context_tokens in experts.toml",
            )
        if seed is not None:
            mx.random.seed(seed)
        sampler = make_sampler(temp=sampling.temperature, top_p=sampling.top_p if sampling.top_p < 1 else 0.0)
        began = time.monotonic()
        first_s, count, finish = 0.0, 0, "interrupted"
        # The one that mlx-lm takes for BPE swallows a space at the beginning: the indentation of assembly code.
        decoded = NaiveStreamingDetokenizer(self._base.tokenizer)
        held = StopFilter(sampling.stop)
        try:
            for response in stream_generate(
                self._base.model, self._base.tokenizer, mx.array(tokens), max_tokens=room, sampler=sampler
            ):
                first_s = first_s or time.monotonic() - began
                count = response.generation_tokens
                if response.finish_reason != "stop":  # then the token is the end token
                    decoded.add_token(response.token)
                if response.finish_reason:
                    decoded.finalize()
                text = held.feed(decoded.last_segment)
                if text:
                    yield text
                if held.stopped or response.finish_reason:
                    finish = "stop" if held.stopped else str(response.finish_reason)
                    break
            rest = held.flush()
            if rest:
                yield rest
        finally:
            answering_s = max(1e-9, time.monotonic() - began - first_s)
            self.usage = Usage(len(tokens), count, max(0, count - 1) / answering_s, first_s, finish)

    def answers(
        self,
        conversations: Sequence[Sequence[Message]],
        max_tokens: int,
        finished: Callable[[str], bool] = lambda _: False,
    ) -> Iterator[tuple[int, str]]:
        """Greedy answers to many conversations, several at a time; yields (index, answer) as each is done.

        An answer also ends when `finished` says so of its text so far.
        """
        generator = BatchGenerator(
            self._base.model,
            stop_tokens=[[token] for token in self._base.tokenizer.eos_token_ids],
            completion_batch_size=BATCH,
        )
        try:
            # Similar lengths together: a batch pads its prompts to the longest.
            prompts = [self.prompt_tokens(messages) for messages in conversations]
            order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
            numbers = generator.insert([prompts[i] for i in order], [max_tokens] * len(order))
            index_of = dict(zip(numbers, order, strict=True))
            produced: dict[int, list[int]] = {number: [] for number in numbers}
            while responses := generator.next_generated():
                for response in responses:
                    number = response.uid
                    if response.finish_reason != "stop":
                        produced[number].append(response.token)
                    text = self._base.tokenizer.decode(produced[number])
                    if response.finish_reason is None and finished(text):
                        generator.remove([number])
                    elif response.finish_reason is None:
                        continue
                    del produced[number]
                    yield index_of[number], text
        finally:
            generator.close()


class StopFilter:
    """Cuts a stream at the first stop text, holding back what could be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [text for text in stop if text]
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """The part of the stream that may be shown now."""
        self._held += text
        found = [self._held.find(stop) for stop in self._stop if stop in self._held]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((self._overlap(stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """What was held back when the stream ends without a stop text."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """How many characters at the end of the held text begin `stop`."""
        return next((n for n in range(min(len(stop) - 1, len(self._held)), 0, -1) if self._held.endswith(stop[:n])), 0)
