"""A run, or several, as one page that opens from disk: accuracy, curves, completions, recipe."""

import argparse
import datetime
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from grpo_math.errors import UserError, each
from grpo_math.evaluation.statistics import Difference
from grpo_math.recipe.batch import is_main_process
from grpo_math.recipe.file import dotted
from grpo_math.recipe.recipe import Recipe, load_recipe
from grpo_math.report import summary
from grpo_math.report.charts import color_of, draw, panels, plotly_figure, stride_of
from grpo_math.report.completions import compressed, encoded, pack
from grpo_math.report.data import Run, changed, goes_on, read_run
from grpo_math.runs.folder import next_step, replace

TEMPLATES = Path(__file__).parent / "templates"
LIMIT = 2_950_000  # bytes of a page
POLL = 10  # seconds between two looks at a running training


def main(options: argparse.Namespace) -> None:
    if options.check:
        from grpo_math.report.expected import check

        if options.watch or options.out:
            raise UserError("report: --check writes no page: leave out --out and --watch")
        sys.exit(0 if check(options.runs) else 1)
    if options.watch:
        watch(options.runs, options.out)
    else:
        runs = read_runs(options.runs)
        print_summary(runs, write_page(runs, options.out))


def write_report(folders: list[Path], out: Path | None = None) -> Path:
    """Write the page of these runs and its pictures, and return the page's path."""
    return write_page(read_runs(folders), out)


def train_and_report(options: argparse.Namespace, kind: str, train: Callable[[Recipe], dict]) -> None:
    """The verbs `train` and `sft`, on a recipe of this kind (GRPO or SFT)."""
    recipe = load_recipe(options.words, kind)
    results, folder = train(recipe), recipe.output_dir
    report_end(results, folder)
    if not results or not is_main_process():
        return
    found = read_run(folder).files("eval")
    if len(found) > 1:
        next_step("compare", found[min(found)], found[max(found)])
    else:
        datasets = [] if recipe.eval_datasets else ["--suite", "gsm8k"]
        next_step("evaluate", "--config", folder / "recipe.yaml", "--model", folder, *datasets)


def report_end(results: dict, folder: Path) -> None:
    """Write the report of a finished training. A failure is printed: it does not fail the training."""
    if results and is_main_process():
        try:
            print(f"report: {write_report([folder])}")
        except Exception as error:
            print(f"report: not written ({type(error).__name__}: {error}): try grpo-math report {folder}")


def read_runs(folders: list[Path]) -> list[Run]:
    runs = each(read_run, folders)
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("report: one run is named twice: name different ones")
    return runs


def write_page(runs: list[Run], out: Path | None, live: bool = False) -> Path:
    """Write the page and its pictures, and return the page's path; a `live` page reloads itself."""
    out = out or runs[0].folder / ("report.html" if len(runs) == 1 else "compare-report.html")
    if out.suffix != ".html" or not out.parent.is_dir():
        raise UserError(f"--out: {out}: expected a file to write, such as report.html, in an existing folder")
    names = [run.name if [other.name for other in runs].count(run.name) == 1 else str(run.folder) for run in runs]
    shown = panels(runs, names)
    last_step = max(row["step"] for run in runs for row in [{"step": 1}, *run.steps, *run.evaluations])
    content = {
        "runs": runs,
        "names": names,
        "title": names[0] if len(runs) == 1 else f"{len(runs)} runs: {' · '.join(names)}",
        "summary": summary,
        "colors": [color_of(place) for place in range(len(runs))],
        "panels": shown,
        "figures": compressed([plotly_figure(panel, runs, last_step) for panel in shown]),
        "stride": max(map(stride_of, runs)),
        "against": [against_first(runs[0], run) for run in runs[1:]],
        "recipe_diff": recipe_diff(runs),
        "reload": POLL if live else 0,
    }
    replace(render(runs, content), out)
    draw(shown, runs, summary.headline(runs, names), summary.footer(runs), out)
    return out


def render(runs: list[Run], content: dict) -> str:
    """The page with as many completions as fit."""
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    temml = encoded((TEMPLATES / "temml.min.js").read_bytes())
    environment.globals |= {
        "plotly": encoded(get_plotlyjs().encode()),
        "temml": temml,
        "written": f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M}",
    }
    template = environment.get_template("report.html.j2")
    empty = template.render(content, steps=[], seen=[])
    steps, seen = pack(runs, LIMIT - len(empty.encode()) - len(temml))
    return template.render(content, steps=steps, seen=seen)


def against_first(first: Run, other: Run) -> Difference | None:
    """The difference of two runs at their last evaluations; None where they have no problems in common."""
    files = [run.files("eval") for run in (first, other)]
    return changed(*(found[max(found)] for found in files)) if all(files) else None


def recipe_diff(runs: list[Run]) -> dict[str, list[str]]:
    """The keys on which the recipes differ, each with its value in every run."""
    flat = [{key: as_text(value) for key, value in dotted(run.recipe) if key != "output_dir"} for run in runs]
    keys = dict.fromkeys(key for recipe in flat for key in recipe)
    rows = {key: [recipe.get(key, "default") for recipe in flat] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def print_summary(runs: list[Run], page: Path) -> None:
    for run in runs:
        print("\n".join(summary.sentences(run)), end="\n\n")
    for run in runs[1:]:
        print(f"{run.folder} against {runs[0].folder}: {summary.verdict(against_first(runs[0], run))}")
    size = page.stat().st_size / 1e6
    print(f"{page} ({size:.1f} MB), {page.with_suffix('.png').name}, {page.with_suffix('.svg').name}")


def watch(folders: list[Path], out: Path | None) -> None:
    """Write the page at every change until no training is running, and then once more."""
    before, running = None, True
    try:
        while running:
            running = any(map(goes_on, folders))
            now = [running, *(file.stat().st_mtime_ns for folder in folders for file in sorted(folder.glob("*.jsonl")))]
            if now != before:
                runs = read_runs(folders)
                page = write_page(runs, out, live=running)
                if before is None and running:
                    print(f"{page}: updated until the run ends (stop with Ctrl-C)", flush=True)
                before = now
            if running:
                time.sleep(POLL)
    except KeyboardInterrupt:
        print()
        return
    print_summary(runs, page)
