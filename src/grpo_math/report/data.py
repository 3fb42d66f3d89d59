"""A run folder as plain data for a report. The run may still be running, or have been killed in a write."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import TypeGuard

from grpo_math.errors import UserError, some
from grpo_math.evaluation.compare import Comparison, compare
from grpo_math.evaluation.statistics import Difference
from grpo_math.recipe.file import read_yaml
from grpo_math.recipe.parts import AlarmSpec
from grpo_math.runs.checkpoints import complete_checkpoints
from grpo_math.runs.folder import is_running, read_rows, read_table

MISTAKE = "stopped by a mistake"  # runs.folder.at_work writes it to training.log
RECORD = re.compile(r"^\d{4}-\d\d-\d\d ", re.MULTILINE)  # the beginning of a record there


@dataclass(frozen=True)
class Run:
    """`steps` are the logs of training steps, `evaluations` the row of each evaluation that counts, ordered by step."""

    folder: Path
    running: bool
    recipe: dict
    environment: dict
    results: dict
    steps: list[dict]
    evaluations: list[dict]
    alarms: list[dict]
    notes: list[dict]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def model(self) -> str:
        """A Hub id or a relative path; of an absolute one the name."""
        name = str(self.recipe.get("model_name_or_path", "unknown model"))
        return Path(name).name if Path(name).is_absolute() else name

    @property
    def step(self) -> int:
        return self.steps[-1]["step"] if self.steps else 0

    @cached_property
    def max_steps(self) -> int | None:
        """None where neither the results, the recipe nor a checkpoint has it."""
        if self.results or (self.recipe.get("max_steps") or -1) > 0:
            return self.results.get("steps") or self.recipe["max_steps"]
        found = complete_checkpoints(self.folder)
        return read_json(found[max(found)] / "trainer_state.json").get("max_steps") if found else None

    @cached_property
    def failure(self) -> str:
        """The user error that ended the run, where training.log closes with one."""
        try:
            log = (self.folder / "training.log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        _, found, tail = log.rpartition(MISTAKE)
        return tail.strip().splitlines()[-1].partition(": ")[2] if found and not RECORD.search(tail) else ""

    @property
    def ends(self) -> list[dict]:
        """The first and the last evaluation, or the only one."""
        return self.evaluations if len(self.evaluations) < 2 else [self.evaluations[0], self.evaluations[-1]]

    @property
    def window(self) -> int:
        """Of running means, in logs."""
        return max(5, len(self.steps) // 20)

    @property
    def state(self) -> str:
        if self.running:
            return "running"
        if self.results:
            return "finished"
        fatal = (self.recipe.get("alarms") or {}).get("stop_on", AlarmSpec().stop_on)
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
        """Of training and evaluating, resumed parts included; None where no step logs its time."""
        if not (training := sum(self.step_seconds)):  # SFT
            return self.results.get("seconds", {}).get("total")
        return training + sum(row.get("seconds") or 0.0 for row in self.evaluations if "weights" not in row)

    @property
    def step_seconds(self) -> list[float]:
        """Of the steps that each log stands for."""
        before = [0, *(row["step"] for row in self.steps)]
        pairs = zip(before, self.steps, strict=False)
        return [(row.get("step_time") or 0.0) * (row["step"] - earlier) for earlier, row in pairs]

    @property
    def gpu_count(self) -> int:
        return self.environment.get("gpu_count", 0)

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
        prefix = {"step": "completions_", "eval": "eval-"}[kind]
        files = sorted((self.folder / "completions").glob(f"{prefix}*.parquet"))
        return {int(step): file for file in files if (step := file.stem.removeprefix(prefix)).isdecimal()}

    @cached_property
    def change(self) -> Difference | None:
        """The last evaluation compared with the first, where the completions of both are kept."""
        files = self.files("eval")
        kept = [files[row["step"]] for row in self.ends if row["step"] in files]
        return changed(*kept) if len(kept) == 2 else None


def read_run(folder: Path) -> Run:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: name a run that `grpo-math runs` lists")
    if not (folder / "recipe.yaml").is_file():
        there = some(sorted(path.name for path in folder.iterdir()), 8) or "nothing"
        raise UserError(f"{folder}: not a run, it has no recipe.yaml (but {there}): name a run folder of train or sft")
    rows = [row for row in read_rows(folder / "metrics.jsonl") if isinstance(row.get("step"), int)]
    raised = [row for row in read_rows(folder / "alarms.jsonl") if {"step", "alarm", "says"} <= row.keys()]
    return Run(
        folder,
        goes_on(folder),
        read_yaml(folder / "recipe.yaml"),
        read_json(folder / "environment.json"),
        read_results(folder / "results.json"),
        [row for row in rows if not any(name.startswith("eval/") for name in row)],
        that_count(read_rows(folder / "eval.jsonl")),
        [row for row in raised if row.get("level") != "note"],
        [row for row in raised if row.get("level") == "note"],
    )


def goes_on(folder: Path) -> bool:
    """Whether a training runs there that has not written its results yet."""
    return folder.is_dir() and is_running(folder) and not (folder / "results.json").exists()


def read_json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_results(file: Path) -> dict:
    """Empty where the run has not written it. It is written whole, so that anything else is damage."""
    found = read_json(file)
    seconds = found.get("seconds", {"total": 0})
    figures = {
        "steps": found.get("steps"),
        "seconds.total": seconds.get("total") if isinstance(seconds, dict) else None,
    }
    if file.exists() and (wrong := [name for name, value in figures.items() if not is_number(value)]):
        raise UserError(f"{file}: damaged, {wrong[0]} is no number: restore it from a copy, or delete it")
    return found


def that_count(rows: list[dict]) -> list[dict]:
    """The last row of each evaluation, which is that of all datasets together where there are several. At a step that
    the training evaluated itself, the rows of `evaluate --watch` (with `weights`) do not count."""
    found = {}
    for row in sorted(rows, key=lambda row: "weights" not in row):
        figures = ("step", "accuracy", "accuracy_low", "accuracy_high", *({"problems", "samples"} & row.keys()))
        if all(is_number(row.get(name)) for name in figures):
            found[row["step"]] = row
    return [found[step] for step in sorted(found)]


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and isfinite(value)


def read_completions(file: Path) -> list[dict]:
    """The rows of a file; none where a killed run left it half-written."""
    try:
        rows = read_table(file)
    except UserError:
        return []
    texts = ("prompt", "completion")
    for row in rows:
        if row.get("conversation"):  # an evaluation's, of which the completion is the final answer
            row["completion"] = json.loads(row["conversation"])
    return [
        row | {name: messages_text(row[name]) for name in texts if name in row}
        for row in rows
        if {"question", "completion", "correct"} <= row.keys()
    ]


def messages_text(messages: str | list[dict]) -> str:
    """A prompt or completion as people read it; TRL writes those of a chat as messages."""
    if isinstance(messages, str):
        return messages
    told = [parts_of(message) for message in messages]
    if len(told) == 1 and messages[0]["role"] == "assistant":
        return told[0]
    return "\n\n".join(f"{message['role']}: {text}" for message, text in zip(messages, told, strict=True))


def parts_of(message: dict) -> str:
    """All that a message holds: its content, and each other part under its name."""
    calls = message.get("tool_calls") or []
    calls = [one["function"] for one in (json.loads(calls) if isinstance(calls, str) else calls)]
    others = [
        f"[{name}] {value}"
        for name, value in message.items()
        if value and name not in ("role", "name", "content", "tool_calls")
    ]
    called = [f"[call] {one['name']}({json.dumps(one['arguments'], ensure_ascii=False)})" for one in calls]
    return "\n".join([*others, *filter(None, [message["content"]]), *called])


def changed(first: Path, second: Path) -> Difference | None:
    """The second evaluation compared with the first, by their files, on the problems that both have."""
    try:
        found = compare(first, second)
    except UserError:  # half-written, or of other problems
        return None
    return Comparison("", [pair for one in found for pair in one.problems]).difference
