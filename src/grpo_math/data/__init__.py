"""From the rows of any dataset to problems, and from problems to prompts.

Enters: the `DatasetSpec`s and the `PromptTemplate` of a recipe, and a tokenizer. Leaves: `Problem`s, filtered and
counted, and the rows of TRL's dataset. Imports errors and grading alone, and nothing heavy before rows are read.
"""

from grpo_math.data.adapters import ADAPTERS
from grpo_math.data.loading import load_parts, load_problems, mix_parts, test_sets
from grpo_math.data.problem import DatasetSpec, PassRateSpec, Problem, Problems, fingerprint
from grpo_math.data.prompts import TEMPLATES, PromptTemplate, prompt_lengths, to_dataset, to_rows

__all__ = [
    "ADAPTERS", "TEMPLATES", "DatasetSpec", "PassRateSpec", "Problem", "Problems", "PromptTemplate", "fingerprint",
    "load_parts", "load_problems", "mix_parts", "prompt_lengths", "test_sets", "to_dataset", "to_rows",
]  # fmt: skip
