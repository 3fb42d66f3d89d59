"""The completions of runs, compressed for a page that stays small: whole steps, evenly spread, and cut texts marked."""

import base64
import gzip
import json
import math
from collections.abc import Iterator
from itertools import zip_longest

from grpo_math.report.data import Run, read_completions

LABELS = 300  # characters beside the completions of a step
HEAD, TAIL = 4_000, 2_000  # characters of a long text that are kept
KEPT = {"dataset", "problem", "sample", "question", "prompt", "gold", "solution", "completion", "length", "truncated"}
KEPT |= {"answer", "correct", "how", "reward", "advantage"}


def pack(runs: list[Run], budget: int) -> tuple[list[dict], list[dict]]:
    """The steps that fit into `budget` characters, and for each run what is left out of them.

    The first and the last training step and evaluation of every run come first and may have a quarter of a run's share
    each; then those halfway between, and so on, so that they are spread evenly wherever the room ends.
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
    for place, kind, step, file in interleaved(queues):
        rows = read_completions(file)
        if not rows:
            seen[place]["unreadable"] += 1
            continue
        one = {"run": place, "kind": kind, "step": step, "rows": len(rows)} | fitting(rows, min(most, budget) - LABELS)
        if not one["shown"]:
            break
        budget -= len(one["data"]) + LABELS
        seen[place]["shown"] += 1
        packed.append(one)
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


def interleaved(queues: list[list]) -> Iterator:
    return (one for turn in zip_longest(*queues) for one in turn if one is not None)


def fitting(rows: list[dict], room: int) -> dict:
    """As many of the first rows as fit, halving."""
    shown = len(rows)
    kept = [slim(row) for row in rows]
    while (len(data := compressed(kept[:shown])) > room) and shown:
        shown //= 2
    return {"shown": shown, "data": data}


def slim(row: dict) -> dict:
    kept = {key: value for key, value in row.items() if key in KEPT or key.startswith("rewards/")}
    return {key: shortened(value) for key, value in kept.items() if value is not None}


def shortened(value):
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else str(value)
    if isinstance(value, str) and len(value) > HEAD + TAIL:
        left = len(value) - HEAD - TAIL
        return f"{value[:HEAD]}\n[… {left:,} characters are left out of this report …]\n{value[-TAIL:]}"
    return value


def compressed(content) -> str:
    """As JSON, gzip and base64: nothing in it can end the script element that holds it."""
    return encoded(json.dumps(content, separators=(",", ":")).encode())


def encoded(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode("ascii")
