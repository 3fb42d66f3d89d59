"""Two evaluations or more on the same problems: is one model better, and where?"""

import argparse
import json
from collections import Counter
from pathlib import Path

from grpo_math.errors import UserError
from grpo_math.evaluation.statistics import Difference, difference
from grpo_math.runs.folder import read_table

Key = tuple[str, str, str, int]  # dataset, question, gold, and how often they came before


def main(options: argparse.Namespace) -> None:
    if len(options.evaluations) < 2:
        raise UserError("compare: want two evaluations or more: grpo-math compare A B")
    first, *others = [read_evaluation(path) for path in options.evaluations]
    for other, path in zip(others, options.evaluations[1:], strict=True):
        print(f"A: {options.evaluations[0]}\nB: {path}")
        if other_settings := differences(options.evaluations[0], path):
            print("B was evaluated with another " + ", ".join(other_settings))
        compare(first, other, options.show)


def read_evaluation(path: Path) -> dict[Key, list[dict]]:
    """The graded rows of every problem, in the order of their samples."""
    file = path / "completions.jsonl" if path.is_dir() else path
    if not file.exists():
        raise UserError(
            f"{path}: no completions.jsonl there: name a folder of grpo-math evaluate (runs: grpo-math report)"
        )
    problems: dict[tuple[str, int], list[dict]] = {}
    for row in read_table(file):
        if "correct" not in row:
            raise UserError(f"{path}: the evaluation is not finished: run the same grpo-math evaluate again")
        problems.setdefault((row["dataset"], row["problem"]), []).append(row)
    if not problems:
        raise UserError(f"{file}: holds no completion")
    found, seen = {}, Counter()
    for (dataset, _), rows in sorted(problems.items()):
        text = (dataset, rows[0]["question"], rows[0]["gold"])
        found[*text, seen[text]] = sorted(rows, key=lambda row: row["sample"])
        seen[text] += 1
    return found


def differences(one: Path, other: Path) -> list[str]:
    """Which settings but the model differ."""
    files = [path / "settings.json" for path in (one, other)]
    if not all(file.exists() for file in files):
        return []
    first, second = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    return [key for key in first if key not in ("model", "weights", "datasets") and first[key] != second.get(key)]


def compare(first: dict[Key, list[dict]], second: dict[Key, list[dict]], show: int) -> None:
    common = [key for key in first if key in second]
    if not common:
        raise UserError("compare: A and B have no problem in common: evaluate both on the same datasets")
    for dataset in dict.fromkeys(key[0] for key in common):
        keys = [key for key in common if key[0] == dataset]
        left = len({key for key in first.keys() ^ second.keys() if key[0] == dataset})
        print(f"\n{dataset}: {len(keys):,} problems" + (f" in common, {left:,} only in one of them" if left else ""))
        report(keys, first, second, show)
    print()


def report(keys: list[Key], first: dict[Key, list[dict]], second: dict[Key, list[dict]], show: int) -> None:
    a, b, found = paired(keys, first, second)
    print(f"A {sum(a) / len(a):.3f}, B {sum(b) / len(b):.3f}: difference {found}")
    verdict = f"B is {found.verdict} than A" if found.distinguishable else found.verdict
    print(f"B won {found.won:,} of the problems and lost {found.lost:,}: {verdict}")
    for name, wanted in (("won", 1), ("lost", -1)):
        changed = [key for key, x, y in zip(keys, a, b, strict=True) if (y - x) * wanted > 0]
        for key in changed[:show]:
            print(f"\n{name} by B: {key[1]}\ngold: {key[2]}")
            for side, rows in (("A", first[key]), ("B", second[key])):
                row = telling(rows, right=(side == "A") == (wanted < 0))
                print(
                    f"{side}, {'right' if row['correct'] is True else 'wrong'} ({row['answer']}): {row['completion']}"
                )


def paired(keys: list, first: dict, second: dict) -> tuple[list[float], list[float], Difference]:
    """The accuracies on these problems, and their difference; `first` and `second` hold the rows of each problem."""
    a, b = ([accuracy(rows[key]) for key in keys] for rows in (first, second))
    return a, b, difference(a, b, any(len(rows[key]) > 1 for rows in (first, second) for key in keys))


def accuracy(rows: list[dict]) -> float:
    return sum(row["correct"] is True for row in rows) / len(rows)


def telling(rows: list[dict], right: bool) -> dict:
    """A completion that shows the difference: a right one or a wrong one, where there is such."""
    return next((row for row in rows if (row["correct"] is True) == right), rows[0])
