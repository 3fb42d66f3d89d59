"""TRL's GRPOTrainer where it needs a word from us."""

import functools

from trl import GRPOTrainer


class Trainer(GRPOTrainer):
    """Knows the prompt template's stop strings, and REINFORCE without a baseline; resumes from an adapter's checkpoint.

    `stop`: TRL 1.16 gives transformers' `generate` no tokenizer, without which it refuses stop strings, and takes the
    padding behind a stopped completion for sampled tokens, in the loss too. (vLLM stops by itself: give no `stop`.)

    `baseline`: `group` is GRPO's advantage, the reward less its group's mean; with `none` the advantage is the reward
    itself (Williams 1992, REINFORCE), and TRL's `scale_rewards` has to be `none` too.
    """

    def __init__(self, *, stop: tuple[str, ...] = (), baseline: str = "group", **arguments):
        super().__init__(**arguments)
        self.stop, self.baseline = stop, baseline
        if self.use_vllm:  # which knows only the end tokens of the model it loaded itself
            self.vllm_generation.generation_kwargs.setdefault("stop_token_ids", self.eos_token_ids)
        if stop:
            policy = self.accelerator.unwrap_model(self.model)
            policy.generate = functools.partial(policy.generate, tokenizer=self._tokenizer)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """transformers 5.17 restores the adapters in a checkpoint's folders (TRL's `ref`) but not the policy's."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        policy = self.accelerator.unwrap_model(model or self.model)
        if "ref" in getattr(policy, "peft_config", {}):
            policy.load_adapter(resume_from_checkpoint, "default", is_trainable=True)
            policy.set_adapter("default")

    def _generate_single_turn(self, *arguments, **keywords):
        completion_ids, logprobs = super()._generate_single_turn(*arguments, **keywords)
        return [self.sampled(ids) for ids in completion_ids] if self.stop else completion_ids, logprobs

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

    def _calculate_rewards(self, *arguments, **keywords):
        self.rewards_per_func = super()._calculate_rewards(*arguments, **keywords)  # of all processes
        return self.rewards_per_func

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        if self.baseline == "none":
            weighted = self.rewards_per_func * self.reward_weights.to(self.rewards_per_func.device)
            rewards, mine = weighted.nansum(dim=1), len(batch["advantages"])  # unscorable: 0, as in TRL
            batch["advantages"] = rewards[self.accelerator.process_index * mine :][:mine]
            logged = self._logs["advantages"]  # what log_completions shows
            for _ in rewards:
                logged.pop()
            logged.extend(rewards.tolist())
        return batch
