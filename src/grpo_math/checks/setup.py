"""Preflight of the recipe itself: TRL's rules, values known to hurt, and the prompt as the model sees it."""

from collections.abc import Iterator
from dataclasses import replace

from grpo_math.checks.findings import Finding, Subject, error, note, warning
from grpo_math.data.prompts import token_ids
from grpo_math.models.models import is_adapter, trains_adapter
from grpo_math.recipe.recipe import Recipe
from grpo_math.recipe.schema import suggestion
from grpo_math.trainer.training import grpo_config, sft_config

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
