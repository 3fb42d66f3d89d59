"""Conversations in which the model calls tools, on the engine of an evaluation, by the loop that TRL trains with."""

import json
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import replace
from types import MethodType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from grpo_math.data import completion_text, tokenized, unanswered, until_stop
from grpo_math.generation.engines import Batches, Completion, Engine, Sampling
from grpo_math.models.tools import Tools, continuing_template
from grpo_math.rewards.waiting import call

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PORTION = 256  # conversations that are held together


def converse(
    engine: Engine,
    rows: list[dict],
    sampling: Sampling,
    seed: int,
    tokenizer: "PreTrainedTokenizerBase",
    tools: Tools,
    done: AbstractSet[int] = frozenset(),
) -> Batches:
    """As an engine's `generate`, with rows in place of prompts: an environment is reset with its row.

    The portions follow from all rows, done or not, so that an interrupted evaluation samples the same completions.
    """
    trainer, size = StandIn(engine, sampling, seed, tokenizer, tools), max(1, PORTION // sampling.samples)
    for start in range(0, len(rows), size):
        places = range(start, min(start + size, len(rows)))
        if done >= set(places):
            continue
        ended = trainer.hold([rows[place] for place in places for _ in range(sampling.samples)])
        found = {place: [next(ended) for _ in range(sampling.samples)] for place in places}
        yield {place: completions for place, completions in found.items() if place not in done}


class StandIn:
    """Holds conversations on an engine of ours, as what TRL's tool loop takes for its trainer."""

    use_vllm = _is_vlm = False
    environment_factories = None

    def __init__(
        self, engine: Engine, sampling: Sampling, seed: int, tokenizer: "PreTrainedTokenizerBase", tools: Tools
    ):
        from trl import GRPOTrainer

        self.engine, self.sampling, self.seed, self.given = engine, replace(sampling, samples=1), seed, tools
        self.tools = tools.schemas
        self._tokenizer = self.processing_class = tokenizer
        self.chat_template = continuing_template(tokenizer)
        self.chat_template_kwargs: dict = {}  # the tokenizer has them
        self.max_completion_length = sampling.max_new_tokens
        self.max_tool_calling_iterations = tools.max_calls or sys.maxsize
        self.model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=engine.window))
        self._get_tool_suffix_ids = MethodType(GRPOTrainer._get_tool_suffix_ids, self)
        self._tool_call_loop = MethodType(GRPOTrainer._tool_call_loop, self)

    def hold(self, rows: list[dict]) -> Iterator[Completion]:
        """One conversation per row, of at most `sampling.max_new_tokens` tokens, those of tool results included."""
        from trl.chat_template_utils import parse_response

        environments = self.given.environments(len(rows))
        own = [self.given.functions + self.given.methods(environment) for environment in environments]
        self._sync_tool_dicts = [{tool.__name__: awaited(tool) for tool in each} for each in own]
        self._async_tool_dicts: list[dict] = [{} for _ in own]
        prompts = [begun(row, environment) for row, environment in zip(rows, environments, strict=True)]
        prompt_ids = tokenized(prompts, self._tokenizer)
        ids, _ = self._generate_single_turn(prompt_ids)
        messages = [
            [parse_response(self._tokenizer, some, prefix=prompt, tools=self.tools)]
            for some, prompt in zip(ids, prompt_ids, strict=True)
        ]
        masks, messages, ids, *_ = self._tool_call_loop(prompts, prompt_ids, ids, messages, None, None, {})
        for mask, conversation, some in zip(masks, messages, ids, strict=True):
            text = until_stop(completion_text(conversation), self.sampling.stop)
            cut = some[-1] not in self.sampling.ends and not text.endswith(self.sampling.stop)
            told = json.dumps(conversation, default=str)
            yield Completion(text, sum(mask), unanswered(conversation) or cut, tuple(some), told)

    def _generate_single_turn(self, prompts: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        """The completions of one turn. Their seeds follow from the conversation so far: no place is known here."""
        seeds, seen = [], Counter[str]()
        for prompt in prompts:
            seen[said := str(prompt)] += 1
            seeds.append(zlib.crc32(f"{self.seed} {seen[said]} {said}".encode()) >> 1)
        found: dict[int, list[Completion]] = {}
        for some in self.engine.generate(prompts, seeds, self.sampling):
            found |= some
        return [list(found[place][0].ids) for place in range(len(prompts))], None


def begun(row: dict, environment: Any) -> list[dict]:
    """The prompt of a row, with what its environment shows first, as in TRL."""
    shown = environment.reset(**row) if environment is not None else None
    *before, last = row["prompt"]
    return [*before, {**last, "content": last["content"] + shown}] if shown else [*before, last]


def awaited(tool: Callable) -> Callable:
    """The tool as a plain function."""
    return lambda **arguments: call(tool, arguments, None)


def for_logs(message: dict) -> dict:
    """The message with its tool calls as JSON: the arguments of different calls have no common type in a table."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, default=str) for name, value in message.items()
    }
