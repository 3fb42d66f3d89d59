"""TRL's GRPOTrainer where it needs a word from us."""

import contextlib
import functools
import math
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch.nn.functional import pad
from trl import GRPOTrainer, SFTTrainer

from grpo_math.errors import UserError
from grpo_math.generation.engines import generating
from grpo_math.runs.checkpoints import WholeCheckpoints
from grpo_math.trainer.rollouts import Rollouts
from grpo_math.trainer.trackers import log_completions

ROUNDING = 1e-6  # of equal rewards, summed in float32


class SupervisedTrainer(WholeCheckpoints, SFTTrainer):
    """With checkpoints that are whole."""


class Trainer(WholeCheckpoints, GRPOTrainer):
    """Knows the prompt template's stop strings, and REINFORCE without a baseline; keeps completions; resumes exactly.

    `stop`: TRL 1.16 gives transformers' `generate` no tokenizer, without which it refuses stop strings, and takes the
    padding behind a stopped completion for sampled tokens, in the loss too. (vLLM stops by itself: give no `stop`.)

    `baseline`: `group` is GRPO's advantage, the reward less its group's mean; with `none` the advantage is the reward
    itself (Williams 1992, REINFORCE), and TRL's `scale_rewards` has to be `none` too.

    Exactly: a checkpoint in the middle of a rollout holds the rollout, a later epoch has the order of problems it would
    have had, and a colocated vLLM samples with a seed of the step's own.

    Logs with every step `time/generate`, `time/rewards` and `time/train`, in seconds a step, which add up to TRL's
    `step_time`, and `tokens_per_second`, of prompts and completions.
    """

    def __init__(self, *, rollouts: Rollouts, stop: tuple[str, ...] = (), baseline: str = "group", **arguments):
        super().__init__(**arguments)
        self.rollouts, self.stop, self.baseline = rollouts, stop, baseline
        self.seconds, self.tokens = Counter(), 0  # since the last log
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

    def _get_train_sampler(self, dataset=None):
        self.sampler = super()._get_train_sampler(dataset)
        return self.sampler

    def _run_epoch(self, *, epoch: int, **arguments):
        """TRL's sampler draws one order after the other: a resumed run has to skip those of the epochs before."""
        if self.args.shuffle_dataset and self.sampler.seed is not None:
            self.sampler.generator.manual_seed(self.sampler.seed)
            for _ in range(epoch):
                torch.randperm(self.sampler.num_samples, generator=self.sampler.generator)
        super()._run_epoch(epoch=epoch, **arguments)

    def rollout_file(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"rollout_{self.args.process_index}.pt"

    def _save_rng_state(self, output_dir):
        """With the rollout, where the checkpoint is in the middle of one."""
        super()._save_rng_state(output_dir)
        done = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        rollout = {"step": self._step, "shape": self.rollout_shape(), "inputs": None if done else self._buffered_inputs}
        torch.save(rollout, self.rollout_file(output_dir))

    def rollout_shape(self) -> dict[str, int]:
        names = ("steps_per_generation", "num_iterations", "num_generations", "per_device_train_batch_size")
        return {name: getattr(self.args, name) for name in names}

    def _load_rng_state(self, checkpoint):
        super()._load_rng_state(checkpoint)
        if checkpoint and (file := self.rollout_file(checkpoint)).exists():
            rollout = torch.load(file, map_location=self.accelerator.device, weights_only=True)
            if rollout["inputs"] and rollout["shape"] != self.rollout_shape():
                made = ", ".join(f"{name} {value}" for name, value in rollout["shape"].items())
                raise UserError(
                    f"resume_from_checkpoint: {checkpoint} is in the middle of a rollout made with {made}: keep these, "
                    "or resume from a checkpoint between two rollouts"
                )
            self._step, self._buffered_inputs = rollout["step"], rollout["inputs"]

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - started

    def _generate(self, prompts):
        before = self.state.num_input_tokens_seen
        with self.timed("generate"):
            generated = super()._generate(prompts)
        self.tokens += self.state.num_input_tokens_seen - before
        return generated

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *rest, **further):
        """Without the columns that only pad the pass: TRL pads all passes to the longest of their rollout.

        As TRL does it where log-probabilities of different passes are compared: at another width 16-bit passes round
        otherwise, and the policy would differ from itself.
        """
        logprobs = super()._get_per_token_logps_and_entropies
        if self.compares or self.pad_to_multiple_of:
            return logprobs(model, input_ids, attention_mask, logits_to_keep, *rest, **further)
        used, first = attention_mask.any(dim=0).nonzero(), input_ids.size(1) - logits_to_keep  # `first` is sampled
        start, end = min(used[0].item(), first - 1), max(used[-1].item(), first) + 1
        ids, mask = input_ids[:, start:end], attention_mask[:, start:end]
        found = logprobs(model, ids, mask, end - first, *rest, **further)
        behind = (0, input_ids.size(1) - end)
        return tuple(pad(one, behind) if one is not None and one.dim() else one for one in found)

    @property
    def compares(self) -> bool:
        """Whether TRL computes the log-probabilities of a reference or of the policy that generated."""
        every = self.args.steps_per_generation * self.num_iterations
        corrects = self.use_vllm and self.vllm_importance_sampling_correction
        return self.beta != 0 or corrects or self.args.gradient_accumulation_steps % every != 0

    def _generate_single_turn(self, *arguments, **keywords):
        with self.step_seed(), generating(self):
            completion_ids, logprobs = super()._generate_single_turn(*arguments, **keywords)
        return [self.sampled(ids) for ids in completion_ids] if self.stop else completion_ids, logprobs

    @contextlib.contextmanager
    def step_seed(self) -> Iterator[None]:
        """A colocated vLLM draws from torch's generators. The processes of one engine have to draw alike."""
        if not self.use_vllm or self.vllm_mode != "colocate":
            yield
            return
        engine = self.accelerator.process_index // self.vllm_tensor_parallel_size
        on_gpu = self.accelerator.device.type == "cuda"
        with torch.random.fork_rng([self.accelerator.device] if on_gpu else []):
            torch.manual_seed(zlib.crc32(f"{self.args.seed} {self._step} {engine}".encode()))
            yield

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

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        with self.timed("rewards"):
            self.rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self.scored = (inputs, completions, completion_ids_list)
        return self.rewards_per_func  # of all processes

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        if self.baseline == "none":
            batch["advantages"] = self.mine(self.weighted_rewards())
        else:
            batch["advantages"] = batch["advantages"].masked_fill(self.mine(self.level_groups()), 0.0)
        stride = self.args.steps_per_generation * self.num_iterations // self.args.gradient_accumulation_steps
        if self.rollouts.wanted(self.state, max(1, stride)):
            self.keep(batch["advantages"])
        return batch

    def level_groups(self) -> torch.Tensor:
        """Whether each completion, of all processes, is of a group in which all that can be scored earn the same: by
        every reward where TRL normalizes each, else in sum.

        TRL subtracts a mean that float32 has rounded: eight rewards of 0.2 then have advantages of 1.5e-4, which Adam
        makes steps of, and no group counts as one of zero deviation.
        """
        scores = self.rewards_per_func[:, self.reward_weights.to(self.rewards_per_func.device) != 0]
        if self.multi_objective_aggregation == "sum_then_normalize":
            unscorable = self.rewards_per_func.isnan().all(dim=1)
            scores = self.weighted_rewards().masked_fill(unscorable, torch.nan).unsqueeze(1)
        groups = scores.unflatten(0, (-1, self.num_generations))
        low = groups.masked_fill(groups.isnan(), torch.inf).amin(dim=1)
        high = groups.masked_fill(groups.isnan(), -torch.inf).amax(dim=1)
        level = (high - low <= ROUNDING * torch.maximum(high.abs(), low.abs())).all(dim=1)
        logged = self._metrics["train"]["frac_reward_zero_std"]
        logged[-1] = max(logged[-1], level.float().mean().item())
        return level.repeat_interleave(self.num_generations)

    def weighted_rewards(self) -> torch.Tensor:
        """Of all processes; an unscorable completion's is 0, as in TRL."""
        return (self.rewards_per_func * self.reward_weights.to(self.rewards_per_func.device)).nansum(dim=1)

    def mine(self, values: torch.Tensor) -> torch.Tensor:
        """This process's part of what is known of all."""
        count = len(values) // self.accelerator.num_processes
        return values[self.accelerator.process_index * count :][:count]

    def keep(self, advantages: torch.Tensor) -> None:
        step = self.state.global_step + 1
        rows = self.rollouts.rows(step, *self.scored, set(self.eos_token_ids))
        scores, rewards = self.mine(self.rewards_per_func).tolist(), self.mine(self.weighted_rewards()).tolist()
        for row, given, reward, advantage in zip(rows, scores, rewards, advantages.tolist(), strict=True):
            for name, score in zip(self.reward_func_names, given, strict=True):
                row[f"rewards/{name}"] = None if math.isnan(score) else score
            row |= {"reward": reward, "advantage": advantage}
        rows = gather_object(rows)
        if self.is_world_process_zero():
            self.rollouts.write(rows, step)
            log_completions(self, rows, step)

    def log(self, logs, start_time=None):
        steps = self._metrics["train"]["step_time"]
        if "loss" in logs and steps:
            known = {f"time/{part}": self.seconds[part] / len(steps) for part in ("generate", "rewards")}
            logs |= known | {"time/train": sum(steps) / len(steps) - sum(known.values())}
            logs["tokens_per_second"] = self.tokens / sum(steps)
            self.seconds.clear()
            self.tokens = 0
        super().log(logs, start_time)
