"""What came of a run, in one page that opens from disk: accuracy, curves, completions, recipe."""

import argparse
import contextlib
import datetime
import time
from collections.abc import Iterator
from pathlib import Path

from grpo_math.errors import UserError
from grpo_math.recipe.batch import is_main_process
from grpo_math.recipe.file import dotted
from grpo_math.report.data import Run, changed, goes_on, read_completions, read_run
from grpo_math.runs import folder as run_folder

TEMPLATES = Path(__file__).parent / "templates"
LIMIT = 4_900_000  # bytes of a page
POLL = 10  # seconds between two looks at a run that goes on


def main(options: argparse.Namespace) -> None:
    if options.watch:
        watch(options.runs, options.out)
    else:
        runs = read_runs(options.runs)
        tell(runs, write(runs, options.out))


def write_report(folders: list[Path], out: Path | None = None, live: bool = False) -> Path:
    """Write the page and its pictures, and return the page's path; a `live` page loads itself again and again."""
    return write(read_runs(folders), out, live)


def read_runs(folders: list[Path]) -> list[Run]:
    runs = [read_run(folder) for folder in folders]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("report: one run is named twice: name different ones")
    return runs


def write(runs: list[Run], out: Path | None, live: bool = False) -> Path:
    """As `write_report`, of runs that are read already."""
    out = out or runs[0].folder / ("report.html" if len(runs) == 1 else "compare-report.html")
    if out.suffix != ".html" or not out.parent.is_dir():
        raise UserError(f"--out: {out}: want a file to write, such as report.html, in a folder that is there")

    from grpo_math.report.charts import draw, panels

    names = [run.name if [other.name for other in runs].count(run.name) == 1 else str(run.folder) for run in runs]
    shown = panels(runs, names)
    page = render(runs, names, shown, live)
    run_folder.replace(page, out)
    draw(shown, runs, out)
    return out


def report_end(results: dict, folder: Path) -> None:
    """A finished training's last words. It is none the worse where they fail."""
    if results and is_main_process():
        try:
            print(f"report: {write_report([folder])}")
        except Exception as error:
            print(f"report: not written ({type(error).__name__}: {error}): try grpo-math report {folder}")


def render(runs: list[Run], names: list[str], shown: list, live: bool) -> str:
    """The page with as many completions as it has room for."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    from grpo_math.report import summary as report_summary
    from grpo_math.report.charts import color_of, plotly_figure, stride_of, window_of
    from grpo_math.report.completions import compressed, encoded, pack

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    last_step = max(row["step"] for run in runs for row in [{"step": 1}, *run.steps, *run.evaluations])
    content = {
        "runs": runs,
        "names": names,
        "summary": report_summary,
        "colors": [color_of(place) for place in range(len(runs))],
        "panels": shown,
        "figures": compressed([plotly_figure(panel, runs, last_step) for panel in shown]),
        "windows": sorted({window_of(run) for run in runs}),
        "stride": max(map(stride_of, runs)),
        "against": [against_first(runs[0], run) for run in runs[1:]],
        "recipe_diff": recipe_diff(runs),
        "plotly": encoded(get_plotlyjs().encode()),
        "style": Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        "script": Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        "reload": POLL if live else 0,
        "written": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
    }
    template = environment.get_template("report.html.j2")
    empty = template.render(content, steps=[], seen=[])
    steps, seen = pack(runs, LIMIT - len(empty.encode()))
    return template.render(content, steps=steps, seen=seen)


def against_first(first: Run, other: Run):
    """The difference of two runs at their last evaluations; None where they have no problems in common."""
    files = [run.files("eval") for run in (first, other)]
    if not all(files):
        return None
    return changed(*(read_completions(found[max(found)]) for found in files))


def recipe_diff(runs: list[Run]) -> dict[str, list[str]]:
    """The keys on which the recipes differ, each with its value in every run."""
    flat = [{key: as_yaml(value) for key, value in dotted(run.recipe) if key != "output_dir"} for run in runs]
    keys = dict.fromkeys(key for recipe in flat for key in recipe)
    rows = {key: [recipe.get(key, "default") for recipe in flat] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def as_yaml(value) -> str:
    return {"True": "true", "False": "false", "None": "null"}.get(str(value), str(value))


def tell(runs: list[Run], page: Path) -> None:
    from grpo_math.report.summary import sentences, verdict

    for run in runs:
        print("\n".join(sentences(run)), end="\n\n")
    for run in runs[1:]:
        print(f"{run.folder} against {runs[0].folder}: {verdict(against_first(runs[0], run))}")
    size = page.stat().st_size / 1e6
    print(f"{page} ({size:.1f} MB), {page.with_suffix('.png').name}, {page.with_suffix('.svg').name}")


def watch(folders: list[Path], out: Path | None) -> None:
    """Write the page at every change until no run goes on any more, and then once more."""
    before, running = None, True
    try:
        while running:
            running = any(map(goes_on, folders))
            now = [running, *changes(folders)]
            if now != before:
                runs = read_runs(folders)
                page = write(runs, out, live=running)
                if before is None and running:
                    print(f"{page}: follows the run until it ends (Ctrl-C ends the watch)", flush=True)
                before = now
            if running:
                time.sleep(POLL)
    except KeyboardInterrupt:
        print()
        return
    tell(runs, page)


def changes(folders: list[Path]) -> Iterator[tuple[Path, int, int]]:
    """Whatever is written while a run goes on."""
    for folder in folders:
        for file in sorted([*folder.glob("*.json*"), *folder.glob("*.yaml"), *folder.glob("completions/*")]):
            with contextlib.suppress(OSError):
                yield file, file.stat().st_mtime_ns, file.stat().st_size
