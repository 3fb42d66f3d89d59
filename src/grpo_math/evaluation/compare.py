"""Two or more evaluations on the same problems: is one model better, and where? With several runs a setting: is one
setting better?"""

import argparse
import glob
import json
import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from grpo_math.errors import UserError, each, one_line
from grpo_math.evaluation.statistics import Difference, can_show, difference, over_seeds, span
from grpo_math.evaluation.tables import print_table
from grpo_math.runs.folder import read_table

Key = tuple[str, str, str, int]  # dataset, question, gold, and the number of earlier problems with the same ones
COLUMNS = {"dataset": str, "problem": int, "sample": int, "question": str, "gold": str, "completion": str}
Rows = list[dict]  # of one problem, graded, in the order of their samples
Problems = dict[Key, Rows]
SPREAD = "with the spread seen here"  # what the stated power is for


@dataclass(frozen=True, repr=False)
class Comparison:
    """B, the second evaluation, compared with A, the first, on one dataset.

    Attributes:
        dataset: The title of the dataset.
        problems: A's rows and B's rows of each problem that both have; a row has the columns of `completions.jsonl`.
        unpaired: The number of problems that only one of them has.
    """

    dataset: str
    problems: list[tuple[Rows, Rows]]
    unpaired: int = 0

    def __repr__(self) -> str:
        means, change = [f"{fmean(side):.3f}" for side in self.accuracies], self.difference
        found = f"A {means[0]}, B {means[1]}, difference {change}: {verdict(change)}"
        return f"{self.dataset}, {len(self.problems):,} problems: {found}; {change.won:,} won, {change.lost:,} lost"

    @cached_property
    def accuracies(self) -> tuple[list[float], list[float]]:
        """A's and B's on each problem, in [0, 1]."""
        first, second = ([accuracy(rows) for rows in side] for side in zip(*self.problems, strict=True))
        return first, second

    @cached_property
    def difference(self) -> Difference:
        """B less A."""
        return difference(*self.accuracies, math.lcm(*{len(rows) for pair in self.problems for rows in pair}))

    def changed(self, won: bool) -> list[tuple[Rows, Rows]]:
        """The problems on which B does better, or worse."""
        return [pair for pair, a, b in zip(self.problems, *self.accuracies, strict=True) if (b > a if won else b < a)]


def main(options: argparse.Namespace) -> None:
    if len(options.evaluations) < 2:
        raise UserError("compare: expected two or more evaluations: grpo-math compare A B")
    named = options.evaluations
    first, *others = settings = each(files_of, named) if options.seeds else [[Path(one)] for one in named]
    each(completions_of, [path for setting in settings for path in setting])
    a = [read_evaluation(path) for path in first]
    for other in others:
        b = [read_evaluation(path) for path in other]
        print(f"A: {', '.join(map(str, first))}\nB: {', '.join(map(str, other))}")
        different = dict.fromkeys(key for path in [*first, *other] for key in other_settings(first[0], path))
        if options.seeds:
            print_over_seeds(a, b, sorted(different.keys() - {"seed"}))
        else:
            print_pair(a[0], b[0], list(different), options.show)
        print()


def compare(first: str | Path, second: str | Path) -> list[Comparison]:
    """Compare the second evaluation with the first, problem by problem, as `grpo-math compare` does.

    Args:
        first: A folder of `grpo-math evaluate`, its `completions.jsonl`, or a run, of which the last evaluation counts.
        second: Another one, on the same datasets.

    Returns:
        One comparison per dataset.

    Raises:
        UserError: If one is missing or unfinished, or if they have no problem in common.
    """
    return paired(read_evaluation(Path(first)), read_evaluation(Path(second)))


def paired(a: Problems, b: Problems) -> list[Comparison]:
    """The evaluation b compared with a, dataset by dataset."""
    unpaired = Counter(key[0] for key in a.keys() ^ b.keys())
    return [
        Comparison(dataset, [(a[key], b[key]) for key in keys], unpaired[dataset])
        for dataset, keys in shared([a, b]).items()
    ]


def shared(evaluations: list[Problems]) -> dict[str, list[Key]]:
    """The problems that all evaluations have, by dataset, in the order of the first. Raises UserError where there are
    none."""
    found = defaultdict(list)
    for key in evaluations[0]:
        if all(key in other for other in evaluations[1:]):
            found[key[0]].append(key)
    if not found:
        raise UserError("compare: A and B have no problem in common: evaluate both on the same datasets")
    return found


def files_of(setting: str) -> list[Path]:
    """The evaluations of a setting's runs: paths with commas between them, each of which may be a pattern."""
    named = {part: sorted(glob.glob(part)) for part in filter(None, map(str.strip, setting.split(",")))}
    if absent := [part for part, found in named.items() if not found]:
        raise UserError(f"compare --seeds: no {' and no '.join(absent)}: check the path or the pattern")
    files = list({Path(path).resolve(): Path(path) for found in named.values() for path in found}.values())
    if len(files) < 2:
        raise UserError(
            f"compare --seeds: {setting} is one run: give two or more per setting, separated by commas or as "
            "a pattern in quotes"
        )
    return files


def completions_of(path: Path) -> Path:
    """The file of a folder of `grpo-math evaluate`, of a run, of which the last evaluation counts, or that file."""
    kept = sorted((path / "completions").glob("eval-*.parquet"))
    file = kept[-1] if kept else path / "completions.jsonl" if path.is_dir() else path
    if not file.exists():
        raise UserError(f"{path}: has no completions.jsonl: give a folder of grpo-math evaluate, or an evaluated run")
    return file


def read_evaluation(path: Path) -> Problems:
    """The rows of every problem; `path` is one of `completions_of`."""
    file = completions_of(path)
    problems: dict[tuple[str, int], Rows] = defaultdict(list)
    for row in read_table(file):
        if any(not isinstance(row.get(column), kind) for column, kind in COLUMNS.items()):
            raise UserError(f"{file}: not the completions of an evaluation: give a folder of grpo-math evaluate")
        if not isinstance(row.get("correct", ""), bool | None):
            raise UserError(f"{path}: the evaluation is not finished: run the same grpo-math evaluate again")
        problems[row["dataset"], row["problem"]].append(row)
    if not problems:
        raise UserError(f"{file}: has no completions")
    found: dict[Key, Rows] = {}
    for (dataset, _), rows in sorted(problems.items()):
        earlier = 0
        while (key := (dataset, rows[0]["question"], rows[0]["gold"], earlier)) in found:
            earlier += 1
        found[key] = sorted(rows, key=lambda row: row["sample"])
    return found


def other_settings(first: Path, second: Path) -> list[str]:
    """Which settings but the model differ."""
    files = [path / "settings.json" for path in (first, second)]
    if not all(file.exists() for file in files):
        return []
    with one_line("compare: a damaged settings.json"):
        a, b = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    return [key for key in a if key not in ("model", "weights", "datasets") and a[key] != b.get(key)]


def print_pair(a: Problems, b: Problems, different: list[str], shown: int) -> None:
    """B compared with A, which were evaluated with `different` settings; `shown` problems won and lost are examples."""
    found, rows = paired(a, b), []
    if different:
        print("B was evaluated with another " + ", ".join(different))
    for one in found:
        means, change = [f"{fmean(side):.3f}" for side in one.accuracies], one.difference
        rows.append([one.dataset, f"{len(one.problems):,}", *means, change.interval, f"{change.p:.2g}"])
        rows[-1] += [f"{change.won:,}", f"{change.lost:,}", verdict(change)]
    print_table(["", "problems", "A", "B", "difference", found[0].difference.test, "won", "lost", ""], rows)
    for one in found:
        print(f"{one.dataset}: {can_show(f'{len(one.problems):,} problems', one.difference.shows, SPREAD)}")
        if one.unpaired:
            print(f"{one.dataset}: left out {one.unpaired:,} problems that only one of them has")
    print_left_out([a, b], {one.dataset for one in found})
    for one in found:
        for won in (True, False):
            for of_a, of_b in one.changed(won)[:shown]:
                print(f"\n{one.dataset}, {'won' if won else 'lost'} by B: {of_a[0]['question']}")
                print(f"gold: {of_a[0]['gold']}")
                print(f"{example('A', of_a, right=not won)}\n{example('B', of_b, right=won)}")


def print_over_seeds(first: list[Problems], second: list[Problems], different: list[str]) -> None:
    """The runs of a second setting compared with those of the first, on the problems that all of them have; they were
    evaluated with `different` settings."""
    rows, lines, kept = [], [], shared([*first, *second])
    for dataset, keys in kept.items():
        a, b = ([fmean(accuracy(run[key]) for key in keys) for run in runs] for runs in (first, second))
        change = over_seeds(a, b)
        rows.append([dataset, f"{len(keys):,}", span(a), span(b), change.interval, f"{change.p:.2g}", verdict(change)])
        lines.append(f"{dataset}: {can_show(f'{len(a)} and {len(b)} runs', change.shows, SPREAD)}")
    if different:
        print("not all were evaluated with the same " + ", ".join(different))
    print_table(["", "problems", "A (least-most)", "B (least-most)", "difference", change.test, ""], rows)
    print("\n".join(lines))
    print_left_out([*first, *second], {*kept})


def print_left_out(evaluations: list[Problems], kept: set[str]) -> None:
    for dataset in sorted({key[0] for one in evaluations for key in one} - kept):
        print(f"{dataset}: left out, no problem is in all evaluations")


def verdict(change: Difference) -> str:
    return f"B is {change.verdict} than A" if change.distinguishable else change.verdict


def accuracy(rows: Rows) -> float:
    return sum(row["correct"] is True for row in rows) / len(rows)


def example(side: str, rows: Rows, right: bool) -> str:
    """A right or a wrong completion of a problem, where there is such."""
    row = next((row for row in rows if (row["correct"] is True) == right), rows[0])
    return f"{side}, {'right' if row['correct'] is True else 'wrong'} ({row.get('answer')}): {row['completion']}"
