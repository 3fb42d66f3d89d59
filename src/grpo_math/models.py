"""The recipe's tokenizer and model, from a local folder or the Hub."""

import functools

from grpo_math.errors import UserError, one_line
from grpo_math.prompts import TEMPLATES, token_ids
from grpo_math.recipe import Recipe

FIX = "give a folder with config.json, weights and a tokenizer, or a Hub id that can be reached"


def load_tokenizer(recipe: Recipe):
    """The model's tokenizer, padding on the left as generation needs.

    Raises UserError when there is none, or when it has no chat template and the prompt template needs one.
    """
    from transformers import AutoTokenizer

    name = recipe.model["model_name_or_path"]
    with one_line(f"model_name_or_path: no model at {name!r}", FIX):
        tokenizer = AutoTokenizer.from_pretrained(
            name,
            revision=recipe.model.get("model_revision", "main"),
            trust_remote_code=recipe.trainer.get("trust_remote_code", False),
            padding_side="left",
        )
    if extra := recipe.trainer.get("chat_template_kwargs"):  # TRL renders with them, so counts and evaluation do too
        tokenizer.apply_chat_template = functools.partial(tokenizer.apply_chat_template, **extra)
    if recipe.template.chat and not tokenizer.chat_template:
        plain = ", ".join(name for name, template in TEMPLATES.items() if not template.chat)
        raise UserError(
            f"prompt_template: the tokenizer of {name} has no chat template to render it with: use a plain-text one "
            f"({plain}, or your own with chat: false)"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.eos_token is None:
        raise UserError(f"model_name_or_path: the tokenizer of {name} has no end token: no completion could ever end")
    try:
        token_ids(recipe.template.prompt("1+1?", tokenizer), tokenizer)
    except Exception as error:  # whatever a chat template written in Jinja may raise
        raise UserError(f"prompt_template: the chat template of {name} refuses it ({error})") from error
    return tokenizer


def load_model(recipe: Recipe):
    """The model (or adapter with its base) as training loads it, on the GPU if there is one."""
    from accelerate import PartialState
    from transformers import AutoModelForCausalLM

    name = recipe.model["model_name_or_path"]
    with one_line(f"model_name_or_path: no model at {name!r}", FIX):
        model = AutoModelForCausalLM.from_pretrained(
            name,
            revision=recipe.model.get("model_revision", "main"),
            trust_remote_code=recipe.trainer.get("trust_remote_code", False),
            attn_implementation=recipe.model.get("attn_implementation"),
            dtype=recipe.model.get("dtype", "float32"),
        )
    return model.to(PartialState(cpu=recipe.trainer.get("use_cpu", False)).device)
