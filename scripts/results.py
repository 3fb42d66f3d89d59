"""Put measured runs into docs/results: recipe, results, environment and report of each, and the table of all.

make results                                     trains the runs of MEASURED that are not in runs/, and publishes them
.venv/bin/python scripts/results.py runs/MINE    publishes a finished run, a GPU's for example
"""

import base64
import gzip
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from grpo_math.errors import UserError, run_cli
from grpo_math.evaluation.statistics import Figure
from grpo_math.recipe.file import read_yaml
from grpo_math.report.data import Run, read_run
from grpo_math.report.expected import check, read_expected, recipe_name
from grpo_math.report.report import write_report
from grpo_math.report.summary import clock, problems

RESULTS = Path(__file__).parents[1] / "docs" / "results"
MEASURED = {  # run: its command
    "quickstart": "grpo-math quickstart",
    "gsm8k_smollm2_135m": "grpo-math launch --layout cpu --config gsm8k_smollm2_135m --bf16 false",
}
FILES = ("recipe.yaml", "results.json", "environment.json", "report.html")
LARGEST = 3_000_000  # bytes of a report
LIBRARIES = {"plotly", "temml"}  # embedded in a report
EMBEDDED = re.compile(r'<script (?:id="(\w+)"|class="step")[^>]*type="application/gzip"[^>]*>([^<]*)</script>')
PRIVATE = {  # what gives a machine, its users or their accounts away
    "an absolute path": re.compile(
        r"(?<![\w.<*+)\]}/])/(?:[A-Za-z][\w.-]+/[\w.-]+|(?:home|root)\b)[^\s\"'<]*|\b[A-Z]:\\+Users\b|(?<!\w)~/\w+|file:///\w+"
    ),
    "an address": re.compile(
        r"\b\d{1,3}(?:\.\d{1,3}){3}\b|[\w.+-]+@[\w-]+\.\w+|://[^/\s:@]+:[^/\s@]+@"
        r"|\b\w[\w.-]*\.(?:corp|internal|intranet|lan|local)\b"
    ),
    "a token": re.compile(
        r"\b(?:hf_|sk-|gh[oprsu]_|github_pat_|glpat-|wandb_|xox[a-z]-|nvapi-|A[KS]IA|AIza|eyJ)[\w.-]{16,}"
    ),
    "the name of this machine": re.compile(rf"\b{re.escape(socket.gethostname())}\b"),
}
PAGE = """# Measured runs

Each run has its recipe, its results with 95 % intervals (Wilson) and its report, which opens in a browser. The time is
that of the whole run, evaluations included, on a machine that may have done other work as well. `make results` trains
what is missing in `runs/` and rewrites this page; `.venv/bin/python scripts/results.py runs/NAME` adds a finished run.
Both first compare a run with [the bounds of its recipe](../report.md#check-a-run), if it has any.

{table}

The commands that made them:

```
{commands}
```
"""


def main(words: list[str]) -> None:
    if unknown := [word for word in words if not (Path(word) / "results.json").is_file()]:
        raise UserError(f"{unknown[0]}: no finished run: name a folder with results.json in it")
    for name, command in {} if words else MEASURED.items():
        if not (Path("runs") / name / "results.json").exists():
            print(f"{name}: {command}", flush=True)
            subprocess.run([sys.executable, "-m", "grpo_math", *shlex.split(command)[1:]], check=True)
    for folder in map(Path, words or [f"runs/{name}" for name in MEASURED]):
        publish(folder)
    (RESULTS / "README.md").write_text(page(RESULTS), encoding="utf-8")


def publish(folder: Path, results: Path = RESULTS) -> None:
    """Copy the run's files, with a new report. It is an error, and nothing is copied, where a bound of its recipe fails
    or something is private."""
    if recipe_name(read_run(folder)) in read_expected() and not check([folder]):
        raise UserError(f"{folder}: fails a bound of its recipe in benchmarks/expected.yaml: not published")
    with tempfile.TemporaryDirectory() as temporary:
        name = folder.resolve().name
        copy = Path(temporary) / name
        shutil.copytree(folder, copy, ignore=lambda _, names: {one for one in names if not wanted(one)})
        environment = json.loads((copy / "environment.json").read_text(encoding="utf-8"))
        environment.pop("platform", None)
        (copy / "environment.json").write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")
        for file in FILES[:-1]:
            refuse_private(copy / file)
        refuse_private(write_report([copy]))
        if (size := (copy / "report.html").stat().st_size) > LARGEST:
            raise UserError(f"{name}/report.html has {size:,} bytes, above {LARGEST:,}")
        (results / name).mkdir(parents=True, exist_ok=True)
        for file in FILES:
            shutil.copyfile(copy / file, results / name / file)
    print(results / name)


def wanted(name: str) -> bool:
    return name == "completions" or name.endswith((".parquet", ".jsonl", ".json", ".yaml"))


def refuse_private(file: Path) -> None:
    text = EMBEDDED.sub(unpacked, file.read_text(encoding="utf-8"))
    text = text.replace("\\n", "\n")  # as JSON writes the ends of lines
    for what, pattern in PRIVATE.items():
        if found := pattern.search(text):
            raise UserError(
                f"{file.parent.name}/{file.name} has {what}, {found[0][:80]!r}: train again without it, with "
                "relative paths or Hub ids"
            )


def unpacked(element: re.Match) -> str:
    """The content of a part of the report, none of a library."""
    return "" if element[1] in LIBRARIES else gzip.decompress(base64.b64decode(element[2])).decode("utf-8")


def page(results: Path) -> str:
    """README.md of the folder with the published runs."""
    head = ["run", "model", "problems", "before", "after", "hardware, time", ""]
    runs = [read_run(file.parent) for file in sorted(results.glob("*/results.json"))]
    lines = [head, ["---"] * len(head), *map(row, runs)]
    return PAGE.format(
        table="\n".join(f"| {' | '.join(line)} |" for line in lines),
        commands="\n".join(shlex.join(run.environment["command"]) for run in runs),
    )


def row(run: Run) -> list[str]:
    folder, found = run.folder, run.results
    ends = {moment: f"{Figure.of(found[moment], 'accuracy')}" for moment in ("before", "after") if moment in found}
    files = ("report.html", "recipe.yaml", "results.json")
    links = ", ".join(f"[{file.partition('.')[0]}]({folder.name}/{file})" for file in files)
    return [
        folder.name,
        Path(read_yaml(folder / "recipe.yaml")["model_name_or_path"]).name,
        problems(found["after"]).removeprefix("on ") if "after" in found else "",
        ends.get("before", "not evaluated"),
        f"{ends.get('after', 'not evaluated')}, {found['steps']} steps",
        f"{run.hardware}, {clock(found['seconds']['total'])}",
        links,
    ]


if __name__ == "__main__":
    sys.exit(run_cli(main))
