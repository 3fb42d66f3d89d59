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
        """The tokens of a completion without the padding behind it.

        Where the pad token is also an end token, the last one is the policy's own unless a stop string came before.
        """
        pad, end = self._tokenizer.pad_token_id, len(ids)
        while end > 1 and ids[end - 1] == pad:
            end -= 1
        if pad in self.eos_token_ids and not any(stop in self._tokenizer.decode(ids[:end]) for stop in self.stop):
            return ids
        return ids[:end]
