"""The curves of runs: as plotly figures for the page, and the first four on a slide by matplotlib, as PNG and SVG.

Logged values are faint, their running means bold. One run has one colour per metric, several runs one colour per run.
To add a chart, add a line to CHARTS.
"""

import html
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_math.evaluation.statistics import Figure
from grpo_math.report.data import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#3b7dd8", "#e07b39", "#2f9e6e", "#9a6ee0", "#d6517d", "#1a9db0", "#a58a2b", "#7f8794")  # on light and dark
ALARM = "#d23f3f"
POINTS = 1_000  # of a curve; of longer ones every nth is drawn
MAIN = 4  # panels in the PNG and SVG
STACKED = "time of a step"
EVALUATED = ("accuracy", "reward")  # charts with the figure of the same name on held-out problems
CHARTS = {  # title: pattern of the metrics, how to read them
    "accuracy": ("accuracy", "share of correct answers; dots are held-out problems with their 95 % interval"),
    "reward": ("reward", "weighted sum of the rewards, which training raises; dots as for accuracy"),
    "token accuracy": (
        "mean_token_accuracy",
        "share of the solutions' tokens to which the model gives the highest probability",
    ),
    "completion length": ("completions/mean_length", "tokens per completion"),
    "zero-std groups": (
        "frac_reward_zero_std",
        "share of groups whose completions all get the same reward, and therefore no advantage",
    ),
    "dynamic sampling": (
        "dynamic_sampling/*_groups",
        "groups generated per batch, and groups with different rewards that are trained on",
    ),
    "distinct": ("completions/distinct", "share of a group's completions that are distinct"),
    "rewards": ("rewards/*/mean", "each reward function, before its weight"),
    "composition": (
        "rewards/*/variance_share",
        "each function's share of the reward's variance within groups; negative where it opposes the others",
    ),
    "failed rewards": ("rewards/*/failed", "share of completions without a score because the function failed on them"),
    "entropy": ("entropy", "of the policy per token; near 0 the policy no longer explores"),
    "KL": ("kl", "distance of the policy from the reference model"),
    "truncated": ("completions/clipped_ratio", "share of completions cut off at the maximum length"),
    "grading": (
        "grading/*",
        "share of completions without an answer, with a grading timeout or failure, or with an unreadable gold",
    ),
    "tools": ("tools/*", "calls per completion, and the share of calls that failed"),
    STACKED: ("time/*", "seconds for generating, scoring and updating: running means, stacked"),
    "step time": ("step_time", "seconds per step"),
    "throughput": ("tokens_per_second", "tokens of prompts and completions per second of a step"),
    "loss": ("loss", "falls in SFT; in GRPO it stays near 0 and does not measure progress"),
    "gradient norm": ("grad_norm", "before clipping"),
}
AXES = {  # of charts whose title has no unit
    "accuracy": "accuracy (share of correct answers)",
    "reward": "mean reward",
    "completion length": "tokens per completion",
    "zero-std groups": "share of all groups",
}


@dataclass(frozen=True)
class Curve:
    """The logged values of a metric at its steps, and their running means."""

    name: str
    color: str
    steps: list[int]
    values: list[float]
    means: list[float]


@dataclass(frozen=True)
class Panel:
    """`dots` are the evaluations of runs by step, each with its colour."""

    title: str
    aid: str
    curves: list[Curve]
    dots: list[tuple[dict[int, Figure], str]]

    @property
    def summary(self) -> str:
        """For a reader who does not see the curves."""
        ends = [f"{one.name} from {one.means[0]:.3g} to {one.means[-1]:.3g}" for one in self.curves]
        return f"{self.title} by step: {', '.join(ends) or 'evaluations only'}"


def running_means(values: list[float], window: int) -> list[float]:
    """The mean of each value and those before it, `window` in all and fewer at the beginning."""
    sums = [0.0, *accumulate(values)]
    lows = [max(0, high - window) for high in range(len(sums))]
    return [(sums[high] - sums[lows[high]]) / (high - lows[high]) for high in range(1, len(sums))]


def panels(runs: list[Run], names: list[str]) -> list[Panel]:
    """A panel per chart; with several runs a panel per metric, with a curve per run."""
    logged = dict.fromkeys(name for run in runs for row in run.steps for name in row)
    found = []
    for title, (pattern, aid) in CHARTS.items():
        metrics = [metric for metric in logged if fnmatchcase(metric, pattern)]
        first = 1 if len(runs) == 1 and metrics else 0  # the colour after that of training
        known = [(evaluated(run, title), color_of(first + place)) for place, run in enumerate(runs)]
        dots = [one for one in known if one[0]]
        wanted = {title: [(runs[0], short(metric, title), metric) for metric in metrics]}
        if len(runs) > 1:
            headings = {f"{title}: {short(metric, title)}" if "*" in pattern else title: metric for metric in metrics}
            wanted = {
                heading: [(*pair, metric) for pair in zip(runs, names, strict=True)]
                for heading, metric in (headings or {title: ""}).items()
            }
        for heading, lines in wanted.items():
            curves = [curve(*line, color_of(place)) for place, line in enumerate(lines)]
            curves = [one for one in curves if one.steps]
            if curves or dots:
                found.append(Panel(heading, aid, curves, dots))
    return found


def evaluated(run: Run, title: str) -> dict[int, Figure]:
    rows = [row for row in run.evaluations if title in EVALUATED and f"{title}_low" in row]
    return {row["step"]: Figure.of(row, title) for row in rows}


def color_of(place: int) -> str:
    return COLORS[place % len(COLORS)]


def short(metric: str, title: str) -> str:
    """rewards/format/mean in the panel `rewards`: format"""
    if "*" in CHARTS[title][0]:
        return re.sub("^[a-z_]+/|/(mean|failed|variance_share)$", "", metric)
    return "training" if title in EVALUATED else title


def stride_of(run: Run) -> int:
    return max(1, -(-len(run.steps) // POINTS))


def curve(run: Run, name: str, metric: str, color: str) -> Curve:
    series, stride = run.series(metric), stride_of(run)
    means = running_means([value for _, value in series], run.window)
    drawn = [(step, value, mean) for (step, value), mean in zip(series, means, strict=True)][::-stride][::-1]
    return Curve(name, color, [one[0] for one in drawn], [one[1] for one in drawn], [one[2] for one in drawn])


def plotly_figure(panel: Panel, runs: list[Run], last_step: int) -> dict:
    """Data and layout; the page adds the colours of its theme."""
    lines, labels = alarm_marks(runs)
    legend = (
        len(panel.curves) + len(panel.dots) > 1 if len(runs) == 1 else len(runs) <= MAIN
    )  # else only above all charts
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
        line = {"type": "scatter", "mode": "lines", "x": one.steps, "name": plain(one.name)}
        means = line | {"y": significant(one.means), "hovertemplate": "%{y:.4g}"}
        if panel.title == STACKED:
            yield means | {"line": {"color": one.color, "width": 1}, "stackgroup": "all"}
            continue
        thin, bold = ({"line": {"color": one.color, "width": width}} for width in (1, 2.2))
        yield means | thin | {"y": significant(one.values), "opacity": 0.45, "showlegend": False}
        yield means | bold | {"hovertemplate": "%{y:.4g} (mean)"}
    for found, color in panel.dots:
        in_legend = len(panel.dots) == 1 or not panel.curves
        yield from dots(list(found), list(found.values()), color, in_legend)


def dots(steps: list[int], figures: list[Figure], color: str, in_legend: bool) -> Iterator[dict]:
    """Evaluations with their intervals, joined and shaded from three on: two alone show no course in between."""
    if len(steps) > 2:
        band = [one.high for one in figures] + [one.low for one in reversed(figures)]
        shade = {"x": steps + steps[::-1], "y": band, "fill": "toself", "fillcolor": f"{color}2b", "line": {"width": 0}}
        yield shade | {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "showlegend": False}
    above, below = [one.high - one.value for one in figures], [one.value - one.low for one in figures]
    yield {
        "type": "scatter",
        "mode": "lines+markers" if len(steps) > 2 else "markers",
        "x": steps,
        "y": [one.value for one in figures],
        "error_y": {"array": above, "arrayminus": below, "thickness": 1, "width": 3},
        "customdata": [str(one) for one in figures],
        "hovertemplate": "%{customdata}",
        "name": "held-out",
        "showlegend": in_legend,
        "line": {"color": color, "width": 1.5, "dash": "dot"},
        "marker": {"size": 7, "color": color},
    }


def alarm_marks(runs: list[Run]) -> tuple[list[dict], list[dict]]:
    """A line at the step of each alarm, and its name with the details on hover."""
    lines, labels = [], []
    for place, run in enumerate(runs):
        color = ALARM if len(runs) == 1 else color_of(place)
        for row in run.alarms:
            ends = {"x0": row["step"], "x1": row["step"], "y0": 0, "y1": 1, "yref": "paper"}
            lines.append({"type": "line", **ends, "line": {"color": color, "width": 1, "dash": "dash"}})
            text = "<br>".join(plain(line) for line in textwrap.wrap(f"step {row['step']}: {row['says']}", 50))
            at = {"x": row["step"], "y": 0, "yref": "paper", "yanchor": "bottom", "xanchor": "right", "textangle": -90}
            look = {"showarrow": False, "font": {"color": color, "size": 11}}
            labels.append({"text": plain(row["alarm"]), "hovertext": text, **at, **look})
    return lines, labels


def plain(text: str) -> str:
    """Escaped: plotly interprets some HTML in names and labels."""
    return html.escape(str(text), quote=False)


def significant(values: list[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def draw(shown: list[Panel], runs: list[Run], title: tuple[str, str], footer: str, out: Path) -> None:
    """Write the first panels, two per row, as a slide of 16:9: OUT.png and OUT.svg. `title` is a line and a smaller
    one; long ones have smaller letters, so that they fit."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Drawing
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    shown = [panel for panel in shown if panel.title != STACKED][:MAIN]
    rows = max(1, -(-len(shown) // 2))
    with rc_context({"font.size": 13, "svg.hashsalt": "", "text.parse_math": False}):
        figure = Drawing(figsize=(12.8, 7.2), layout=ConstrainedLayoutEngine(w_pad=0.16, h_pad=0.08))
        parts: Any = figure.subfigures(3, 1, height_ratios=(1.1, 5.7, 0.4))
        heading, body, foot = parts
        large, small = (textwrap.shorten(line, 140, placeholder=" …") for line in title)
        heading.text(0.015, 0.9, large, size=min(24, 1_250 / len(large)), weight="bold", va="top")
        heading.text(0.015, 0.2, small, size=min(15, 1_600 / len(small)), color="#50565f")
        foot.text(0.015, 0.4, textwrap.shorten(footer, 150, placeholder=" …"), size=11, color="#50565f")
        for axes, panel in zip(body.subplots(rows, 2, squeeze=False).flat, shown, strict=False):
            draw_panel(axes, panel, "held-out" if len(runs) == 1 else "")
            for place, run in enumerate(runs):
                for row in run.alarms:
                    name = f"alarm {row['alarm']}" if len(runs) == 1 and panel is shown[0] else ""
                    color = ALARM if len(runs) == 1 else color_of(place)
                    axes.axvline(row["step"], color=color, lw=1, ls="--", label=name)
            if len(axes.get_legend_handles_labels()[1]) > 1 and (len(runs) == 1 or panel is shown[0]):
                axes.legend(frameon=False, fontsize=12)
        for axes in body.axes[len(shown) :]:
            axes.set_axis_off()
        figure.savefig(out.with_suffix(".png"), dpi=125)
        figure.savefig(out.with_suffix(".svg"), metadata={"Date": None})


def draw_panel(axes: "Axes", panel: Panel, evaluation: str) -> None:
    for one in panel.curves:
        axes.plot(one.steps, one.values, color=one.color, lw=1, alpha=0.35)
        axes.plot(one.steps, one.means, color=one.color, lw=2.6, label=one.name)
    for found, color in panel.dots:
        steps = list(found)
        values, lows, highs = ([getattr(one, end) for one in found.values()] for end in ("value", "low", "high"))
        if len(steps) > 2:  # as in `dots`
            axes.fill_between(steps, lows, highs, color=color, alpha=0.15, lw=0)
            axes.plot(steps, values, ":", color=color, lw=1.2)
        axes.vlines(steps, lows, highs, color=color, lw=1.8)
        axes.plot(steps, values, "o", color=color, ms=7, label=evaluation)
    axes.set_ylabel(textwrap.fill(AXES.get(panel.title, panel.title), 24))
    axes.set_xlabel("training step")
    axes.locator_params("x", integer=True)
    axes.grid(axis="y", alpha=0.25)
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.spines[["top", "right"]].set_visible(False)
