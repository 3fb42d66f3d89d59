"""One SFT run, the warm start of a GRPO run: the same problems as prompts with worked answers, TRL's SFTTrainer.

usage: accelerate launch --config_file accelerate_configs/single_gpu.yaml \\
           -m grpo_math.sft --config recipes/sft_X.yaml [--key value ...]
   or: grpo-math sft --config recipes/sft_X.yaml [--key value ...]

The worked solutions are written in the prompt template's own answer style, and the loss is on them alone. A GRPO run
starts from the result with `model_name_or_path: runs/NAME/final`, a whole model or an adapter.
"""

import time

from grpo_math import run_folder
from grpo_math.data import Problem
from grpo_math.errors import UserError, one_line
from grpo_math.evaluate import load_eval_problems
from grpo_math.grading import configure
from grpo_math.models import end_tokens, load_tokenizer, policy_arguments
from grpo_math.prompts import token_ids
from grpo_math.recipe import Recipe, load_recipe
from grpo_math.training import load_training_problems, run, to_dataset, trainer_arguments


def main(argv: list[str]) -> None:
    sft(load_recipe(argv, "SFT"))


def sft(recipe: Recipe) -> dict:
    """Train as the recipe says and return what results.json holds: steps, before, after, seconds."""
    started = time.perf_counter()
    checkpoint = run_folder.find_checkpoint(recipe)
    configure(recipe.grading)

    from trl import SFTConfig, SFTTrainer  # torch loads here; all of the recipe is checked by now

    from grpo_math.callbacks import callbacks

    with one_line(f"{recipe.source}: TRL refused it"):
        config = SFTConfig(**{"completion_only_loss": True} | trainer_arguments(recipe))
    if finished := run_folder.finished_results(recipe, checkpoint, config.max_steps):
        print(f"{recipe.output_dir}: already finished, {finished['steps']} steps")
        return finished
    run_folder.open_folder(recipe.output_dir)

    tokenizer = load_tokenizer(recipe)
    if config.eos_token:
        if config.eos_token not in tokenizer.get_vocab():
            raise UserError(f"eos_token: {config.eos_token!r} is no token of {recipe.model['model_name_or_path']}")
        tokenizer.eos_token = config.eos_token
    rows = Pairs(recipe, tokenizer, config.max_length)
    problems = load_training_problems(recipe, tokenizer, rows.unusable)
    rows.check(problems[0])
    measured, *others = callbacks(recipe, tokenizer, load_eval_problems(recipe) if recipe.eval.wanted else [])
    policy = policy_arguments(recipe, config)
    with one_line(f"{recipe.source}: TRL refused it"):
        trainer = SFTTrainer(
            **policy,
            args=config,
            train_dataset=to_dataset([rows.pair(problem) for problem in problems]),
            processing_class=tokenizer,
            callbacks=[measured, *others],
        )
    return run(recipe, trainer, problems, measured, checkpoint, started)


class Pairs:
    """Problems as TRL's prompt-completion rows, chats or plain text as the template says."""

    def __init__(self, recipe: Recipe, tokenizer, max_length: int | None):
        self.recipe, self.tokenizer, self.max_length = recipe, tokenizer, max_length

    def pair(self, problem: Problem) -> dict:
        prompt = self.recipe.template.prompt(problem.question, self.tokenizer)
        target = self.recipe.template.target(problem, self.recipe.sft.target == "worked")
        chat = isinstance(prompt, list)
        return {"prompt": prompt, "completion": [{"role": "assistant", "content": target}] if chat else target}

    def ids(self, problem: Problem) -> tuple[list[int], list[int]]:
        """The token ids of the prompt, and of prompt and completion, as TRL makes them."""
        pair = self.pair(problem)
        prompt = token_ids(pair["prompt"], self.tokenizer)
        if isinstance(pair["prompt"], list):
            messages = pair["prompt"] + pair["completion"]
            return prompt, self.tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        return prompt, [*token_ids(pair["prompt"] + pair["completion"], self.tokenizer), self.tokenizer.eos_token_id]

    def unusable(self, problem: Problem) -> str | None:
        """Why a problem cannot be trained on: TRL would silently cut one that is too long, and with it the answer."""
        if self.recipe.sft.target == "worked" and not problem.worked:
            return "without a worked solution"
        fits = self.max_length is None or len(self.ids(problem)[1]) <= self.max_length
        return None if fits else f"over max_length {self.max_length} tokens"

    def check(self, problem: Problem) -> None:
        """Raise UserError where the chat template would teach something else than the completion and its end."""
        prompt, whole = self.ids(problem)
        taught = self.tokenizer.decode(whole[len(prompt) :])
        target = self.recipe.template.target(problem, self.recipe.sft.target == "worked")
        name = self.recipe.model["model_name_or_path"]
        if whole[: len(prompt)] != prompt or not taught.strip().startswith(target):
            raise UserError(
                f"prompt_template: the chat template of {name} changes the answer: of {target!r:.60} it makes "
                f"{taught!r:.60}: use one with chat: false, or with a prefill"
            )
        ends = {self.tokenizer.eos_token_id, *end_tokens(name)}
        last = next(token for token in reversed(whole) if self.tokenizer.decode([token]).strip())
        if last not in ends:
            raise UserError(
                f"eos_token: the chat template of {name} ends an answer with {self.tokenizer.decode([last])!r}, which "
                f"ends no generation ({self.tokenizer.eos_token!r} does): set eos_token to the token that ends it"
            )


if __name__ == "__main__":
    from grpo_math.__main__ import run as run_verb

    run_verb("sft")
