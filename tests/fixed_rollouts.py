"""Only for tests: completions that depend on the prompt and the place in its group, on any number of processes.

A recipe's own reward, whose file the trainer imports before it builds anything.
"""

import torch

from grpo_math.trainer.trainer import Trainer


def fixed(self, prompt_ids, images, fields, num_generations, *_):
    rollouts = []
    for place, ids in enumerate(prompt_ids, start=self.accelerator.process_index * len(prompt_ids)):
        noise = torch.Generator().manual_seed(sum(ids) * 100 + place % num_generations)
        rollouts.append(
            torch.randint(5, len(self._tokenizer), (3 + place % num_generations,), generator=noise).tolist()
        )
    return rollouts, None


Trainer._generate_single_turn = fixed


def reward(completions, completion_ids, **_):
    return [sum(ids) % 11 / 11 for ids in completion_ids]


def rare(completion_ids, question, log_extra, **_):
    """Tells the completions apart for the problems with "gets 1 more" alone: a third of them."""
    log_extra("first", [ids[0] for ids in completion_ids])
    return [sum(ids) % 11 / 11 if " gets 1 " in one else 0.0 for ids, one in zip(completion_ids, question, strict=True)]
