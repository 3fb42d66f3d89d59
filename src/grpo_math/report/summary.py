"""A run in a few sentences, the result first: for the terminal and for the page."""

import shlex
from collections.abc import Iterator
from statistics import fmean

from grpo_math.evaluation.statistics import Difference, Figure
from grpo_math.report.data import Run
from grpo_math.runs.folder import resume_command

NOT_EVALUATED = "no held-out evaluation: set eval: {before_after: true} to evaluate before and after training"
MEANS = (  # of training logs, their name in an evaluation, and in a headline
    ("reward", "reward", "reward"),
    ("completions/mean_length", "length", "tokens per completion"),
    ("mean_token_accuracy", "token accuracy", "token accuracy"),
)
LOSS = (("loss", "loss", "loss"),)


def sentences(run: Run) -> Iterator[str]:
    yield f"{run.folder}: {state(run)}"
    yield result(run)
    if len(run.evaluations) > 1:
        yield verdict(run.change)
    yield from (f"{name} {first:.3g} → {last:.3g} ({when})" for name, first, last, when in movements(run))
    if wasted := zero_std(run):
        yield f"zero-std groups: {wasted}"
    cost = [clock(run.seconds)] if run.seconds is not None else []
    cost += [gpu_hours(run)] if cost and run.gpu_count else []
    if cost or run.hardware:
        yield f"{', '.join(cost)} on {run.hardware}".strip() if run.hardware else ", ".join(cost)
    for kind, rows in (("alarm", run.alarms), ("note", run.notes)):
        yield from (f"{kind} {row['alarm']} at step {row['step']}: {row['says']}" for row in rows)


def state(run: Run) -> str:
    why = run.failure or run.results.get("stopped")
    return f"{run.state}, {run.progress}" + (f" ({why})" if why else "")


def result(run: Run) -> str:
    """accuracy 0.110 (0.074-0.161) → 0.995 (0.972-0.999) on 200 problems of gsm8k test"""
    if not run.evaluations:
        return NOT_EVALUATED
    last = run.ends[-1]
    when = "" if len(run.ends) > 1 and last["step"] == run.step else f", at step {last['step']:,}"
    return f"accuracy {' → '.join(str(Figure.of(row, 'accuracy')) for row in run.ends)} {problems(last)}{when}"


def problems(evaluation: dict) -> str:
    dataset = f" of {evaluation['dataset']}" if "dataset" in evaluation else ""
    samples = f", {evaluation['samples']} samples each" if evaluation.get("samples", 1) > 1 else ""
    return f"on {evaluation.get('problems', 0):,} problems{dataset}{samples}"


def verdict(change: Difference | None) -> str:
    """Of the later evaluation against the earlier one."""
    if change is None:
        return "no completions of the same problems to compare: only the intervals apply"
    return f"{change.verdict}: {change.won:,} problems won and {change.lost:,} lost, {change}"


def headline(runs: list[Run], names: list[str]) -> tuple[str, str]:
    """The title of a slide: the runs and their accuracies; and in small the model and what it was measured on."""
    values = [" → ".join(f"{row['accuracy']:.3f}" for row in run.ends) or "not evaluated" for run in runs]
    evaluated = [run.ends[-1] for run in runs if run.ends]
    measured = f"held-out accuracy {problems(evaluated[0])}" if evaluated else "no held-out evaluation"
    if len(runs) > 1:
        return ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True)), measured
    intervals = " and ".join(f"{row['accuracy_low']:.3f}-{row['accuracy_high']:.3f}" for row in runs[0].ends)
    measured += f", 95 % interval{'s' * (len(runs[0].ends) > 1)} {intervals}" if intervals else ""
    return f"{names[0]}: accuracy {values[0]}" if intervals else names[0], f"{runs[0].model}, {measured}"


def footer(runs: list[Run]) -> str:
    """The hardware of the first run, the versions and, of a single run, its time and command."""
    run = runs[0]
    packages = run.environment.get("packages") or {}
    parts = [run.hardware, *(f"{name} {packages[name]}" for name in ("grpo-math", "trl") if name in packages)]
    if len(runs) == 1:
        parts[1:1] = [clock(run.seconds)] if run.seconds is not None else []
        parts += [line for title, line in commands(run) if title == "Started by"]
    return "  ·  ".join(filter(None, parts))


def moment(evaluation: dict) -> str:
    """Of an evaluation: before training, after 45 steps"""
    return f"after {evaluation['step']:,} steps" if evaluation["step"] else "before training"


def commands(run: Run) -> Iterator[tuple[str, str]]:
    """What started the run and, of an unfinished one, what resumes it, each with its title."""
    words = [str(word) for word in run.environment.get("command") or []]
    if words:
        yield "Started by", shlex.join(words)
    if run.state != "finished":
        yield "Resume with", resume_command(words, run.folder, "sft" if "sft" in run.recipe else "train")


def movements(run: Run) -> Iterator[tuple[str, float, float, str]]:
    """The means of a headline: the first and the last value, and over what. Of held-out problems where there are two
    evaluations, else of the first and the last training logs, which do not overlap."""
    for metric, key, name in MEANS if run.series("reward") else MEANS + LOSS:
        held_out = [row[key] for row in run.ends if isinstance(row.get(key), int | float)]
        if len(held_out) == 2:
            count = run.ends[-1].get("problems", 0)
            yield name, held_out[0], held_out[1], f"mean over {count:,} held-out problems"
        elif values := run.series(metric):
            window = max(1, min(run.window, len(values) // 2))
            first, last = values[:window], values[-window:]
            start, end = (fmean(value for _, value in part) for part in (first, last))
            steps = [f"{part[0][0]}-{part[-1][0]}" for part in (first, last)]
            yield name, start, end, f"training, mean of {window} logs: steps {steps[0]} and {steps[1]}"


def zero_std(run: Run) -> str:
    """31% of the generated tokens, 0:12 of training; empty where the share of these tokens is not logged. They are in
    groups whose completions all earn the same, the seconds are those of the steps by their share; steps that generate
    nothing train on the generation before them."""
    logged, seconds = [], 0.0
    for row, spent in zip(run.steps, run.step_seconds, strict=True):
        if row.get("frac_tokens_zero_std") is not None and row.get("completions/mean_length"):
            logged.append((row["frac_tokens_zero_std"], row["completions/mean_length"]))
        seconds += logged[-1][0] * spent if logged else 0.0
    if not logged:
        return ""
    share = sum(share * length for share, length in logged) / sum(length for _, length in logged)
    return f"{share:.0%} of the generated tokens, {clock(seconds)} of training"


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def gpu_hours(run: Run) -> str:
    hours = (run.seconds or 0) / 3600 * run.gpu_count
    return f"{hours:,.0f} GPU-hours" if hours >= 100 else f"{hours:.3g} GPU-hours"
