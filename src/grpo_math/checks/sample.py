"""Check with the model loaded: a few completions at the training's own temperature, graded."""

from collections.abc import Iterator

from grpo_math.checks.findings import Finding, Subject, note, warning
from grpo_math.evaluation import Benchmark, grade_rows, setup_of, solve
from grpo_math.generation import TransformersEngine
from grpo_math.models import ModelSource, end_tokens, load_model
from grpo_math.recipe.parts import EvalSpec


def sample(subject: Subject) -> Iterator[Finding]:
    """One completion for each of the first `samples` problems, and how many are right and in the answer style."""
    recipe, tokenizer = subject.recipe, subject.tokenizer
    benchmark = Benchmark("training", subject.problems[: subject.samples])
    template, given = recipe.template, recipe.trainer
    spec = EvalSpec(temperature=given.get("temperature", 1.0), top_p=given.get("top_p", 1.0))
    ends = end_tokens(ModelSource.of(recipe.keys), tokenizer)
    length, seed = recipe.max_completion_length, given.get("seed", 42)
    setup = setup_of(spec, template, tokenizer, ends, length, seed, subject.tools)
    engine = TransformersEngine(load_model(recipe.keys), tokenizer, recipe.eval.batch_size)
    solved = solve(engine, benchmark, setup)
    rows = grade_rows([row for rows in solved for row in rows], template)
    found = sorted(rows, key=lambda row: row["problem"])
    for row in found:
        completion = row["completion"].replace("\n", "\n> ")
        end = ", cut off" if row["truncated"] else ""
        verdict = f"{'right' if row['correct'] else 'wrong'} ({row['how']})"
        yield note(
            f"{row['question']}\n> {completion}\n"
            f"{row['length']} tokens{end}; answer {row['answer']}, gold {row['gold']}: {verdict}"
        )
    right, formed, cut = (sum(bool(row[key]) for row in found) for key in ("correct", "well_formed", "truncated"))
    says = f"{right} of {len(found)} right, {formed} in the answer style, {cut} cut off"
    fix = "a format reward, a worked example in the prompt, or SFT first"
    if cut > len(found) // 2:
        fix = f"max_completion_length: {2 * recipe.max_completion_length}"
    yield note(says) if formed else warning(says, fix)
