"""Preflight of the run on its layout: the batch, memory, this machine."""

import importlib.metadata
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import psutil

from grpo_math.checks import memory
from grpo_math.checks.findings import Finding, Subject, error, note, warning
from grpo_math.errors import UserError
from grpo_math.generation.vllm_engine import check_vllm, model_dtype
from grpo_math.recipe.batch import batch_arguments, describe_batch
from grpo_math.recipe.recipe import Recipe
from grpo_math.runs import checkpoints
from grpo_math.trainer.training import check_machine, check_wandb

TRL = "1.16"  # the version this was written for


def batch(subject: Subject) -> Iterator[Finding]:
    """What a step takes, in completions and tokens, and what an evaluation takes."""
    recipe, processes = subject.recipe, subject.processes
    if recipe.sft:
        yield note("the recipe's own: an SFT has no groups")
        return
    config = batch_of(recipe, processes)
    generated, step = recipe.trainer.get("generation_batch_size"), config.per_device_train_batch_size * processes
    if generated and generated % step:
        yield error(
            f"generation_batch_size: {generated} is no multiple of the {step} completions of a pass of all processes",
            f"generation_batch_size: {step * math.ceil(generated / step)}, or leave it out",
        )
    yield note(describe_batch(config, processes, len(subject.problems)))
    at_a_time = config.per_device_train_batch_size * config.steps_per_generation
    if at_a_time % config.num_generations:
        yield note(
            f"groups are spread over processes: {at_a_time} completions on each, {config.num_generations} a group"
        )
    each = config.num_generations * recipe.max_completion_length
    mean = sum(subject.lengths) / len(subject.lengths) * config.num_generations
    yield note(
        f"an epoch: {len(subject.problems) * mean:,.0f} tokens of prompts, at most {len(subject.problems) * each:,} of "
        "completions"
    )
    if recipe.eval.wanted:
        yield from evaluation_cost(recipe, subject, config)


def batch_of(recipe: Recipe, processes: int) -> SimpleNamespace:
    """What GRPOConfig would hold of the batch on so many processes."""
    given = recipe.trainer
    if recipe.sft is None:
        given = given | batch_arguments(given, recipe.prompts_per_step, processes)
    device, passes = given.get("per_device_train_batch_size", 8), given.get("gradient_accumulation_steps", 1)
    generated = given.get("generation_batch_size") or 0
    return SimpleNamespace(
        per_device_train_batch_size=device,
        gradient_accumulation_steps=passes,
        num_generations=given.get("num_generations", 8),
        steps_per_generation=given.get("steps_per_generation") or generated // (device * processes) or passes,
        num_iterations=given.get("num_iterations", 1),
    )


def evaluation_cost(recipe: Recipe, subject: Subject, config) -> Iterator[Finding]:
    count = sum(len(one.problems) for one in subject.benchmarks) * recipe.eval.samples
    step = config.per_device_train_batch_size * config.gradient_accumulation_steps * subject.processes
    step /= config.num_iterations
    every = recipe.eval.every
    share = f", {count / (every * step):.0%} of what the {every} steps between two generate" if every else ""
    says = f"an evaluation: {count:,} completions{share}"
    often = every and count > every * step
    yield warning(says, f"eval: {{every: {math.ceil(count / step)}}}, or fewer samples") if often else note(says)


def memory_estimate(subject: Subject) -> Iterator[Finding]:
    """Per GPU, itemised, for GPUs as they are sold; and what would make it smaller."""
    setting, shape = setting_of(subject), subject.shape
    parts = memory.items(shape, setting)
    total = memory.peak(parts, setting)
    lines = [f"{name:26}{size / memory.GIB:7.2f} GiB" for name, size in parts.items() if size]
    lines.append(f"{'largest phase':26}{total / memory.GIB:7.2f} GiB (an estimate, {shape.parameters:,} parameters)")
    if setting.vllm is not None:
        beside = ", asleep while training" if setting.sleeps else ""
        lines.append(f"{'vLLM':26}{setting.vllm:7.0%} of the GPU{beside}")
    verdicts = {size: memory.verdict(shape, setting, size) for size in memory.CARDS}
    lines.append("; ".join(f"{size} GB: {said}" for size, said in verdicts.items()))
    yield note("\n".join(lines))
    if verdicts[memory.CARDS[0]] != "fits":
        knobs = memory.knobs(shape, setting)
        yield note("smaller: " + "; ".join(f"{key} saves {saved / memory.GIB:.1f} GiB" for key, saved in knobs))
    fast = replace(setting, checkpointing=False)
    enough = [size for size in memory.CARDS if memory.verdict(shape, fast, size) == "fits"]
    if setting.checkpointing and enough:
        yield note(
            f"faster: gradient_checkpointing: false saves one forward pass of two; it fits from {enough[0]} GB on"
        )
    where, have = room(subject.recipe)
    if memory.verdict(shape, setting, have) == "does not fit":
        yield warning(f"memory: by this estimate the training does not fit into {where} ({have} GB)", "see `smaller`")


def room(recipe: Recipe) -> tuple[str, int]:
    """What there is to train in: this GPU, or this machine's memory; on a machine without the GPU, the largest sold."""
    import torch

    if recipe.trainer.get("use_cpu"):
        return "this machine's memory", int(psutil.virtual_memory().total / 1e9)
    if torch.cuda.is_available():
        return "this GPU", int(torch.cuda.get_device_properties(0).total_memory / 1e9)
    return "any GPU", memory.CARDS[-1]


def setting_of(subject: Subject) -> memory.Setting:
    recipe, batch = subject.recipe, batch_of(subject.recipe, subject.processes)
    device, sequences = batch.per_device_train_batch_size, 0
    length = recipe.trainer.get("max_length") or 1024  # TRL's default for SFT
    if recipe.sft is None:
        sequences = device * batch.steps_per_generation
        length = subject.lengths[-1] + recipe.max_completion_length
    dtype = model_dtype(recipe, recipe.model.get("dtype") or "float32")
    return memory.setting_of(
        recipe, dtype, device, batch.gradient_accumulation_steps, sequences, length, subject.strategy, subject.processes
    )


def launch(subject: Subject) -> Iterator[Finding]:
    """This machine: devices, ports, versions, disk, accounts, the output folder."""
    recipe = subject.recipe
    if subject.mistakes:
        yield note("the layout is not checked: mend the recipe first")
    elif subject.plan:
        yield from complaint(subject.plan)
    yield from complaint(lambda: check_machine(recipe.trainer | {"report_to": "none", "use_vllm": False}))
    yield from complaint(lambda: checkpoints.find_checkpoint(recipe))
    if recipe.trainer.get("use_vllm"):
        yield from complaint(check_vllm)
    report_to = recipe.trainer.get("report_to") or []
    if {"wandb", "all"} & set([report_to] if isinstance(report_to, str) else report_to):
        yield from complaint(check_wandb)
    found = importlib.metadata.version("trl")
    if not found.startswith(f"{TRL}."):
        yield warning(f"TRL {found} is installed, this was written for {TRL}", f'pip install "trl=={TRL}.*"')
    yield from disk(subject)


def complaint(check) -> Iterator[Finding]:
    """What a check of a training raises, as a finding."""
    try:
        check()
    except UserError as mistake:
        yield from (error(line) for line in str(mistake).splitlines())


def disk(subject: Subject) -> Iterator[Finding]:
    recipe, shape, setting = subject.recipe, subject.shape, setting_of(subject)
    kept = kept_checkpoints(subject)
    model = shape.trained * (4 if setting.peft else setting.weight_bytes)
    each = model + shape.trained * setting.optimizer_bytes
    needed = each * kept + model * (1 + recipe.eval.best)
    folder = recipe.output_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        yield error(f"output_dir: cannot write to {folder}", "give another --output_dir")
        return
    free = shutil.disk_usage(folder).free
    what = f"the model and {kept} checkpoint{'s' * (kept != 1)}"
    says = f"disk: {needed / memory.GIB:.1f} GiB for {what}, {free / memory.GIB:.1f} GiB free"
    yield error(f"{says} in {folder}", "save_total_limit: 1, or another output_dir") if needed > free else note(says)


def kept_checkpoints(subject: Subject) -> int:
    """At most at a time; with a limit, one more is there while it is written."""
    recipe, given = subject.recipe, subject.recipe.trainer
    steps = given.get("max_steps", -1)
    if steps < 1:
        batch, problems = batch_of(recipe, subject.processes), len(subject.problems)
        completions = batch.per_device_train_batch_size * batch.gradient_accumulation_steps * subject.processes
        each = 1 if recipe.sft else batch.num_generations * batch.num_iterations
        steps = math.ceil(problems * each * given.get("num_train_epochs", 3.0) / completions)
    every, strategy = given.get("save_steps", 500), given.get("save_strategy", "steps")
    every = every if every >= 1 else math.ceil(steps * every)  # below 1, a share of the run
    made = {"no": 0, "epoch": math.ceil(given.get("num_train_epochs", 3.0))}.get(strategy, math.ceil(steps / every))
    limit = given.get("save_total_limit") or 0
    return made if limit < 1 else min(made, limit + 1)
