"""Grade one completion and say why, or a whole file.

The file holds {"gold": ..., "completion": ...} rows, one JSON object per line; of a list of golds each is right.
OUT.jsonl gets the same rows in the same order, each with `correct` (true, false, or null where the gold cannot be
read), `answer` and `how`.
"""

import argparse
import json
import math
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from grpo_math.errors import UserError, one_line
from grpo_math.grading import PoolSettings, accepted, configure, grade, grade_batch
from grpo_math.grading.algebra import Meaningless, TooBig
from grpo_math.grading.equal import readable
from grpo_math.grading.reader import read

CHUNK = 4096  # rows graded at a time
REASONS = {
    "too_long": "the answer is too long or too big to evaluate: wrong",
    "timeout": "the answer took longer than the deadline: wrong",
    "crashed": "the grader failed on the answer, or a worker ran out of memory: wrong",
    "unparsable_gold": "the gold cannot be read: not scored",
}


def main(options: argparse.Namespace) -> None:
    if not 0.1 <= options.timeout < math.inf:
        raise UserError(f"--timeout: expected at least 0.1 seconds, got {options.timeout:g}")
    configure(PoolSettings(timeout=options.timeout, workers=options.workers))
    one = options.gold is not None and options.completion is not None
    if one == (options.file is not None) or (options.file and (options.gold or options.completion)):
        raise UserError("grade: give either FILE.jsonl, or --gold G and --completion C")
    if one:
        print("\n".join(explain(options.completion, options.gold, options.style)))
    else:
        grade_file(options.file, options.out, options.style)


def explain(completion: str, gold: str, style: str) -> list[str]:
    """Why `grade` gives its verdict, one line per step."""
    verdict = grade(completion, gold, style)
    end = f"verdict: {verdict.correct} ({verdict.how})"
    if verdict.answer is None:
        return [f"answer: none in style {style}", end]
    wanted = " or ".join(map(described, accepted(gold)))
    texts = {"answer": verdict.answer, "gold as read": wanted, "answer as read": described(verdict.answer)}
    lines = [f"{name}: {text[:200]}{'...' if len(text) > 200 else ''}" for name, text in texts.items()]
    if verdict.how == "exact":
        return [*lines, "exact: the same text", end]
    reason = REASONS.get(verdict.how, "equal" if verdict.correct else "not equal")
    return [*lines, "exact: different texts", f"{verdict.how}: {reason}", end]


def described(text: str) -> str:
    """What the exact tiers read an answer as."""
    text = readable(text)
    try:
        value = read(text)
    except TooBig:
        return "too big to evaluate"
    except Meaningless:
        return f"{text!r}, a statement that is false or says nothing"
    return f"{text!r}, not in the exact tiers' language" if value is None else f"{type(value).__name__} {value}"


def grade_file(path: Path, out: Path | None, style: str) -> None:
    """Grade in chunks, so that a file of any length fits in memory; print a summary. OUT appears once all is graded."""
    if out and out.exists() and path.exists() and out.samefile(path):
        raise UserError(f"--out: {out} is the file to be graded: name another")
    if out and out.exists() and not out.is_file():
        raise UserError(f"--out: {out} is not a file: name another")
    verdicts: Counter[bool | None] = Counter()
    hows: Counter[str] = Counter()
    out = out and out.resolve()  # a link stays one
    new = out.with_name(f"{out.name}.new") if out else None
    with ExitStack() as stack:
        with one_line("grade: cannot be opened"):
            source = stack.enter_context(path.open(encoding="utf-8-sig"))
            target = stack.enter_context(new.open("w", encoding="utf-8", errors="backslashreplace")) if new else None
        stack.enter_context(one_line(f"{path}: not UTF-8 text", kinds=(UnicodeDecodeError,)))
        rows = (labelled(line, f"{path}, line {number}") for number, line in enumerate(source, 1) if line.strip())
        while chunk := list(islice(rows, CHUNK)):
            golds = [row["gold"] if isinstance(row["gold"], str) else json.dumps(row["gold"]) for row in chunk]
            grades = grade_batch([row["completion"] for row in chunk], golds, style)
            verdicts.update(grade.correct for grade in grades)
            hows.update(grade.how for grade in grades)
            if target:
                graded = (row | asdict(grade) for row, grade in zip(chunk, grades, strict=True))
                target.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in graded)
    if new and out:
        new.replace(out)
    counted = ", ".join(f"{how} {count:,}" for how, count in hows.most_common())
    right, wrong, unscored = verdicts[True], verdicts[False], verdicts[None]
    print(f"{verdicts.total():,} graded: {right:,} right, {wrong:,} wrong, {unscored:,} unscored ({counted})")


def labelled(line: str, where: str) -> dict:
    """One row of the file."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({getattr(error, 'msg', error)})") from None
    golds = row.get("gold") if isinstance(row, dict) else []
    golds = golds if isinstance(golds, list) else [golds]
    if not golds or not all(isinstance(text, str) for text in (*golds, row.get("completion"))):
        raise UserError(f'{where}: expected {{"gold": string, "completion": string}}, or a list of strings as gold')
    return row
