"""A reward of one's own, with a column of the data and a setting of the recipe: examples/own/own_reward.yaml."""

import operator
import re

from grpo_math.data import completion_text

EQUATION = re.compile(r"(\d+)([-+*])(\d+)=(\d+)")
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def working(completions: list, operations: list[int], *, penalty: float = 0.5, **_: object) -> list[float]:
    """Scores the equations that each completion writes out, such as 3+4=7.

    The score is the share of the problem's `operations` that are written out correctly, at most 1, less `penalty` for
    each wrong equation. `operations` is a column of the data, `penalty` a setting in the recipe.
    """
    scores = []
    for completion, wanted in zip(completions, operations, strict=True):
        found = EQUATION.findall(completion_text(completion))
        right = sum(OPERATIONS[sign](int(a), int(b)) == int(result) for a, sign, b, result in found)
        scores.append(min(1.0, right / wanted) - penalty * (len(found) - right))
    return scores
