"""Checks of the recipe itself: TRL's rules, values known to hurt, and the prompt as the model sees it."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace

from grpo_math.checks.findings import LONG, Finding, Subject, error, note, warning
from grpo_math.checks.losses import corrected, losses, with_defaults
from grpo_math.data import NO_THINKING, prompt_lengths, token_ids
from grpo_math.errors import suggestion
from grpo_math.models import ModelSource, check_weights, context_of, end_tokens, trains_adapter
from grpo_math.recipe.recipe import Recipe
from grpo_math.recipe.trl import UNCHANGED, changed_sampling
from grpo_math.trainer.config import check_hub, grpo_config, sft_config

THINKING = 4_096  # tokens, below which a model that thinks is expected to be cut off
TOY = 10_000_000  # parameters, below which rules of thumb for language models do not apply
ELSEWHERE = {"use_cpu": True, "bf16": False, "fp16": False, "report_to": "none"}  # valid on any machine
OF_THE_LAYOUT = (  # checked with it
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "generation_batch_size",
)


def keys(subject: Subject) -> Iterator[Finding]:
    """The recipe's own errors, and those that TRL finds in its keys."""
    yield from map(error, subject.mistakes)
    given = {key: value for key, value in subject.recipe.trainer.items() if key not in OF_THE_LAYOUT} | ELSEWHERE
    if subject.recipe.sft:
        sft_config(replace(subject.recipe, trainer=given))
    else:
        given |= {"use_vllm": False, "per_device_train_batch_size": subject.recipe.num_generations}
        grpo_config(replace(subject.recipe, trainer=given, prompts_per_step=None))


def values(subject: Subject) -> Iterator[Finding]:
    """Values that are allowed and known to hurt."""
    recipe, given = subject.recipe, subject.recipe.trainer
    if recipe.sft:
        return
    yield from losses(subject)
    yield from sampling_keys(recipe)
    yield from truncated_sampling(given, recipe.max_completion_length)
    length = recipe.max_completion_length
    for spec in recipe.rewards:
        cache = spec.params.get("cache_tokens", 128)
        if spec.name == "overlong" and not spec.path and cache >= length:
            yield error(
                f"rewards.overlong: cache_tokens {cache} of max_completion_length {length}: it would penalise every "
                "completion",
                f"rewards: {{overlong: {{cache_tokens: {length // 4}}}}}",
            )
    group, temperature = recipe.num_generations, given.get("temperature", 1.0)
    if group < 4:
        yield warning(
            f"num_generations: {group} completions per group: most groups have equal rewards, and the mean is noisy",
            "num_generations: 8",
        )
    if temperature < 0.5:
        says = f"temperature: {temperature:g}: the completions of a group will hardly differ"
        yield warning(says, "temperature: 1.0")
    if given.get("beta"):
        cost = "the model without its adapter" if trains_adapter(recipe.keys) else "a second copy of the weights"
        yield note(f"beta: {given['beta']:g}: the reference is {cost}")
    if subject.shape.parameters >= TOY:
        yield from rules_of_thumb(recipe)


def sampling_keys(recipe: Recipe) -> Iterator[Finding]:
    """Unknown `generation_kwargs`: transformers' GenerationConfig takes any name."""
    from transformers import GenerationConfig

    given = recipe.trainer.get("generation_kwargs")
    if recipe.trainer.get("use_vllm") or not isinstance(given, dict):
        return
    known = list(GenerationConfig().to_dict())
    for key in given.keys() - set(known):
        fix = suggestion(key, known, "generation_kwargs.", {})
        yield error(f"generation_kwargs.{key}: unknown key of transformers' GenerationConfig, {fix}")


def truncated_sampling(given: dict, length: int) -> Iterator[Finding]:
    """Sampling from another distribution than the policy's at this temperature, which is the one that TRL trains.

    TRL's correction weighs a completion of the policy p sampled from q with the product of its tokens' ratios p / q.
    With top_p a ratio is at most 1 and at least top_p; for any q the mean of its logarithm is -KL(q || p), so the
    weight falls with the length. One ratio per token does little harm; without the correction samples from q train.
    """
    if not (changed := changed_sampling(given)):
        return
    says = ", ".join(f"{key}: {value}" for key, value in changed.items())
    fix = ", ".join(f"leave out {key}" if "." in key else f"{key}: {UNCHANGED[key][0]}" for key in changed)
    keys = with_defaults(given)
    if not corrected(keys) or keys["vllm_importance_sampling_mode"].startswith("token"):
        yield warning(f"{says}: samples come from another distribution than the trained one", fix)
        return
    worst = f", 1e{math.floor(length * math.log10(changed['top_p']))} at worst" if changed.keys() == {"top_p"} else ""
    yield error(
        f"{says}: vLLM's probabilities include it, the trainer's do not: the weight of a completion in TRL's "
        f"correction falls with the length, expected about 1 (up to {length} tokens{worst}; measured at top_p "
        "0.9 after 160 tokens: 0.0006 to 0.012)",
        fix,
    )


def rules_of_thumb(recipe: Recipe) -> Iterator[Finding]:
    rate, length = recipe.trainer.get("learning_rate", 1e-6), recipe.max_completion_length
    most, usual = (2e-4, "1.0e-5") if trains_adapter(recipe.keys) else (1e-5, "1.0e-6")
    if rate > most:
        says = f"learning_rate: {rate:g}: usual for GRPO is about {usual}, rarely above {most:g}"
        yield warning(says, f"learning_rate: {usual}")
    asked = f"{recipe.template.system or ''} {recipe.template.user} {recipe.template.prefill}".lower()
    if length < 256 and any(word in asked for word in ("step by step", "think", "reason")):
        yield warning(
            f"max_completion_length: {length} tokens, and the prompt asks for reasoning: many may be cut off",
            "max_completion_length: 512",
        )


def weights(subject: Subject) -> Iterator[Finding]:
    """The weights on this machine, compared with the architecture and the tokenizer."""
    check_hub(subject.recipe, ("model",))
    source = ModelSource.of(subject.recipe.keys)
    if check_weights(source, local=True):
        rows = subject.model_config.get_text_config().vocab_size
        yield note(f"{source.base.name}: all weights found, {len(subject.tokenizer):,} tokens, embedding {rows:,}")
    else:
        yield note(f"{source.base.name}: not compared with its weights, which are quantised or not on this machine")


def template(subject: Subject) -> Iterator[Finding]:
    """The prompt as the model sees it, and how a completion ends."""
    tokenizer, recipe = subject.tokenizer, subject.recipe
    shown = next((problem for problem in subject.problems if problem.system), subject.problems[0])
    prompt = recipe.template.prompt(shown.question, tokenizer, shown.system)
    rendered = str(tokenizer.decode(token_ids(prompt, tokenizer)))
    ends = "".join(f", or {stop!r}" for stop in recipe.template.stop)
    yield note(f"{rendered}\n(ends with {tokenizer.eos_token!r}{ends}; padding {tokenizer.pad_token!r})")
    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    for token in recipe.template.stop:
        if token in special and special[token] not in end_tokens(ModelSource.of(recipe.keys), tokenizer):
            yield error(
                f"prompt_template.stop: {token} is a special token, which is removed from completions: what ends "
                "with it would count as cut off, and vLLM would not stop at it",
                f"leave it out, and add {special[token]} to eos_token_id in generation_config.json",
            )
    for key in recipe.trainer.get("chat_template_kwargs") or {}:
        if recipe.template.chat and not re.search(rf"\b{re.escape(key)}\b", str(tokenizer.chat_template)):
            yield warning(
                f"chat_template_kwargs.{key}: the chat template has no variable of that name, so it has no effect",
                "leave it out, or correct the name",
            )
    if recipe.sft is None:
        yield from window(subject)
        yield from thinking(subject)


def thinking(subject: Subject) -> Iterator[Finding]:
    """Whether max_completion_length has room for the thinking, without whose end a completion has no answer."""
    recipe, tokenizer = subject.recipe, subject.tokenizer
    template, length = recipe.template, recipe.max_completion_length
    if not template.thinks(tokenizer):
        return
    switch = f"{NO_THINKING}, or " if template.can_stop_thinking(tokenizer) else ""
    opening = template.opening(tokenizer)
    if opening:
        yield note("the chat template opens <think> for the model: it counts as part of the completion")
    if "</think>" not in tokenizer.decode(tokenizer("</think>")["input_ids"], skip_special_tokens=True):
        yield error(
            "model_name_or_path: </think> is a special token, which is removed from completions: the thinking would "
            "be graded as the answer",
            f'{switch}set "special": false for it in tokenizer_config.json and tokenizer.json',
        )
    least = shortest_answer(subject) if opening + template.prefill else 0
    if length < least:
        yield error(
            f"max_completion_length: {length} tokens, and the shortest answer takes {least}, </think> and end token "
            "included: no completion can be right",
            f"{switch}max_completion_length: {THINKING}",
        )
    elif length < THINKING and subject.shape.parameters >= TOY and not template.prefill:
        yield warning(
            f"max_completion_length: {length:,} tokens, and the model thinks before it answers: one cut off while "
            f"thinking has no answer (Qwen3's model cards recommend 32,768; this warns below {THINKING:,})",
            f"{switch}max_completion_length: {THINKING}",
        )


def shortest_answer(subject: Subject) -> int:
    """The tokens of `</think>`, the shortest of the golds in the answer style, and the end token."""
    few = sorted(subject.problems, key=lambda problem: len(problem.answer))[:LONG]
    template = subject.recipe.template
    targets = (template.target(problem, worked=False).rpartition("</think>")[2] for problem in few)
    texts = [f"</think>{target}" for target in targets]
    return 1 + min(map(len, subject.tokenizer(texts, add_special_tokens=False)["input_ids"]))


def window(subject: Subject) -> Iterator[Finding]:
    """The longest prompt and completion must fit into the model's context, in the training and in its evaluations."""
    recipe, longest, length = subject.recipe, subject.longest, subject.recipe.max_completion_length
    room = context_of(subject.model_config)
    if longest + length > room:
        shorter = room - min(longest, length, room // 2)
        yield error(
            no_room("", longest, length, room),
            f"max_completion_length: {shorter}" if length > longest else f"dataset: {{max_prompt_tokens: {shorter}}}",
        )
    for one in subject.benchmarks if recipe.eval.wanted else ():
        longest = max(prompt_lengths(one.problems, recipe.template, subject.tokenizer))
        if longest + recipe.eval_completion_length > room:
            yield error(
                no_room(f" of {one.title}", longest, recipe.eval_completion_length, room),
                f"eval: {{max_completion_length: {room - longest}}}"
                if longest < room
                else "leave it out of eval.datasets, or use a model with a longer context",
            )


def no_room(of: str, longest: int, length: int, room: int) -> str:
    return (
        f"the longest prompt{of} ({longest} tokens) and max_completion_length {length} are {longest + length} tokens, "
        f"the model's context is {room}"
    )
