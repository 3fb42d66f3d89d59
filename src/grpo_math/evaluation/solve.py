"""Problems solved, graded and counted: accuracy and its companions, pass@k and maj@k, with intervals over questions."""

import functools
import itertools
import logging
import math
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

from grpo_math.data import DatasetSpec, Problem, PromptTemplate, load_problems, prompt_ids
from grpo_math.errors import UserError
from grpo_math.evaluation.statistics import Figure, mean, means, pass_at_k
from grpo_math.generation.engines import Completion, Sampling
from grpo_math.grading import equal_all, grade_batch, well_formed
from grpo_math.recipe.recipe import Recipe

TOGETHER = "all datasets"  # the dataset of an evaluation of several, counted together
GROUPS = ("level", "subject", "type")  # the columns of a dataset by which accuracy is broken down

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Held-out problems under the name of their dataset."""

    title: str
    problems: list[Problem]


@dataclass(frozen=True)
class Evaluation:
    """The figures of one dataset. Shares are in [0, 1], `length` is in tokens, `seconds` is the time it took.

    `accuracy` is mean@k where a question has k samples. `groups` holds, by level or subject, the number of problems and
    the accuracy.
    """

    dataset: str
    step: int
    problems: int
    samples: int
    seconds: float
    figures: dict[str, Figure]
    groups: dict[str, dict[str, tuple[int, Figure]]] = field(default_factory=dict)

    def flat(self) -> dict:
        """As JSON: every figure with its interval, `accuracy`, `accuracy_low`, `accuracy_high`."""
        row = {key: getattr(self, key) for key in ("dataset", "step", "problems", "samples", "seconds")}
        for name, figure in self.figures.items():
            row |= figure.named(name)
        if self.groups:
            row["groups"] = {
                column: {value: {"problems": count, **asdict(figure)} for value, (count, figure) in values.items()}
                for column, values in self.groups.items()
            }
        return row

    def __str__(self) -> str:
        accuracy = self.figures["accuracy"]
        samples = "" if self.samples == 1 else f", {self.samples} samples each"
        return (
            f"accuracy {accuracy.value:.3f} (95 % interval {accuracy.low:.3f}-{accuracy.high:.3f}), "
            f"format {self.figures['format_accuracy'].value:.3f}, truncated {self.figures['truncated'].value:.3f}, "
            f"mean length {self.figures['length'].value:.0f} tokens, on {self.problems:,} problems of {self.dataset}"
            f"{samples}"
        )


def load_benchmarks(specs: list[DatasetSpec]) -> list[Benchmark]:
    """The held-out problems, dataset by dataset, each with a name of its own."""
    if not specs:
        raise UserError("eval.datasets: missing: say which problems to evaluate on, eval: {datasets: {name: gsm8k}}")
    benchmarks = []
    for spec in specs:
        loaded = load_problems(spec)
        logger.info("evaluating on %s", loaded)
        taken = {benchmark.title for benchmark in benchmarks}
        title = spec.title if spec.title not in taken else f"{spec.title} {spec.config or spec.path or ''}".strip()
        while title in taken:
            title += " again"
        benchmarks.append(Benchmark(title, loaded.problems))
    return benchmarks


def sampling_of(recipe: Recipe, ends: set[int]) -> Sampling:
    spec = recipe.eval
    stop = recipe.template.stop
    return Sampling(
        recipe.eval_completion_length, spec.samples, spec.temperature, spec.top_p, stop, frozenset(ends - {None})
    )


def like_training(recipe: Recipe, samples: int) -> Recipe:
    """The recipe with an evaluation that samples as its training does: temperature, top_p, length."""
    given = recipe.trainer
    sampled = {"temperature": given.get("temperature", 1.0), "top_p": given.get("top_p", 1.0)}
    return replace(recipe, eval=replace(recipe.eval, samples=samples, max_completion_length=None, **sampled))


def solve(
    engine,
    benchmark: Benchmark,
    recipe: Recipe,
    tokenizer,
    sampling: Sampling,
    places: Sequence[int] | None = None,
    done=frozenset(),
) -> Iterator[list[dict]]:
    """Yield the rows of problems as they are finished, of one or several at a time, ungraded; those `done` are left
    out, and with `places` all but these.

    A row is one completion: dataset, problem (its index), sample, question, gold, the group columns there are,
    completion, length, truncated. A problem's seed depends on nothing but its place.
    """
    problems = benchmark.problems
    places = range(len(problems)) if places is None else places
    prompts = prompts_of(benchmark, recipe.template, tokenizer)
    prompts = [prompts[place] for place in places]
    seed = recipe.trainer.get("seed", 42)
    seeds = [zlib.crc32(f"{seed} {benchmark.title} {place}".encode()) >> 1 for place in places]
    for finished in engine.generate(prompts, seeds, sampling, done):
        yield [row for index, found in finished.items() for row in rows_of(benchmark, places[index], found)]


@functools.lru_cache(maxsize=8)  # a training evaluates on the same ones again and again
def prompts_of(benchmark: Benchmark, template: PromptTemplate, tokenizer) -> list[list[int]]:
    """As token ids."""
    return list(prompt_ids([problem.question for problem in benchmark.problems], template, tokenizer))


def rows_of(benchmark: Benchmark, place: int, completions: list[Completion]) -> list[dict]:
    problem = benchmark.problems[place]
    known = {"dataset": benchmark.title, "problem": place, "question": problem.question, "gold": problem.answer}
    known |= {column: problem.meta[column] for column in GROUPS if problem.meta.get(column) is not None}
    return [
        known | {"sample": sample, "completion": one.text, "length": one.length, "truncated": one.truncated}
        for sample, one in enumerate(completions)
    ]


def solve_together(
    engine, benchmark: Benchmark, recipe: Recipe, tokenizer, sampling: Sampling, engine_size: int = 1
) -> tuple[list[dict], float]:
    """The graded rows of a benchmark that all processes solve together, on every process, and the seconds it took.

    Each process takes a share; the `engine_size` processes that one engine is spread over take the same. All take
    equally many (a problem may be solved twice): a sharded model generates on all processes or on none.
    """
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state, start = PartialState(), time.perf_counter()
    count, engines = len(benchmark.problems), state.num_processes // engine_size
    first = state.process_index // engine_size
    mine = [(first + round_ * engines) % count for round_ in range(math.ceil(count / engines))]
    rows = [row for rows in solve(engine, benchmark, recipe, tokenizer, sampling, mine) for row in rows]
    gathered = {(row["problem"], row["sample"]): row for row in gather_object(graded(rows, recipe))}
    return [gathered[place] for place in sorted(gathered)], time.perf_counter() - start


def graded(rows: list[dict], recipe: Recipe) -> list[dict]:
    """The rows with the grader's verdict: answer, correct, how, well_formed."""
    template = recipe.template
    texts = [template.full_text(row["completion"]) for row in rows]
    grades = grade_batch(texts, [row["gold"] for row in rows], template.answer_style)
    return [
        row | asdict(grade) | {"well_formed": well_formed(text, template.answer_style)}
        for row, text, grade in zip(rows, texts, grades, strict=True)
    ]


def summarise(rows: list[dict], dataset: str, step: int = 0, seconds: float = 0.0, seed: int = 0) -> Evaluation:
    """The figures of graded rows, which have equally many samples a problem; an unreadable gold counts as wrong.

    What is right or wrong on every question has Wilson's interval; everything else the bootstrap's.
    """
    by_problem = defaultdict(list)
    for row in rows:
        by_problem[row["dataset"], row["problem"]].append(row)
    questions = [sorted(samples, key=lambda row: row["sample"]) for _, samples in sorted(by_problem.items())]
    samples = len(questions[0])
    right = [sum(row["correct"] is True for row in question) for question in questions]
    columns = {
        "accuracy": [count / samples for count in right],
        "format_accuracy": [average(row["well_formed"] for row in question) for question in questions],
        "truncated": [average(row["truncated"] for row in question) for question in questions],
        "length": [average(row["length"] for row in question) for question in questions],
    }
    if samples > 1:
        for k in range(1, samples + 1):
            columns[f"pass@{k}"] = [pass_at_k(samples, count, k) for count in right]
        columns[f"maj@{samples}"] = majorities(questions)
    figures = means(columns, seed)
    groups = {
        column: found
        for column in GROUPS
        if (found := group(column, [question[0] for question in questions], columns["accuracy"], seed))
    }
    return Evaluation(dataset, step, len(questions), samples, round(seconds, 2), figures, groups)


def metrics_of(found: list[Evaluation]) -> dict[str, float]:
    """For a metrics log: every figure of the last evaluation, which counts, and the accuracies of those before it."""
    metrics = {}
    for name, figure in found[-1].figures.items():
        metrics |= figure.named(name)
    for evaluation in found[:-1]:
        metrics |= evaluation.figures["accuracy"].named(f"{evaluation.dataset.replace(' ', '_')}_accuracy")
    return metrics


def average(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def group(column: str, questions: list[dict], accuracies: list[float], seed: int) -> dict:
    """Accuracy by the values of a column."""
    found = defaultdict(list)
    for question, accuracy in zip(questions, accuracies, strict=True):
        if column in question:
            found[str(question[column])].append(accuracy)
    return {value: (len(values), mean(values, seed)) for value, values in sorted(found.items())}


def majorities(questions: list[list[dict]]) -> list[float]:
    """Whether the answer that most samples of a question give is right (Wang et al. 2023, arXiv:2203.11171), 1 or 0.

    Answers are the same where the grader says so. What names no answer has no vote; of equally frequent answers the
    first one given counts.
    """
    votes = []
    for question, same in zip(questions, clusters(questions), strict=True):
        counts = Counter(same[row["sample"]] for row in question if row["answer"] is not None)
        winner = max(counts, key=counts.get, default=None)  # the first of equals: a Counter keeps the order
        votes.append(float(winner is not None and question[winner]["correct"] is True))
    return votes


def clusters(questions: list[list[dict]]) -> list[dict[int, int]]:
    """For every question, sample -> the first sample with the same answer. Right answers are the same one.

    Round by round the first answer without a cluster is compared with all later ones, in one batch for all questions.
    """
    found, waiting = [], []
    for question in questions:
        right = [row["sample"] for row in question if row["correct"] is True]
        found.append({sample: min(right) for sample in right})
        waiting.append([row for row in question if row["correct"] is not True and row["answer"] is not None])
    while any(waiting):
        pairs = [[(rows[0]["answer"], row["answer"]) for row in rows[1:]] for rows in waiting]
        verdicts = iter(equal_all(list(itertools.chain.from_iterable(pairs))))
        for index, rows in enumerate(waiting):
            if not rows:
                continue
            first, left = rows[0], []
            found[index][first["sample"]] = first["sample"]
            for row in rows[1:]:
                same, _ = next(verdicts)
                if same or row["answer"] == first["answer"]:
                    found[index][row["sample"]] = first["sample"]
                else:
                    left.append(row)
            waiting[index] = left
    return found
