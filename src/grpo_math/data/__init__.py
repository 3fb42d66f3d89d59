"""From the rows of any dataset to problems, and from problems to prompts.

Enters: the `DatasetSpec`s and the `PromptTemplate` of a recipe, and a tokenizer. Leaves: `Problem`s, filtered and
counted, and the rows of TRL's dataset. Imports errors and grading, and nothing heavy before rows are read; functions
that people name are in `grpo_math.data.functions`.
"""

from grpo_math.data.adapters import ADAPTERS
from grpo_math.data.filters import TEST_PROBLEM, TEST_WORDS, Overlap
from grpo_math.data.loading import load_parts, load_problems, mix_parts, test_sets
from grpo_math.data.problem import DatasetSpec, PassRateSpec, Problem, Problems, fingerprint, titles
from grpo_math.data.prompts import (
    NO_THINKING,
    RESERVED_COLUMNS,
    TEMPLATES,
    PromptTemplate,
    completion_text,
    meta_columns,
    prompt_ids,
    prompt_lengths,
    to_dataset,
    to_rows,
    token_ids,
    tokenized,
    unanswered,
    until_stop,
)
from grpo_math.data.sources import FILE_TYPES

__all__ = [
    "ADAPTERS", "FILE_TYPES", "NO_THINKING", "RESERVED_COLUMNS", "TEMPLATES", "TEST_PROBLEM", "TEST_WORDS",
    "DatasetSpec", "Overlap", "PassRateSpec", "Problem", "Problems", "PromptTemplate", "completion_text", "fingerprint",
    "load_parts", "load_problems", "meta_columns", "mix_parts", "prompt_ids", "prompt_lengths", "test_sets", "titles",
    "to_dataset", "to_rows", "token_ids", "tokenized", "unanswered", "until_stop",
]  # fmt: skip
