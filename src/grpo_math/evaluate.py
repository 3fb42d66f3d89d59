"""Greedy accuracy and format accuracy on held-out problems, with transformers generation.

usage: grpo-math evaluate --config recipes/X.yaml [--model_name_or_path runs/X/final] [--key value ...]

Evaluates the recipe's model on its `eval:` problems, with the prompt template and the grader of training. Prints the
accuracy and keeps every completion in OUTPUT_DIR/evaluate/.
"""

import logging
import math
import re
import time
from dataclasses import asdict, dataclass
from statistics import NormalDist

from grpo_math.data import Problem, load_problems
from grpo_math.errors import UserError, one_line
from grpo_math.grading import configure, grade_batch, well_formed
from grpo_math.models import load_model, load_tokenizer
from grpo_math.prompts import PromptTemplate, token_ids
from grpo_math.recipe import Recipe, load_recipe
from grpo_math.run_folder import quiet_progress_bars, write_rows

logger = logging.getLogger(__name__)
DATASET_KEY = re.compile(r"(?<![\w./-])dataset\.(?:name|path|split|config|fields)\b")  # and no file's name


@dataclass(frozen=True)
class Evaluation:
    """Shares are in [0, 1], lengths in tokens, times in seconds; `interval` is accuracy's 95 % Wilson interval."""

    step: int
    problems: int
    accuracy: float
    interval: list[float]
    format_accuracy: float
    truncated: float
    mean_length: float
    seconds: float

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"accuracy {self.accuracy:.3f} (95 % interval {low:.3f}-{high:.3f}), format {self.format_accuracy:.3f}, "
            f"truncated {self.truncated:.3f}, mean length {self.mean_length:.0f} tokens, on {self.problems:,} problems"
        )


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share (Wilson 1927, JASA 22:209-212)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, denominator = successes / trials, 1 + z * z / trials
    center = (share + z * z / (2 * trials)) / denominator
    half = z * ((share * (1 - share) + z * z / (4 * trials)) / trials) ** 0.5 / denominator
    return max(0.0, center - half), min(1.0, center + half)


def generate_greedy(model, tokenizer, prompts: list, template: PromptTemplate, max_new_tokens: int, batch_size: int):
    """One greedy completion a prompt, as (text, length in tokens, truncated), in the order of the prompts.

    Prompts are batched by length, so that little is padded. The model's mode and random state stay as they were.
    """
    import torch
    from transformers import GenerationConfig

    ids = [token_ids(prompt, tokenizer) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    ends = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=pad,
        **template.generation_kwargs(use_vllm=False),
    )
    completions = [None] * len(prompts)
    was_training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        inputs = tokenizer.pad({"input_ids": [ids[i] for i in batch]}, padding_side="left", return_tensors="pt")
        with torch.no_grad():
            output = model.generate(**inputs.to(model.device), generation_config=config, tokenizer=tokenizer)
        for index, row in zip(batch, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            end = next((i for i, token in enumerate(row) if token in {*ends, pad}), len(row))
            text = tokenizer.decode(row[:end], skip_special_tokens=True)
            if any(stop in text for stop in template.stop):
                completions[index] = (text, end, False)
            else:
                completions[index] = (text, min(end + 1, len(row)), end == len(row))
    model.train(was_training)
    return completions


def grade_all(
    model, tokenizer, problems: list[Problem], template: PromptTemplate, max_new_tokens: int, batch_size: int
) -> list[dict]:
    """One row a problem: question, gold, completion, answer, correct, how, well_formed, length in tokens, truncated."""
    prompts = [template.prompt(problem.question, tokenizer) for problem in problems]
    completions = generate_greedy(model, tokenizer, prompts, template, max_new_tokens, batch_size)
    texts = [template.full_text(text) for text, _, _ in completions]
    grades = grade_batch(texts, [problem.answer for problem in problems], template.answer_style)
    return [
        {"question": problem.question, "gold": problem.answer, "completion": completion}
        | asdict(grade)
        | {"well_formed": well_formed(text, template.answer_style), "length": length, "truncated": truncated}
        for problem, (completion, length, truncated), text, grade in zip(
            problems, completions, texts, grades, strict=True
        )
    ]


def summarise(rows: list[dict], step: int, seconds: float) -> Evaluation:
    """Shares over all problems; one whose gold cannot be read counts as wrong."""
    count = len(rows)
    right = sum(row["correct"] is True for row in rows)
    return Evaluation(
        step=step,
        problems=count,
        accuracy=right / count,
        interval=list(wilson_interval(right, count)),
        format_accuracy=sum(row["well_formed"] for row in rows) / count,
        truncated=sum(row["truncated"] for row in rows) / count,
        mean_length=sum(row["length"] for row in rows) / count,
        seconds=round(seconds, 2),
    )


def evaluate(recipe: Recipe, model, tokenizer, problems: list[Problem], step: int = 0) -> tuple[Evaluation, list[dict]]:
    """The recipe's model on `problems`, split over all processes; every process gets the whole result.

    All take equally many (a problem may be solved twice): a sharded model generates on all processes or on none.
    """
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state, start = PartialState(), time.perf_counter()
    share = math.ceil(len(problems) / state.num_processes)
    mine = [(state.process_index + place * state.num_processes) % len(problems) for place in range(share)]
    max_new_tokens = recipe.eval.max_completion_length or recipe.max_completion_length
    rows = grade_all(
        model, tokenizer, [problems[i] for i in mine], recipe.template, max_new_tokens, recipe.eval.batch_size
    )
    gathered = dict(gather_object(list(zip(mine, rows, strict=True))))
    rows = [gathered[index] for index in range(len(problems))]
    return summarise(rows, step, time.perf_counter() - start), rows


def load_eval_problems(recipe: Recipe) -> list[Problem]:
    if recipe.eval_dataset is None:
        raise UserError("eval.dataset: missing: say which problems to evaluate on, eval: {dataset: {name: gsm8k}}")
    try:
        loaded = load_problems(recipe.eval_dataset)
    except UserError as error:
        raise UserError(DATASET_KEY.sub(r"eval.\g<0>", str(error))) from error
    logger.info("evaluating on %s", loaded)
    return loaded.problems


def main(argv: list[str]) -> None:
    recipe = load_recipe(argv)
    problems = load_eval_problems(recipe)
    name = f"{recipe.model['model_name_or_path']} {recipe.eval_dataset.title}".strip("./").replace("/", "-")
    file = recipe.output_dir / "evaluate" / f"{name.replace(' ', '-')}.jsonl"
    with one_line("output_dir"):
        file.parent.mkdir(parents=True, exist_ok=True)
    configure(recipe.grading)
    quiet_progress_bars()
    tokenizer = load_tokenizer(recipe)
    result, rows = evaluate(recipe, load_model(recipe), tokenizer, problems)
    write_rows(rows, file)
    print(result)
    print(f"completions: {file}")


if __name__ == "__main__":
    from grpo_math.__main__ import run

    run("evaluate")
