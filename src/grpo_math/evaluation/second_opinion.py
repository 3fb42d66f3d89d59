"""An outsider's grader on our completions, `--grader file.py:function`."""

from grpo_math.data.functions import load_function
from grpo_math.errors import UserError
from grpo_math.evaluation.solve import Benchmark, summarise
from grpo_math.recipe.recipe import Recipe


def second_opinion(rows: list[dict], reference: str, recipe: Recipe) -> list[dict]:
    """The rows with what a function of the user's says, `other`: right or not."""
    grader, judged = load_function(reference), []
    for row in rows:
        try:
            other = grader(recipe.template.full_text(row["completion"]), row["gold"])
            if not isinstance(other, bool | int | float):
                raise TypeError(f"it returned {other!r}, want true or false")
        except Exception as error:
            raise UserError(
                f"--grader: {reference} raised {type(error).__name__}: {error} on problem {row['problem']} of "
                f"{row['dataset']} (gold {row['gold']!r})"
            ) from error
        judged.append(row | {"other": bool(other)})
    return judged


def opinions(rows: list[dict], reference: str, benchmarks: list[Benchmark]) -> dict:
    """What the outsider's grader finds, as figures, and on how many completions it agrees with ours."""
    found = {"function": reference, "evaluations": [], "agrees": {}}
    for one in benchmarks:
        mine = [row for row in rows if row["dataset"] == one.title]
        other = summarise([row | {"correct": row["other"]} for row in mine], one.title)
        agrees = sum(row["other"] == (row["correct"] is True) for row in mine)
        found["evaluations"].append(other.flat())
        found["agrees"][one.title] = {"completions": len(mine), "agrees": agrees}
        print(
            f"\n{one.title} by {reference}: accuracy {other.figures['accuracy']}, agrees with ours on {agrees:,} of "
            f"{len(mine):,} completions"
        )
    return found
