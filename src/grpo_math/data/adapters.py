"""Adapters: one raw row of a known dataset becomes one `Problem`, or raises `Unusable(reason)`.

An unusable row is dropped and counted under its reason, never silently. Every adapter's docstring shows one real row.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import isfinite

from grpo_math.data.problem import Problem, Unusable
from grpo_math.errors import UserError, one_line
from grpo_math.grading import last_boxed


def text_of(value: object) -> str:
    """An answer cell as text: 145.0 is "145", [1, 2] the JSON list of two answers of which each is right; None, NaN,
    infinity and blanks are unusable."""
    if isinstance(value, list) and not any(isinstance(one, list) for one in value):
        texts = list(dict.fromkeys(map(text_of, value)))
        value = json.dumps(texts, ensure_ascii=False) if len(texts) > 1 else "".join(texts)
    if hasattr(value, "__len__") and not isinstance(value, str):
        raise Unusable("with an answer that is not text")
    if isinstance(value, float):
        value = int(value) if value.is_integer() else value if isfinite(value) else None
    text = "" if value is None else str(value).strip()
    if re.match(r"\[\s*'", text):  # a list as pandas writes it to CSV
        raise Unusable("with an answer that is not text")
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
    """SVAMP (Patel et al. 2021, arXiv:2103.07191): a story, then a question. The equation is the worked solution.

    {"Body": "There are 87 oranges and 290 bananas in Philip's collection.", "Question": "How big is each group of
    bananas?", "Equation": "( 290.0 / 2.0 )", "Answer": 145.0, "Type": "Common-Division", "ID": "chal-777"}
    """
    body = re.sub(r"(?<![.?!,])$", ".", row["Body"].strip())
    answer, equation = (re.sub(r"\.0\b", "", text) for text in (text_of(row["Answer"]), row.get("Equation") or ""))
    worked = f"{equation.removeprefix('( ').removesuffix(' )')} = {answer}" if equation else None
    return Problem(f"{body} {row['Question'].strip()}", answer, worked, {"type": row.get("Type")})


def json_rows(row: dict, fields: dict | None = None, drop: dict | None = None) -> Problem:
    """Your own rows: .json, .jsonl, .parquet or .csv, or what `save_to_disk` of datasets wrote.

    {"question": "What is 2+2?", "answer": "4", "source": "mine"}
    {"prompt": [{"role": "user", "content": "What is 2+2?"}], "reward_model": {"ground_truth": "4"}}

    `fields: {question: COLUMN, answer: COLUMN, worked: COLUMN}` names the columns, with dots for those inside mappings.
    Without it they are the first of COLUMN_NAMES that are there. A question may be a conversation, see `turns`. Other
    columns go to `meta`, and from there to every reward function that asks for them by name. `drop: {COLUMN: PATTERN}`
    leaves out the rows in whose cell the regular expression is found: `{question_type: proof|MCQ}`.
    """
    for column, pattern in (drop or {}).items():
        try:
            found = re.search(pattern, str(row[column])) if column in row else None
        except (re.error, TypeError) as wrong:
            raise UserError(f"drop.{column}: {pattern!r} is not a regular expression ({wrong})") from wrong
        if found:
            raise Unusable(f"whose {column} has {str(found[0] or row[column])[:40]}")
    fields = fields or {}
    if unknown := fields.keys() - COLUMN_NAMES:
        raise UserError(f"fields: {', '.join(unknown)}: unknown key, use one of {', '.join(COLUMN_NAMES)}")
    cells = dict(flat(row)) | row
    asked = find_column(cells, "question", fields)
    said = turns(cells[asked])
    cells |= {REPLY: said["assistant"]} if "assistant" in said else {}
    golden, written = find_column(cells, "answer", fields), find_column(cells, "worked", fields)
    answer, worked = cells[golden], cells.get(written)
    if golden == REPLY or (golden in SOLUTIONS and "answer" not in fields and "\\boxed" in str(answer)):
        answer, worked = last_boxed(str(answer)), worked or answer
    if not isinstance(worked, str | None):
        raise Unusable("with a worked solution that is not text")
    given = row.get("input") if asked == "instruction" else None  # Alpaca's question is in two columns
    question = "\n\n".join(filter(None, map(str.strip, (said["user"], given or ""))))
    if row.get(asked) == asked and row.get(golden) == golden:
        raise Unusable("that repeats the header")
    meta = {name: value for name, value in row.items() if name not in (asked, golden, written)}
    system = said.get("system", "").strip() or None
    return Problem(question, text_of(answer), (worked or "").strip() or None, meta, system)


REPLY = "the assistant's turn"
SOLUTIONS = ("solution", "output", REPLY)  # the last box of one is the gold, as in MATH
COLUMN_NAMES = {  # the first of these groups that is there counts
    "question": (("question", "problem", "prompt"), ("messages", "conversations"), ("instruction",)),
    "answer": (("answer", "ground_truth", "final_answer"), ("reward_model.ground_truth",), *((n,) for n in SOLUTIONS)),
    "worked": (("worked",), (REPLY,)),
}
ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's
WRITTEN = re.compile(r"\s*\[?\s*\{[^{}]*['\"](role|from)['\"]\s*:")  # messages as text, in a CSV file


def flat(row: dict, inside: str = "") -> Iterator[tuple[str, object]]:
    """The cells of a row, and those inside mappings under names with dots."""
    for name, value in row.items():
        yield f"{inside}{name}", value
        if isinstance(value, dict):
            yield from flat(value, f"{inside}{name}.")


def turns(cell: object) -> dict[str, str]:
    """What a question says, by role. Text is the user's. Messages (`role` and `content`, or ShareGPT's `from` and
    `value`) are one question of the user's, with or without a system message before it and an answer after it."""
    if isinstance(cell, str | None) and not WRITTEN.match(cell or ""):
        return {"user": cell or ""}
    if not isinstance(cell, list) or not all(isinstance(turn, dict) for turn in cell):
        raise Unusable("with a question that is not text")
    roles = [turn.get("role") or turn.get("from") for turn in cell]
    texts = [turn.get("content", turn.get("value")) for turn in cell]
    said = dict(zip((ROLES.get(role, role) for role in roles), texts, strict=True))
    order = [role for role in ("system", "user", "assistant") if role in said]
    if "user" not in said or list(said) != order or len(said) < len(cell):
        raise Unusable("with turns that are not one question")
    if not all(isinstance(text, str) for text in said.values()):
        raise Unusable("with a question that is not text")
    return said


def usual_columns(cells: dict, role: str) -> list[str]:
    """The columns of the first group of COLUMN_NAMES for a role that is there: several where they contradict."""
    there = ([name for name in names if name in cells] for names in COLUMN_NAMES[role])
    return next(filter(None, there), [])


def find_column(cells: dict, role: str, fields: dict) -> str:
    """The column for a role: the one `fields` names, the only usual one, or the one called so."""
    present = usual_columns(cells, role)
    column = fields.get(role) or (present[0] if len(present) == 1 else role)
    if column not in cells and (role != "worked" or role in fields):
        names = [fields[role]] if role in fields else [name for group in COLUMN_NAMES[role] for name in group]
        if any(cells.get(name.partition(".")[0], "") is None for name in names):
            raise Unusable("without an answer" if role == "answer" else f"without a {role}")
        without = ", or give fields without it" if role == "worked" else ""
        raise UserError(
            f"fields: no column {column!r} for the {role} (the columns are {', '.join(cells)}): name it, "
            f"{{{role}: COLUMN}}{without}"
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
    with one_line(f"task: no {task!r} in reasoning_gym, or a wrong config", kinds=(Exception,)):
        return gym.create_dataset(task, size=size, seed=seed, **(config or {}))


def own_row(row: object, **_: object) -> Problem:
    """What a user's own function yields: a Problem, or a mapping with a question and an answer."""
    if isinstance(row, Problem):
        return row
    if isinstance(row, dict):
        return json_rows(row)
    raise UserError(f"path: the function yielded {row!r}: yield Problem objects or dicts with question and answer")


@dataclass(frozen=True)
class Adapter:
    """What the name of a dataset stands for. The facts are those of its card on the Hub, or of its paper."""

    parse: Callable[..., Problem] = json_rows
    hub: str | None = None  # the default for `path`
    splits: dict[str, int] = field(default_factory=dict)  # of the Hub dataset, with their rows
    test: str = "test"  # the split to evaluate on; of a training set there is none
    configs: tuple[str | None, ...] = (None,)  # of the Hub dataset; all of them make up the split
    columns: tuple[str, ...] = ()  # the question, the answer, and where there is one the worked solution
    drop: dict[str, str] = field(default_factory=dict)  # of json_rows
    skip: tuple[str, ...] = ()  # large columns, which are not read
    answers: str = ""  # what its golds are
    licence: str = ""
    source: str = ""
    generate: Callable[..., Iterable[dict]] | None = None  # makes the rows where there is nothing to read

    @property
    def uses(self) -> list[str]:
        """What it is for: evaluation, training, or both."""
        uses = {"evaluation": self.test in self.splits, "training": "train" in self.splits.keys() - {self.test}}
        return [use for use, there in uses.items() if there]

    @property
    def params(self) -> dict[str, dict[str, str]]:
        """The parameters of `parse` where a recipe gives no others."""
        if self.parse is not json_rows or not self.columns:
            return {}
        return {"fields": dict(zip(COLUMN_NAMES, self.columns, strict=False)), "drop": self.drop}


SUBJECTS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip
NOT_STATED = "not stated"
ADAPTERS = {
    "json": Adapter(),
    "reasoning_gym": Adapter(reasoning_gym, generate=generate_reasoning_gym),
    "gsm8k": Adapter(
        gsm8k, "openai/gsm8k", {"train": 7_473, "test": 1_319}, configs=("main",), columns=("question", "answer"),
        answers="number after ####", licence="MIT", source="arXiv:2110.14168",
    ),
    # variations of GSM8K's test problems; those of the kind `critical thinking` have no answer
    "gsm_plus": Adapter(
        hub="qintongli/GSM-Plus", splits={"test": 10_552, "testmini": 2_400},
        columns=("question", "answer", "solution"), drop={"answer": "^None$"}, answers="number",
        licence="CC-BY-SA-4.0", source="arXiv:2402.19255",
    ),
    "svamp": Adapter(
        svamp, "ChilleD/SVAMP", {"train": 700, "test": 300}, columns=("Body", "Question", "Answer"), answers="number",
        licence="MIT", source="arXiv:2103.07191",
    ),
    "math": Adapter(
        math, "EleutherAI/hendrycks_math", {"train": 7_500, "test": 5_000}, configs=SUBJECTS,
        columns=("problem", "solution"), answers="LaTeX in the last box", licence="MIT", source="arXiv:2103.03874",
    ),
    "math500": Adapter(
        math, "HuggingFaceH4/MATH-500", {"test": 500}, columns=("problem", "answer", "solution"), answers="LaTeX",
        licence=NOT_STATED, source="arXiv:2305.20050",
    ),
    "aime24": Adapter(
        hub="HuggingFaceH4/aime_2024", splits={"train": 30}, test="train", columns=("problem", "answer", "solution"),
        answers="integer from 000 to 999", licence=NOT_STATED, source="card",
    ),
    "aime25": Adapter(
        hub="math-ai/aime25", splits={"test": 30}, columns=("problem", "answer"), answers="integer from 0 to 999",
        licence=NOT_STATED, source="card",
    ),
    "amc23": Adapter(
        hub="math-ai/amc23", splits={"test": 40}, columns=("question", "answer"), answers="number",
        licence=NOT_STATED, source="card",
    ),
    "hmmt": Adapter(
        hub="MathArena/hmmt_feb_2025", splits={"train": 30}, test="train", columns=("problem", "answer"),
        answers="LaTeX", licence="CC-BY-NC-SA-4.0", source="arXiv:2505.23281",
    ),
    "minerva_math": Adapter(
        hub="math-ai/minervamath", splits={"test": 272}, columns=("question", "answer"), answers="LaTeX, some in words",
        licence=NOT_STATED, source="arXiv:2206.14858",
    ),
    # `final_answer` is a list of one text, in which several answers have commas between them
    "olympiadbench": Adapter(
        hub="Hothan/OlympiadBench", splits={"train": 674}, test="train", configs=("OE_TO_maths_en_COMP",),
        columns=("question", "final_answer"), drop={"question": r"<image_\d+>"}, answers="LaTeX, one or several",
        licence="Apache-2.0", source="arXiv:2402.14008",
    ),
    # DAPO's set without its instruction and its 100 copies of each problem; config: en leaves out the Chinese ones
    "dapo_math_17k": Adapter(
        hub="open-r1/DAPO-Math-17k-Processed", splits={"train": 17_398}, configs=("all",),
        columns=("prompt", "solution"), skip=("source_prompt", "reward_model", "extra_info"), answers="integer",
        licence="Apache-2.0 (the original)", source="arXiv:2503.14476",
    ),
    "deepscaler": Adapter(
        hub="agentica-org/DeepScaleR-Preview-Dataset", splits={"train": 40_315},
        columns=("problem", "answer", "solution"), answers="LaTeX", licence="MIT", source="card",
    ),
    "openr1_math": Adapter(
        hub="open-r1/OpenR1-Math-220k", splits={"train": 93_733}, configs=("default",),
        columns=("problem", "answer", "solution"),
        drop={"question_type": "proof|MCQ", "answer": "^(proof|notfound)$"},
        skip=(
            "generations", "messages", "is_reasoning_complete", "correctness_math_verify", "correctness_llama",
            "finish_reasons",
        ),
        answers="LaTeX", licence="Apache-2.0", source="card",
    ),
    "numina_math": Adapter(
        hub="AI-MO/NuminaMath-1.5", splits={"train": 896_215}, columns=("problem", "answer", "solution"),
        drop={
            "question_type": "proof|MCQ", "answer": "^(proof|notfound)$", "problem_is_valid": "^(?!Yes$)",
            "solution_is_valid": "^(?!Yes$)",
        },
        answers="LaTeX", licence="Apache-2.0", source="card",
    ),
    "big_math": Adapter(
        hub="SynthLabsAI/Big-Math-RL-Verified", splits={"train": 251_122}, columns=("problem", "answer"),
        answers="LaTeX", licence="Apache-2.0", source="arXiv:2502.17387",
    ),
    "deepmath": Adapter(
        hub="zwhe99/DeepMath-103K", splits={"train": 103_110}, columns=("question", "final_answer"),
        skip=("r1_solution_1", "r1_solution_2", "r1_solution_3"), answers="LaTeX", licence="MIT",
        source="arXiv:2504.11456",
    ),
}  # fmt: skip
PARAMETERS = {  # of `parse` and `generate`, as keys of a dataset
    "fields": "the names of the columns, {question: COLUMN, answer: COLUMN, worked: COLUMN}",
    "drop": "drop rows in whose column a regular expression is found, {COLUMN: PATTERN}",
    "task": "the name of the task; reasoning_gym only, and required there",
    "size": "the number of problems to generate; reasoning_gym only",
    "seed": "the seed of the generated problems; reasoning_gym only",
    "levels": "levels to keep, from 1 to 5; null: all; math and math500 only",
    "subjects": "subjects to keep, such as Algebra; null: all; math and math500 only",
}
OWN = Adapter(own_row)
EVALUATION = [name for name, adapter in ADAPTERS.items() if "evaluation" in adapter.uses]
