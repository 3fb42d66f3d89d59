"""Grade one completion and say why, or a whole file.

usage: grpo-math grade --gold G --completion C [--style boxed]
   or: grpo-math grade FILE.jsonl [--out OUT.jsonl] [--style boxed] [--workers N] [--timeout SECONDS]

FILE.jsonl holds {"gold": ..., "completion": ...} rows. OUT.jsonl gets the same rows in the same order, each with
`correct` (true, false, or null where the gold cannot be read), `answer` and `how`. Styles: boxed, hash, answer_tag,
fallback.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from grpo_math.errors import UserError, one_line
from grpo_math.grading import STYLES, PoolSettings, configure, explain, grade_batch

CHUNK = 4096  # rows graded at a time


def main(argv: list[str]) -> None:
    parser = Arguments(prog="grpo-math grade")
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--gold")
    parser.add_argument("--completion")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--style", default="boxed", choices=list(STYLES))
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--timeout", type=float, default=PoolSettings.timeout)
    options = parser.parse_args(argv)
    if (options.workers or 1) < 1 or options.timeout < 0.1:
        raise UserError("grade: want --workers of at least 1 and --timeout of at least 0.1")
    configure(PoolSettings(timeout=options.timeout, workers=options.workers))
    one = options.gold is not None and options.completion is not None
    if one == (options.file is not None) or (options.file and (options.gold or options.completion)):
        raise UserError("grade: give either FILE.jsonl, or --gold G and --completion C")
    if one:
        print("\n".join(explain(options.completion, options.gold, options.style)))
    else:
        grade_file(options.file, options.out, options.style)


class Arguments(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"grade: {message}")


def grade_file(path: Path, out: Path | None, style: str) -> None:
    """Grade in chunks, so that a file of any length fits in memory; print a summary."""
    if out and out.exists() and path.exists() and out.samefile(path):
        raise UserError(f"--out: {out} is the file to be graded: name another")
    verdicts, hows = Counter(), Counter()
    with ExitStack() as stack:
        with one_line("grade: cannot be opened"):
            source = stack.enter_context(path.open(encoding="utf-8"))
            target = stack.enter_context(out.open("w", encoding="utf-8")) if out else None
        rows = read_rows(source, path)
        while chunk := list(islice(rows, CHUNK)):
            grades = grade_batch([row["completion"] for row in chunk], [row["gold"] for row in chunk], style)
            verdicts.update(grade.correct for grade in grades)
            hows.update(grade.how for grade in grades)
            if target:
                for row, grade in zip(chunk, grades, strict=True):
                    target.write(json.dumps(row | asdict(grade), ensure_ascii=False) + "\n")
    counted = ", ".join(f"{how} {count:,}" for how, count in hows.most_common())
    right, wrong, unscored = verdicts[True], verdicts[False], verdicts[None]
    print(f"{right + wrong + unscored:,} graded: {right:,} right, {wrong:,} wrong, {unscored:,} unscored ({counted})")


def read_rows(source, path: Path) -> Iterator[dict]:
    for number, line in enumerate(source, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error.msg})") from None
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("gold", "completion")):
            raise UserError(f'{path}, line {number}: want {{"gold": text, "completion": text}}')
        yield row
