"""Seconds each shipped reward takes for 10,000 completions, without the time of grading.

usage: python benchmarks/rewards.py

The completions are worked texts of 133 words with a boxed answer; lengths are in bytes. Median of 5 runs after
a warm-up, and their spread. Verdicts are made once before: every reward reads the same ones.
"""

import random
import statistics
import time

from spread import spread

from grpo_math.data.prompts import TEMPLATES
from grpo_math.rewards.reward import REWARDS, RewardSpec, build_rewards

COUNT = 10_000
SENTENCES = (
    "First we find how many apples Nora has after the first day. ",
    "She has 12 boxes with 8 apples each, so that is 12*8=96 apples.\n",
    "Then she gives 17 away, which leaves 96-17=79 of them.\n",
    "Each of the $x$ remaining ones costs $\\frac{3}{4}$ of a dollar, therefore we multiply. ",
    "1. The total is 79*3/4=59.25 dollars.\n",
)


def completions(rng: random.Random) -> list[str]:
    return ["".join(rng.choices(SENTENCES, k=12)) + f"\\boxed{{{rng.randint(0, 99)}}}" for _ in range(COUNT)]


def main() -> None:
    texts = completions(random.Random(0))
    columns = {
        "prompts": texts,
        "completions": texts,
        "completion_ids": [list(text.encode()) for text in texts],
        "solution": ["42"] * COUNT,
        "worked": ["".join(SENTENCES)] * COUNT,
    }
    words = statistics.mean(len(text.split()) for text in texts)
    print(f"{COUNT:,} completions of {words:.0f} words\n\n| reward | seconds (fastest-slowest) |\n|---|---|")
    for name in REWARDS:
        (reward,) = build_rewards([RewardSpec(name=name)], TEMPLATES["boxed"])
        reward(**columns)
        times = []
        for _ in range(5):
            start = time.process_time()
            reward(**columns)
            times.append(time.process_time() - start)
        print(f"| {name} | {spread(times, '.2f')} |")


if __name__ == "__main__":
    main()
