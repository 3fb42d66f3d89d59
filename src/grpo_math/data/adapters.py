"""Adapters: one raw row of a known dataset becomes one `Problem`, or raises `Unusable(reason)`.

An unusable row is dropped and counted under its reason, never silently. Every adapter's docstring shows one real row.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from grpo_math.data.problem import Problem, Unusable
from grpo_math.errors import UserError, reason_of
from grpo_math.grading import last_boxed


def text_of(value: object) -> str:
    """An answer cell as text: 145.0 is "145"; None, NaN, blanks and whole lists are unusable."""
    if isinstance(value, list | dict):
        raise Unusable("with a list or mapping as the answer")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None or value != value else str(value).strip()
    if not text:
        raise Unusable("without an answer")
    return text


def gsm8k(row: dict) -> Problem:
    """GSM8K (Cobbe et al. 2021, arXiv:2110.14168), configs main and socratic.

    {"question": "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. How
    much did she earn?", "answer": "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\\nWorking 50 minutes, she
    earned 0.2 x 50 = $<<0.2*50=10>>10.\\n#### 10"}
    """
    worked, mark, answer = row["answer"].rpartition("####")
    if not mark:
        raise Unusable("without '####' before the answer")
    worked = re.sub(r"<<.*?(>>|$)", "", worked, flags=re.DOTALL)  # calculator marks
    return Problem(row["question"].strip(), text_of(answer.replace(",", "")), worked.strip())


def math(row: dict, levels: list[int] | None = None, subjects: list[str] | None = None) -> Problem:
    """MATH (Hendrycks et al. 2021, arXiv:2103.03874): the gold is the last box of the solution.

    {"problem": "What is $2+2$?", "level": "Level 1", "type": "Prealgebra", "solution": "We add: $\\boxed{4}$."}

    `levels` keeps those levels (1-5), `subjects` those subjects ("Algebra", "counting_and_probability", ...).
    """
    digits = re.search(r"\d+", str(row.get("level")))
    level = int(digits[0]) if digits else None
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
        raise UserError(f"fields: {', '.join(unknown)}: name columns for {', '.join(COLUMN_NAMES)} only")
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
            f"fields: no column {column!r} for the {role} (the columns are {', '.join(row)}): name it, "
            f"{{{role}: COLUMN}}"
        )
    return column


def reasoning_gym(row: dict, **_: object) -> Problem:
    """Any task of reasoning-gym, made on the spot: `task: gsm_symbolic, size: 2000, seed: 1, config: {}`.

    {"question": "State the final answer to the following arithmetic problem: 4 + 3 =", "answer": "7",
    "metadata": {"source_dataset": "chain_sum", "num_terms": 2}}

    Problems are graded by their answer, not by the task's own scorer.
    """
    return Problem(row["question"].strip(), text_of(row["answer"]), meta={"task": row["metadata"]["source_dataset"]})


def generate_reasoning_gym(
    split: str, config: dict | None, task: str, size: int = 1000, seed: int = 0
) -> Iterable[dict]:
    """`size` rows of a task. Other splits than train are the same task at another seed: a short question may recur."""
    try:
        import reasoning_gym as gym
    except ImportError:
        raise UserError("name: reasoning_gym needs the package: pip install reasoning-gym") from None
    seed += 0 if split == "train" else 1_000_000
    try:
        return gym.create_dataset(task, size=size, seed=seed, **(config or {}))
    except Exception as error:
        raise UserError(f"task: no {task!r} in reasoning_gym, or a wrong config: {reason_of(error)}") from error


def own_row(row: object, **_: object) -> Problem:
    """What a user's own function yields: a Problem, or a mapping with a question and an answer."""
    if isinstance(row, Problem):
        return row
    if isinstance(row, dict):
        return json_rows(row)
    raise UserError(f"path: the function yields {row!r}: yield Problem objects or dicts with question and answer")


@dataclass(frozen=True)
class Adapter:
    """Where the rows of a dataset come from, and the function from a row to a `Problem`."""

    parse: Callable[..., Problem]
    hub: str | None = None  # the default for `path`
    configs: tuple[str | None, ...] = (None,)  # of the Hub dataset; all of them make up the split
    generate: Callable[..., Iterable[dict]] | None = None  # makes the rows where there is nothing to read


SUBJECTS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip
ADAPTERS = {
    "gsm8k": Adapter(gsm8k, "openai/gsm8k", ("main",)),
    "math": Adapter(math, "EleutherAI/hendrycks_math", SUBJECTS),
    "math500": Adapter(math, "HuggingFaceH4/MATH-500"),
    "svamp": Adapter(svamp, "ChilleD/SVAMP"),
    "json": Adapter(json_rows),
    "reasoning_gym": Adapter(reasoning_gym, generate=generate_reasoning_gym),
}
OWN = Adapter(own_row)
