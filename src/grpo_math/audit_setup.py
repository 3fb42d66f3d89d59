"""Preflight of everything around data and rewards: values known to hurt, the prompt, the batch, memory, the launch."""

import importlib.metadata
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import psutil

from grpo_math import memory, run_folder
from grpo_math.batch import batch_arguments, describe_batch
from grpo_math.errors import UserError
from grpo_math.findings import Finding, Subject, error, note, warning
from grpo_math.models import is_adapter, trains_adapter
from grpo_math.prompts import token_ids
from grpo_math.recipe import Recipe
from grpo_math.schema import suggestion
from grpo_math.training import check_machine, check_wandb, grpo_config, sft_config
from grpo_math.vllm_engine import check_vllm, model_dtype

TRL = "1.16"  # the version this was written for
ELSEWHERE = {"use_cpu": True, "bf16": False, "fp16": False, "report_to": "none"}  # on any machine
SETTLED = (  # by the layout, and checked with it
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "generation_batch_size",
)


def keys(subject: Subject) -> Iterator[Finding]:
    """The recipe's own mistakes, and TRL's opinion of its keys."""
    yield from (error(mistake) for mistake in subject.mistakes)
    if subject.unreached:
        yield warning(
            f"the Hub does not answer: of {', '.join(subject.unreached)} only what is in its cache can be seen",
            "model_name_or_path: FOLDER, dataset: {path: FOLDER}",
        )
    given = {key: value for key, value in subject.recipe.trainer.items() if key not in SETTLED}
    recipe = replace(subject.recipe, trainer=given | ELSEWHERE, prompts_per_step=None)
    if recipe.sft:
        sft_config(recipe)
    else:
        recipe.trainer["use_vllm"] = False
        recipe.trainer["per_device_train_batch_size"] = given.get("num_generations", 8)
        grpo_config(recipe)


def values(subject: Subject) -> Iterator[Finding]:
    """Values that are allowed and known to hurt."""
    recipe, given = subject.recipe, subject.recipe.trainer
    if recipe.sft:
        return
    yield from sampling_keys(recipe)
    if recipe.model.get("use_peft") and not is_adapter(recipe.model["model_name_or_path"]):
        _ = subject.shape  # what peft says of the LoRA settings
    for spec in recipe.rewards:
        cache = spec.params.get("cache_tokens", 128)
        if spec.name == "overlong" and not spec.path and cache >= recipe.max_completion_length:
            yield error(
                f"rewards.overlong: cache_tokens {cache} of max_completion_length {recipe.max_completion_length}: it "
                "would punish every completion",
                f"rewards: {{overlong: {{cache_tokens: {recipe.max_completion_length // 4}}}}}",
            )
    if given.get("loss_type") == "cispo" and "epsilon_high" not in given:
        yield warning("loss_type: cispo with TRL's epsilon_high of 0.2 clips nearly everything", "epsilon_high: 5.0")
    group = given.get("num_generations", 8)
    if group < 4:
        yield warning(
            f"num_generations: {group} completions a group: mostly all alike, and a mean that says little",
            "num_generations: 8",
        )
    if given.get("temperature", 1.0) < 0.5:
        yield warning(
            f"temperature: {given['temperature']:g}: the completions of a group will hardly differ", "temperature: 1.0"
        )
    if given.get("beta"):
        cost = "the model without its adapter" if trains_adapter(recipe) else "a second copy of the weights"
        yield note(f"beta: {given['beta']:g}: measured against {cost}")
    if not subject.toy:
        yield from rules_of_thumb(recipe, given)


def sampling_keys(recipe: Recipe) -> Iterator[Finding]:
    """What TRL hands to transformers' GenerationConfig, which takes any name, or to vLLM at the first step."""
    from transformers import GenerationConfig

    given = recipe.trainer.get("generation_kwargs")
    if recipe.trainer.get("use_vllm") or not isinstance(given, dict):
        return
    known = list(GenerationConfig().to_dict())
    for key in given:
        if key not in known:
            fix = suggestion(key, known, "generation_kwargs.", {})
            yield error(f"generation_kwargs.{key}: unknown key of transformers' GenerationConfig, {fix}")


def rules_of_thumb(recipe: Recipe, given: dict) -> Iterator[Finding]:
    rate, length = given.get("learning_rate", 1e-6), recipe.max_completion_length
    most, usual = (2e-4, "1.0e-5") if trains_adapter(recipe) else (1e-5, "1.0e-6")
    if rate > most:
        yield warning(
            f"learning_rate: {rate:g}: GRPO's are about {usual} and hardly above {most:g}",
            f"learning_rate: {usual}",
        )
    asked = f"{recipe.template.system or ''} {recipe.template.user} {recipe.template.prefill}".lower()
    if length < 256 and any(word in asked for word in ("step by step", "think", "reason")):
        yield warning(
            f"max_completion_length: {length} tokens, and the prompt asks for reasoning: many may be cut off",
            "max_completion_length: 512",
        )


def template(subject: Subject) -> Iterator[Finding]:
    """The prompt as the model sees it, and how a completion ends."""
    tokenizer, recipe = subject.tokenizer, subject.recipe
    rendered = tokenizer.decode(token_ids(recipe.template.prompt(subject.problems[0].question, tokenizer), tokenizer))
    ends = "".join(f", or {stop!r}" for stop in recipe.template.stop)
    yield note(f"{rendered}\n(ends with {tokenizer.eos_token!r}{ends}; padding {tokenizer.pad_token!r})")
    yield from window(subject)
    opened = rendered.rpartition("<think>")[2]
    prefilled = "<think>" in rendered and not opened.strip() and "<think>" not in recipe.template.prefill
    formal = any(spec.name in ("format", "r1_zero") and not spec.path for spec in recipe.rewards)
    if prefilled and formal and recipe.template.answer_style == "answer_tag":
        yield error(
            "prompt_template: the chat template already opens <think>, completions cannot: format is 0 for every one",
            "chat_template_kwargs: {enable_thinking: false}, or an answer_style of boxed",
        )
    elif prefilled:
        yield note("the chat template opens <think> for the model")
    if tokenizer.pad_token == tokenizer.eos_token and recipe.sft:
        yield note("the padding is the end token: SFT masks it by its place")


def window(subject: Subject) -> Iterator[Finding]:
    recipe, room = subject.recipe, getattr(subject.model_config.get_text_config(), "max_position_embeddings", None)
    longest, length = subject.longest, recipe.max_completion_length
    if recipe.sft is None and room and longest + length > room:
        prompts, completions = (
            f"dataset: {{max_prompt_tokens: {room - length}}}",
            f"max_completion_length: {room - longest}",
        )
        if min(longest, length) > room // 2:
            fix = f"max_completion_length: {room // 2}, dataset: {{max_prompt_tokens: {room - room // 2}}}"
        else:
            fix = completions if length > longest else prompts
        yield error(
            f"the longest prompt ({longest} tokens) and max_completion_length {length} are {longest + length} tokens, "
            f"the model has room for {room}",
            fix,
        )


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
    elif subject.options is not None:
        from grpo_math.layouts import make_plan

        yield from complaint(lambda: make_plan(dict(subject.options), subject.arguments))
    yield from complaint(lambda: check_machine(recipe.trainer | {"report_to": "none", "use_vllm": False}))
    yield from complaint(lambda: run_folder.find_checkpoint(recipe))
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
