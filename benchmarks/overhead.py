"""What grpo_math costs beside TRL called directly: a step, the peak memory, the start, the help, one import.

usage: python benchmarks/overhead.py [--model MODEL] [--runs 5] [--steps 20] [--key value ...]

The same run through `grpo_math.train` and through benchmarks/bare_trl.py: same model, problems, seeds and a reward that
costs nothing; that the losses of all steps are equal shows that both did the same. Each run is a process of its own,
in turn; the first pair is a warm-up. A step is what lies between the beginnings of two, logging included; the start is
what lies between the process's and that of the first step. Without a model it is the quickstart's policy (64
completions of 24 tokens a step). Further keys are TRL's, for both.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from spread import spread
from watched import watch

SETTINGS = {
    "per_device_train_batch_size": 64,
    "num_generations": 8,
    "max_completion_length": 24,
    "learning_rate": 3e-4,
    "seed": 0,
}
ON_CPU = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "dataloader_pin_memory": False}
WARM_UP = 2  # steps
ENVIRONMENT = dict(os.environ)  # before the quickstart is imported, which asks for one thread
CHEAP = ("--help", "train --help", "check --help", "evaluate --help", "launch --help", "quickstart --help")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    options, further = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not options.model:
            ENVIRONMENT.setdefault("OMP_NUM_THREADS", "1")  # more threads only slow so small a model down
        model = options.model or make_model(folder)
        write_data(folder)
        given = SETTINGS | ({} if on_gpu() else ON_CPU) | {"max_steps": options.steps}
        job = {"model": str(model), "folder": name, "arguments": given | keys_of(further)}
        pairs = [(child("bare", job, run), child("ours", job, run)) for run in range(options.runs + 1)][1:]
    print("| | TRL directly | grpo_math | ratio or difference of pairs |\n|---|---|---|---|")
    for what, unit in (("step", "s"), ("peak", "GiB"), ("start", "s"), ("whole", "s")):
        bare, ours = ([pair[side][what] for pair in pairs] for side in (0, 1))
        beside = [second / first for first, second in zip(bare, ours, strict=True)]
        if what in ("start", "whole"):
            beside = [second - first for first, second in zip(bare, ours, strict=True)]
        print(f"| {what}, {unit} | {spread(bare)} | {spread(ours)} | {spread(beside)} |")
    same = all(first["losses"] == second["losses"] for first, second in pairs)
    print(f"\nlosses of all {options.steps} steps equal: {same}\n")
    tell_cheap()


def keys_of(words: list[str]) -> dict:
    """TRL's keys from `--key value` words."""
    from grpo_math.recipe.file import StrictLoader  # the bare runs import this file, and nothing of ours

    values = [yaml.load(value, StrictLoader) for value in words[1::2]]
    return dict(zip([key.removeprefix("--") for key in words[::2]], values, strict=True))


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def make_model(folder: Path) -> Path:
    import torch

    from grpo_math.quickstart import TWO_STEP, make_policy, make_tokenizer

    torch.manual_seed(0)
    tokenizer = make_tokenizer([text for text, _ in TWO_STEP])
    make_policy(tokenizer).save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    return folder / "policy"


def write_data(folder: Path) -> None:
    """The quickstart's problems, in GSM8K's form for us and as question and answer for the bare run."""
    from grpo_math.data.loading import load_problems
    from grpo_math.data.problem import DatasetSpec
    from grpo_math.quickstart import write_problems

    write_problems(folder / "gsm8k", seed=0)
    problems = load_problems(DatasetSpec(name="gsm8k", path=str(folder / "gsm8k"))).problems
    rows = [{"question": problem.question, "answer": problem.answer} for problem in problems]
    (folder / "bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def child(side: str, job: dict, run: int) -> dict:
    """One training in a process of its own, and what it measured."""
    folder = Path(job["folder"])
    found = folder / f"{side}-{run}.json"
    environment = ENVIRONMENT | {"HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), environment.get("PYTHONPATH", "")])
    code = f"import time; begun = time.perf_counter(); import overhead; overhead.{side}(begun)"
    arguments = json.dumps(job | {"run": run, "found": str(found)})
    done = subprocess.run([sys.executable, "-c", code, arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{side}: {done.stdout}{done.stderr}")
    return json.loads(found.read_text())


def bare(begun: float) -> None:
    import bare_trl

    job = json.loads(sys.argv[1])
    clock = make_clock(begun)
    data, output = f"{job['folder']}/bare.jsonl", f"{job['folder']}/bare-{job['run']}"
    bare_trl.main(job["model"], data, output, job["arguments"], clock)
    clock.tell(job)


def ours(begun: float) -> None:
    from grpo_math.train import train

    job, clock = json.loads(sys.argv[1]), make_clock(begun)
    recipe = {
        "dataset": {"name": "gsm8k", "path": f"{job['folder']}/gsm8k"},
        "rewards": {"constant": {"path": "bare_trl:constant"}},
        "model_name_or_path": job["model"],
        "preflight": False,  # it refuses a constant reward
        "save_strategy": "no",
        "output_dir": f"{job['folder']}/ours-{job['run']}",
    }
    file = Path(job["folder"]) / "ours.yaml"
    file.write_text(yaml.safe_dump(recipe | job["arguments"]))

    watch(lambda trainer: clock)
    train(file)
    clock.tell(job)


def make_clock(begun: float):
    """A callback that notes when steps begin, since `begun`, and what they log."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self):
            self.begins, self.losses = [], []

        def on_step_begin(self, *_, **__):
            self.begins.append(time.perf_counter() - begun)

        def on_train_end(self, *_, **__):
            self.begins.append(time.perf_counter() - begun)

        def on_log(self, args, state, control, logs, **_):
            self.losses += [logs["loss"]] if "loss" in logs else []

        def tell(self, job: dict) -> None:
            steps = [later - earlier for earlier, later in zip(self.begins, self.begins[1:], strict=False)]
            found = {
                "step": statistics.median(steps[WARM_UP:] or steps),
                "steps": steps,
                "start": self.begins[0],
                "whole": time.perf_counter() - begun,
                "peak": peak(),
                "losses": self.losses,
            }
            Path(job["found"]).write_text(json.dumps(found))

    return Clock()


def peak() -> float:
    """In GiB: of the GPU where there is one, else the process's resident memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def tell_cheap() -> None:
    """What should cost nothing."""
    commands = {f"grpo-math {words}": [sys.executable, "-m", "grpo_math", *words.split()] for words in CHEAP}
    commands["trl --help"] = [sys.executable, "-m", "trl.cli.main", "--help"]
    commands["import grpo_math.rewards.reward"] = [sys.executable, "-c", "import grpo_math.rewards.reward"]
    commands["python -c pass"] = [sys.executable, "-c", "pass"]
    print("| command | CPU seconds |\n|---|---|")
    for name, command in commands.items():
        cpu_seconds(command)
        print(f"| `{name}` | {spread([cpu_seconds(command) for _ in range(5)])} |")


if __name__ == "__main__":
    main()
