"""Dynamic sampling (DAPO, arXiv:2503.14476, section 3.2): the parts of it that need no trainer."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


def unseen(dataset: Any, seen: set[str], key: Sequence[int]) -> Iterator[dict]:
    """The rows of the dataset whose prompt, as text, is not in `seen`, each prompt once, in a random order that follows
    from the key alone: all processes and a resumed run draw the same."""
    for place in np.random.default_rng(key).permutation(len(dataset)):
        row = dataset[int(place)]
        if str(row["prompt"]) not in seen:
            seen.add(str(row["prompt"]))
            yield row


def replaced(rows: list, level: list[bool], fresh: list) -> list:
    """The rows, those that are level replaced by the fresh ones, in order, as far as these go. Groups are whole and
    adjacent in both, so that a group replaces a group."""
    places = [place for place, one in enumerate(level) if one]
    found = dict(zip(places, fresh, strict=False))
    return [found.get(place, row) for place, row in enumerate(rows)]
