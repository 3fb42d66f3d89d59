"""accelerate launch --config_file accelerate_configs/single_gpu.yaml -m grpo_math.sft --config recipes/sft_X.yaml

One SFT run, the warm start of a GRPO run, from top to bottom: the same problems as prompts and worked answers, TRL's
SFTTrainer. `grpo-math sft --config recipes/sft_X.yaml` is the same on one process. The worked solutions are written in
the prompt template's own answer style, and the loss is on them alone. A GRPO run starts from the result with
`model_name_or_path: runs/NAME`, a whole model or an adapter.
"""

import argparse
import functools
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_math.data import Problem, PromptTemplate, fingerprint, load_parts, mix_parts, to_dataset, token_ids
from grpo_math.errors import UserError, one_line
from grpo_math.evaluation import load_benchmarks
from grpo_math.grading import configure
from grpo_math.models import ModelSource, end_tokens, load_tokenizer, policy_arguments, widen
from grpo_math.recipe.recipe import Recipe, load_recipe
from grpo_math.report.model_card import push, write_card
from grpo_math.runs.checkpoints import find_checkpoint, finished_results, writes_to
from grpo_math.runs.folder import at_work, resume_command, write_results
from grpo_math.trainer.config import as_recipe, check_world, sft_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def main(options: argparse.Namespace) -> None:
    """The verb: train, and report where there are results; with --dry_run only check."""
    from grpo_math.checks import dry_run

    if options.dry_run:
        return dry_run(options.words)

    from grpo_math.report.report import report_end

    recipe = load_recipe(options.words, "SFT")
    report_end(sft(recipe), recipe.output_dir)


def sft(recipe: Recipe | str | Path, **overrides) -> dict:
    """Train a model on worked answers and return what results.json holds: steps, before, after, best, seconds; {} where
    the run was stopped. `overrides` replace keys of a recipe file. Raises UserError for mistakes in the recipe."""
    started = time.perf_counter()

    # The recipe, checked before torch and TRL are imported
    recipe = as_recipe(recipe, "SFT", overrides)
    folder, template, model = recipe.output_dir, recipe.template, ModelSource.of(recipe.keys)
    checkpoint = find_checkpoint(folder, recipe.trainer.get("resume_from_checkpoint"), recipe.raw)
    configure(recipe.grading)
    config = sft_config(recipe)
    check_world(recipe, config)
    if results := finished_results(folder, checkpoint, config.max_steps, config.num_train_epochs):
        return results

    from grpo_math.checks import check_training
    from grpo_math.trainer.alarms import Alarms
    from grpo_math.trainer.callbacks import Evaluations
    from grpo_math.trainer.checkpoints import save_whole
    from grpo_math.trainer.loop import begin, run
    from grpo_math.trainer.trainer import SupervisedTrainer

    with at_work(folder):
        # Problems, for training and for evaluation
        tokenizer = load_tokenizer(recipe.keys, template)
        pairs = Pairs(model, template, tokenizer, recipe.sft.worked, config.max_length)
        parts = load_parts(recipe.datasets, template, tokenizer, recipe.eval_datasets, pairs.unusable)
        problems = mix_parts(parts, recipe.datasets, config.seed)
        benchmarks = load_benchmarks(recipe.eval_datasets) if recipe.eval.wanted else []
        check_training(recipe, tokenizer, parts)
        pairs.check(problems[0])

        # Model and trainer
        policy = policy_arguments(recipe.keys, config)
        with one_line(f"{recipe.source}: TRL refused it"):
            trainer = SupervisedTrainer(
                **policy,
                args=config,
                train_dataset=to_dataset([pairs.row(problem) for problem in problems]),
                processing_class=tokenizer,
            )
        widen(trainer.model, model)

        with writes_to(folder):
            # Train, and evaluate before, during and after
            environment = begin(trainer, checkpoint, recipe.raw, recipe.dump(), fingerprint(problems))
            evaluations = Evaluations(recipe, tokenizer, benchmarks, trainer)
            again = resume_command(folder, "sft")
            results = run(trainer, evaluations, Alarms(folder, recipe.alarms), checkpoint, again)
            if not results:
                return {}

            # Save the model with its card, and the results
            save_whole(trainer, folder / "final", lambda final: write_card(recipe, final, results, environment))
            write_results(folder, results, started)
        push(trainer, folder / "final")
        return results


class Pairs:
    """Problems as rows of token ids for TRL. The ids of a prompt are those GRPO feeds, whatever text follows."""

    def __init__(
        self,
        model: ModelSource,
        template: PromptTemplate,
        tokenizer: "PreTrainedTokenizerBase",
        worked: bool,
        max_length: int | None,
    ):
        self.model, self.template, self.tokenizer, self.worked, self.max_length = (
            model,
            template,
            tokenizer,
            worked,
            max_length,
        )
        self.made: dict[tuple[str, str], tuple[array, array]] = {}  # by question and answer

    def row(self, problem: Problem) -> dict:
        prompt, completion = self.ids(problem)
        mask = [0] * len(prompt) + [1] * len(completion)  # the loss is where it is 1
        return {"input_ids": [*prompt, *completion], "completion_mask": mask}

    def target(self, problem: Problem) -> str:
        return self.template.target(problem, self.worked)

    def ids(self, problem: Problem) -> tuple[array, array]:
        """The token ids of the prompt, and of the completion with what ends it; kept, as they are wanted twice."""
        key = (problem.question, self.target(problem))
        if key not in self.made:
            self.made[key] = tuple(array("i", ids) for ids in self.tokenized(*key))
        return self.made[key]

    def tokenized(self, question: str, target: str) -> tuple[list[int], list[int]]:
        prompt = self.template.prompt(question, self.tokenizer)
        chat = isinstance(prompt, list)
        text = self.answer_in_chat(prompt, target) if chat else target
        completion = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return token_ids(prompt, self.tokenizer), completion if chat else [*completion, self.tokenizer.eos_token_id]

    def answer_in_chat(self, prompt: list[dict], target: str) -> str:
        """What the chat template makes of the answer; raises UserError where it makes another answer of it."""
        render = functools.partial(self.tokenizer.apply_chat_template, tokenize=False)
        before = render(prompt, add_generation_prompt=True)
        whole = render([*prompt, {"role": "assistant", "content": target}])
        answer = whole.removeprefix(before)
        if answer == whole or target not in answer:
            raise UserError(
                f"prompt_template: the chat template of {self.model.name} changes the answer: "
                f"{target!r:.60} becomes {answer!r:.60}: use one with chat: false, or with a prefill"
            )
        return answer

    def unusable(self, problem: Problem) -> str | None:
        """Why a problem cannot be trained on: TRL would silently cut one that is too long, and with it the answer."""
        if self.worked and not problem.worked:
            return "without a worked solution"
        fits = self.max_length is None or sum(map(len, self.ids(problem))) <= self.max_length
        return None if fits else f"over max_length {self.max_length} tokens"

    def check(self, problem: Problem) -> None:
        """Raise UserError where the chat template ends the answer with a token that ends no generation."""
        _, completion = self.ids(problem)
        last = next(token for token in reversed(completion) if self.tokenizer.decode([token]).strip())
        if last not in end_tokens(self.model, self.tokenizer):
            raise UserError(
                f"eos_token: the chat template of {self.model.name} ends an answer with "
                f"{self.tokenizer.decode([last])!r}, which ends no generation ({self.tokenizer.eos_token!r} does): set "
                "eos_token to the token that ends it"
            )


if __name__ == "__main__":
    from grpo_math.__main__ import run as run_verb

    run_verb("sft")
