"""A first recipe for a file, folder, Hub id or named dataset of problems: what was found in it, as comments."""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import yaml

from grpo_math.checks.data import FORMULA, NUMBER, SOLVED, WORDY
from grpo_math.data import ADAPTERS, TEMPLATES, DatasetSpec, Problem, Problems, load_problems, prompt_lengths
from grpo_math.data.adapters import COLUMN_NAMES, REPLY, flat, usual_columns
from grpo_math.data.filters import whole
from grpo_math.data.loading import raw_rows
from grpo_math.data.problem import Unusable
from grpo_math.data.sources import looks_local
from grpo_math.errors import UserError, one_line
from grpo_math.generation.vllm_server import visible_gpus
from grpo_math.grading import accepted
from grpo_math.models import ModelSource, context_of, load_tokenizer
from grpo_math.recipe.parts import is_hub_id
from grpo_math.recipe.recipe import load_recipe
from grpo_math.runs.folder import next_step

TEST_SPLITS = ("test", "validation", "valid", "val", "dev", "eval")
GUESSES = {  # words in the names of columns that are none of COLUMN_NAMES, the likeliest first
    "question": "question problem prompt query exercise task instruction input",
    "answer": "answer gold truth target result label expected correct output",
    "worked": "worked working solution rationale reasoning explanation steps",
}
# Columns that only describe a row.
ABOUT = re.compile("(?:^|_)(?:id|idx|index|type|format|source|is|has|num|count)(?:_|$)", re.IGNORECASE)
LETTER = re.compile(r"\(?[A-Ha-h]\)?\.?")
CHOICES = re.compile("choice|option", re.IGNORECASE)
SHARE, MOST = 10, 500  # one problem in so many is held out, and at most so many
LONGEST_PROMPT, COMPLETION, SAMPLE = 1_024, 512, 1_000  # tokens, tokens, problems


def main(options: argparse.Namespace) -> None:
    """Write the recipe, and print what was seen."""
    out = options.out
    if out.exists():
        raise UserError(f"--out: {out} exists, and init never overwrites: give another --out")
    if out.suffix not in (".yaml", ".yml") or not out.parent.is_dir():
        raise UserError(f"--out: {out}: expected a .yaml file to write, in an existing folder")
    if not options.model:
        raise UserError("--model: expected a folder or a Hub id, got ''")
    spec = recognised(options.source, {role: column for role in COLUMN_NAMES if (column := getattr(options, role))})
    found = load_problems(spec)
    trained, test, problems, files, how = held_out(spec, found, out)
    seen = [str(found), *columns_of(spec), *kinds_of(found), f"held out: {how}"]
    seen = ["".join(sign if sign.isprintable() else " " for sign in line) for line in seen]
    files[out] = recipe_text(options.model, trained, test, problems, seen)
    with one_line(f"--out: {out}: cannot be written", kinds=(OSError,)):
        for path, content in files.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(content, encoding="utf-8", errors="backslashreplace")  # half a surrogate pair in JSON
    load_recipe(out)
    print("\n".join([*seen, f"{out}: written, with comments: read it before the first run"]))
    next_step("check", *([] if visible_gpus() else ["--layout", "cpu"]), "--config", out)


def recognised(source: str, columns: dict[str, str]) -> DatasetSpec:
    """The dataset, as the first adapter sees it that reads its first row. `columns` are those given, by role."""
    name, _, path = source.partition("=")
    exists = Path(os.path.expanduser(source)).exists()
    named, function = name in ADAPTERS.keys() - {"json"} and (path or not exists), ":" in source and not exists
    if named and "training" not in ADAPTERS[name].uses:
        raise UserError(f"{name}: has no training problems: `grpo-math datasets` lists the sets that have")
    if columns and (named or function):
        raise UserError(f"--{min(columns)}: only for files and Hub datasets that are given without NAME=: leave it out")
    if named and (not looks_local(path) or Path(os.path.expanduser(path)).exists()):
        return DatasetSpec(name=name, path=path or None)
    if function and not named:
        return DatasetSpec(path=source)
    if looks_local(source) and not exists:
        raise UserError(f"no file or folder {path or source}: paths are relative to the current folder")
    spec = DatasetSpec(name="json", path=source)
    folder = spec.model_copy(update={"path": str(Path(source).parent)})
    if exists and Path(source).stem == "train" and there(folder, "train") and there(folder, "test"):
        spec = folder
    row = next(iter(raw_rows(spec)), None)
    if row is None:
        raise UserError(f"{source}: has no rows: give a file with problems")
    for known in ("gsm8k", "svamp") if not columns else ():
        with contextlib.suppress(KeyError, AttributeError, Unusable):
            ADAPTERS[known].parse(row)
            return spec.model_copy(update={"name": known})
    _, fields = roles_of(row, columns)
    return spec.model_copy(update={"params": {"fields": fields} if fields else {}})


def there(spec: DatasetSpec, split: str) -> bool:
    """Whether this split has rows."""
    with contextlib.suppress(UserError):
        return any(True for _ in raw_rows(spec.model_copy(update={"split": split})))
    return False


def roles_of(row: dict, given: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The column of each role, and the `fields` of a recipe: the columns that are given, and those whose names only
    contain a usual word."""
    cells, fields = dict(flat(row)) | row, dict(given)
    if cells.keys() & {*COLUMN_NAMES["question"][1]}:  # a conversation
        cells[REPLY] = ""
    names, known = ", ".join(name for name, _ in flat(row)), {}
    if wrong := next((role for role, name in given.items() if name not in cells), None):
        raise UserError(f"--{wrong}: no column {given[wrong]!r}: the columns are {names}")
    for role in COLUMN_NAMES:
        usual = usual_columns(cells, role)
        if len(usual) > 1 and role not in given:
            raise UserError(f"{' and '.join(usual)}: either may be the {role}: name it, --{role} COLUMN")
        if usual:
            known[role] = usual[0]
    for role in [role for role in COLUMN_NAMES if role not in known | given]:
        unlikely = dict if role == "answer" else (dict, list, int, float)
        used = {*known.values(), *fields.values()}
        free = [
            name
            for name, cell in row.items()
            if name not in used and not isinstance(cell, unlikely) and not ABOUT.search(name)
        ]
        if match := next((name for word in GUESSES[role].split() for name in free if word in name.lower()), None):
            fields[role] = match
        elif role != "worked":
            without = "; without reference answers, rewards are functions of your own (docs/rewards.md)"
            says = f"no column looks like the {role} (the columns are {names}): name it, --{role} COLUMN"
            raise UserError(says + (without if role == "answer" else ""))
    return known | fields, fields


def columns_of(spec: DatasetSpec) -> Iterator[str]:
    """A line on each role of a column, and one on each column, with two examples."""
    if spec.name != "json":
        yield f"read as {spec.name or 'what a function of yours yields'}"
        return
    two = list(itertools.islice(raw_rows(spec), 2))
    roles, _ = roles_of(two[0], spec.params.get("fields", {}))
    yield ", ".join(f"{role}: {roles[role]!r}" for role in COLUMN_NAMES if role in roles)
    for name in two[0]:
        used = [role for role in roles if name in (roles[role], roles[role].split(".")[0])]
        examples = " | ".join(f"{one.get(name)!r:.60}" for one in two)
        yield f"  {name!r} ({', '.join(used) or 'for rewards that ask for it'}): {examples}"


def kinds_of(found: Problems) -> Iterator[str]:
    """A line that counts the answers by kind, and one on each thing that the grader cannot know."""
    count, kinds = len(found.problems), Counter(kind(problem.answer) for problem in found.problems)
    yield "answers: " + ", ".join(f"{number:,} {name}" for name, number in kinds.most_common())
    if kinds["sentences"] > count / 100:
        raise UserError(
            f"{found.title}: {kinds['sentences']:,} of {count:,} answers are sentences, which the grader cannot "
            "compare: name a column with final answers, --answer COLUMN; if they end with \\boxed{}, rename the "
            "column to solution; or write a reward of your own that judges them (examples/judge.yaml)"
        )
    if options := [name for name in found.problems[0].meta if CHOICES.search(name)]:
        yield (
            f"multiple choice: the options are in {', '.join(options)}, and the prompt does not show them: join them "
            "to the question in a function of yours, path: my_data.py:load (docs/datasets.md)"
        )
    if kinds["text"] > count / 10:
        yield "answers in words: other words than the reference answer's are wrong, also with the same meaning"


def kind(answer: str) -> str:
    """Sentences are worked solutions, and more than WORDY words."""
    one = accepted(answer)[0]
    if any(sign in one for sign in SOLVED) or sum(map(str.isalpha, one.split())) > WORDY:
        return "sentences"
    kinds = {"numbers": NUMBER.fullmatch, "letters": LETTER.fullmatch, "expressions": FORMULA.search}
    return next((name for name, matches in kinds.items() if matches(one)), "text")


def held_out(
    spec: DatasetSpec, found: Problems, out: Path
) -> tuple[DatasetSpec, str, list[Problem], dict[Path, str], str]:
    """The dataset to train on, what `eval:` names, the training problems, files to write, and what was done. A test
    split is taken where there is one; else the problems are cut in two, and no question is in both parts."""
    problems, local = found.problems, Path(os.path.expanduser(spec.path or ""))
    if spec.name and not spec.path:
        test = "split: test" if "test" in ADAPTERS[spec.name].splits else "datasets: [math500]"
        return spec, test, problems, {}, test
    splits = () if local.is_file() else TEST_SPLITS if spec.name else ("test",)
    if split := next((one for one in splits if there(spec, one)), None):
        load_problems(spec.model_copy(update={"split": split, "where": "eval."}))
        return spec, f"split: {split}", problems, {}, f"the split {split}"
    if spec.name is None:
        return spec, "", problems, {}, "nothing: the function yields nothing with split='test'"
    if not local.exists():
        cut = f"{100 // SHARE}%"
        trained, left = spec.model_copy(update={"split": f"train[{cut}:]"}), problems[len(problems) // SHARE :]
        return trained, f'split: "train[:{cut}]"', left, {}, f"the first {cut} of the rows"
    questions = {whole(problem.question): problem.question for problem in reversed(problems)}
    if len(questions) < 2:
        return spec, "", problems, {}, "nothing: there is one problem"
    count = min(MOST, max(1, len(questions) // SHARE))
    chosen = sorted(questions, key=lambda words: hashlib.sha256(questions[words].encode()).digest())[:count]
    left = [problem for problem in problems if whole(problem.question) not in chosen]
    kept = {id(problem) for problem in left}
    tested = {place for place, problem in zip(found.places, problems, strict=True) if id(problem) not in kept}
    parts = out.with_name(f"{out.stem}_split")
    if parts.exists():
        raise UserError(f"{parts} exists, and the two parts would be written there: give another --out")
    texts: dict[str, list[str]] = {"train": [], "test": []}
    for place, row in enumerate(raw_rows(spec), 1):
        texts["test" if place in tested else "train"].append(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    how = f"{count:,} of {len(questions):,} problems, chosen by hash; both parts are written to {parts}/"
    files = {parts / f"{split}.jsonl": "".join(lines) for split, lines in texts.items()}
    return spec.model_copy(update={"path": os.path.join(".", parts)}), "split: test", left, files, how


def recipe_text(model: str, spec: DatasetSpec, test: str, problems: list[Problem], seen: list[str]) -> str:
    """The recipe that trains on these problems, as YAML with comments."""
    template, longest, length, measured = lengths(model, problems)
    dataset = {key: value for key in ("name", "path", "split") if (value := getattr(spec, key)) is not None}
    keys = {"model_name_or_path": model, "dataset": dataset | spec.params | {"max_prompt_tokens": longest}}
    engine = "use_cpu: true                     # no GPU here; on one: bf16: true and use_vllm: true\nbf16: false"
    if visible_gpus():
        engine = "bf16: true\n" + ("use_vllm: true" if find_spec("vllm") else "use_vllm: false  # not installed here")
    return RECIPE.format(
        comments="\n".join(f"# {line}" for line in seen),
        keys=yaml.safe_dump(keys, default_flow_style=None, sort_keys=False, allow_unicode=True),
        template=template,
        evaluation=f"eval: {{before_after: true, {test}, batch_size: 128}}" if test else "# eval: {before_after: true}",
        prompts=min(8, len(problems)),
        measured=measured,
        length=length,
        engine=engine,
    )


def lengths(model: str, problems: list[Problem]) -> tuple[str, int, int, str]:
    """The prompt template for the model, max_prompt_tokens, max_completion_length, and what they come from."""
    keys = {"model_name_or_path": model}
    try:
        tokenizer = load_tokenizer(keys, TEMPLATES["r1_zero"])  # which needs no chat template
        room = context_of(ModelSource.of(keys).config())
    except UserError:
        if not is_hub_id(model):
            raise
        return "boxed", LONGEST_PROMPT, COMPLETION, "not measured: the tokenizer cannot be loaded here"
    template = "boxed" if tokenizer.chat_template else "r1_zero"
    by_length = sorted(problems, key=lambda problem: len(problem.question))
    prompts = prompt_lengths(by_length[:1] + by_length[-SAMPLE:], TEMPLATES[template], tokenizer)
    longest = min(LONGEST_PROMPT, 64 * -(-max(prompts) // 64), room // 2)
    if min(prompts) > longest:
        raise UserError(
            f"the shortest prompt has {min(prompts):,} tokens, at most {longest:,} are allowed: shorten the questions"
            + (", or give another --model" if longest < LONGEST_PROMPT else "")
        )
    wanted, said = COMPLETION, f"the longest prompt has {max(prompts):,} tokens"
    if worked := [problem.worked for problem in problems if problem.worked][:SAMPLE]:
        solutions = sorted(map(len, tokenizer(worked)["input_ids"]))
        usual = solutions[(len(solutions) - 1) * 99 // 100]
        wanted = min(4_096, max(256, 64 * -(-2 * usual // 64)))
        said += f"; 99 % of the worked solutions have at most {usual:,}: twice that, at least 256"
    return template, longest, min(wanted, room - longest), said


RECIPE = """\
# grpo-math check --config FILE, then grpo-math launch --config FILE; every key: grpo-math train --help
#
{comments}

{keys}prompt_template: {template}            # docs/recipe.md: the shipped ones, or your own
rewards:
  correctness: {{weight: 1.0}}      # the answer is right
  format: {{weight: 0.2}}           # the completion is in the template's answer style
  # brevity: {{weight: 0.1, gate: correctness}}          # short right completions earn more
  # overlong: {{weight: 1.0}}                             # completions near the limit cost
  # mine: {{path: my_rewards.py:function, weight: 1.0}}   # a function of your own
{evaluation}

num_generations: 8                # completions per prompt, one group
prompts_per_step: {prompts}               # x num_generations = completions per step
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
