"""Checks of the run on its layout: the batch, memory, this machine."""

import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

from grpo_math.checks import memory
from grpo_math.checks.findings import Finding, Subject, error, note, warning
from grpo_math.errors import at_once
from grpo_math.models import ModelSource
from grpo_math.recipe.batch import batch_arguments, describe_batch
from grpo_math.recipe.recipe import Recipe
from grpo_math.runs import checkpoints
from grpo_math.trainer.config import check_machine


def batch(subject: Subject) -> Iterator[Finding]:
    """The size of a step, in completions and tokens, and of an evaluation."""
    recipe, processes = subject.recipe, subject.processes
    if recipe.sft:
        yield note("as in the recipe: SFT has no groups")
        return
    config = batch_of(recipe, processes)
    generated, each_pass = recipe.trainer.get("generation_batch_size"), config.per_device_train_batch_size * processes
    if generated and generated % each_pass:
        yield error(
            f"generation_batch_size: {generated} is not a multiple of the {each_pass} completions of a pass of all "
            "processes",
            f"generation_batch_size: {each_pass * math.ceil(generated / each_pass)}, or leave it out",
        )
    yield note(describe_batch(config, processes, len(subject.problems), recipe.rounds))
    step = config.per_device_train_batch_size * processes * config.steps_per_generation // config.num_generations
    if len(subject.problems) < step * recipe.rounds:
        most = len(subject.problems) // step
        yield warning(
            f"dynamic_sampling: {recipe.rounds} rounds of {step} prompts need {recipe.rounds * step} different ones, "
            f"and there are {len(subject.problems):,}: a step may run out of them",
            f"dynamic_sampling: {{rounds: {most}}}" if most > 1 else "dynamic_sampling: null",
        )
    prompts = sum(subject.lengths) * config.num_generations * recipe.rounds
    completions = len(subject.problems) * config.num_generations * recipe.rounds * recipe.max_completion_length
    yield note(f"an epoch: {prompts:,} tokens of prompts, at most {completions:,} of completions")
    if recipe.eval.wanted:
        yield evaluation_cost(subject, config)


def batch_of(recipe: Recipe, processes: int) -> SimpleNamespace:
    """The batch keys of GRPOConfig as they would be on so many processes."""
    given = recipe.trainer
    if recipe.sft is None:
        given = given | batch_arguments(given, recipe.prompts_per_step, processes)
    device, passes = given.get("per_device_train_batch_size", 8), given.get("gradient_accumulation_steps", 1)
    generated = given.get("generation_batch_size") or 0
    return SimpleNamespace(
        per_device_train_batch_size=device,
        gradient_accumulation_steps=passes,
        num_generations=recipe.num_generations,
        steps_per_generation=given.get("steps_per_generation") or generated // (device * processes) or passes,
        num_iterations=given.get("num_iterations", 1),
    )


def completions_per_step(config: SimpleNamespace, processes: int) -> float:
    """New completions per optimizer step, over all processes."""
    device, passes = config.per_device_train_batch_size, config.gradient_accumulation_steps
    return device * passes * processes / config.num_iterations


def evaluation_cost(subject: Subject, config: SimpleNamespace) -> Finding:
    spec = subject.recipe.eval
    count = sum(len(one.problems) for one in subject.benchmarks) * spec.samples
    step = completions_per_step(config, subject.processes)
    says = f"an evaluation: {count:,} completions"
    if not spec.every:
        return note(says)
    says += f", {count / (spec.every * step):.0%} of what the {spec.every} steps between two generate"
    fix = f"eval: {{every: {math.ceil(count / step)}}}, or fewer samples"
    return warning(says, fix) if count > spec.every * step else note(says)


def memory_estimate(subject: Subject) -> Iterator[Finding]:
    """Per GPU, itemised, for GPUs as they are sold; and what would make it smaller."""
    setting, shape = setting_of(subject), subject.shape
    parts = memory.items(shape, setting)
    total = memory.peak(parts, setting)
    lines = [f"{name:32}{size / memory.GIB:7.2f} GiB" for name, size in parts.items() if size]
    about = f"(an estimate for a GPU, {shape.parameters:,} parameters)"
    lines.append(f"{'largest phase':32}{total / memory.GIB:7.2f} GiB {about}")
    if setting.vllm is not None:
        asleep = ", asleep while training" if setting.sleeps else ""
        lines.append(f"{'vLLM':32}{setting.vllm:7.0%} of the GPU{asleep}")
    if setting.server is not None:
        buffers = (memory.buffers(shape, replace(setting, processes=1)) + memory.CONTEXT) / memory.GIB
        lines.append(f"{'vLLM server':32}{setting.server:7.0%} of its GPU, which needs {buffers:.1f} GiB in addition")
    verdicts = {size: memory.verdict(shape, setting, size) for size in memory.CARDS}
    lines.append("; ".join(f"{size} GB: {verdict}" for size, verdict in verdicts.items()))
    yield note("\n".join(lines))
    if verdicts[memory.CARDS[0]] != "fits":
        knobs = memory.knobs(shape, setting)
        yield note("smaller: " + "; ".join(f"{key} saves {saved / memory.GIB:.1f} GiB" for key, saved in knobs))
    fast = replace(setting, checkpointing=False)
    enough = [size for size in memory.CARDS if memory.verdict(shape, fast, size) == "fits"]
    if setting.checkpointing and enough:
        yield note(f"faster: gradient_checkpointing: false saves one of two forward passes, and fits {enough[0]} GB")
    where, size = this_gpu()
    if not subject.recipe.trainer.get("use_cpu") and memory.verdict(shape, setting, size) == "does not fit":
        yield warning(f"memory: by this estimate the training does not fit into {where} ({size} GB)", "see `smaller`")


def this_gpu() -> tuple[str, int]:
    """Its size in GB; where there is none, the largest sold."""
    import torch

    if torch.cuda.is_available():
        return "this GPU", int(torch.cuda.get_device_properties(0).total_memory / 1e9)
    return "any GPU", memory.CARDS[-1]


def setting_of(subject: Subject) -> memory.Setting:
    recipe = subject.recipe
    dtype = ModelSource.of(recipe.keys).dtype(recipe.model.get("dtype") or "float32")
    batch = batch_of(recipe, subject.processes)
    return memory.setting_of(recipe, dtype, batch, subject.longest, subject.strategy, subject.processes)


def launch(subject: Subject) -> Iterator[Finding]:
    """This machine: devices, ports, versions, accounts, the output folder."""
    recipe, wanted = subject.recipe, subject.recipe.trainer.get("resume_from_checkpoint")
    if subject.mistakes:
        yield note("the layout is not checked: fix the recipe first")
    at_once(
        not subject.mistakes and subject.plan,
        lambda: check_machine(recipe),
        lambda: checkpoints.find_checkpoint(recipe.output_dir, wanted, recipe.raw),
    )


def disk(subject: Subject) -> Iterator[Finding]:
    """Whether the output folder is writable and has room for the checkpoints and the model."""
    recipe, shape, setting = subject.recipe, subject.shape, setting_of(subject)
    kept = kept_checkpoints(subject)
    model = shape.trained * setting.trained_bytes
    needed = (model + shape.trained * setting.optimizer_bytes) * kept + model * (1 + recipe.eval.best)
    folder = recipe.output_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        yield error(f"output_dir: cannot write to {folder}", "give another --output_dir")
        return
    free = shutil.disk_usage(folder).free
    what = f"the model and {kept} checkpoint{'s' * (kept != 1)}"
    says = f"disk: {needed / memory.GIB:.1f} GiB for {what}, {free / memory.GIB:.1f} GiB free in {folder}"
    yield error(says, "save_total_limit: 1, or another output_dir") if needed > free else note(says)


def kept_checkpoints(subject: Subject) -> int:
    """At most at a time; with a limit, one more exists while it is written."""
    recipe, given = subject.recipe, subject.recipe.trainer
    steps, epochs = given.get("max_steps", -1), given.get("num_train_epochs", 3.0)
    if steps < 1:
        steps = steps_of(recipe, len(subject.problems), subject.processes)
    every, strategy = given.get("save_steps", 500), given.get("save_strategy", "steps")
    every = every if every >= 1 else math.ceil(steps * every)  # below 1, a share of the run
    made = {"no": 0, "epoch": math.ceil(epochs)}.get(strategy, math.ceil(steps / every))
    limit = given.get("save_total_limit") or 0
    return made if limit < 1 else min(made, limit + 1)


def steps_of(recipe: Recipe, problems: int, processes: int) -> int:
    """The optimizer steps of all epochs. TRL drops an incomplete batch of groups, SFT trains on it."""
    each = 1 if recipe.sft else recipe.num_generations
    steps = problems * each / completions_per_step(batch_of(recipe, processes), processes)
    whole = math.ceil(steps) if recipe.sft else int(steps)
    return math.ceil(whole * recipe.trainer.get("num_train_epochs", 3.0))
