"""The runs of a sweep as a table, a plot and JSON: each setting over its seeds, compared with the first one."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from grpo_math.evaluation.statistics import LEVEL, POWER, Difference, holm, over_seeds, span
from grpo_math.evaluation.tables import print_table
from grpo_math.report.data import Run
from grpo_math.report.report import as_text
from grpo_math.report.summary import problems
from grpo_math.runs.folder import replace, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BANDS = 6  # curves in a panel of which the spans can be told apart
MARKERS = "osD^vPX<>*"
TOKENS = "num_tokens"  # TRL's: of prompts and completions, since the first step


@dataclass(frozen=True)
class Setting:
    """A setting with its finished runs by seed, and why others failed."""

    name: str
    given: dict[str, Any]
    runs: list[tuple[int, Run]]
    failed: dict[int, str]

    @cached_property
    def evaluated(self) -> list[Run]:
        return [run for _, run in self.runs if run.evaluations]

    @property
    def before(self) -> list[float]:
        """The accuracy of each run before its first step, where it was evaluated then."""
        firsts = [run.evaluations[0] for run in self.evaluated]
        return [row["accuracy"] for row in firsts if row["step"] == 0]

    @property
    def after(self) -> list[float]:
        """The accuracy of each run at its last evaluation."""
        return [run.evaluations[-1]["accuracy"] for run in self.evaluated]

    @property
    def tokens(self) -> list[float]:
        return [tokens_at(run, run.step) for run in self.evaluated]

    @property
    def seconds(self) -> list[float]:
        return [run.seconds or 0.0 for run in self.evaluated]

    @property
    def curve(self) -> list[dict]:
        """Step, mean tokens until then, and the accuracy of each run, at the steps at which all runs were evaluated."""
        accuracies = [{row["step"]: row["accuracy"] for row in run.evaluations} for run in self.evaluated]
        steps = sorted(set.intersection(*map(set, accuracies))) if accuracies else []
        return [
            {
                "step": step,
                "tokens": fmean(tokens_at(run, step) for run in self.evaluated),
                "accuracy": [found[step] for found in accuracies],
            }
            for step in steps
        ]


def tokens_at(run: Run, step: int) -> float:
    """The tokens of prompts and completions until this step, as far as they are logged."""
    return max((value for at, value in run.series(TOKENS) if at <= step), default=0)


def write_sweep(out: Path, settings: list[Setting], seeds: int, keys: list[str]) -> None:
    """Print the table, and write OUT/sweep.json, sweep.md and sweep.png; nothing without a finished run. `seeds` is the
    number of each setting's. With `keys` the plot has panels for the settings of each of them."""
    if not any(one.evaluated for one in settings):
        print("no run is finished")
        return
    changes = compared(settings)
    adjusted = dict(zip(changes, holm([change.p for change in changes.values()]), strict=True))
    header, rows = table(settings, seeds, changes, adjusted)
    notes = list(remarks(settings, changes))
    print_table(header, rows)
    print("\n".join(notes))
    lines = [header, ["---"] * len(header), *rows]
    text = [*(f"| {' | '.join(line)} |" for line in lines), "", *(f"- {note}" for note in notes), ""]
    replace("\n".join(text), out / "sweep.md")
    write_json({"baseline": settings[0].name, "settings": [*as_rows(settings, changes, adjusted)]}, out / "sweep.json")
    draw(settings, keys, out / "sweep.png")
    print(f"{out / 'sweep.png'}, sweep.md, sweep.json")


def compared(settings: list[Setting]) -> dict[str, Difference]:
    """Each setting less the first, as `grpo-math compare --seeds` has it, where both have two runs or more."""
    first, *others = settings
    enough = [one for one in others if min(len(one.after), len(first.after)) > 1]
    return {one.name: over_seeds(first.after, one.after) for one in enough}


def table(
    settings: list[Setting], seeds: int, changes: dict[str, Difference], adjusted: dict[str, float]
) -> tuple[list[str], list[list[str]]]:
    rows = []
    for one in settings:
        done = len(one.evaluated)
        row = [one.name, str(done) if done == seeds else f"{done} of {seeds}"]
        row += [f"{fmean(one.before):.3f}" if one.before else "-", span(one.after) if done else "-"]
        row += [f"{fmean(values):,.0f}" if done else "-" for values in (one.tokens, one.seconds)]
        if change := changes.get(one.name):
            row += [change.interval, f"{change.p:.2g}", f"{adjusted[one.name]:.2g}", shown(change), change.verdict]
        elif changes:
            row += ["baseline" if one is settings[0] else "too few runs", "", "", "", ""]
        rows.append(row)
    header = ["setting", "seeds", "before", "after (least-most)", "tokens", "seconds"]
    for test in {change.test for change in changes.values()}:
        header += ["difference", test, "Holm's p", "can show", "verdict"]
    return header, rows


def shown(change: Difference) -> str:
    return f"{100 * change.shows:.1f} points" if change.shows <= 1 else "nothing"


def remarks(settings: list[Setting], changes: dict[str, Difference]) -> list[str]:
    """What a reader of the table has to know."""
    evaluated = dict.fromkeys(problems(run.evaluations[-1]) for one in settings for run in one.evaluated)
    lines = [
        f"accuracy {' and '.join(evaluated)}: mean of the seeds; tokens (of prompts and completions) and seconds: mean "
        "of a run"
    ]
    if len(evaluated) > 1:
        lines.append("warning: not all were evaluated on the same problems, so their accuracies are not comparable")
    if changes:
        lines.append(
            f"can show: the smallest difference from {settings[0].name} that so many seeds find with {POWER:.0%} "
            "power, with the spread seen here"
        )
    elif len(settings) > 1:
        lines.append(f"no comparison: it takes two finished runs of {settings[0].name}, and two of another setting")
    if len(changes) > 1:
        lines.append(
            f"{len(changes)} comparisons: {LEVEL * len(changes):.2g} with p below {LEVEL} are to be expected by "
            "chance; Holm's p accounts for their number"
        )
    for one in settings:
        lines += [f"{one.name} seed {seed} failed, and is left out: {reason}" for seed, reason in one.failed.items()]
    return lines


def as_rows(settings: list[Setting], changes: dict[str, Difference], adjusted: dict[str, float]) -> list[dict]:
    rows = []
    for one in settings:
        row: dict[str, Any] = {"name": one.name, "keys": one.given}
        row["seeds"] = [seed for seed, run in one.runs if run in one.evaluated]
        row |= {name: getattr(one, name) for name in ("before", "after", "tokens", "seconds", "curve", "failed")}
        if change := changes.get(one.name):
            shows = change.shows if change.shows <= 1 else None
            row["difference"] = {
                **change.figure.named("value"),
                **{"test": change.test, "p": change.p, "holm_p": adjusted[one.name]},
                **{"shows": shows, "verdict": change.verdict},
            }
        rows.append(row)
    return rows


def draw(settings: list[Setting], keys: list[str], path: Path) -> None:
    """Accuracy by step and by tokens, a line a setting: the mean of its seeds and their span, as a band or, of many
    lines, at the last step. Two panels, or two for each of the keys of which one was changed at a time."""
    from matplotlib import color_sequences, rc_context
    from matplotlib.figure import Figure

    first, colors = settings[0], color_sequences["petroff10"]  # told apart with colour blindness: arXiv:2107.02270
    groups = {key: [first, *(one for one in settings if one.given[key] != first.given[key])] for key in keys}
    groups = groups or {"": settings}
    with rc_context({"font.size": 9, "text.parse_math": False}):
        figure = Figure(figsize=(11, max(2.6 * len(groups), 4)), layout="constrained")
        panels = figure.subplots(len(groups), 2, sharey=True, squeeze=False)
        for (key, group), pair in zip(groups.items(), panels, strict=True):
            drawn = [one for one in group if one.evaluated]
            for place, one in enumerate(drawn):
                style = {"color": colors[place % len(colors)], "marker": MARKERS[place % len(MARKERS)]}
                label = one.name if key == "" else f"{key}={as_text(one.given[key])}"
                style |= {"ls": ("-", "--", ":")[place // len(colors) % 3], "label": f"{label}, n={len(one.evaluated)}"}
                for axes, along in zip(pair, ("step", "tokens"), strict=True):
                    draw_curve(axes, one.curve, along, style, band=len(drawn) <= BANDS)
            pair[0].set_ylabel("held-out accuracy")
            pair[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        for axes in panels.flat:
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        panels[-1][0].set_xlabel("step")
        panels[-1][1].set_xlabel("tokens of prompts and completions")
        evaluation = next(one.evaluated[0] for one in settings if one.evaluated).evaluations[-1]
        figure.suptitle(f"accuracy {problems(evaluation)}: mean of n seeds, and from the least to the most")
        figure.savefig(path, dpi=110)


def draw_curve(axes: "Axes", curve: list[dict], along: str, style: dict, band: bool) -> None:
    at = [row[along] for row in curve]
    lows, highs = ([end(row["accuracy"]) for row in curve] for end in (min, max))
    axes.plot(at, [fmean(row["accuracy"]) for row in curve], ms=4, lw=1.4, **style)
    if band:
        axes.fill_between(at, lows, highs, color=style["color"], alpha=0.13, lw=0)
    else:
        axes.vlines(at[-1:], lows[-1:], highs[-1:], color=style["color"], lw=1.2)
