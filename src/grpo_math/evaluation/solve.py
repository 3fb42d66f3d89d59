"""Held-out problems, solved by an engine and graded."""

import functools
import logging
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from grpo_math.data import DatasetSpec, Problem, PromptTemplate, load_problems, prompt_ids, titles, to_rows
from grpo_math.errors import UserError
from grpo_math.generation import Completion, Engine, Sampling, converse
from grpo_math.grading import grade_batch, well_formed
from grpo_math.models import Tools
from grpo_math.recipe.parts import EvalSpec
from grpo_math.runs.progress import Bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GROUPS = ("level", "subject", "type")  # the columns of a dataset by which accuracy is broken down

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Held-out problems under the name of their dataset."""

    title: str
    problems: list[Problem]


@dataclass(frozen=True)
class Setup:
    """How problems are posed and completions sampled, with which tools; the seed of each completion follows from `seed`
    and its place."""

    template: PromptTemplate
    tokenizer: "PreTrainedTokenizerBase"
    sampling: Sampling
    seed: int = 42
    tools: Tools | None = None


def setup_of(
    spec: EvalSpec,
    template: PromptTemplate,
    tokenizer: "PreTrainedTokenizerBase",
    ends: set[int],
    longest: int,
    seed: int,
    tools: Tools | None = None,
) -> Setup:
    """As a recipe's `eval:` asks; `ends` are the end tokens, `longest` is the longest completion in tokens."""
    sampling = Sampling(longest, spec.samples, spec.temperature, spec.top_p, template.stop, frozenset(ends))
    return Setup(template, tokenizer, sampling, seed, tools)


def load_benchmarks(specs: list[DatasetSpec]) -> list[Benchmark]:
    """The held-out problems, dataset by dataset, each with a name of its own."""
    if not specs:
        raise UserError("eval.datasets: missing, name the problems to evaluate on, eval: {datasets: {name: gsm8k}}")
    benchmarks: list[Benchmark] = []
    for spec, title in zip(specs, titles(specs), strict=True):
        loaded = load_problems(spec)
        logger.info("evaluating on %s", loaded)
        benchmarks.append(Benchmark(title, loaded.problems))
    return benchmarks


def solve(
    engine: Engine,
    benchmark: Benchmark,
    setup: Setup,
    places: Sequence[int] | None = None,
    done: AbstractSet[int] = frozenset(),
) -> Iterator[list[dict]]:
    """Yield the ungraded rows of problems as they are solved, of one or several at a time: of those at `places` (all by
    default) without those that are `done`.

    A row is one completion: dataset, problem (its index), sample, question, gold, the group columns there are,
    completion, length, truncated; of one with tools also conversation, and tokens, its length with the tool results.
    """
    places = range(len(benchmark.problems)) if places is None else places
    opening = ""
    if setup.tools:  # a conversation holds its own thinking
        rows = to_rows([benchmark.problems[place] for place in places], setup.template, setup.tokenizer)
        answered = converse(engine, rows, setup.sampling, setup.seed, setup.tokenizer, setup.tools, done)
    else:
        opening = setup.template.opening(setup.tokenizer)
        prompts = prompts_of(benchmark, setup.template, setup.tokenizer)
        seeds = [zlib.crc32(f"{setup.seed} {benchmark.title} {place}".encode()) >> 1 for place in places]
        answered = engine.generate([prompts[place] for place in places], seeds, setup.sampling, done)
    for finished in answered:
        yield [row for index, found in finished.items() for row in rows_of(benchmark, places[index], found, opening)]


@functools.lru_cache(maxsize=8)  # a training evaluates on the same ones again and again
def prompts_of(benchmark: Benchmark, template: PromptTemplate, tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """The prompts as token ids."""
    return list(prompt_ids(benchmark.problems, template, tokenizer))


def rows_of(benchmark: Benchmark, place: int, completions: list[Completion], opening: str = "") -> list[dict]:
    problem = benchmark.problems[place]
    known = {"dataset": benchmark.title, "problem": place, "question": problem.question, "gold": problem.answer}
    known |= {column: str(problem.meta[column]) for column in GROUPS if problem.meta.get(column) is not None}
    return [
        known
        | {"sample": sample, "completion": opening + one.text, "length": one.length, "truncated": one.truncated}
        | ({"conversation": one.conversation, "tokens": len(one.ids)} if one.conversation else {})
        for sample, one in enumerate(completions)
    ]


def solve_together(
    engine: Engine, benchmark: Benchmark, setup: Setup, engine_size: int, stopped: Callable[[], bool], name: str
) -> tuple[list[dict], float]:
    """The graded rows of a benchmark that all processes solve together, on every process, and the seconds it took.

    Each process takes a share; the `engine_size` processes of one tensor-parallel engine take the same. All shares are
    equally large (a problem may be solved twice): a sharded model generates on all processes or on none. After each
    batch all ask `stopped`, and end early together. `name` is that of the progress.
    """
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state, start = PartialState(), time.perf_counter()
    count, engines = len(benchmark.problems), state.num_processes // engine_size
    first = state.process_index // engine_size
    mine = [(first + turn * engines) % count for turn in range(math.ceil(count / engines))]
    rows = []
    with Bar(name, len(mine), "problems") as bar:
        for solved in solve(engine, benchmark, setup, mine):
            rows += solved
            bar.update(len(rows) // setup.sampling.samples)
            if stopped():
                break
    gathered = {(row["problem"], row["sample"]): row for row in gather_object(grade_rows(rows, setup.template))}
    return [gathered[place] for place in sorted(gathered)], time.perf_counter() - start


def grade_rows(rows: list[dict], template: PromptTemplate) -> list[dict]:
    """The rows with what the grader found: answer, correct, how, well_formed."""
    texts = [template.full_text(row["completion"]) for row in rows]
    grades = grade_batch(texts, [row["gold"] for row in rows], template.answer_style)
    return [
        row | asdict(grade) | {"well_formed": well_formed(text, template.answer_style)}
        for row, text, grade in zip(rows, texts, grades, strict=True)
    ]
