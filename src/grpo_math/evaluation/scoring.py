"""A recipe's rewards on the completions of an evaluation."""

import json
import random
from collections.abc import Iterator
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

from grpo_math.data import meta_columns, to_rows
from grpo_math.evaluation.solve import Benchmark
from grpo_math.generation.engines import same_random_state
from grpo_math.grading import Grade
from grpo_math.recipe.recipe import Recipe
from grpo_math.rewards import Reward, build_rewards, call_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerState

EVERYWHERE = {"solution", "question", "worked"}  # columns of all problems


class Scoring:
    """The rewards of a recipe (none where `eval.rewards` is false), for completions of the problems of `benchmarks`.

    They are copies unless `rewards` are given: what a reward remembers of a training is not changed by an evaluation.
    Not scored are a reward model, which only the training loads, and a reward that needs a column the problems lack, or
    the trainer's state outside of a training (`in_training`). A call of a reward has `eval.batch_size` completions, in
    whole problems.
    """

    def __init__(
        self,
        recipe: Recipe,
        benchmarks: list[Benchmark],
        tokenizer: "PreTrainedTokenizerBase",
        in_training: bool,
        rewards: list[Reward | str] | None = None,
    ):
        specs, spec = recipe.rewards if benchmarks and recipe.eval.rewards else [], recipe.eval
        if rewards is None:  # which loads people's own files
            skip = recipe.on_reward_error == "skip"
            rewards = build_rewards(specs, recipe.template, recipe.max_completion_length, skip)
        self.template, self.tokenizer = recipe.template, tokenizer
        self.weights = [one.weight for one in specs]
        self.rewards = dict(zip([one.name for one in specs], rewards, strict=True))
        self.size = max(1, spec.batch_size // spec.samples) * spec.samples
        self.problems = {one.title: one.problems for one in benchmarks}
        self.columns = {title: meta_columns(problems) for title, problems in self.problems.items()}
        known = EVERYWHERE | ({"trainer_state"} if in_training else set())
        self.obstacles = {
            title: {name: why for name, one in self.rewards.items() if (why := obstacle(one, known | there))}
            for title, there in self.columns.items()
        }

    def left_out(self) -> list[str]:
        """A line on each reward that is not scored."""
        return [
            f"evaluation on {title}: rewards/{name} and reward are not computed: rewards.{name} {why}"
            for title, obstacles in self.obstacles.items()
            for name, why in obstacles.items()
        ]

    def __call__(self, rows: list[dict], state: "TrainerState | None" = None) -> list[dict]:
        """The rows with `rewards/NAME`, the score of each reward or None, and `reward`, their weighted sum as in TRL:
        without those that are None, and None where all are. There is no `reward` where a reward is not scored."""
        return [row for batch in self.batches(rows) for row in self.scored(batch, state)]

    def batches(self, rows: list[dict]) -> Iterator[list[dict]]:
        """The rows of each call of a reward, in order, without what an earlier evaluation had scored."""
        rows = [{name: value for name, value in row.items() if not is_reward(name)} for row in rows]
        for title in self.problems:
            found = sorted((row for row in rows if row["dataset"] == title), key=itemgetter("problem", "sample"))
            yield from (found[place : place + self.size] for place in range(0, len(found), self.size))

    def scored(self, batch: list[dict], state: "TrainerState | None" = None) -> list[dict]:
        title = batch[0]["dataset"]
        wanted = {name: one for name, one in self.rewards.items() if name not in self.obstacles[title]}
        if not wanted:
            return batch
        problems = [self.problems[title][row["problem"]] for row in batch]
        given = call_arguments(
            [json.loads(row["conversation"]) if row.get("conversation") else row["completion"] for row in batch],
            to_rows(problems, self.template, self.tokenizer, self.columns[title]),
            self.tokenizer,
            state,
            [row.get("tokens") or row["length"] for row in batch],
        )
        given["grades"] = [Grade(row["answer"], row["correct"], row["how"]) for row in batch]
        scores = {f"rewards/{name}": one(**given) for name, one in wanted.items() if isinstance(one, Reward)}
        if len(wanted) == len(self.rewards):
            scores = {"reward": [self.weighted(some) for some in zip(*scores.values(), strict=True)]} | scores
        return [row | {name: values[place] for name, values in scores.items()} for place, row in enumerate(batch)]

    def weighted(self, scores: tuple[float | None, ...]) -> float | None:
        known = [weight * score for weight, score in zip(self.weights, scores, strict=True) if score is not None]
        return sum(known) if known else None


def obstacle(reward: Reward | str, there: set[str]) -> str:
    """Why it cannot be scored where rows have the columns `there`; empty where it can."""
    if isinstance(reward, str):
        return "is a reward model"
    missing = reward.missing(there) | (reward.gate.missing(there) if reward.gate else set())
    return f"needs {', '.join(sorted(missing))}" if missing else ""


def is_reward(name: str) -> bool:
    """Whether a column of a row is one of Scoring's."""
    return name == "reward" or name.startswith("rewards/")


def score_together(scoring: Scoring, rows: list[dict], state: "TrainerState") -> list[dict]:
    """`scoring` by all processes of a training, which have the same rows; each completion is scored by one of them, and
    the random states of the training stay."""
    from accelerate import PartialState
    from accelerate.utils import gather_object

    here, batches = PartialState(), list(scoring.batches(rows))
    mine = range(here.process_index, len(batches), here.num_processes)
    drawn = random.getstate(), np.random.get_state()
    with same_random_state():
        scored = [(place, scoring.scored(batches[place], state)) for place in mine]
    random.setstate(drawn[0])
    np.random.set_state(drawn[1])
    return [row for _, batch in sorted(gather_object(scored), key=itemgetter(0)) for row in batch]
