"""TRL's GRPOTrainer where it needs a word from us."""

import functools

from trl import GRPOTrainer


class StopStringTrainer(GRPOTrainer):
    """Ends transformers' completions at the prompt template's stop strings, as vLLM does by itself.

    TRL 1.16 gives `generate` no tokenizer, without which transformers refuses stop strings, and it takes the padding
    behind a stopped completion for sampled tokens, in the loss too.
    """

    def __init__(self, *, stop: tuple[str, ...], processing_class, **arguments):
        super().__init__(processing_class=processing_class, **arguments)
        self.stop = stop
        policy = self.accelerator.unwrap_model(self.model)
        policy.generate = functools.partial(policy.generate, tokenizer=processing_class)

    def _generate_single_turn(self, *arguments, **keywords):
        completion_ids, logprobs = super()._generate_single_turn(*arguments, **keywords)
        return [self.sampled(ids) for ids in completion_ids], logprobs

    def sampled(self, ids: list[int]) -> list[int]:
        """The tokens of a completion without the padding (or end token) that follows a stop string."""
        filler = {self._tokenizer.pad_token_id, *self.eos_token_ids}
        length = len(ids)
        while length and ids[length - 1] in filler:
            length -= 1
        text = self._tokenizer.decode(ids[:length])
        return ids[:length] if any(stop in text for stop in self.stop) else ids
