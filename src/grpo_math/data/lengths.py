"""How many tokens prompts have. Those of many are counted once: a million take minutes.

The counts are kept in HF_HOME/grpo_math/lengths (HF_HOME is ~/.cache/huggingface where the environment names no other),
4 MB for a million, in a file named by all that they follow from: questions, template, tokenizer, versions. Where any of
it changes there is another file. The folder can be deleted at any time.
"""

import contextlib
import functools
import hashlib
import json
import os
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from grpo_math import __version__
from grpo_math.data.problems import Keep, Problem
from grpo_math.data.prompts import PromptTemplate, prompt_ids

MANY = 20_000  # prompts, that take seconds


def length_filter(template: PromptTemplate, tokenizer, max_prompt_tokens: int | None) -> Keep:
    """A `keep` function for `load_problems`: drops prompts of more than `max_prompt_tokens` tokens, chat template
    included."""

    def keep(problems: list[Problem]) -> list[str | None]:
        if max_prompt_tokens is None:
            return [None] * len(problems)
        reason = f"over {max_prompt_tokens} prompt tokens"
        lengths = prompt_lengths(problems, template, tokenizer)
        return [None if length <= max_prompt_tokens else reason for length in lengths]

    return keep


def longest_prompt(problems: list[Problem], template: PromptTemplate, tokenizer) -> int:
    return max(prompt_lengths(problems, template, tokenizer))


def prompt_lengths(problems: list[Problem], template: PromptTemplate, tokenizer) -> list[int]:
    """In tokens, chat template included."""
    known = counted(template, tokenizer)
    new = list(dict.fromkeys(problem.question for problem in problems if problem.question not in known))
    known.update(zip(new, kept_lengths(new, template, tokenizer), strict=True))
    return [known[problem.question] for problem in problems]


@functools.lru_cache(maxsize=4)
def counted(template: PromptTemplate, tokenizer) -> dict[str, int]:
    """The length by question: filters, checks and engines ask for the same ones."""
    return {}


def kept_lengths(questions: list[str], template: PromptTemplate, tokenizer) -> list[int]:
    """As they were counted before, where they were and are many."""
    if len(questions) < MANY or not tokenizer.is_fast:  # a slow one does not say what it consists of
        return [len(ids) for ids in prompt_ids(questions, template, tokenizer)]
    file = file_of(questions, template, tokenizer)
    with contextlib.suppress(OSError, ValueError, RecursionError):  # none, or a damaged one
        kept = json.loads(file.read_text())
        if isinstance(kept, list) and len(kept) == len(questions) and all(type(length) is int for length in kept):
            return kept
    lengths = [len(ids) for ids in prompt_ids(questions, template, tokenizer)]
    with contextlib.suppress(OSError):  # no room: they are counted again
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(f".{os.getpid()}")  # other processes of this training do the same
        new.write_text(json.dumps(lengths))
        new.replace(file)
    return lengths


def file_of(questions: list[str], template: PromptTemplate, tokenizer) -> Path:
    from huggingface_hub import constants

    made_by = [f"{name} {version(name)}" for name in ("transformers", "tokenizers", "jinja2")]
    template_in_use = [asdict(template), tokenizer.chat_template, tokenizer.special_tokens_map]
    shown = next(prompt_ids(questions[:1], template, tokenizer))  # a chat template may hold the date
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    for part in [__version__, made_by, template_in_use, shown, *questions]:
        digest.update(f"{part!r}\n".encode())
    return Path(constants.HF_HOME, "grpo_math", "lengths", f"{digest.hexdigest()[:32]}.json")
