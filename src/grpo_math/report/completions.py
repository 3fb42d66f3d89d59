"""The completions of runs, compressed for a page of limited size: whole steps, evenly spread, long texts cut."""

import base64
import gzip
import json
import math
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from grpo_math.report.data import Run, read_completions

LABELS = 300  # characters of HTML per file of completions
HEAD, TAIL = 4_000, 2_000  # characters of a long text that are kept
KEPT = {"dataset", "problem", "sample", "question", "prompt", "gold", "solution", "completion", "length", "truncated"}
KEPT |= {"answer", "correct", "how", "reward", "advantage"}


def pack(runs: list[Run], budget: int) -> tuple[list[dict], list[dict]]:
    """The files of completions that fit into `budget` characters, and for each run how many there are and are shown.

    The first and the last training step and evaluation of every run come first and take up to a quarter of a run's
    share each; then those halfway between, and so on, so that they are evenly spread wherever the budget ends.
    """
    packed, seen = [], [{"there": 0, "shown": 0, "unreadable": 0} for _ in runs]
    queues = []
    for place, run in enumerate(runs):
        for kind in ("eval", "step"):
            files = list(run.files(kind).items())
            seen[place]["there"] += len(files)
            queues.append([(place, kind, *files[index]) for index in spread(len(files))])
    budget -= LABELS * len(runs)
    most = budget // (4 * len(runs))
    for place, kind, step, file in (one for turn in zip_longest(*queues) for one in turn if one):
        rows = [slim(row) for row in read_completions(file)]
        if not rows:
            seen[place]["unreadable"] += 1
            continue
        shown, room = len(rows), min(most, budget) - LABELS
        while shown and len(data := compressed(rows[:shown])) > room:
            shown //= 2
        if not shown:
            break
        budget -= len(data) + LABELS
        seen[place]["shown"] += 1
        packed.append({"run": place, "kind": kind, "step": step, "rows": len(rows), "shown": shown, "data": data})
    return sorted(packed, key=lambda one: (one["run"], one["kind"] == "eval", one["step"])), seen


def spread(count: int) -> Iterator[int]:
    """The first, the last, the one in the middle, those in the middle of the halves, and so on."""
    yield from dict.fromkeys([0, count - 1][:count])
    gaps = [(0, count - 1)]
    for low, high in gaps:
        if high - low > 1:
            middle = (low + high) // 2
            yield middle
            gaps += [(low, middle), (middle, high)]


def slim(row: dict) -> dict:
    kept = {key: value for key, value in row.items() if key in KEPT or key.startswith("rewards/")}
    return {key: shortened(value) for key, value in kept.items() if value is not None}


def shortened(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else str(value)
    if isinstance(value, str) and len(value) > HEAD + TAIL:
        left = len(value) - HEAD - TAIL
        return f"{value[:HEAD]}\n[… {left:,} characters are left out of this report …]\n{value[-TAIL:]}"
    return value


def compressed(content: Any) -> str:
    """As JSON, gzip and base64: nothing in it can end the script element that holds it."""
    return encoded(json.dumps(content, separators=(",", ":")).encode())


def encoded(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode("ascii")
