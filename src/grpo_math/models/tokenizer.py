"""The tokenizer of a model, and the tokens that end its completions."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from grpo_math.data import TEMPLATES, PromptTemplate, token_ids
from grpo_math.errors import UserError, raised, some
from grpo_math.models.source import ModelSource
from grpo_math.models.tools import Tools, check_tools

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase


def load_tokenizer(keys: dict, template: PromptTemplate, tools: Tools | None = None) -> "PreTrainedTokenizerBase":
    """The tokenizer of the model that the TRL keys name, padding on the left as generation needs; its chat template
    renders the `tools`.

    Raises UserError when there is none, when it has no chat template and the prompt template or the tools need one, or
    when the model may not be loaded.
    """
    model = ModelSource.of(keys)
    model.check()
    tokenizer = plain_tokenizer(model, padding_side="left")
    extra = dict(keys.get("chat_template_kwargs") or {})  # TRL renders with them, so counts and evaluation do too
    if tools:
        check_tools(tools, tokenizer, model.name)
        extra["tools"] = tools.schemas
        parse = functools.partial(readable, tokenizer.parse_response)
        tokenizer.parse_response = parse  # type: ignore[method-assign]  # on the instance
    if extra:
        with_extra = functools.partial(tokenizer.apply_chat_template, **extra)
        tokenizer.apply_chat_template = with_extra  # type: ignore[method-assign]  # on the instance
    if template.chat and not tokenizer.chat_template:
        plain = ", ".join(name for name, other in TEMPLATES.items() if not other.chat)
        raise UserError(
            f"prompt_template: the tokenizer of {model.name} has no chat template to render it with: use a plain-text "
            f"one ({plain}, or your own with chat: false)"
        )
    if end := keys.get("eos_token"):
        if end not in tokenizer.get_vocab():
            raise UserError(f"eos_token: {end!r} is not a token of {model.name}")
        tokenizer.eos_token = end
    if tokenizer.eos_token is None:
        raise UserError(f"model_name_or_path: the tokenizer of {model.name} has no EOS token: completions never end")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    try:
        prompt, other = (token_ids(template.prompt(asked, tokenizer), tokenizer) for asked in ("1+1?", "2+2?"))
    except Exception as error:  # a chat template is a Jinja program and may raise anything
        raise UserError(
            f"prompt_template: the chat template of {model.name} rejects it ({raised(error.__cause__ or error)})"
        ) from error
    if prompt == other:
        raise UserError(
            f"prompt_template: the prompt of {model.name} does not contain the question: its tokenizer has no "
            f"vocabulary ({len(tokenizer):,} tokens), or its chat template ignores the text"
        )
    check_vocabulary(model, tokenizer, {*prompt, tokenizer.eos_token_id, tokenizer.pad_token_id})
    return tokenizer


def readable(parse: Callable, *arguments: Any, **named: Any) -> Any:
    """What `parse` reads in a completion. Raises ValueError, for which TRL takes it as text, where a call is nested too
    deeply."""
    try:
        return parse(*arguments, **named)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def check_vocabulary(
    model: ModelSource, tokenizer: "PreTrainedTokenizerBase", used: set[int | None], where: str = "model_name_or_path"
) -> None:
    """Raise UserError for tokens without a row in the embedding. Padded embeddings have more rows; special tokens
    without one are allowed unless they are `used` (Gemma 3's text models have one for images)."""
    rows, added = model.config().get_text_config().vocab_size, tokenizer.added_tokens_decoder
    beyond = {number: token for token, number in tokenizer.get_vocab().items() if number >= rows}
    wrong = [
        token
        for number, token in sorted(beyond.items())
        if number in used or number not in added or not added[number].special
    ]
    if wrong:
        raise UserError(
            f"{where}: the tokenizer of {model.name} has {max(beyond) + 1:,} tokens, the model's embedding "
            f"{rows:,} rows, none for {some(list(map(repr, wrong)), 3)}: use the tokenizer that was saved with the "
            "model, or save the model with its embedding resized to it"
        )


def plain_tokenizer(model: ModelSource, what: str = "", **arguments: Any) -> "PreTrainedTokenizerBase":
    """The tokenizer as it was saved; `what` begins the error message of a missing one."""
    from transformers import AutoTokenizer

    source = model.tokenizer
    with source.loading(what):
        return AutoTokenizer.from_pretrained(
            source.name, revision=source.revision, trust_remote_code=source.trust_remote_code, **arguments
        )


def end_tokens(model: ModelSource, tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """The tokenizer's end token and those in the generation config of the model, or of an adapter's base model."""
    from transformers import GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(model.base.name, revision=model.base.revision)
    except OSError:
        config = GenerationConfig()
    return ends_of(config, tokenizer)


def ends_of(config: "GenerationConfig", tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """The end tokens of a generation config and of a tokenizer."""
    ends = config.eos_token_id
    return {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
