"""A first recipe for a file, folder, Hub id or named dataset of problems: what was found in it, as comments."""

import argparse
import hashlib
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import yaml

from grpo_math.checks.data import FORMULA, NUMBER, SOLVED, WORDY
from grpo_math.data import ADAPTERS, TEMPLATES, DatasetSpec, Problem, Problems, load_problems, prompt_lengths
from grpo_math.data.adapters import COLUMN_NAMES, REPLY, flat
from grpo_math.data.loading import raw_rows
from grpo_math.data.problem import Unusable
from grpo_math.errors import UserError, one_line
from grpo_math.generation.vllm_server import visible_gpus
from grpo_math.grading import accepted
from grpo_math.models import ModelSource, context_of, load_tokenizer
from grpo_math.recipe.parts import is_hub_id, looks_local
from grpo_math.recipe.recipe import load_recipe
from grpo_math.runs.folder import next_step

TEST_SPLITS = ("test", "validation", "valid", "val", "dev", "eval")
GUESSES = {  # words in the names of columns that are none of COLUMN_NAMES, the likeliest first
    "question": "question problem prompt query exercise task instruction input",
    "answer": "answer gold truth target result label expected correct output",
    "worked": "worked working solution rationale reasoning explanation steps",
}
LETTER = re.compile(r"\(?[A-Ha-h]\)?\.?")
CHOICES = re.compile("choice|option", re.IGNORECASE)
SHARE, MOST = 10, 500  # one problem in so many is held out, and at most so many
LONGEST_PROMPT, SAMPLE = 1_024, 1_000  # tokens, problems
CHARACTERS = 3  # per token, where there is no tokenizer


def main(options: argparse.Namespace) -> None:
    """Write the recipe, and print what was seen."""
    out = options.out
    if out.exists():
        raise UserError(f"--out: {out} exists, and init never overwrites: give another --out")
    if out.suffix not in (".yaml", ".yml") or not out.parent.is_dir():
        raise UserError(f"--out: {out}: expected a .yaml file to write, in an existing folder")
    if looks_local(options.source) and not Path(options.source).expanduser().exists():
        raise UserError(f"no file or folder {options.source}: paths are relative to the current folder")
    spec = recognised(options.source, {role: getattr(options, role) for role in COLUMN_NAMES})
    found, row = load_problems(spec), next(iter(raw_rows(spec)))
    seen = [str(found), *columns_of(spec, row), *kinds_of(found)]
    trained, test, how, left, parts = held_out(spec, found, out.parent)
    text = recipe_text(options.model, trained, test, found.problems, left, [*seen, how])
    with one_line(f"--out: {out}: cannot be written", kinds=(OSError,)):
        for path, content in (parts | {out: text}).items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(content, encoding="utf-8", errors="backslashreplace")  # half a surrogate pair in JSON
    load_recipe(out)
    print("\n".join([*seen, how, f"{out}: written, with comments: read it before the first run"]))
    next_step("check", "--config", out)


def recognised(source: str, given: dict[str, str | None]) -> DatasetSpec:
    """The dataset, as the first adapter sees it that reads its first row."""
    name, _, path = source.partition("=")
    fields = {role: column for role, column in given.items() if column}
    if name in ADAPTERS and name != "json" and (path or not Path(source).exists()):
        if "training" not in ADAPTERS[name].uses:
            raise UserError(f"{name}: has no training problems: `grpo-math datasets` lists the sets that have")
        return DatasetSpec(name=name, path=path or None)
    if ".py:" in source:
        return DatasetSpec(path=source)
    if Path(source).expanduser().is_file() and Path(source).stem == "train" and there(source, "train", "test"):
        source = str(Path(source).parent)
    spec = DatasetSpec(name="json", path=source, params={"fields": fields} if fields else {})
    row = next(iter(raw_rows(spec)), None)
    if row is None:
        raise UserError(f"{source}: has no rows: give a file with problems")
    for known in ("gsm8k", "svamp") if not fields else ():
        try:
            ADAPTERS[known].parse(row)
            return DatasetSpec(name=known, path=source)
        except (KeyError, AttributeError, Unusable):
            continue
    fields = guessed(row, fields)
    return spec.model_copy(update={"params": {"fields": fields} if fields else {}})


def there(path: str, *splits: str) -> bool:
    """Whether the folder of this file, a folder or a Hub dataset has these splits."""
    folder = str(Path(path).parent) if Path(path).is_file() else path
    try:
        return all(any(True for _ in raw_rows(DatasetSpec(name="json", path=folder, split=one))) for one in splits)
    except UserError:
        return False


def guessed(row: dict, given: dict[str, str]) -> dict[str, str]:
    """The `fields` of a recipe: the columns that are given, and those whose names only contain a usual word."""
    cells, fields = dict(flat(row)) | row, dict(given)
    for role in COLUMN_NAMES:
        if role in fields or known_column(cells, role):
            continue
        used = {*fields.values(), *(known_column(cells, other) for other in COLUMN_NAMES)}
        kinds = (str, int, float, list) if role == "answer" else (str,)
        free = [name for name, cell in row.items() if name not in used and (cell is None or isinstance(cell, kinds))]
        if match := next((name for word in GUESSES[role].split() for name in free if word in str(name).lower()), None):
            fields[role] = match
        elif role != "worked":
            without = "; without reference answers, rewards are functions of your own (docs/rewards.md)"
            raise UserError(
                f"no column looks like the {role} (the columns are {', '.join(map(str, row))}): name it, "
                f"--{role} COLUMN{without if role == 'answer' else ''}"
            )
    return fields


def known_column(cells: dict, role: str) -> str | None:
    """The column for a role that is found without `fields`; of a conversation, the answer is a turn of its own."""
    there = [name for group in COLUMN_NAMES[role] for name in group if name in cells]
    if not there and role != "question" and any(name in cells for name in COLUMN_NAMES["question"][1]):
        return REPLY
    return there[0] if there else None


def columns_of(spec: DatasetSpec, row: dict) -> Iterator[str]:
    """A line on each role of a column, and one on each column, with two examples."""
    if spec.name != "json":
        yield f"read as {spec.name or 'what a function of yours yields'}"
        return
    fields, cells = spec.params.get("fields", {}), dict(flat(row)) | row
    roles = {role: fields.get(role) or known_column(cells, role) for role in COLUMN_NAMES}
    yield ", ".join(f"{role}: {column!r}" for role, column in roles.items() if column)
    two = list(itertools.islice(raw_rows(spec), 2))
    for name in row:
        examples = " | ".join(f"{one.get(name)!r:.60}" for one in two)
        used = [role for role, column in roles.items() if column and column.split(".")[0] == name]
        yield f"  {name!r} ({', '.join(used) or 'for rewards that ask for it'}): {examples}"


def kinds_of(found: Problems) -> Iterator[str]:
    """A line that counts the answers by kind, and one on each thing that the grader cannot know."""
    kinds = Counter(kind(problem.answer) for problem in found.problems)
    yield "answers: " + ", ".join(f"{count:,} {name}" for name, count in kinds.most_common())
    if kinds["sentences"] > len(found.problems) / 100:
        raise UserError(
            f"{found.title}: {kinds['sentences']:,} of {len(found.problems):,} answers are sentences, which the grader "
            "cannot compare: name a column with final answers, --answer COLUMN; if they end with \\boxed{}, rename the "
            "column to solution; or write a reward of your own that judges them (examples/judge.yaml)"
        )
    if options := [str(name) for name in found.problems[0].meta if CHOICES.search(str(name))]:
        yield (
            f"multiple choice: the options are in {', '.join(options)}, and the prompt does not show them: join them "
            "to the question in a function of yours, path: my_data.py:load (docs/datasets.md)"
        )
    elif kinds["letters"] > len(found.problems) / 2:
        yield "multiple choice: the grader compares the letters, and a guess is right by chance"
    if kinds["text"] > len(found.problems) / 10:
        yield "answers in words: other words than the reference answer's are wrong, also with the same meaning"


def kind(answer: str) -> str:
    """numbers, letters, expressions, text, or sentences: worked solutions, and more than WORDY words."""
    one = accepted(answer)[0]
    if NUMBER.fullmatch(one):
        return "numbers"
    if LETTER.fullmatch(one):
        return "letters"
    if any(sign in one for sign in SOLVED) or sum(map(str.isalpha, one.split())) > WORDY:
        return "sentences"
    return "expressions" if FORMULA.search(one) else "text"


def held_out(spec: DatasetSpec, found: Problems, folder: Path) -> tuple[DatasetSpec, str, str, int, dict[Path, str]]:
    """The training problems, what `eval:` names, what was done, the number of training problems left, and files to
    write. A test split is taken where there is one; else the training problems are cut into two files."""
    whole, path = len(found.problems), spec.path or ""
    if spec.name is None:
        return spec, "split: test", "held out: what the function yields with split='test'", whole, {}
    if not path:
        test = "split: test" if ADAPTERS[spec.name].test in ADAPTERS[spec.name].splits else "datasets: [math500]"
        return spec, test, f"held out: {test}", whole, {}
    local = Path(path).expanduser()
    if not local.is_file() and (split := next((one for one in TEST_SPLITS if there(path, one)), None)):
        return spec, f"split: {split}", f"held out: the split {split}", whole, {}
    questions = {problem.question for problem in found.problems}
    if len(questions) < 2:
        return spec, "", "held out: nothing: there is one question", whole, {}
    if not local.exists():
        trained, percent = spec.model_copy(update={"split": f"train[{100 // SHARE}%:]"}), f"{100 // SHARE}%"
        test = f'split: "train[:{percent}]"'
        return trained, test, f"held out: the first {percent} of the rows", whole - whole // SHARE, {}
    count = min(MOST, max(1, len(questions) // SHARE))
    chosen = set(sorted(questions, key=lambda question: hashlib.sha256(question.encode()).digest())[:count])
    places = {place for place, problem in zip(found.places, found.problems, strict=True) if problem.question in chosen}
    parts = folder / f"{local.stem}_split"
    if parts.exists():
        raise UserError(
            f"{parts} exists, and the training and test problems would be written there: delete or rename it"
        )
    texts = dict.fromkeys(("train", "test"), "")
    for place, row in enumerate(raw_rows(spec), 1):
        texts["test" if place in places else "train"] += json.dumps(row, ensure_ascii=False, default=str) + "\n"
    files = {parts / f"{split}.jsonl": text for split, text in texts.items()}
    how = f"held out: {count:,} of {len(questions):,} questions, chosen by hash; both parts are written to {parts}/"
    return spec.model_copy(update={"path": str(parts)}), "split: test", how, whole - len(places), files


def recipe_text(model: str, spec: DatasetSpec, test: str, problems: list[Problem], left: int, seen: list[str]) -> str:
    """The recipe of these problems, of which so many are left to train on, as YAML with comments."""
    template, longest, length, measured = lengths(model, problems)
    dataset = {key: getattr(spec, key) for key in ("name", "path", "split") if getattr(spec, key) is not None}
    dataset |= spec.params | {"max_prompt_tokens": longest}
    prompts = min(8, left)
    if visible_gpus():
        engine = "bf16: true\n" + ("use_vllm: true" if find_spec("vllm") else "use_vllm: false  # not installed here")
    else:
        engine = (
            "use_cpu: true                     # no GPU here; on one, instead of these two lines: bf16: true and "
            "use_vllm: true\nbf16: false"
        )
    comments = "\n".join(f"# {line}" for line in seen)
    evaluation = f"eval: {{before_after: true, {test}, batch_size: 128}}" if test else "# eval: {before_after: true}"
    return RECIPE.format(
        comments=comments,
        dataset=yaml.safe_dump({"dataset": dataset}, default_flow_style=None, sort_keys=False, allow_unicode=True),
        template=template,
        evaluation=evaluation,
        model=yaml.safe_dump(model, allow_unicode=True).splitlines()[0],
        prompts=prompts,
        step=8 * prompts,
        measured=measured,
        length=length,
        engine=engine,
    )


def lengths(model: str, problems: list[Problem]) -> tuple[str, int, int, str]:
    """The prompt template for the model, max_prompt_tokens, max_completion_length, and what they come from."""
    keys, tokenizer, room = {"model_name_or_path": model}, None, sys.maxsize
    mistakes = []
    for name in ("boxed", "r1_zero"):  # the second one for models without a chat template
        try:
            tokenizer = load_tokenizer(keys, TEMPLATES[name])
            room = context_of(ModelSource.of(keys).config())
            break
        except UserError as mistake:
            mistakes.append(mistake)
    if tokenizer is None and not is_hub_id(model):
        raise mistakes[0]
    some = sorted(problems, key=lambda problem: len(problem.question))[-SAMPLE:]
    worked = [problem.worked for problem in problems if problem.worked][:SAMPLE]
    if tokenizer is None:
        name, how = "boxed", f"estimated, {CHARACTERS} characters a token"
        prompts = [len(one.question) // CHARACTERS + 64 for one in some]
        solutions = [len(text) // CHARACTERS for text in worked]
    else:
        how = "measured"
        prompts = prompt_lengths(some, TEMPLATES[name], tokenizer)
        solutions = list(map(len, tokenizer(worked)["input_ids"])) if worked else []
    longest = min(LONGEST_PROMPT, 64 * -(-max(prompts) // 64), room // 2)
    wanted = 512
    said = f"the longest prompt {max(prompts):,} tokens" + (", which is dropped" if max(prompts) > longest else "")
    if solutions:
        usual = sorted(solutions)[(len(solutions) - 1) * 99 // 100]
        wanted = min(4_096, max(256, 64 * -(-2 * usual // 64)))
        said += f", 99 % of the worked solutions at most {usual:,}: twice that"
    return name, longest, min(wanted, room - longest), f"{said} ({how})"


RECIPE = """\
# grpo-math check --config FILE, then grpo-math launch --config FILE; every key: grpo-math train --help
#
{comments}

{dataset}prompt_template: {template}            # docs/recipe.md: the shipped ones, or your own
rewards:
  correctness: {{weight: 1.0}}      # the answer is right
  format: {{weight: 0.2}}           # the completion is in the template's answer style
  # brevity: {{weight: 0.1, gate: correctness}}          # short right completions earn more
  # overlong: {{weight: 1.0}}                             # completions near the limit cost
  # mine: {{path: my_rewards.py:function, weight: 1.0}}   # a function of your own
{evaluation}

model_name_or_path: {model}
num_generations: 8                # completions per prompt, one group
prompts_per_step: {prompts}               # x 8 generations = {step} completions
# {measured}
max_completion_length: {length}
num_train_epochs: 1
learning_rate: 1.0e-6             # with use_peft: true 1.0e-5
lr_scheduler_type: constant_with_warmup
warmup_steps: 10
temperature: 1.0
seed: 42

{engine}
save_steps: 100
save_total_limit: 2
"""
