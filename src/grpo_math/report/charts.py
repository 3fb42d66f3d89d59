"""The curves of runs: as plotly's figures for the page, and the main ones as PNG and SVG by matplotlib.

Every logged value is faint, its running mean bold. One run has a colour for each metric, several have one each.
"""

import html
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from pathlib import Path

from grpo_math.report.data import Run, accuracy

COLORS = ("#3b7dd8", "#e07b39", "#2f9e6e", "#9a6ee0", "#d6517d", "#1a9db0", "#a58a2b", "#7f8794")  # on light and dark
ALARM = "#d23f3f"
POINTS = 1_000  # of a curve; of more every nth is drawn
MAIN = 4  # panels in the PNG and SVG
STACKED = "time of a step"
CHARTS = {  # title: metrics, how to read them
    "accuracy": ("accuracy", "share of right answers; dots are held-out problems with their 95 % interval"),
    "reward": ("reward", "what the policy is trained to raise: the weighted sum of the rewards"),
    "token accuracy": ("mean_token_accuracy", "share of the solutions' tokens that the model finds likeliest"),
    "completion length": ("completions/mean_length", "tokens a completion"),
    "zero-std": ("frac_reward_zero_std", "share of groups whose completions all earn the same: they teach nothing"),
    "rewards": ("rewards/*/mean", "each reward function, before its weight"),
    "failed rewards": ("rewards/*/failed", "share of completions without a score, since the function failed on them"),
    "entropy": ("entropy", "how undecided the policy is at a token; near 0 it explores nothing"),
    "KL": ("kl", "how far the policy is from the reference model"),
    "truncated": ("completions/clipped_ratio", "share of completions cut off at the longest length"),
    "grading": (
        "grading/*",
        "share of completions without an answer, graded too slowly or not at all, or with an unreadable gold",
    ),
    STACKED: ("time/*", "seconds of generating, scoring and updating: running means, stacked"),
    "step time": ("step_time", "seconds a step"),
    "throughput": ("tokens_per_second", "tokens of prompts and completions for every second of a step"),
    "loss": ("loss", "falls in SFT; in GRPO it stays near 0 and says little"),
    "gradient norm": ("grad_norm", "before clipping; a peak is a step that pulled hard"),
}


@dataclass(frozen=True)
class Curve:
    name: str
    color: str
    steps: list[int]
    values: list[float]
    means: list[float]


@dataclass(frozen=True)
class Panel:
    """`dots` are the evaluations of runs, with their colour."""

    title: str
    aid: str
    curves: list[Curve]
    dots: list[tuple[list[dict], str]]

    @property
    def summary(self) -> str:
        """For a reader who does not see the curves."""
        ends = [f"{one.name} from {one.means[0]:.3g} to {one.means[-1]:.3g}" for one in self.curves]
        return f"{self.title} by step: {', '.join(ends) or 'evaluations only'}"


def window_of(run: Run) -> int:
    """Of the running mean, in logs."""
    return max(5, len(run.steps) // 20)


def stride_of(run: Run) -> int:
    return -(-len(run.steps) // POINTS)


def running_means(values: list[float], window: int) -> list[float]:
    """The mean of each value and those before it, `window` in all and fewer at the beginning."""
    sums = [0.0, *accumulate(values)]
    lows = [max(0, high - window) for high in range(len(sums))]
    return [(sums[high] - sums[lows[high]]) / (high - lows[high]) for high in range(1, len(sums))]


def panels(runs: list[Run], names: list[str]) -> list[Panel]:
    """Of whatever was logged; with several runs one for each metric."""
    logged = dict.fromkeys(name for run in runs for row in run.steps for name in row)
    found = []
    for title, (pattern, aid) in CHARTS.items():
        metrics = [metric for metric in logged if fnmatchcase(metric, pattern)]
        dots = evaluations(runs, bool(metrics)) if title == "accuracy" else []
        if len(runs) == 1:
            wanted = [(title, [(runs[0], short(metric, title), metric) for metric in metrics])]
        else:
            groups = [[(run, name, metric) for run, name in zip(runs, names, strict=True)] for metric in metrics]
            wanted = [(metrics[place] if "*" in pattern else title, group) for place, group in enumerate(groups)]
        aid = "" if len(runs) > 1 and "*" in pattern else aid
        for heading, curves in wanted or [(title, [])]:
            drawn = [curve(*one, color_of(place)) for place, one in enumerate(curves)]
            drawn = [one for one in drawn if one.steps]
            if drawn or dots:
                found.append(Panel(heading, aid, drawn, dots))
    return found


def evaluations(runs: list[Run], with_training: bool) -> list[tuple[list[dict], str]]:
    first = 1 if len(runs) == 1 and with_training else 0
    return [(run.evaluations, color_of(first + place)) for place, run in enumerate(runs) if run.evaluations]


def color_of(place: int) -> str:
    return COLORS[place % len(COLORS)]


def short(metric: str, title: str) -> str:
    """rewards/format/mean in the panel `rewards`: format"""
    if "*" in CHARTS[title][0]:
        return re.sub("^[a-z]+/|/(mean|failed)$", "", metric)
    return "training" if title == "accuracy" else title


def curve(run: Run, name: str, metric: str, color: str) -> Curve:
    steps, values = [list(column) for column in zip(*run.series(metric), strict=True)] or ([], [])
    means, stride = running_means(values, window_of(run)), stride_of(run)
    return Curve(name, color, *(column[::-stride][::-1] for column in (steps, values, means)))


def plotly_figure(panel: Panel, runs: list[Run], last_step: int) -> dict:
    """Data and layout; the page gives it the colours of its theme."""
    lines, labels = alarm_marks(runs)
    legend = len(runs) == 1 and len(panel.curves) + len(panel.dots) > 1
    layout = {
        "xaxis": {
            "range": [-0.02 * last_step, 1.02 * last_step],
            "title": {"text": "step", "standoff": 4},
            "unifiedhovertitle": {"text": "step %{x}"},
            "showspikes": False,
        },
        "yaxis": {"rangemode": "tozero", "automargin": True},
        "margin": {"l": 40, "r": 10, "t": 10, "b": 36},
        "hovermode": "x unified",
        "showlegend": legend,
        "legend": {"orientation": "h", "y": 1, "yanchor": "bottom"},
        "shapes": lines,
        "annotations": labels,
    }
    return {"data": list(traces(panel)), "layout": layout}


def traces(panel: Panel) -> Iterator[dict]:
    for one in panel.curves:
        line = {
            "type": "scatter",
            "mode": "lines",
            "x": one.steps,
            "name": plain(one.name),
            "hovertemplate": "%{y:.4g}",
        }
        color = {"color": one.color}
        if panel.title == STACKED:
            yield line | {"y": rounded(one.means), "line": color | {"width": 1}, "stackgroup": "all"}
            continue
        yield line | {"y": rounded(one.values), "line": color | {"width": 1}, "opacity": 0.45, "showlegend": False}
        yield line | {"y": rounded(one.means), "line": color | {"width": 2.2}, "hovertemplate": "%{y:.4g} (mean)"}
    for rows, color in panel.dots:
        yield from dots(rows, color)


def dots(rows: list[dict], color: str) -> Iterator[dict]:
    """Evaluations with their intervals; joined and shaded from three on, since a line between the first and the last
    alone would say what nobody has measured."""
    steps, figures = [row["step"] for row in rows], [accuracy(row) for row in rows]
    if len(rows) > 2:
        band = [one.high for one in figures] + [one.low for one in reversed(figures)]
        shade = {"x": steps + steps[::-1], "y": band, "fill": "toself", "fillcolor": f"{color}2b", "line": {"width": 0}}
        yield shade | {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "showlegend": False}
    above, below = [one.high - one.value for one in figures], [one.value - one.low for one in figures]
    yield {
        "type": "scatter",
        "mode": "lines+markers" if len(rows) > 2 else "markers",
        "x": steps,
        "y": [one.value for one in figures],
        "error_y": {"array": above, "arrayminus": below, "thickness": 1, "width": 3},
        "customdata": [str(one) for one in figures],
        "hovertemplate": "%{customdata}",
        "name": "held-out",
        "line": {"color": color, "width": 1.5, "dash": "dot"},
        "marker": {"size": 7, "color": color},
    }


def alarm_marks(runs: list[Run]) -> tuple[list[dict], list[dict]]:
    """A line at the step of each alarm, and its name, which says the rest when pointed at."""
    lines, labels = [], []
    for place, run in enumerate(runs):
        color = ALARM if len(runs) == 1 else color_of(place)
        for row in run.alarms:
            ends = {"x0": row["step"], "x1": row["step"], "y0": 0, "y1": 1, "yref": "paper"}
            lines.append({"type": "line", **ends, "line": {"color": color, "width": 1, "dash": "dash"}})
            says = "<br>".join(plain(line) for line in textwrap.wrap(f"step {row['step']}: {row['says']}", 50))
            at = {"x": row["step"], "y": 0, "yref": "paper", "yanchor": "bottom", "xanchor": "right", "textangle": -90}
            look = {"showarrow": False, "font": {"color": color, "size": 11}}
            labels.append({"text": plain(row["alarm"]), "hovertext": says, **at, **look})
    return lines, labels


def plain(text: str) -> str:
    """Plotly reads some HTML in names and labels."""
    return html.escape(str(text), quote=False)


def rounded(values: list[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def draw(shown: list[Panel], runs: list[Run], out: Path) -> None:
    """The first panels, two in a row, as OUT.png and OUT.svg."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shown = [panel for panel in shown if panel.title != STACKED][:MAIN]
    rows = max(1, -(-len(shown) // 2))
    with rc_context({"font.size": 9, "axes.titlesize": 10, "svg.hashsalt": "", "text.parse_math": False}):
        figure = Figure(figsize=(9, 2.6 * rows), layout="constrained")
        for axes, panel in zip(figure.subplots(rows, 2, squeeze=False).flat, shown, strict=False):
            draw_panel(axes, panel, "held-out" if len(runs) == 1 else "")
            if len(axes.get_legend_handles_labels()[1]) > 1 and (len(runs) == 1 or panel is shown[0]):
                axes.legend(frameon=False, fontsize=8)
            for place, run in enumerate(runs):
                for row in run.alarms:
                    axes.axvline(row["step"], color=ALARM if len(runs) == 1 else color_of(place), lw=0.8, ls="--")
        for axes in figure.axes[len(shown) :]:
            axes.set_axis_off()
        figure.savefig(out.with_suffix(".png"), dpi=150)
        figure.savefig(out.with_suffix(".svg"), metadata={"Date": None})


def draw_panel(axes, panel: Panel, evaluation: str) -> None:
    for one in panel.curves:
        axes.plot(one.steps, one.values, color=one.color, lw=0.8, alpha=0.35)
        axes.plot(one.steps, one.means, color=one.color, lw=1.8, label=one.name)
    for rows, color in panel.dots:
        steps, figures = [row["step"] for row in rows], [accuracy(row) for row in rows]
        values, lows, highs = ([getattr(one, end) for one in figures] for end in ("value", "low", "high"))
        if len(rows) > 2:  # as in `dots`
            axes.fill_between(steps, lows, highs, color=color, alpha=0.15, lw=0)
            axes.plot(steps, values, ":", color=color, lw=1.2)
        axes.vlines(steps, lows, highs, color=color, lw=1)
        axes.plot(steps, values, "o", color=color, ms=4, label=evaluation)
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel("step")
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.spines[["top", "right"]].set_visible(False)
