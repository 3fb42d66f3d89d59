"""Where the time of a GRPO step goes: generate, reward, log-probs, forward, backward, optimizer, weight sync.

usage: python benchmarks/step.py --config recipes/X.yaml [--key value ...] [--max_steps 8]

Trains as the recipe says, in a throwaway folder. A part's time is without that of the parts inside it. The first two
steps are a warm-up; of the others the median is shown, and the spread. On CUDA every part waits for the GPU at its end.
"""

import functools
import statistics
import sys
import tempfile
import time

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from spread import spread
from transformers import TrainerCallback
from watched import watch

from grpo_math.recipe.recipe import load_recipe
from grpo_math.train import train
from grpo_math.trainer.trainer import Trainer

WARM_UP = 2
PARTS = {
    "generate": (Trainer, "_generate_single_turn"),
    "reward": (Trainer, "_calculate_rewards"),
    "forward": (Trainer, "compute_loss"),
    "backward": (Accelerator, "backward"),
    "optimizer": (AcceleratedOptimizer, "step"),
    "log-probs": (Trainer, "_generate_and_score_completions"),  # of the old and the reference policy, and advantages
}


class Clock:
    """Seconds a step spends in each part, less what the parts inside it take."""

    def __init__(self):
        self.steps: list[dict[str, float]] = []
        self.now: dict[str, float] = {}
        self.inner = [0.0]

    def timed(self, part: str, function):
        @functools.wraps(function)
        def run(*arguments, **keywords):
            started = time.perf_counter()
            self.inner.append(0.0)
            try:
                return function(*arguments, **keywords)
            finally:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                spent = time.perf_counter() - started
                self.now[part] = self.now.get(part, 0.0) + spent - self.inner.pop()
                self.inner[-1] += spent

        return run


class Steps(TrainerCallback):
    def __init__(self, clock: Clock):
        self.clock = clock

    def on_step_begin(self, args, state, control, **_):
        self.started, self.clock.now = time.perf_counter(), {}

    def on_step_end(self, args, state, control, **_):
        whole = time.perf_counter() - self.started
        parts = dict(self.clock.now)
        self.clock.steps.append(parts | {"rest": whole - sum(parts.values()), "step": whole})


def main() -> None:
    clock = Clock()
    for part, (owner, name) in PARTS.items():
        setattr(owner, name, clock.timed(part, getattr(owner, name)))

    def steps_of(trainer) -> Steps:
        if trainer.use_vllm:
            engine = trainer.vllm_generation
            engine.sync_weights = clock.timed("weight sync", engine.sync_weights)
        return Steps(clock)

    watch(steps_of)
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--max_steps", "8", *sys.argv[1:], "--output_dir", f"{folder}/run", "--save_strategy", "no"]
        train(load_recipe(arguments))

    steps = clock.steps[WARM_UP:]
    whole = statistics.median(step["step"] for step in steps)
    print(f"\n{len(steps)} steps of {whole:.3f} s\n\n| part | seconds (fastest-slowest) | share |\n|---|---|---|")
    for part in dict.fromkeys(part for step in steps for part in step):
        times = [step.get(part, 0.0) for step in steps]
        print(f"| {part} | {spread(times)} | {statistics.median(times) / whole:.0%} |")
    passes = statistics.median((step["forward"] + step["backward"]) / step["step"] for step in steps)
    print(f"\nforward and backward passes are {passes:.0%} of a step")


if __name__ == "__main__":
    main()
