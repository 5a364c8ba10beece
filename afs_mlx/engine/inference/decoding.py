"""From prompt tokens to pieces of text, on whatever model is handed in. Knows no messages, locks or stores."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.generate import stream_generate
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tokenizer_utils import NaiveStreamingDetokenizer

from afs_mlx.engine.bases.loading import LoadedBase
from afs_mlx.engine.inference.stop_filter import StopFilter
from afs_mlx.schema.sampling import Sampling


@dataclass(frozen=True)
class Usage:
    """What an answer cost. `finish` is "stop", "length" or, when the person ended it, "interrupted".

    `cached_tokens` of the prompt were not computed again; `first_token_s` counts from the request and holds
    `waited_s`, the time until the model was free or loaded.
    """

    prompt_tokens: int
    answer_tokens: int
    tokens_per_s: float
    first_token_s: float
    finish: str
    cached_tokens: int = 0
    waited_s: float = 0.0


@dataclass
class Decoding:
    """One answer on its way: the tokens so far, how it ended, and when the first one came."""

    prompt: list[int]
    began_s: float = field(default_factory=time.monotonic)
    produced: list[int] = field(default_factory=list)
    finish: str = "interrupted"
    first_s: float = 0.0
    cached_tokens: int = 0
    waited_s: float = 0.0

    def usage(self) -> Usage:
        """The cost up to now."""
        answering_s = max(1e-9, time.monotonic() - self.began_s - self.first_s)
        count = len(self.produced)
        speed = max(0, count - 1) / answering_s
        return Usage(len(self.prompt), count, speed, self.first_s, self.finish, self.cached_tokens, self.waited_s)

    def pieces(
        self,
        base: LoadedBase,
        sampling: Sampling,
        room: int,
        seed: int | None,
        cache: list[Any] | None = None,
        computed: int = 0,
    ) -> Iterator[str]:
        """Yield the text of at most `room` tokens; `cache` holds the first `computed` ones and grows by the others."""
        if seed is not None:
            mx.random.seed(seed)
        sampler = make_sampler(temp=sampling.temperature, top_p=sampling.top_p if sampling.top_p < 1 else 0.0)
        # The one that mlx-lm takes for BPE swallows a space at the beginning: the indentation of assembly code.
        decoded = NaiveStreamingDetokenizer(base.tokenizer)
        held = StopFilter(sampling.stop)
        rest = mx.array(self.prompt[computed:])
        for response in stream_generate(
            base.model, base.tokenizer, rest, max_tokens=room, sampler=sampler, prompt_cache=cache
        ):
            self.first_s = self.first_s or time.monotonic() - self.began_s
            self.produced.append(response.token)
            if response.finish_reason != "stop":  # then the token is the end token
                decoded.add_token(response.token)
            if response.finish_reason:
                decoded.finalize()
            text = held.feed(decoded.last_segment)
            if text:
                yield text
            if held.stopped or response.finish_reason:
                self.finish = "stop" if held.stopped else str(response.finish_reason)
                break
        if rest_text := held.flush():
            yield rest_text
