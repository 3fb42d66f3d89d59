"""TRL's GRPOTrainer and SFTTrainer where their public settings do not reach; compat.py lists every override."""

import contextlib
import functools
import json
import math
import time
import zlib
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer, SFTTrainer

from grpo_math.data import PromptTemplate, completion_text, unanswered, until_stop
from grpo_math.generation import generating
from grpo_math.rewards import grades_of

ROUNDING = 1e-6  # of equal rewards, summed in float32


class SupervisedTrainer(SFTTrainer):
    """Writes no model card of its own."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """TRL's names neither base model nor results; the final model gets ours."""


class Trainer(GRPOTrainer):
    """Handles the template's stop strings, REINFORCE without a baseline, and groups of equal rewards; resumes exactly.

    Stop strings: TRL 1.16 gives transformers' `generate` no tokenizer, without which it refuses stop strings, and takes
    the padding after a stopped completion for sampled tokens, in the loss too. vLLM handles them itself. With both, TRL
    takes a completion without an end token for a truncated one, and leaves what its last token has behind the string.

    `baseline`: `group` is GRPO's advantage, the reward less its group's mean; with `none` the advantage is the reward
    itself (Williams 1992, REINFORCE), and TRL's `scale_rewards` has to be `none` too.

    Tools: a conversation without a final answer counts as truncated, and lengths are of the policy's own tokens.

    Logs with every step `time/generate`, `time/rewards` and `time/train`, in seconds per step, which add up to TRL's
    `step_time`, and `tokens_per_second`, of prompts and completions; of the groups, as shares, `completions/distinct`,
    `frac_tokens_zero_std` (tokens of completions without an advantage) and, of several rewards,
    `rewards/NAME/variance_share`. Adds to TRL's completion logs the columns question, solution, answer, correct, how,
    length (in tokens), truncated, reward and rewards/NAME.
    """

    def __init__(self, *, template: PromptTemplate, baseline: str = "group", **arguments: Any):
        super().__init__(**arguments)
        self.template, self.baseline = template, baseline
        self.keep_completions = False  # CompletionLogs: whether those of the next generation may be logged
        self.stop = () if self.use_vllm else template.stop
        self.tokenizer: PreTrainedTokenizerBase = arguments["processing_class"]
        self.opening = template.opening(self.tokenizer)
        self.seconds: dict[str, float] = defaultdict(float)  # since the last log
        self.tokens: int | None = None  # seen at the last log
        self.turn = 0  # of the conversations with tools
        self.own: dict[tuple[int, ...], int] = {}  # the policy's own tokens of completions with tool results
        if self.stop:
            policy = self.accelerator.unwrap_model(self.model)
            policy.generate = functools.partial(policy.generate, tokenizer=self.tokenizer)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """TRL's names neither base model nor results; the final model gets ours."""

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - started

    def _generate_single_turn(self, *arguments, **keywords):
        if self.tokens is None:
            self.tokens = self.state.num_input_tokens_seen
        with self.timed("generate"), self.step_seed(), generating(self):
            completion_ids, logprobs = super()._generate_single_turn(*arguments, **keywords)
        self.turn += bool(self.tools)
        return [self.sampled(ids) for ids in completion_ids] if self.stop else completion_ids, logprobs

    def _tool_call_loop(self, *arguments):
        started, generated = time.perf_counter(), self.seconds["generate"]
        found = super()._tool_call_loop(*arguments)
        self.seconds["tools"] += time.perf_counter() - started - (self.seconds["generate"] - generated)
        self.own |= {tuple(ids): sum(mask) for ids, mask in zip(found[2], found[0], strict=True)}
        self.turn = 0
        return found

    @contextlib.contextmanager
    def step_seed(self) -> Iterator[None]:
        """A colocated vLLM draws from torch's generators and, for each request's seed, NumPy's (model runner V2): seed
        them by the step, alike on all ranks of an engine."""
        if not self.use_vllm or self.vllm_mode != "colocate":
            yield
            return
        engine = self.accelerator.process_index // self.vllm_tensor_parallel_size
        on_gpu = self.accelerator.device.type == "cuda"
        turn = f" turn {self.turn}" if self.turn else ""
        key = f"{self.args.seed} {self.state.global_step} {engine}{turn}"
        seed, drawn = zlib.crc32(key.encode()), np.random.get_state()
        with torch.random.fork_rng([self.accelerator.device] if on_gpu else []):
            torch.manual_seed(seed)
            np.random.seed(seed)
            yield
        np.random.set_state(drawn)

    def sampled(self, ids: list[int]) -> list[int]:
        """The tokens of a completion without the padding after it.

        Where the pad token is also an end token, the last one is the policy's own unless a stop string came before.
        """
        tokenizer, end = self.tokenizer, len(ids)
        while end > 1 and ids[end - 1] == tokenizer.pad_token_id:
            end -= 1
        text = tokenizer.decode(ids[:end])
        if tokenizer.pad_token_id in self.eos_token_ids and not any(stop in text for stop in self.stop):
            return ids
        return ids[:end]

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        with self.timed("rewards"):
            drawn = [(hash(tuple(ids)), self.length(ids)) for ids in completion_ids_list]
            self.drawn = self.accelerator.gather(torch.tensor(drawn, device=self.accelerator.device))
            if not self.tools:
                completions[:] = map(self.as_text, completions, completion_ids_list)
            if self.template.stop or self.tools:
                completions[:] = [self.stopped(completion) for completion in completions]
                self.log_lengths(self.truncated(completions, completion_ids_list))
            self.rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            if self.keep_completions:
                self.describe_completions(inputs, completions, completion_ids_list)
            if self.tools:
                completions[:] = [[for_logs(message) for message in completion] for completion in completions]
                self.own.clear()
        return self.rewards_per_func  # of all processes

    def as_text(self, completion: str | list[dict], ids: list[int]) -> str | list[dict]:
        """The completion as an evaluation has it: with the `<think>` that the chat template opened, and in one piece,
        where TRL gives thinking a field of its own (for a tokenizer with a response schema)."""
        text = self.opening + str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return text if isinstance(completion, str) else [{"role": "assistant", "content": text}]

    def length(self, ids: list[int]) -> int:
        """In tokens, without those of tool results, as TRL counts."""
        return self.own.get(tuple(ids), len(ids))

    def stopped(self, completion: str | list[dict]) -> str | list[dict]:
        """The completion without the text behind a stop string."""
        if isinstance(completion, str):
            return until_stop(completion, self.template.stop)
        *before, last = completion
        ended = last if unanswered(completion) else {**last, "content": until_stop(last["content"], self.template.stop)}
        return [*before, ended]

    def truncated(self, completions: list, completion_ids: list[list[int]]) -> list[bool]:
        """Whether neither an end token nor a stop string ends a completion, or it ends without a final answer."""
        return [
            unanswered(one)
            or (
                bool(ids)
                and ids[-1] not in self.eos_token_ids
                and not completion_text(one).endswith(self.template.stop)
            )
            for one, ids in zip(completions, completion_ids, strict=True)
        ]

    def log_lengths(self, truncated: list[bool]) -> None:
        """In place of what TRL logs, which takes end tokens alone for ends."""
        cut = self.accelerator.gather(torch.tensor(truncated, device=self.accelerator.device))
        ended = torch.zeros(1) if cut.all() else self.drawn[~cut, 1].float()
        known = {"clipped_ratio": cut.float().mean(), "mean_terminated_length": ended.mean()}
        known |= {"min_terminated_length": ended.min(), "max_terminated_length": ended.max()}
        for name, value in known.items():
            self._metrics["train"][f"completions/{name}"][-1] = value.item()

    def describe_completions(self, inputs: list[dict], completions: list, completion_ids: list[list[int]]) -> None:
        texts, golds = [completion_text(completion) for completion in completions], [row["solution"] for row in inputs]
        full = tuple(self.template.full_text(text) for text in texts)
        grades = grades_of(full, tuple(golds), self.template.answer_style)
        columns = {
            "question": [row["question"] for row in inputs],
            "solution": golds,
            **{name: [getattr(grade, name) for grade in grades] for name in ("answer", "correct", "how")},
            "length": [self.length(ids) for ids in completion_ids],
            "truncated": self.truncated(completions, completion_ids),
            "reward": self.mine(self.weighted_rewards()).tolist(),
        }
        for name, scores in zip(self.reward_func_names, self.mine(self.rewards_per_func).T.tolist(), strict=True):
            columns[f"rewards/{name}"] = [None if math.isnan(score) else score for score in scores]
        for column, values in columns.items():
            self._log_completion_extra(column, values)

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        self.log_groups()
        if self.baseline == "none":
            everyone = self.weighted_rewards()
        else:  # of all processes
            level, lengths = self.level_groups(), self.drawn[:, 1].float()
            self._metrics["train"]["frac_tokens_zero_std"].append((lengths[level].sum() / lengths.sum()).item())
            everyone = batch["advantages"].new_tensor(self._logs["advantages"]).masked_fill(level, 0.0)
        self._logs["advantages"] = deque(everyone.tolist(), maxlen=len(everyone))
        batch["advantages"] = self.mine(everyone)
        return batch

    def log_groups(self) -> None:
        """How many of a group's completions are distinct, and which rewards tell them apart: reward k has the share
        cov(w_k r_k, R) / var(R) of the variance of R = sum of w_k r_k within the groups; all shares add up to 1."""
        metrics, groups = self._metrics["train"], self.drawn[:, 0].unflatten(0, (-1, self.num_generations))
        metrics["completions/distinct"].append(sum(len(group.unique()) for group in groups) / groups.numel())
        scores = self.rewards_per_func * self.reward_weights.to(self.rewards_per_func.device)
        scores = scores.nan_to_num().masked_fill(scores.isnan().all(dim=1, keepdim=True), torch.nan)
        scores = scores.unflatten(0, (-1, self.num_generations))
        apart = (scores - scores.nanmean(dim=1, keepdim=True)).nan_to_num()
        total = apart.sum(dim=2, keepdim=True)
        summed = self.multi_objective_aggregation == "sum_then_normalize" and len(self.reward_func_names) > 1
        if summed and (variance := total.square().sum()) > ROUNDING:
            shares = ((apart * total).sum(dim=(0, 1)) / variance).tolist()
            for name, share in zip(self.reward_func_names, shares, strict=True):
                metrics[f"rewards/{name}/variance_share"].append(share)

    def level_groups(self) -> torch.Tensor:
        """Whether each completion, of all processes, is in a group whose scorable completions all earn the same: by
        every reward where TRL normalizes each, else in sum.

        TRL subtracts a mean rounded to float32: eight rewards of 0.2 get advantages of 1.5e-4, which Adam turns into
        steps, and no such group counts as one of zero deviation.
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
        """This process's rows of a tensor of all processes."""
        count = len(values) // self.accelerator.num_processes
        return values[self.accelerator.process_index * count :][:count]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        steps = self._metrics["train"]["step_time"]
        if "loss" in logs and steps:
            seen = self.state.num_input_tokens_seen
            parts = ("generate", "rewards", *(["tools"] if self.tools else []))
            known = {f"time/{part}": self.seconds[part] / len(steps) for part in parts}
            logs |= known | {"time/train": sum(steps) / len(steps) - sum(known.values())}
            logs["tokens_per_second"] = (seen - (self.tokens or 0)) / sum(steps)
            self.seconds.clear()
            self.tokens = seen
        super().log(logs, start_time)


def for_logs(message: dict) -> dict:
    """The message with its tool calls as JSON: the arguments of different calls have no common type in a table."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, default=str) for name, value in message.items()
    }
