"""How many prompts and completions a step takes, and how they are divided among processes and passes.

A step is one optimizer step. Its completions are divided among all processes; each takes its share in passes (forward,
backward) of `per_device_train_batch_size` completions, `gradient_accumulation_steps` of them.
"""

import math
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING

from grpo_math.errors import UserError

if TYPE_CHECKING:
    from trl import GRPOConfig

LARGEST_PASS = 8  # completions, TRL's default


def world_size() -> int:
    """The number of processes of the run this process belongs to."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the first process of the run, or its only one; known before accelerate is imported."""
    return os.environ.get("RANK", "0") == "0"


def count(number: int, word: str) -> str:
    return f"{number} {word}{'es' if number > 1 else ''}"


def batch_arguments(given: dict, prompts: int | None, processes: int) -> dict:
    """TRL's two batch keys for a step of `prompts` prompts (the recipe's `prompts_per_step`); {} without it.

    Given keys are kept. Raises UserError, with the numbers, where they contradict the prompts, where the
    completions cannot be divided evenly, or where a step has no whole groups.
    """
    device, passes = given.get("per_device_train_batch_size"), given.get("gradient_accumulation_steps")
    generations = given.get("num_generations", 8)
    if prompts is None:
        check_groups(device or LARGEST_PASS, passes or 1, processes, generations, given)
        return {}
    completions = prompts * generations
    share, rest = divmod(completions, processes)
    step = f"{prompts} prompts x num_generations {generations} = {completions} completions"
    if rest:
        unit = processes // math.gcd(processes, generations)
        raise UserError(
            f"prompts_per_step: {step} cannot be divided evenly among {processes} processes: give a multiple of {unit} "
            "prompts"
        )
    for key, part in (("per_device_train_batch_size", device), ("gradient_accumulation_steps", passes)):
        if part and share % part:
            raise UserError(
                f"{key}: {part} does not divide the {share} completions of a process ({step}, {processes} processes): "
                "leave it out, or make it a divisor"
            )
    if device is None and passes is None:
        device = max(size for size in range(1, LARGEST_PASS + 1) if share % size == 0)
    device = device or share // passes
    passes = passes or share // device
    if device * passes != share:
        raise UserError(
            f"prompts_per_step: {step}, but per_device_train_batch_size {device} x gradient_accumulation_steps "
            f"{passes} x processes {processes} = {device * passes * processes}: leave out one of the three"
        )
    return {"per_device_train_batch_size": device, "gradient_accumulation_steps": passes}


def check_groups(device: int, passes: int, processes: int, generations: int, given: dict) -> None:
    """The completions of a step must be whole groups. TRL checks a recipe's own generation batches."""
    completions = device * passes * processes
    if completions % generations and not {"generation_batch_size", "steps_per_generation"} & given.keys():
        raise UserError(
            f"num_generations: {generations} does not divide the {completions} completions of a step ("
            f"per_device_train_batch_size {device} x gradient_accumulation_steps {passes} x processes {processes}): "
            "make it a divisor, or set prompts_per_step instead"
        )


def describe_batch(config: "GRPOConfig | SimpleNamespace", processes: int, problems: int, rounds: int = 1) -> str:
    """A table of what a step takes, and how many make an epoch. `config` has the keys of a GRPOConfig, `rounds` are
    those of dynamic sampling. Raises UserError where the problems do not fill one generation batch: TRL drops an
    incomplete one, and would make no step.
    """
    device, passes = config.per_device_train_batch_size, config.gradient_accumulation_steps
    generations, per_generation = config.num_generations, config.steps_per_generation
    assert generations is not None  # GRPOConfig sets both
    assert per_generation is not None
    generated = device * processes * per_generation
    steps = per_generation * config.num_iterations / passes
    prompts = generated // generations
    if problems < prompts:
        raise UserError(
            f"dataset: {problems} problems, but one generation batch takes {prompts} ({generated} completions / "
            f"num_generations {generations}): lower prompts_per_step (or per_device_train_batch_size, "
            "gradient_accumulation_steps), or add problems"
        )
    completions = device * passes * processes
    if per_generation % passes:
        raise UserError(
            f"steps_per_generation: {per_generation} is not a multiple of gradient_accumulation_steps "
            f"{passes}: an optimizer step would mix two generation batches"
        )
    shares = f"{count(processes, 'process')} x {count(passes, 'pass')} x {device}"
    rows = [
        ("prompts per step", completions / generations, f"x {generations} completions each"),
        ("completions per step", completions, f"= {shares}"),
        ("optimizer steps per generation", steps, f"batch of {generated:,} completions"),
        ("steps per epoch", math.ceil(problems // prompts * steps), f"of {problems:,} problems"),
    ]
    if rounds > 1:
        again = ("groups per generation, at most", prompts * rounds, f"in {rounds} rounds (dynamic_sampling)")
        rows.insert(3, again)
    return "\n".join(f"{name:<30}{value:>6,g}  {why}" for name, value, why in rows)
