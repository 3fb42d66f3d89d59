"""A dataset from a function: examples/own/own_function.yaml."""

import itertools
from collections.abc import Iterator


def load(split: str, largest: int = 9) -> Iterator[dict]:
    """Yields addition problems with three numbers from 1 to `largest`, one mapping per problem.

    `question` and `answer` (a text) are required, `worked` is for SFT, and other keys reach the rewards. A recipe asks
    for the split "train", its evaluation for "test"; the two have no problem in common.
    """
    for a, b, c in itertools.product(range(1, largest + 1), repeat=3):
        if ((a + b + c) % 5 == 0) == (split == "test"):
            yield {
                "question": f"Ava counts {a} apples, then {b} and then {c}. How many apples is that?",
                "answer": str(a + b + c),
                "worked": f"{a}+{b}={a + b}\n{a + b}+{c}={a + b + c}",
                "operations": 2,
            }
