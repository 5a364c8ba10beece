"""One loaded model that answers: streamed for a person, batched for an evaluation. Keeps nothing between answers."""

from collections.abc import Callable, Iterator, Sequence

from mlx_lm.generate import BatchGenerator

from afs_mlx.engine.bases.loading import LoadedBase
from afs_mlx.engine.inference.decoding import Decoding, Usage
from afs_mlx.engine.inference.prompts import Prompts
from afs_mlx.schema.message import Message
from afs_mlx.schema.sampling import Sampling

__all__ = ["BATCH", "Generator", "Usage"]

BATCH = 32  # answers generated together


class Generator:
    """Turns conversations into answers."""

    def __init__(self, base: LoadedBase) -> None:
        self._base = base
        self._prompts = Prompts(base.tokenizer)
        self.usage: Usage | None = None

    def prompt_tokens(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation up to where the answer begins."""
        return self._prompts.tokens(messages)

    def stream(self, messages: Sequence[Message], sampling: Sampling, seed: int | None = None) -> Iterator[str]:
        """Yield the answer piece by piece; `usage` tells the cost afterwards, also of an answer that was cut off.

        Raises AfsError when the prompt leaves no room within `sampling.context_tokens`.
        """
        tokens, room = self._prompts.fitting(messages, sampling)
        decoding = Decoding(tokens)
        try:
            yield from decoding.pieces(self._base, sampling, room, seed)
        finally:
            self.usage = decoding.usage()

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
