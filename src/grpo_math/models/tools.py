"""The functions that a model may call while it writes a completion: TRL's `tools` and `environment_factory`."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grpo_math.data.functions import load_function
from grpo_math.errors import UserError, one_line, raised, reason_of
from grpo_math.rewards.reward import takes_everything

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DESCRIBE = "give it type hints, and a Google docstring that describes each argument under Args:"


@dataclass
class Tools:
    """`functions`, and the public methods of what `environment` makes, one for each completion. `schemas` describe
    them to the chat template. A completion has at most `max_calls` turns with calls (None: any number)."""

    functions: list[Callable]
    environment: Callable[[], Any] | None = None
    max_calls: int | None = None
    schemas: list[Any] = field(default_factory=list)
    pool: list[Any] = field(default_factory=list)  # environments, made once and reset often, as in TRL

    def environments(self, count: int) -> list[Any]:
        """So many environments to reset, or Nones."""
        if not self.environment:
            return [None] * count
        self.pool += [self.environment() for _ in range(count - len(self.pool))]
        return self.pool[:count]

    def methods(self, environment: Any) -> list[Callable]:
        """The tools of an environment, as TRL finds them."""
        members = [] if environment is None else inspect.getmembers(type(environment), inspect.isfunction)
        names = [name for name, _ in members if name not in ("reset", "get_reward") and not name.startswith("_")]
        return [getattr(environment, name) for name in names]


def load_tools(references: list[str], environment: str | None, max_calls: int | None = None) -> Tools | None:
    """The tools that a recipe names as `file.py:function` and `file.py:Class`; None where it names none.

    Raises UserError where one cannot be imported, or is not what TRL needs.
    """
    if not (references or environment):
        return None
    found = Tools([load_function(reference) for reference in references], max_calls=max_calls)
    for reference, function in zip(references, found.functions, strict=True):
        if not inspect.isroutine(function):
            raise UserError(f"tools: {reference} is not a function: name one, or a class as environment")
        found.schemas.append(schema(function, f"tools: {reference}"))
    if environment:
        found.environment = load_function(environment)
        methods = found.methods(probe(found, environment))
        if not methods:
            raise UserError(f"environment: {environment} has no public method except reset: there is nothing to call")
        found.schemas += [schema(method, f"environment: {environment}.{method.__name__}") for method in methods]
    names = [one["function"]["name"] for one in found.schemas]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"tools: several are called {min(twice)}: rename one")
    return found


def schema(tool: Callable, where: str) -> dict:
    """The tool as the chat template shows it."""
    from transformers.utils import get_json_schema

    try:
        return get_json_schema(tool)
    except Exception as error:  # of transformers, which has no common class for what is wrong with a description
        raise UserError(f"{where}: {reason_of(error)}: {DESCRIBE}") from error


def probe(tools: Tools, reference: str) -> Any:
    """One environment, if TRL can use those of its kind."""
    try:
        (environment,) = tools.environments(1)
    except Exception as error:
        raise UserError(f"environment: {reference}() failed ({raised(error)}): TRL makes one per completion") from error
    reset = getattr(type(environment), "reset", None)
    if not inspect.isfunction(reset) or not takes_everything(reset):
        raise UserError(
            f"environment: {reference} needs a method reset(self, **row), which TRL calls with the row: question, "
            "solution, prompt and every other column"
        )
    if hasattr(environment, "get_reward"):
        raise UserError(
            f"environment: TRL would add {reference}.get_reward as a reward of weight 1: rename it, and "
            "add one that calls it, def mine(environments, **_): return [each.score() for each in environments]"
        )
    return environment


def check_tools(tools: Tools, tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
    """Raise UserError unless the chat template shows the tools, their calls and their results, and TRL can read calls
    and continue the conversation; sets the tokenizer's `response_template` where TRL knows it."""
    from trl import add_response_schema
    from trl.chat_template_utils import supports_tool_calling

    fix = "use a model that was trained with tools, such as Qwen2.5, Qwen3, Llama 3.2"
    question = [{"role": "user", "content": "1+1?"}]
    shown = tokenizer.chat_template and tokenizer.apply_chat_template(question, tools=tools.schemas, tokenize=False)
    absent = [one["function"]["name"] for one in tools.schemas if one["function"]["name"] not in str(shown or "")]
    if absent or not supports_tool_calling(tokenizer):
        what = f"the tool {absent[0]}" if absent else "calls and their results"
        raise UserError(f"tools: the chat template of {name} does not show {what}: {fix}")
    with one_line(
        f"tools: TRL cannot read the calls of {name}", f"save a response_template with its tokenizer, or {fix}"
    ):
        if getattr(tokenizer, "response_template", None) is None:
            add_response_schema(tokenizer)
        continuing_template(tokenizer)


def continuing_template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The chat template with which TRL continues a conversation, None for the tokenizer's own: one that renders a
    message alike whatever follows it."""
    from trl import get_training_chat_template
    from trl.chat_template_utils import is_chat_template_prefix_preserving

    return None if is_chat_template_prefix_preserving(tokenizer) else get_training_chat_template(tokenizer)
