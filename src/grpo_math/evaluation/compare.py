"""Two or more evaluations on the same problems: is one model better, and where?"""

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from grpo_math.errors import UserError, one_line
from grpo_math.evaluation.statistics import Difference, difference
from grpo_math.evaluation.tables import print_table
from grpo_math.runs.folder import read_table

Key = tuple[str, str, str, int]  # dataset, question, gold, and the number of earlier problems with the same ones
COLUMNS = {"dataset": str, "problem": int, "sample": int, "question": str, "gold": str, "completion": str}
Rows = list[dict]  # of one problem, graded, in the order of their samples


@dataclass(frozen=True)
class Comparison:
    """B compared with A on one dataset: the rows of each problem that both have, A's and B's, and how many problems
    only one of them has."""

    dataset: str
    problems: list[tuple[Rows, Rows]]
    unpaired: int = 0

    @cached_property
    def accuracies(self) -> tuple[list[float], list[float]]:
        """A's and B's on each problem, in [0, 1]."""
        first, second = ([accuracy(rows) for rows in side] for side in zip(*self.problems, strict=True))
        return first, second

    @cached_property
    def difference(self) -> Difference:
        """B less A."""
        return difference(*self.accuracies, any(len(rows) > 1 for pair in self.problems for rows in pair))

    def changed(self, won: bool) -> list[tuple[Rows, Rows]]:
        """The problems on which B does better, or worse."""
        return [pair for pair, a, b in zip(self.problems, *self.accuracies, strict=True) if (b > a if won else b < a)]


def main(options: argparse.Namespace) -> None:
    if len(options.evaluations) < 2:
        raise UserError("compare: name two evaluations or more: grpo-math compare A B")
    first, *others = options.evaluations
    for other in others:
        print(f"A: {first}\nB: {other}")
        found = compare(first, other)
        if settings := other_settings(first, other):
            print("B was evaluated with another " + ", ".join(settings))
        print_comparisons(found)
        for one in found:
            for won in (True, False):
                for a, b in one.changed(won)[: options.show]:
                    print(f"\n{one.dataset}, {'won' if won else 'lost'} by B: {a[0]['question']}\ngold: {a[0]['gold']}")
                    print(f"{example('A', a, right=not won)}\n{example('B', b, right=won)}")
        print()


def compare(first: str | Path, second: str | Path) -> list[Comparison]:
    """The second evaluation compared with the first, dataset by dataset. Raises UserError where one is missing or
    unfinished, and where they have no problem in common."""
    a, b = (read_evaluation(Path(path)) for path in (first, second))
    found = []
    for dataset in dict.fromkeys(key[0] for key in a):
        keys = [{key for key in side if key[0] == dataset} for side in (a, b)]
        pairs = [(a[key], b[key]) for key in a if key in keys[0] & keys[1]]
        if pairs:
            found.append(Comparison(dataset, pairs, len(keys[0] ^ keys[1])))
    if not found:
        raise UserError("compare: A and B have no problem in common: evaluate both on the same datasets")
    return found


def read_evaluation(path: Path) -> dict[Key, Rows]:
    """The rows of every problem."""
    file = path / "completions.jsonl" if path.is_dir() else path
    if not file.exists():
        raise UserError(
            f"{path}: no completions.jsonl there: name a folder of grpo-math evaluate (runs: grpo-math report)"
        )
    problems: dict[tuple[str, int], Rows] = defaultdict(list)
    for row in read_table(file):
        if any(not isinstance(row.get(column), kind) for column, kind in COLUMNS.items()):
            raise UserError(f"{file}: not the completions of an evaluation: name a folder of grpo-math evaluate")
        if not isinstance(row.get("correct", ""), bool | None):
            raise UserError(f"{path}: the evaluation is not finished: run the same grpo-math evaluate again")
        problems[row["dataset"], row["problem"]].append(row)
    if not problems:
        raise UserError(f"{file}: holds no completion")
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


def print_comparisons(found: list[Comparison]) -> None:
    rows = []
    for one in found:
        a, b = (f"{sum(side) / len(side):.3f}" for side in one.accuracies)
        change = one.difference
        p = "" if change.p is None else f"{change.p:.2g}"
        verdict = f"B is {change.verdict} than A" if change.distinguishable else change.verdict
        won, lost = f"{change.won:,}", f"{change.lost:,}"
        rows.append([one.dataset, f"{len(one.problems):,}", a, b, change.interval, p, won, lost, verdict])
    print_table(["", "problems", "A", "B", "difference", "McNemar's exact p", "won", "lost", ""], rows)
    for one in found:
        if one.unpaired:
            print(f"{one.dataset}: {one.unpaired:,} problems only in one of them are left out")


def accuracy(rows: Rows) -> float:
    return sum(row["correct"] is True for row in rows) / len(rows)


def example(side: str, rows: Rows, right: bool) -> str:
    """A right or a wrong completion of a problem, where there is such."""
    row = next((row for row in rows if (row["correct"] is True) == right), rows[0])
    return f"{side}, {'right' if row['correct'] is True else 'wrong'} ({row.get('answer')}): {row['completion']}"
