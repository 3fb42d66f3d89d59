"""Problems: raw rows of any source become `Problem`s, once, here.

An adapter turns one raw row into one `Problem` or raises `Unusable(reason)`: the row is dropped and counted under
that reason, never silently. Every adapter's docstring shows one real row.
"""

import hashlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from grpo_math.data.functions import load_function
from grpo_math.data.sources import generate_reasoning_gym, hub_rows, local_files, read_rows
from grpo_math.errors import UserError
from grpo_math.grading import last_boxed


@dataclass(frozen=True)
class Problem:
    """The one normal form: `answer` is the final reference answer, `worked` a written-out solution if there is one."""

    question: str
    answer: str
    worked: str | None = None
    meta: dict = field(default_factory=dict)


class Unusable(Exception):
    """Why a row cannot become a problem."""


Keep = Callable[[list[Problem]], list[str | None]]


@dataclass(frozen=True)
class PassRateSpec:
    """The `pass_rate:` part of a dataset: keep the problems whose rate in `file` (of `grpo-math pass-rate`) is from
    `min` to `max`, in [0, 1]."""

    file: str
    min: float = 0.0
    max: float = 1.0


@dataclass(frozen=True)
class DatasetSpec:
    """The `dataset:` part of a recipe.

    `config` is the Hub dataset's (text) or the reasoning_gym task's (a mapping); `params` are the adapter's own keys.
    `decontaminate` drops training problems that overlap with test problems (contamination.py).
    """

    name: str | None = None
    path: str | None = None
    split: str = "train"
    config: str | dict | None = None
    max_samples: int | None = None
    shuffle_seed: int | None = None
    max_prompt_tokens: int | None = None
    weight: float | None = None
    decontaminate: bool = False
    pass_rate: PassRateSpec | None = None
    params: dict = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What a figure on these problems is said to be of: not GSM8K where local files have its form only."""
        source = self.name or self.path
        if self.path and self.name not in (None, "json") and Path(self.path).expanduser().exists():
            path = Path(self.path).expanduser().resolve()
            source = path.parent.name if path.is_file() and path.stem in ("train", "test", self.split) else path.stem
        return f"{source} {self.split}"


@dataclass(frozen=True)
class Problems:
    """The problems of one source, the row each stood in (from 1), and what was dropped on the way and why."""

    title: str
    problems: list[Problem]
    places: list[int]
    rows: int
    dropped: Counter

    def __str__(self) -> str:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.most_common())
        return f"{self.title}: {len(self.problems):,} problems of {self.rows:,} rows" + (
            f", dropped: {reasons}" if reasons else ""
        )


def text_of(value) -> str:
    """An answer cell as text: 145.0 is "145"; None, NaN, blanks and whole lists are unusable."""
    if isinstance(value, list | dict):
        raise Unusable("with a list or mapping as the answer")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None or value != value else str(value).strip()
    if not text:
        raise Unusable("without an answer")
    return text


# --- adapters ---------------------------------------------------------------------------------------------------


def gsm8k(row: dict) -> Problem:
    """GSM8K (Cobbe et al. 2021, arXiv:2110.14168), configs main and socratic.

    {"question": "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. How
    much did she earn?", "answer": "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\\nWorking 50 minutes, she
    earned 0.2 x 50 = $<<0.2*50=10>>10.\\n#### 10"}
    """
    worked, mark, answer = row["answer"].rpartition("####")
    if not mark:
        raise Unusable("without '####' before the answer")
    while "<<" in worked:  # calculator marks
        before, _, rest = worked.partition("<<")
        worked = before + rest.partition(">>")[2]
    return Problem(row["question"].strip(), text_of(answer.replace(",", "")), worked.strip())


def math(row: dict, levels: list[int] | None = None, subjects: list[str] | None = None) -> Problem:
    """MATH (Hendrycks et al. 2021, arXiv:2103.03874): the gold is the last box of the solution.

    {"problem": "What is $2+2$?", "level": "Level 1", "type": "Prealgebra", "solution": "We add: $\\boxed{4}$."}

    `levels` keeps those levels (1-5), `subjects` those subjects ("Algebra", "counting_and_probability", ...).
    """
    digits = "".join(character for character in str(row.get("level", "")) if character.isdecimal())
    level = int(digits) if digits else None
    subject = row.get("subject", row.get("type"))
    if levels is not None and level not in levels:
        raise Unusable("of other levels")
    if subjects is not None and slug(subject or "") not in map(slug, subjects):
        raise Unusable("of other subjects")
    answer = row.get("answer") or last_boxed(row["solution"])
    return Problem(row["problem"].strip(), text_of(answer), row.get("solution"), {"level": level, "subject": subject})


def slug(subject: str) -> str:
    return subject.lower().replace("&", "and").replace(" ", "_")


def svamp(row: dict) -> Problem:
    """SVAMP (Patel et al. 2021, arXiv:2103.07191): a story, then a question.

    {"Body": "There are 87 oranges and 290 bananas in Philip's collection.", "Question": "How big is each group of
    bananas?", "Equation": "( 290.0 / 2.0 )", "Answer": 145.0, "Type": "Common-Division", "ID": "chal-777"}
    """
    body = row["Body"].strip()
    body += "" if body.endswith((".", "?", "!", ",")) else "."
    return Problem(f"{body} {row['Question'].strip()}", text_of(row["Answer"]), meta={"type": row.get("Type")})


def json_rows(row: dict, fields: dict | None = None) -> Problem:
    """Your own rows: .json, .jsonl, .parquet or .csv.

    {"question": "What is 2+2?", "answer": "4", "source": "mine"}

    `fields: {question: COLUMN, answer: COLUMN, worked: COLUMN}` names the columns. Without it they are `question`
    (or `problem`, or `prompt`) and `answer` (or `ground_truth`, or `final_answer`). Other columns go to `meta`, and
    from there to every reward function that asks for them by name.
    """
    columns = {role: find_column(row, role, names, fields or {}) for role, names in COLUMN_NAMES.items()}
    if unknown := (fields or {}).keys() - COLUMN_NAMES:
        raise UserError(f"dataset.fields: {', '.join(unknown)}: name columns for {', '.join(COLUMN_NAMES)} only")
    question = str(row[columns["question"]] or "").strip()
    meta = {name: value for name, value in row.items() if name not in columns.values()}
    worked = row.get(columns["worked"])
    if not isinstance(worked, str | None):
        raise Unusable("with a worked solution that is not text")
    return Problem(question, text_of(row[columns["answer"]]), (worked or "").strip() or None, meta)


COLUMN_NAMES = {
    "question": ("question", "problem", "prompt"),
    "answer": ("answer", "ground_truth", "final_answer"),
    "worked": ("worked",),
}


def find_column(row: dict, role: str, names: tuple[str, ...], fields: dict) -> str:
    """The column for a role: the one `fields` names, the one called like the role, or the only other candidate."""
    present = [name for name in names if name in row]
    column = fields.get(role) or (present[0] if len(present) == 1 else role)
    if column not in row and (role != "worked" or role in fields):
        raise UserError(
            f"no column {column!r} for the {role} (the columns are {', '.join(row)}): name it, "
            f"dataset.fields: {{{role}: COLUMN}}"
        )
    return column


def reasoning_gym(row: dict) -> Problem:
    """Any task of reasoning-gym, made on the spot: `task: gsm_symbolic, size: 2000, seed: 1, config: {}`.

    {"question": "State the final answer to the following arithmetic problem: 4 + 3 =", "answer": "7",
    "metadata": {"source_dataset": "chain_sum", "num_terms": 2}}

    Problems are graded by their answer, not by the task's own scorer.
    """
    return Problem(row["question"].strip(), text_of(row["answer"]), meta={"task": row["metadata"]["source_dataset"]})


@dataclass(frozen=True)
class Adapter:
    parse: Callable[..., Problem]
    hub: str | None = None  # the default for `path`
    configs: tuple[str | None, ...] = (None,)  # of the Hub dataset; all of them make up the split
    generate: Callable[..., Iterable[dict]] | None = None  # makes the rows where there is nothing to read


SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
ADAPTERS = {
    "gsm8k": Adapter(gsm8k, "openai/gsm8k", ("main",)),
    "math": Adapter(math, "EleutherAI/hendrycks_math", SUBJECTS),
    "math500": Adapter(math, "HuggingFaceH4/MATH-500"),
    "svamp": Adapter(svamp, "ChilleD/SVAMP"),
    "json": Adapter(json_rows),
    "reasoning_gym": Adapter(reasoning_gym, generate=generate_reasoning_gym),
}


# --- loading ----------------------------------------------------------------------------------------------------


def load_problems(spec: DatasetSpec, keep: Keep = lambda problems: [None] * len(problems)) -> Problems:
    """The problems of one source, shuffled by `shuffle_seed`, at most `max_samples`.

    `keep` gives for each of some problems the reason to drop it, or None (the prompt-length filter); it sees all of
    them at once, or as many as are still wanted. Raises UserError when the source is missing, malformed or leaves no
    problem.
    """
    adapter = ADAPTERS[spec.name] if spec.name else Adapter(as_problem)
    rows, seed = enumerate(raw_rows(spec), 1), spec.shuffle_seed
    if seed is None and spec.max_samples and len(adapter.configs) > 1:
        seed = 0  # MATH comes sorted by subject: the first rows are all algebra
    if seed is not None:
        rows = list(rows)
        random.Random(seed).shuffle(rows)
    params = {} if adapter.generate or spec.name is None else spec.params
    parsed = ((place, problem_of(row, place, spec, adapter, params)) for place, row in rows)
    problems, places, dropped, read = [], [], Counter(), 0
    while batch := list(itertools.islice(parsed, spec.max_samples and spec.max_samples - len(problems))):
        read += len(batch)
        reasons = iter(keep([found for _, found in batch if isinstance(found, Problem)]))
        for place, found in batch:
            if reason := next(reasons) if isinstance(found, Problem) else found:
                dropped[reason] += 1
            else:
                problems.append(found)
                places.append(place)
    loaded = Problems(spec.title, problems, places, read, dropped)
    if not problems:
        raise UserError(f"{loaded}: nothing is left to train or test on")
    return loaded


def problem_of(row, place: int, spec: DatasetSpec, adapter: Adapter, params: dict) -> Problem | str:
    """The problem in a row, or the reason why there is none."""
    try:
        problem = adapter.parse(row, **params)
        _ = problem.question.encode(), problem.answer.encode()
    except Unusable as reason:
        return str(reason)
    except KeyError as error:
        raise UserError(
            f"{spec.title}: row {place} does not look like {spec.name} (no column {error}; its columns are "
            f"{', '.join(map(str, row))}): use dataset.name: json with dataset.fields"
        ) from error
    except (AttributeError, TypeError, UnicodeEncodeError):  # half a character, which no tokenizer takes
        return "with a malformed cell"
    return problem if problem.question else "without a question"


def raw_rows(spec: DatasetSpec) -> Iterable:
    """The raw rows of a source: a function by path, reasoning-gym, a local file or folder, or the Hub."""
    if spec.name is None:
        return own_rows(spec)
    adapter = ADAPTERS[spec.name]
    if adapter.generate:
        return adapter.generate(spec.split, spec.config, **spec.params)
    path = spec.path or adapter.hub
    if path is None:
        raise UserError(f"dataset {spec.name}: say where the rows are, dataset.path: FILE, FOLDER or HUB_ID")
    if Path(path).expanduser().exists():
        files = local_files(Path(path).expanduser(), spec.split, spec.config)
        return (row for file in files for row in read_rows(file))
    if ".py:" in path:
        raise UserError(f"dataset.path: {path} is a function, and {spec.name} wants files: set dataset.name: null")
    return hub_rows(path, (spec.config,) if spec.config else adapter.configs, spec.split)


def own_rows(spec: DatasetSpec) -> Iterable:
    """What a user's own function yields; its exceptions become one line."""
    load = load_function(spec.path)
    try:
        yield from load(split=spec.split, **spec.params)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"dataset.path: {spec.path} raised {type(error).__name__}: {error}") from error


def as_problem(row) -> Problem:
    """What a user's own loader may yield: a Problem, or a mapping with a question and an answer."""
    if isinstance(row, Problem):
        return row
    if isinstance(row, dict):
        return json_rows(row)
    raise UserError(f"a dataset function yields Problem objects or dicts with question and answer, not {row!r}")


def mix(parts: list[Problems], weights: list[float | None], seed: int = 0) -> list[Problem]:
    """Join several sources. With weights, each gets its share of the largest mixture that repeats no problem."""
    if all(weight is None for weight in weights):
        return [problem for part in parts for problem in part.problems]
    total = sum(weight or 0 for weight in weights)
    if None in weights or min(weights) <= 0:
        raise UserError(f"dataset weights {weights}: give every dataset of the list a weight above 0, or none of them")
    size = min(len(part.problems) * total / weight for part, weight in zip(parts, weights, strict=True))
    rng = random.Random(seed)
    return [
        problem
        for part, weight in zip(parts, weights, strict=True)
        for problem in rng.sample(part.problems, max(1, int(size * weight / total + 1e-9)))
    ]


def fingerprint(problems: list[Problem]) -> str:
    """16 hex digits that change with any question or answer or their order."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([problem.question, problem.answer]).encode() + b"\n")
    return digest.hexdigest()[:16]
