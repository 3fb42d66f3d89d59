"""What a run folder holds, as plain data for a report. The run may be going on, or have been killed in a write."""

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from grpo_math.errors import UserError
from grpo_math.evaluation.compare import paired
from grpo_math.evaluation.statistics import Difference, Figure
from grpo_math.recipe.file import read_yaml
from grpo_math.recipe.parts import AlarmSpec
from grpo_math.runs.checkpoints import complete_checkpoints
from grpo_math.runs.folder import is_running, read_rows, read_table

MISTAKE = "stopped by a mistake"  # as errors.run_cli writes it to training.log
RECORD = re.compile(r"^\d{4}-\d\d-\d\d ", re.MULTILINE)  # the beginning of one in training.log


@dataclass(frozen=True)
class Run:
    """`steps` are the logs of training steps, `evaluations` the row of each evaluation that counts, both by step."""

    folder: Path
    running: bool
    recipe: dict
    environment: dict
    results: dict
    steps: list[dict]
    evaluations: list[dict]
    alarms: list[dict]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def step(self) -> int:
        return self.steps[-1]["step"] if self.steps else 0

    @cached_property
    def max_steps(self) -> int | None:
        """None where neither the recipe nor a checkpoint says."""
        if self.results or (self.recipe.get("max_steps") or -1) > 0:
            return self.results.get("steps") or self.recipe["max_steps"]
        found = complete_checkpoints(self.folder)
        return read_json(found[max(found)] / "trainer_state.json").get("max_steps") if found else None

    @cached_property
    def failure(self) -> str:
        """The mistake that ended the run, where training.log closes with one."""
        try:
            log = (self.folder / "training.log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        _, found, tail = log.rpartition(MISTAKE)
        return tail.strip().splitlines()[-1].partition(": ")[2] if found and not RECORD.search(tail) else ""

    @property
    def state(self) -> str:
        if self.running:
            return "running"
        if self.results:
            return "finished"
        fatal = (self.recipe.get("alarms") or {}).get("stop_on", AlarmSpec.stop_on)
        ended = [row["alarm"] for row in self.alarms if row["alarm"] in fatal]
        if ended:
            return f"ended by alarm {ended[-1]}"
        return "failed" if self.failure else "stopped"

    @property
    def progress(self) -> str:
        """45 steps, step 12 of 40, step 12"""
        if self.state == "finished":
            return f"{self.results.get('steps', self.step):,} steps"
        return f"step {self.step:,}" + (f" of {self.max_steps:,}" if self.max_steps else "")

    @property
    def seconds(self) -> float | None:
        """Of training and evaluating, over all processes that took part; None where no step says what it took."""
        total, before = 0.0, 0
        for row in self.steps:
            total += number(row.get("step_time")) * (row["step"] - before)
            before = row["step"]
        if not total:  # SFT
            return self.results.get("seconds", {}).get("total")
        return total + sum(number(row.get("seconds")) for row in self.evaluations if "weights" not in row)

    @property
    def gpu_count(self) -> int:
        return self.environment.get("gpu_count", len(self.environment.get("gpus", [])))

    @property
    def hardware(self) -> str:
        if self.gpu_count:
            names = " and ".join(dict.fromkeys(self.environment["gpus"])) or "GPU"
            return f"{self.gpu_count} x {names}"
        return f"{self.environment['cpus']} CPUs" if self.environment.get("cpus") else ""

    def series(self, metric: str) -> list[tuple[int, float]]:
        """The steps at which a metric was logged as a number, with its values."""
        found = [(row["step"], row.get(metric)) for row in self.steps]
        return [(step, value) for step, value in found if isinstance(value, int | float)]

    def files(self, kind: str) -> dict[int, Path]:
        """The files with completions of training steps (`step`) or evaluations (`eval`), by their step."""
        found = sorted((self.folder / "completions").glob(f"{kind}-*"))
        found = [file for file in found if re.fullmatch(r"\d+\.(parquet|jsonl)", file.name[len(kind) + 1 :])]
        return {int(file.stem[len(kind) + 1 :]): file for file in found}

    @cached_property
    def change(self) -> Difference | None:
        """Of the last evaluation against the first, where both have kept their completions."""
        files = self.files("eval")
        ends = [self.evaluations[place]["step"] for place in (0, -1)] if len(self.evaluations) > 1 else []
        if not ends or any(step not in files for step in ends):
            return None
        return changed(*(read_completions(files[step]) for step in ends))


def read_run(folder: Path) -> Run:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: name a run's, as grpo-math runs lists them")
    if not (folder / "recipe.yaml").is_file():
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise UserError(
            f"{folder}: no run, it has no recipe.yaml (there: {there}): name a folder that train or sft made"
        )
    rows = [row for row in read_rows(folder / "metrics.jsonl") if isinstance(row.get("step"), int)]
    return Run(
        folder,
        goes_on(folder),
        read_yaml(folder / "recipe.yaml"),
        read_json(folder / "environment.json"),
        read_json(folder / "results.json"),
        [row for row in rows if not any(name.startswith("eval/") for name in row)],
        that_count(read_rows(folder / "eval.jsonl")),
        [row for row in read_rows(folder / "alarms.jsonl") if {"step", "alarm", "says"} <= row.keys()],
    )


def goes_on(folder: Path) -> bool:
    """Whether a training is at work there that has not written its results yet."""
    return folder.is_dir() and is_running(folder) and not (folder / "results.json").exists()


def read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def that_count(rows: list[dict]) -> list[dict]:
    """The last row of each evaluation, which holds all datasets together where there are several. One made beside the
    training counts only where it made none itself."""
    found = {}
    for row in sorted(rows, key=lambda row: "weights" not in row):
        if "interval" in row:  # of an older run
            row["accuracy_low"], row["accuracy_high"] = row["interval"]
        if {"step", "accuracy", "accuracy_low", "accuracy_high"} <= row.keys():
            found[row["step"]] = row
    return [found[step] for step in sorted(found)]


def accuracy(evaluation: dict) -> Figure:
    return Figure(*(evaluation[f"accuracy{end}"] for end in ("", "_low", "_high")))


def number(value) -> float:
    return value if isinstance(value, int | float) else 0.0


def read_completions(file: Path) -> list[dict]:
    """The rows of a file; none of one that a killed run has left half-written."""
    import pyarrow

    try:
        rows = read_table(file)
    except (OSError, pyarrow.ArrowException):
        return []
    if file.name.startswith("eval-"):  # an older run's rows are in the order of the problems
        rows = [{"problem": place} | row for place, row in enumerate(rows)]
    return [row for row in rows if {"question", "completion", "correct"} <= row.keys()]


def changed(first: list[dict], second: list[dict]) -> Difference | None:
    """Of two evaluations, on the problems that both have."""
    sides = []
    for rows in (first, second):
        problems = defaultdict(list)
        for row in rows:
            problems[row.get("dataset"), row["problem"], row["question"]].append(row)
        sides.append(problems)
    common = [key for key in sides[0] if key in sides[1]]
    return paired(common, *sides)[2] if common else None
