"""Training problems that are test problems, or nearly: the same words, or a run of eight words in common.

Brown et al. 2020 (arXiv:2005.14165, appendix C) look for runs of 8 to 13 words; eight is what open reproductions of R1
take. Words are runs of letters and digits, without case; where all words are the same, signs count too. Templated word
problems share such runs without being copies, so the two are counted apart.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from grpo_math.data.problems import ADAPTERS, DatasetSpec, Problem, Problems, load_problems
from grpo_math.data.sources import local_files
from grpo_math.errors import UserError
from grpo_math.evaluation.solve import load_held_out
from grpo_math.recipe.recipe import Recipe

WORDS = 8
KNOWN = ("gsm8k", "math500")  # test sets that are looked for where nobody names them
SAME, RUN = "that are test problems", f"with {WORDS} words in a row of a test problem"


def words(question: str) -> list[str]:
    return re.findall(r"\w+", question.lower())


def whole(question: str) -> tuple[str, ...]:
    """The question without case, blanks and sentence marks; signs and decimal points stay."""
    return tuple(re.findall(r"\d+(?:[.,]\d+)*|\w+|[^\w\s.,;:?!'\"]", question.lower()))


def runs(said: list[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(said[start:] for start in range(WORDS)), strict=False)


class Overlap:
    """What is known of test problems: their words, and every run of eight of them."""

    def __init__(self, tests: list[Problem]):
        self.whole = {whole(problem.question) for problem in tests}
        self.runs = {run for problem in tests for run in runs(words(problem.question))}

    def reason(self, problem: Problem) -> str | None:
        """Why a training problem is contaminated, or None."""
        if whole(problem.question) in self.whole:
            return SAME
        return None if self.runs.isdisjoint(runs(words(problem.question))) else RUN


def contamination_filter(recipe: Recipe, wanted: bool) -> Callable[[Problem], str | None]:
    """Gives the reason to drop a problem that overlaps with a test problem, where that is `wanted`, or None."""
    if not wanted:
        return lambda problem: None
    tests = test_sets(recipe)
    if not tests:
        raise UserError("dataset.decontaminate: there is no test set to compare with: name one, eval: {datasets: ...}")
    return Overlap([problem for test in tests for problem in test.problems]).reason


def test_sets(recipe: Recipe) -> list[Problems]:
    """The test sets that `eval` names, whole, and those of GSM8K and MATH-500 where they are on this machine."""
    specs = [replace(spec, max_samples=None) for spec in recipe.eval_datasets]
    loaded = [load_held_out(recipe, index, spec) for index, spec in enumerate(specs)]
    absent = [name for name in KNOWN if name not in {spec.name for spec in specs}]
    loaded += [load_problems(spec) for name in absent if (spec := local_test_set(name, recipe))]
    return loaded


def local_test_set(name: str, recipe: Recipe) -> DatasetSpec | None:
    """Beside the training problems, or in the Hub's cache."""
    for spec in recipe.datasets:
        folder = Path(spec.path or "").expanduser()
        if spec.name == name and spec.path and folder.is_dir():
            try:
                local_files(folder, "test", spec.config)
            except UserError:
                continue
            return DatasetSpec(name, spec.path, split="test", config=spec.config)
    from huggingface_hub.constants import HF_HUB_CACHE

    cached = os.path.join(HF_HUB_CACHE, f"datasets--{ADAPTERS[name].hub.replace('/', '--')}", "snapshots")
    return DatasetSpec(name, split="test") if os.path.isdir(cached) else None
