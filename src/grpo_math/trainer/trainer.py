"""TRL's GRPOTrainer and SFTTrainer where their public settings do not reach; compat.py lists every override."""

import contextlib
import copy
import functools
import itertools
import math
import time
import zlib
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer, SFTTrainer
from trl.trainer.utils import nanstd

from grpo_math.data import PromptTemplate, completion_text, unanswered, until_stop
from grpo_math.generation import for_logs, generating
from grpo_math.rewards import grades_of, is_column
from grpo_math.trainer import groups


class SupervisedTrainer(SFTTrainer):
    """Writes no model card of its own."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """TRL's names neither base model nor results; the final model gets ours."""


class Trainer(GRPOTrainer):
    """Handles the template's stop strings, REINFORCE without a baseline, groups of equal rewards, and dynamic sampling;
    resumes exactly.

    Stop strings: TRL 1.16 gives transformers' `generate` no tokenizer, without which it refuses stop strings, and takes
    the padding after a stopped completion for sampled tokens, in the loss too. vLLM handles them itself. With both, TRL
    takes a completion without an end token for a truncated one, and leaves what its last token has behind the string.

    `baseline`: `group` is GRPO's advantage, the reward less its group's mean; with `none` the advantage is the reward
    itself (Williams 1992, REINFORCE), and TRL's `scale_rewards` has to be `none` too.

    `rounds` above 1 is dynamic sampling (DAPO, arXiv:2503.14476, section 3.2): groups of equal rewards are replaced by
    groups of further prompts, generated in at most `rounds` rounds, the first included. All metrics of rewards and
    completions then describe the first round, which is what they describe without it, and
    `dynamic_sampling/generated_groups`, `/used_groups` (those with signal in the batch) and `/rounds` are added.

    Where the policy of the loss is the one that sampled, vLLM's importance-sampling ratio takes no pass of its own.

    Tools: a conversation without a final answer counts as truncated, and lengths are of the policy's own tokens.

    Logs with every step `time/generate`, `time/rewards` and `time/train`, in seconds per step, which add up to TRL's
    `step_time`, and `tokens_per_second`, of prompts and completions; of the groups, as shares, `completions/distinct`,
    `frac_tokens_zero_std` (tokens of completions without an advantage) and, of several rewards,
    `rewards/NAME/variance_share`. Adds to TRL's completion logs the columns question, solution, answer, correct, how,
    length (in tokens), truncated, reward and rewards/NAME.
    """

    def __init__(self, *, template: PromptTemplate, baseline: str = "group", rounds: int = 1, **arguments: Any):
        super().__init__(**arguments)
        self.template, self.baseline, self.rounds, self.round = template, baseline, rounds, 1
        self.size = cast(int, self.num_generations)  # completions per group
        self.keep_completions = False  # CompletionLogs: whether those of the next generation may be logged
        self.stop = () if self.use_vllm else template.stop
        self.tokenizer: PreTrainedTokenizerBase = arguments["processing_class"]
        self.opening = template.opening(self.tokenizer)
        schemas = (getattr(self.tokenizer, name, None) for name in ("response_template", "response_schema"))
        self.parsed = any(schema is not None for schema in schemas)  # TRL gives thinking a field of its own then
        self.seconds: dict[str, float] = defaultdict(float)  # since the last log
        self.tokens: int | None = None  # seen at the last log
        self.turn = 0  # of the conversations with tools
        self.own: dict[tuple[int, ...], int] = {}  # the policy's own tokens of completions with tool results
        self.correction = groups.Correction(self)
        if self.stop:
            policy = self.accelerator.unwrap_model(self.model)
            policy.generate = functools.partial(policy.generate, tokenizer=self.tokenizer)

    create_model_card = SupervisedTrainer.create_model_card

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
        them by the step and the round, alike on all ranks of an engine."""
        if not self.use_vllm or self.vllm_mode != "colocate":
            yield
            return
        engine = self.accelerator.process_index // self.vllm_tensor_parallel_size
        on_gpu = self.accelerator.device.type == "cuda"
        key = [self.args.seed, self.state.global_step, engine]
        key += [f"round {self.round}"] * (self.round > 1) + [f"turn {self.turn}"] * (self.turn > 0)
        seed, drawn = zlib.crc32(" ".join(map(str, key)).encode()), np.random.get_state()
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
        if self.rounds == 1:
            self.score(inputs, prompts, completions, completion_ids_list)
            self.trained = self.rewards_per_func
        if self.keep_completions:
            with self.timed("rewards"):
                self.describe_completions(inputs, completions, completion_ids_list)
        if self.tools:
            completions[:] = [[for_logs(message) for message in completion] for completion in completions]
            self.own.clear()
        return self.trained  # of all processes

    def score(self, inputs: list[dict], prompts: list, completions: list, completion_ids: list[list[int]]) -> None:
        """Set what all processes have `drawn`, a hash and a length in tokens per completion, and `rewards_per_func`;
        end the completions at stop strings."""
        with self.timed("rewards"):
            drawn = [(hash(tuple(ids)), self.length(ids)) for ids in completion_ids]
            self.drawn = self.accelerator.gather(torch.tensor(drawn, device=self.accelerator.device))
            if (self.opening or self.parsed) and not self.tools:
                completions[:] = map(self.whole_text, completions, completion_ids)
            if self.template.stop or self.tools:
                completions[:] = [self.stopped(completion) for completion in completions]
                self.log_lengths(self.truncated(completions, completion_ids))
            self.rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids)

    def _generate(self, prompts):
        generated = super()._generate(prompts)
        return generated if self.rounds == 1 else self.with_signal(prompts, generated)

    def with_signal(self, prompts: list, generated: tuple) -> tuple:
        """What TRL has generated for the prompts, scored, with the groups of equal rewards replaced by groups of
        further prompts as far as there are any; `prompts` and `self.inputs` are changed to theirs."""
        first, size = self.scored(self.inputs, prompts, generated), self.size
        rewards, drawn = self.rewards_per_func, self.drawn
        level = self.level(rewards).tolist()
        with self.metrics_kept():
            fresh, scores, further = self.further_groups(prompts, sum(level) // size)
        self.rewards_per_func, self.drawn = rewards, drawn
        self.trained = torch.stack(groups.replaced([*rewards], level, scores))
        before = sum(level[: self.accelerator.process_index * len(first)])
        batch = groups.replaced(first, self.mine(level), fresh[before:])
        used = (~self.level(self.trained)).sum().item() // size
        known = {"rounds": self.round, "generated_groups": len(level) // size + further, "used_groups": used}
        for name, value in known.items():
            self._metrics["train"][f"dynamic_sampling/{name}"].append(value)
        self.inputs[:], prompts[:], *parts, logged = map(list, zip(*batch, strict=True))
        for column in {column for row in logged for column in row}:
            self._pending_extra_logs[column] = [row.get(column) for row in logged]
        return tuple(new if is_column(old, len(first)) else old for old, new in zip(generated, parts, strict=True))

    def further_groups(self, prompts: list, missing: int) -> tuple[list[tuple], list[torch.Tensor], int]:
        """Groups with signal, of prompts that are not among these: their completions, of all processes, with their
        rewards, and how many groups were generated for them.

        Each round generates as many groups as are still missing, rounded up so that all processes generate equally many
        completions, until none is missing, or the rounds or the prompts are used up.
        """
        size, processes = self.size, self.accelerator.num_processes
        seen, multiple = {*gather_object([*{*map(str, prompts)}])}, processes // math.gcd(processes, size)
        more = groups.unseen(self.train_dataset, seen, (self.args.seed, self.state.global_step))
        fresh: list[tuple] = []
        scores: list[torch.Tensor] = []
        count = 0
        while self.round < self.rounds and (wanted := missing - len(fresh) // size) > 0:
            rows = list(itertools.islice(more, math.ceil(wanted / multiple) * multiple))
            rows = rows[: len(rows) // multiple * multiple]
            if not rows:
                break
            self.round, count = self.round + 1, count + len(rows)
            inputs = self.mine([dict(row) for row in rows for _ in range(size)])
            further = [row["prompt"] for row in inputs]
            found = self.scored(inputs, further, super()._generate(further))
            useful = ~self.level(self.rewards_per_func)
            fresh += gather_object([*itertools.compress(found, self.mine(useful).tolist())])
            scores += [*self.rewards_per_func[useful]]
        return fresh, scores, count

    def scored(self, inputs: list[dict], prompts: list, generated: tuple) -> list[tuple]:
        """This process's completions, scored: for each its input, its prompt, its part of all that TRL has generated,
        and its columns of the completion logs."""
        self.score(inputs, prompts, generated[3], generated[1])
        parts = [part if is_column(part, len(prompts)) else itertools.repeat(part) for part in generated]
        logged = [
            {name: values[place] for name, values in self._pending_extra_logs.items() if place < len(values)}
            for place in range(len(prompts))
        ]
        self._pending_extra_logs.clear()
        return list(zip(inputs, prompts, *parts, logged, strict=False))

    @contextlib.contextmanager
    def metrics_kept(self) -> Iterator[None]:
        """Leaves the metrics as they are, but for the number of tokens."""
        metrics, pending = copy.deepcopy((self._metrics["train"], self._pending_metrics))
        yield
        self._metrics["train"], self._pending_metrics = metrics, pending
        metrics["num_tokens"] = [self.state.num_input_tokens_seen]

    def whole_text(self, completion: str | list[dict], ids: list[int]) -> str | list[dict]:
        """The completion as an evaluation has it: in one piece, with the `<think>` that the chat template opened."""
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
        ended = [not ids or ids[-1] in self.eos_token_ids for ids in completion_ids]
        return [
            unanswered(one) or not (end or completion_text(one).endswith(self.template.stop))
            for one, end in zip(completions, ended, strict=True)
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
            "reward": self.mine(groups.weighted(self.trained, self.reward_weights)).tolist(),
        }
        for name, scores in zip(self.reward_func_names, self.mine(self.trained).T.tolist(), strict=True):
            columns[f"rewards/{name}"] = [None if math.isnan(score) else score for score in scores]
        for column, values in columns.items():
            self._log_completion_extra(column, values)

    def _generate_and_score_completions(self, inputs):
        self.inputs, self.round = inputs, 1
        with self.correction.left_out():
            batch = super()._generate_and_score_completions(inputs)
        self.log_groups()
        self.log_first_round()
        if self.baseline == "none":
            everyone = groups.weighted(self.trained, self.reward_weights)
        else:  # of all processes
            everyone = batch["advantages"].new_tensor(self._logs["advantages"])
            everyone = everyone.masked_fill(self.level(self.trained), 0.0)
        self._logs["advantages"] = deque(everyone.tolist(), maxlen=len(everyone))
        batch["advantages"] = self.mine(everyone)
        return batch

    def compute_loss(self, model, inputs, *arguments, **keywords):
        groups.trim(inputs, self.pad_to_multiple_of)
        with self.correction.in_loss(model, inputs):
            return super().compute_loss(model, inputs, *arguments, **keywords)

    def log_first_round(self) -> None:
        """How many groups and tokens are zero-std; with several rounds also the rewards, in place of TRL's, which
        are of the groups that are trained on."""
        metrics, scores = self._metrics["train"], self.rewards_per_func
        if self.rounds > 1:
            summed = groups.weighted(scores, self.reward_weights).masked_fill(scores.isnan().all(dim=1), torch.nan)
            names = [("reward", "reward_std")]
            names += [(f"rewards/{name}/mean", f"rewards/{name}/std") for name in self.reward_func_names]
            for (mean, deviation), values in zip(names, [summed, *scores.T], strict=True):
                metrics[mean][-1], metrics[deviation][-1] = values.nanmean().item(), nanstd(values).item()
            metrics["frac_reward_zero_std"][-1] = 0.0
        if self.baseline == "group":
            level, lengths = self.level(scores), self.drawn[:, 1].float()
            metrics["frac_tokens_zero_std"].append((lengths[level].sum() / lengths.sum()).item())
            logged = metrics["frac_reward_zero_std"]
            logged[-1] = max(logged[-1], level.float().mean().item())

    def log_groups(self) -> None:
        """How many of a group's completions are distinct, and which rewards tell them apart."""
        metrics, drawn = self._metrics["train"], self.drawn[:, 0].unflatten(0, (-1, self.size))
        metrics["completions/distinct"].append(sum(len(group.unique()) for group in drawn) / drawn.numel())
        if self.multi_objective_aggregation == "sum_then_normalize" and len(self.reward_func_names) > 1:
            shares = groups.variance_shares(self.rewards_per_func, self.reward_weights, self.size)
            for name, share in zip(self.reward_func_names, shares, strict=False):
                metrics[f"rewards/{name}/variance_share"].append(share)

    def level(self, rewards: torch.Tensor) -> torch.Tensor:
        """Whether each completion, of all processes, is in a zero-std group."""
        summed = self.multi_objective_aggregation == "sum_then_normalize"
        return groups.level(rewards, self.reward_weights, self.size, summed)

    def mine(self, values: Any) -> Any:
        """This process's rows of a tensor or list of all processes."""
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
