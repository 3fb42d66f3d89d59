"""Reward models: sequence classifiers with one label."""

from typing import TYPE_CHECKING

from grpo_math.data import PromptTemplate
from grpo_math.errors import UserError
from grpo_math.models.source import ModelSource, load_arguments
from grpo_math.models.tokenizer import check_vocabulary, plain_tokenizer
from grpo_math.models.weights import misfits_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_reward_models(rewards: list, names: list[str], template: PromptTemplate, keys: dict) -> tuple[list, list]:
    """The rewards with every path or id replaced by the reward model it names, and the tokenizers of those (else None).

    `names` are those of the recipe's entries, one per reward, under which the metrics appear; `keys` are the recipe's
    TRL keys, which allow pickled weights or a model's own code.
    """
    loaded = [
        load_reward_model(reward, name, template, keys) if isinstance(reward, str) else (reward, None)
        for reward, name in zip(rewards, names, strict=True)
    ]
    return [model for model, _ in loaded], [tokenizer for _, tokenizer in loaded]


def load_reward_model(
    path: str, name: str, template: PromptTemplate, keys: dict
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    from transformers import AutoModelForSequenceClassification

    where, allowed = f"rewards.{name}.reward_model: {path}", load_arguments(keys)
    source = ModelSource(path, **allowed)
    if source.adapter:
        raise UserError(f"{where}: is an adapter: merge it into its base model first (merge_and_unload in peft)")
    source.check()
    tokenizer = plain_tokenizer(source, f"{where}: no reward model there")
    check_vocabulary(source, tokenizer, {tokenizer.eos_token_id, tokenizer.pad_token_id}, where)
    with source.loading(f"{where}: no reward model there"):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, num_labels=1, output_loading_info=True, ignore_mismatched_sizes=True, **allowed
        )
    if misfits := misfits_of(info | {"unexpected_keys": ()}):  # a language model's head is left out
        raise UserError(f"{where}: is not a reward model, which has a trained head for one label: {misfits}")
    if template.chat and not template.prefill and not tokenizer.chat_template:
        raise UserError(f"{where}: its tokenizer has no chat template, but the prompts are chats")
    model.config.name_or_path = name  # TRL names the metric by it
    return model, tokenizer
