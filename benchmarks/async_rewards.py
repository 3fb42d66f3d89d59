"""A step with two judges that each wait 0.5 s, written plain and async; and the share of grading at 1,024 completions.

usage: python benchmarks/async_rewards.py

Warms up the quickstart's policy (SFT, most of the time this takes) and trains it by the quickstart's recipe with other
rewards, in a throwaway folder. Each row is six steps, of which the first is a warm-up: the median of five, and their
spread.
"""

import asyncio
import json
import tempfile
import time
from pathlib import Path

from spread import spread

from grpo_math.quickstart import make_warm_policy, write_problems
from grpo_math.recipe.recipe import load_recipe
from grpo_math.train import train

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"
WAIT = 0.5  # seconds a batch
ROWS = [(64, None), (64, "plain_judge"), (64, "async_judge"), (1024, None)]  # completions per step, and who judges them


def plain_judge(completions, **_):
    time.sleep(WAIT)
    return [0.0] * len(completions)


async def async_judge(completions, **_):
    await asyncio.sleep(WAIT)
    return [0.0] * len(completions)


def recipe_of(folder: Path, completions: int, judge: str | None):
    judges = {f"{judge}_{n}": {"path": f"{__file__}:{judge}"} for n in (1, 2)} if judge else {}
    overrides = {
        "model_name_or_path": folder / "policy",
        "dataset.path": folder / "arithmetic",
        "output_dir": folder / f"{completions}-{judge}",
        "rewards": json.dumps({"correctness": {}} | judges),
        "per_device_train_batch_size": completions,
        "max_steps": 6,
        "eval.before_after": "false",
        "preflight": "false",
        "save_strategy": "no",
    }
    words = [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
    return load_recipe(["--config", str(RECIPE), *words])


def main() -> None:
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_problems(folder / "arithmetic", seed=0)
        (folder / "policy").mkdir()
        make_warm_policy(folder / "policy", recipe_of(folder, *ROWS[0]).template, seed=0)
        for completions, judge in ROWS:
            recipe = recipe_of(folder, completions, judge)
            train(recipe)
            logged = [json.loads(line) for line in (recipe.output_dir / "metrics.jsonl").read_text().splitlines()][1:]
            steps, rewards = ([row[key] for row in logged] for key in ("step_time", "time/rewards"))
            shares = [part / whole for part, whole in zip(rewards, steps, strict=True)]
            names = ", ".join(spec.name for spec in recipe.rewards)
            cells = [f"{completions:,}", names, spread(steps), spread(rewards), spread(shares, ".1%")]
            lines.append(f"| {' | '.join(cells)} |")
    print("\n| completions | rewards | a step, s (fastest-slowest) | rewards, s | share |\n|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
