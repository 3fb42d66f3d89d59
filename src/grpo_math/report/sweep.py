"""The runs of a sweep as a table, a plot and JSON: each setting over its seeds, compared with the first one."""

from collections.abc import Iterator
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
COLUMNS = ["setting", "seeds", "before", "after (least-most)", "tokens", "seconds"]


def summarise(name: str, keys: dict[str, Any], finished: dict[int, Run], failed: dict[int, str]) -> dict[str, Any]:
    """A setting as sweep.json has it. Its `keys`, its finished runs by their seed, and why others failed, enter.

    `before`, `after`, `tokens` (TRL's: of prompts and completions) and `seconds` have a value per seed; `curve` has the
    steps at which all runs were evaluated, each with the mean tokens until then and the accuracies.
    """
    runs = {seed: run for seed, run in finished.items() if run.evaluations}
    curves = [{row["step"]: row["accuracy"] for row in run.evaluations} for run in runs.values()]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    spent = [fmean(tokens(run, step) for run in runs.values()) for step in steps]
    return {
        "name": name,
        "keys": keys,
        "seeds": [*runs],
        "before": [curve[0] for curve in curves if 0 in curve],
        "after": [run.evaluations[-1]["accuracy"] for run in runs.values()],
        "tokens": [tokens(run, run.step) for run in runs.values()],
        "seconds": [run.seconds or 0.0 for run in runs.values()],
        "problems": [*dict.fromkeys(problems(run.evaluations[-1]) for run in runs.values())],
        "curve": [
            {"step": step, "tokens": at, "accuracy": [one[step] for one in curves]}
            for step, at in zip(steps, spent, strict=True)
        ],
        "failed": failed,
    }


def tokens(run: Run, step: int) -> float:
    """Of prompts and completions until this step, as far as they are logged."""
    return max((value for at, value in run.series("num_tokens") if at <= step), default=0)


def write_sweep(out: Path, settings: list[dict[str, Any]], seeds: int, keys: list[str]) -> None:
    """Print the table, and write OUT/sweep.json, sweep.md and sweep.png; nothing without a finished run. `settings` are
    those of `summarise`, the baseline first, `seeds` is the number of each one's. With `keys` the plot has panels for
    the values of each of them."""
    if not any(one["seeds"] for one in settings):
        print("no run is finished")
        return
    changes = compared(settings)
    header, rows = table(settings, seeds, changes)
    notes = list(remarks(settings, len(changes)))
    print_table(header, rows)
    print("\n".join(notes))
    lines = [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows)]
    replace("\n".join([*lines, "", *(f"- {note}" for note in notes), ""]), out / "sweep.md")
    write_json({"baseline": settings[0]["name"], "settings": settings}, out / "sweep.json")
    draw(settings, keys, out / "sweep.png")
    print(f"{out / 'sweep.png'}, sweep.md, sweep.json")


def compared(settings: list[dict[str, Any]]) -> dict[str, Difference]:
    """Each setting less the first, as `grpo-math compare --seeds` has it, where both have two runs or more; the
    settings get it as `difference`."""
    first, *others = settings
    enough = [one for one in others if min(len(one["after"]), len(first["after"])) > 1]
    changes = {one["name"]: over_seeds(first["after"], one["after"]) for one in enough}
    adjusted = holm([change.p for change in changes.values()])
    for one, change, p in zip(enough, changes.values(), adjusted, strict=True):
        shows = change.shows if change.shows <= 1 else None
        known = {"test": change.test, "p": change.p, "holm_p": p, "shows": shows, "verdict": change.verdict}
        one["difference"] = change.figure.named("value") | known
    return changes


def table(
    settings: list[dict[str, Any]], seeds: int, changes: dict[str, Difference]
) -> tuple[list[str], list[list[str]]]:
    rows = []
    for one in settings:
        done = len(one["seeds"])
        row = [one["name"], str(done) if done == seeds else f"{done} of {seeds}"]
        row += [f"{fmean(one['before']):.3f}" if one["before"] else "-", span(one["after"]) if done else "-"]
        row += [f"{fmean(one[name]):,.0f}" if done else "-" for name in ("tokens", "seconds")]
        if change := changes.get(one["name"]):
            shows = f"{100 * change.shows:.1f} points" if change.shows <= 1 else "nothing"
            row += [change.interval, f"{change.p:.2g}", f"{one['difference']['holm_p']:.2g}", shows, change.verdict]
        elif changes:
            row += ["baseline" if one is settings[0] else "too few runs", "", "", "", ""]
        rows.append(row)
    tests = {change.test for change in changes.values()}
    return [*COLUMNS, *(["difference", *tests, "Holm's p", "can show", "verdict"] if changes else [])], rows


def remarks(settings: list[dict[str, Any]], comparisons: int) -> Iterator[str]:
    """What a reader of the table has to know."""
    where, first = dict.fromkeys(text for one in settings for text in one["problems"]), settings[0]["name"]
    yield f"accuracy {' and '.join(where)}, mean of the seeds; tokens (of prompts and completions) and seconds of a run"
    if len(where) > 1:
        yield "warning: not all were evaluated on the same problems, so their accuracies are not comparable"
    if comparisons:
        yield (
            f"can show: the smallest difference from {first} that so many seeds find with {POWER:.0%} power, with the "
            "spread seen here"
        )
    elif len(settings) > 1:
        yield f"no comparison: it takes two finished runs of {first}, and two of another setting"
    if comparisons > 1:
        yield (
            f"{comparisons} comparisons: {LEVEL * comparisons:.2g} with p below {LEVEL} are to be expected by chance; "
            "Holm's p accounts for their number"
        )
    for one in settings:
        for seed, reason in one["failed"].items():
            yield f"{one['name']} seed {seed} failed, and is left out: {reason}"


def draw(settings: list[dict[str, Any]], keys: list[str], path: Path) -> None:
    """Accuracy by step and by tokens, a line a setting: the mean of its seeds and their span, as a band or, of many
    lines, at the last step. Two panels, or two for each of the keys of which one was changed at a time."""
    from matplotlib import color_sequences, rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    first, colors = settings[0], color_sequences["petroff10"]  # told apart with colour blindness: arXiv:2107.02270
    groups = {key: [one for one in settings if one is first or one["keys"][key] != first["keys"][key]] for key in keys}
    groups = groups or {"": settings}
    with rc_context({"font.size": 9, "text.parse_math": False}):
        longest = max(map(len, groups.values()))  # legend
        figure = Figure(figsize=(11, len(groups) * max(2.6, 0.22 * longest) + 1), layout="constrained")
        panels = figure.subplots(len(groups), 2, sharey=True, squeeze=False)
        for (key, group), pair in zip(groups.items(), panels, strict=True):
            drawn = [one for one in group if one["seeds"]]
            for place, one in enumerate(drawn):
                label = f"{key}={as_text(one['keys'][key])}" if key else one["name"]
                style = {"color": colors[place % len(colors)], "marker": MARKERS[place % len(MARKERS)]}
                style |= {"ls": ("-", "--", ":")[place // len(colors) % 3], "label": f"{label}, n={len(one['seeds'])}"}
                for axes, along in zip(pair, ("step", "tokens"), strict=True):
                    draw_curve(axes, one["curve"], along, style, band=len(drawn) <= BANDS)
            pair[0].set_ylabel("held-out accuracy")
            pair[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        for axes in panels.flat:
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        panels[-1][0].set_xlabel("step")
        panels[-1][1].set_xlabel("tokens of prompts and completions")
        where = next(one["problems"][0] for one in settings if one["problems"])
        figure.suptitle(f"accuracy {where}: mean of n seeds, and from the least to the most")
        figure.savefig(path, dpi=110)


def draw_curve(axes: "Axes", curve: list[dict], along: str, style: dict, band: bool) -> None:
    at = [row[along] for row in curve]
    lows, highs = ([end(row["accuracy"]) for row in curve] for end in (min, max))
    axes.plot(at, [fmean(row["accuracy"]) for row in curve], ms=4, lw=1.4, **style)
    if band:
        axes.fill_between(at, lows, highs, color=style["color"], alpha=0.13, lw=0)
    else:
        axes.vlines(at[-1:], lows[-1:], highs[-1:], color=style["color"], lw=1.2)
