"""Settings of a recipe over several seeds: `grpo-math sweep` runs what is missing and compares what is there."""

import argparse
import contextlib
import hashlib
import itertools
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from grpo_math.errors import UserError, at_once, one_line, run_cli, some
from grpo_math.generation.processes import Stopped, how_ended, supervised
from grpo_math.generation.vllm_server import visible_gpus
from grpo_math.launch.layouts import Layout, read_layout
from grpo_math.launch.plan import Command, threads_of_each
from grpo_math.recipe.file import TEXTS, StrictLoader, dotted, read_yaml
from grpo_math.recipe.recipe import Recipe, load_recipe
from grpo_math.report.data import read_run
from grpo_math.report.report import as_text
from grpo_math.report.sweep import summarise, write_sweep
from grpo_math.runs.checkpoints import differences
from grpo_math.runs.folder import next_step, only_one, read_rows, replace
from grpo_math.runs.logs import run_logging
from grpo_math.runs.progress import EVERY, Bar, clock
from grpo_math.trainer.config import check_machine

OWN = {  # keys that a sweep sets itself
    "seed": "give the number of --seeds; they begin with the recipe's own seed",
    "output_dir": "give --out",
    "resume_from_checkpoint": "the runs are resumed by themselves",
}
PLAIN = (*TEXTS, "config")  # keys whose values are no YAML on the command line
LONGEST = 100  # characters of a folder's name
POLL = 0.2  # seconds between two looks at the running trainings


@dataclass(frozen=True, eq=False)
class Trial:
    """One run of a setting: its recipe, whose output_dir is OUT/SETTING/seed-N."""

    setting: str
    seed: int
    recipe: Recipe

    @property
    def folder(self) -> Path:
        return self.recipe.output_dir

    @property
    def file(self) -> Path:
        """The recipe that the run was started with; a layout adds keys to that in its folder."""
        return self.folder.with_name(f"{self.folder.name}.yaml")

    @property
    def log(self) -> Path:
        """What the run prints, of all attempts."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def finished(self) -> bool:
        return (self.folder / "results.json").exists()

    def __str__(self) -> str:
        return f"{self.setting} seed {self.seed}"

    def check(self) -> None:
        """Raise UserError where there is nothing to compare, or where the folder holds a run of another recipe."""
        if not self.recipe.eval.wanted:
            raise UserError("eval: a sweep compares accuracies: add --eval.before_after true")
        if self.finished or (self.folder / "metrics.jsonl").exists():
            before = read_yaml(self.file) if self.file.exists() else {}
            if changed := [
                f"{key} {old}, not {new}" for key, (old, new) in differences(before, self.recipe.raw).items()
            ]:
                raise UserError(
                    f"{self.folder}: holds a run with {some(changed, 3)}: restore it, give another --out, or "
                    "delete that folder"
                )

    def start(self, layout: str | None, gpus: list[str] | None, environment: dict[str, str]) -> subprocess.Popen:
        """Start the training, in a folder that an earlier attempt may have begun to fill."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        replace(self.recipe.dump(), self.file)
        return self.command(layout, gpus, environment).start(self.log)

    def command(self, layout: str | None, gpus: list[str] | None, environment: dict[str, str]) -> Command:
        verb = ["launch", "--layout", layout] if layout else ["sft" if self.recipe.sft else "train"]
        words = [*verb, "--config", str(self.file), "--resume_from_checkpoint", "auto"]
        return Command("grpo-math", [sys.executable, "-m", "grpo_math"], words, {**environment}, gpus)

    def failure(self, status: int, begun: int) -> str:
        """Why the attempt whose output begins at this byte of the log has ended without results."""
        lines = self.log.read_bytes()[begun:].decode(errors="replace").strip().splitlines()
        mistakes = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        ended = how_ended(status) if status else "was stopped before its end"
        return f"{ended}: {'; '.join(mistakes) or (lines or ['it printed nothing'])[-1]} ({self.log})"


def main(options: argparse.Namespace) -> None:
    if status := supervised(lambda: run_cli(lambda _: sweep(options))):
        sys.exit(status)


@run_logging()
def sweep(options: argparse.Namespace) -> None:
    """Run what is missing and write sweep.json, sweep.md and sweep.png; exit with status 1 where a run has failed. With
    --dry_run, print the commands of the missing runs."""
    varied = parse_settings(options.set or [])
    settings, trials = make_trials(options, varied)
    missing = [trial for trial in trials if not trial.finished]
    print(
        f"{options.out}: settings {len(settings)}, seeds {options.seeds}, runs {len(trials)}, finished "
        f"{len(trials) - len(missing)}",
        flush=True,
    )
    failed: dict[Trial, str] = {}
    if missing and not options.table:
        layout = read_layout(options.layout or "single_gpu")
        shares = share_gpus(find_gpus(missing[0].recipe, layout), options.parallel, layout)
        if options.dry_run:
            print(f"at the same time: {min(len(shares), len(missing))}")
            for place, trial in enumerate(missing):
                print(f"{trial}: {trial.command(options.layout, shares[place % len(shares)], {})}")
            return
        with one_line("--out", "give another folder", (OSError,)):
            options.out.mkdir(parents=True, exist_ok=True)
        with only_one(options.out, "--out"):
            failed = run_all(missing, options.layout, shares)
    found = [
        summarise(
            name,
            given,
            {trial.seed: read_run(trial.folder) for trial in trials if trial.setting == name and trial.finished},
            {trial.seed: reason for trial, reason in failed.items() if trial.setting == name},
        )
        for name, given in settings.items()
    ]
    write_sweep(options.out, found, options.seeds, list(varied) if options.one_at_a_time else [])
    if failed:
        print(f"{len(failed)} of {len(trials)} runs failed: run the same command to retry them", file=sys.stderr)
        sys.exit(1)
    firsts = {trial.setting: trial.folder for trial in reversed(trials) if trial.finished}
    if len(firsts) > 1:
        next_step("report", *reversed(firsts.values()))


def parse_settings(given: list[str]) -> dict[str, list]:
    """`KEY=VALUE,VALUE` of every --set: each key with its values."""
    found: dict[str, list] = {}

    def add(text: str) -> None:
        key, values = parse_setting(text)
        if key in found:
            raise UserError(f"--set: {key} is given twice: name all its values in one --set")
        if key in OWN:
            raise UserError(f"--set: {key}: {OWN[key]}")
        found[key] = values

    at_once(*(partial(add, text) for text in given))
    return found


def parse_setting(given: str) -> tuple[str, list]:
    """`KEY=VALUE,VALUE`, the values as YAML: a comma in brackets, braces or quotes belongs to a value."""
    key, _, text = given.partition("=")
    try:
        values = yaml.load(f"[{text}]", StrictLoader)
        texts = [json.dumps(value, sort_keys=True) for value in values]
    except (yaml.YAMLError, ValueError, RecursionError, TypeError):
        raise UserError(
            f"--set: {given}: its values are not YAML of text, numbers, lists and mappings: quote a date, or text with "
            "brackets, braces or colons"
        ) from None
    if not key or not values:
        raise UserError(f"--set: {given}: expected KEY=VALUE,VALUE, such as learning_rate=1e-6,3e-6")
    if key in PLAIN and not all(isinstance(value, str) for value in values):
        raise UserError(f"--set: {given}: expected a string: quote a value that YAML reads as another type")
    if twice := [value for place, value in enumerate(texts) if value in texts[:place]]:
        raise UserError(f"--set: {key}: {', '.join(twice)} is given twice: name each value once")
    return key, values


def combinations(varied: dict[str, list], one_at_a_time: bool) -> dict[str, dict[str, Any]]:
    """The settings by their names, the baseline first, which has the first value of each key: all combinations, or
    those that differ from the baseline in one key."""
    if one_at_a_time:
        first = {key: values[0] for key, values in varied.items()}
        changes = [{key: value} for key, values in varied.items() for value in values[1:]]
        return {name_of(change): first | change for change in [{}, *changes]}
    every = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    return {name_of(given): given for given in every}


def name_of(given: dict[str, Any]) -> str:
    """learning_rate=1e-06,beta=0.04, as the name of a folder."""
    text = ",".join(f"{key}={as_text(value)}" for key, value in dotted(given))
    name = re.sub(r"[^\w.,=+-]+", "-", text, flags=re.ASCII) or "baseline"  # a character is a byte
    if not given or (name == text and len(name) <= LONGEST):
        return name
    return f"{name[:LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def words_of(given: dict[str, Any]) -> list[str]:
    """The settings as words of a command line."""
    return [
        f"--{key}={value if key in PLAIN else json.dumps(value, ensure_ascii=False)}" for key, value in given.items()
    ]


def make_trials(options: argparse.Namespace, varied: dict[str, list]) -> tuple[dict[str, dict[str, Any]], list[Trial]]:
    """The settings by name, and all their runs, a seed of all settings before the next. Raises UserError with every
    problem of every recipe."""
    settings = combinations(varied, options.one_at_a_time)
    found: dict[str, list[Trial]] = {name: [] for name in settings}

    def add(name: str, given: dict[str, Any]) -> None:
        words = [*options.words, *words_of(given)]
        first = load_recipe(words).trainer.get("seed", 42)  # TRL's default
        for seed in range(first, first + options.seeds):
            own = {"seed": seed, "output_dir": str(options.out / name / f"seed-{seed}")}
            trial = Trial(name, seed, load_recipe([*words, *words_of(own)]))
            trial.check()
            found[name].append(trial)

    at_once(*(partial(add, *one) for one in settings.items()))
    return settings, [trial for runs in zip(*found.values(), strict=True) for trial in runs]


def find_gpus(recipe: Recipe, layout: Layout) -> list[str] | None:
    """The visible GPUs; None where the runs take the CPU. Raises UserError where they need a GPU and there is none."""
    if recipe.trainer.get("use_cpu") or layout.config.get("use_cpu"):
        return None
    if not (gpus := visible_gpus()):
        check_machine(recipe)
    return gpus or None


def share_gpus(gpus: list[str] | None, parallel: int | None, layout: Layout) -> list[list[str] | None]:
    """The GPUs of each of the runs that train at the same time, None on a CPU: one each, where the layout takes one,
    else an equal part of all; with more runs than GPUs, some share one."""
    single = layout.single and layout.second is None
    runs = parallel or (len(gpus) if gpus and single else 1)
    if gpus is None:
        return [None] * runs
    size = 1 if single else max(1, len(gpus) // runs)
    return [[gpus[(run * size + place) % len(gpus)] for place in range(size)] for run in range(runs)]


def run_all(missing: list[Trial], layout: str | None, shares: list[list[str] | None]) -> dict[Trial, str]:
    """Run them, as many at a time as there are shares; returns those that failed, with the reason."""
    waiting, free, failed = list(missing), list(shares), {}
    running: dict[Trial, tuple[subprocess.Popen, int, list[str] | None]] = {}
    environment = threads_of_each(len(shares)) if len(shares) > 1 else {}
    try:
        with Bar("sweep", len(missing), "runs") as bar:
            told = time.monotonic()
            while waiting or running:
                while waiting and free:
                    trial, gpus = waiting.pop(0), free.pop(0)
                    begun = trial.log.stat().st_size if trial.log.exists() else 0
                    running[trial] = trial.start(layout, gpus, environment), begun, gpus
                    print(f"{trial}: started" + (f" on GPU {', '.join(gpus)}" if gpus else ""), flush=True)
                time.sleep(POLL)
                if time.monotonic() > told + EVERY:
                    told = time.monotonic()
                    bar.update(round(len(missing) - len(waiting) - len(running) + sum(map(done, running)), 1))
                for trial, (process, begun, gpus) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[trial]
                    free.append(gpus)
                    if not trial.finished:
                        failed[trial] = trial.failure(process.returncode, begun)
                    ended = f"failed, {failed[trial]}" if trial in failed else outcome(trial)
                    left = len(waiting) + len(running)
                    bar.update(len(missing) - left)
                    print(f"{trial}: {ended} (runs left: {left}, {clock(bar.left or 0)})", flush=True)
    except Stopped:
        print("stopping: the steps are finished and saved first (a second signal stops at once)", flush=True)
        for process, _, _ in running.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process, _, _ in running.values():
            process.wait()
        print("stopped: run the same command to continue", flush=True)
        raise
    return failed


def done(trial: Trial) -> float:
    """The share of its steps that it has done; 0 where their number follows from the epochs."""
    steps, rows = trial.recipe.trainer.get("max_steps", -1), read_rows(trial.folder / "metrics.jsonl")
    return min(1.0, rows[-1].get("step", 0) / steps) if rows and steps > 0 else 0.0


def outcome(trial: Trial) -> str:
    run = read_run(trial.folder)
    accuracies = " → ".join(f"{row['accuracy']:.3f}" for row in run.ends)
    return f"accuracy {accuracies or 'unknown'}, {run.seconds or 0:.0f} s"
