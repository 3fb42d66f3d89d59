"""Groups of completions by their rewards, and their replacement by groups of further prompts.

Rewards have the shape (completions, reward functions), of all processes; a group is `size` adjacent completions. NaN is
no reward, weights have the shape (reward functions,).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROUNDING = 1e-6  # of equal rewards, summed in float32


def weighted(rewards: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum for each completion; an unscorable one's is 0, as in TRL."""
    return (rewards * weights.to(rewards.device)).nansum(dim=1)


def level(rewards: Tensor, weights: Tensor, size: int, summed: bool) -> Tensor:
    """Whether each completion is in a group whose scorable completions all earn the same: in sum, or by every reward
    where TRL normalizes each.

    TRL subtracts a mean rounded to float32: eight rewards of 0.2 get advantages of 1.5e-4, which Adam turns into steps,
    and no such group counts as one of zero deviation.
    """
    scores = rewards[:, weights.to(rewards.device) != 0]
    if summed:
        scores = weighted(rewards, weights).masked_fill(rewards.isnan().all(dim=1), torch.nan).unsqueeze(1)
    groups = scores.unflatten(0, (-1, size))
    low = groups.masked_fill(groups.isnan(), torch.inf).amin(dim=1)
    high = groups.masked_fill(groups.isnan(), -torch.inf).amax(dim=1)
    return (high - low <= ROUNDING * torch.maximum(high.abs(), low.abs())).all(dim=1).repeat_interleave(size)


def variance_shares(rewards: Tensor, weights: Tensor, size: int) -> list[float]:
    """The share of each reward in the variance within the groups, cov(w_k r_k, R) / var(R) with R = sum of w_k r_k: all
    add up to 1. Empty where there is no variance."""
    scores = rewards * weights.to(rewards.device)
    scores = scores.nan_to_num().masked_fill(scores.isnan().all(dim=1, keepdim=True), torch.nan)
    scores = scores.unflatten(0, (-1, size))
    apart = (scores - scores.nanmean(dim=1, keepdim=True)).nan_to_num()
    total = apart.sum(dim=2, keepdim=True)
    variance = total.square().sum()
    return ((apart * total).sum(dim=(0, 1)) / variance).tolist() if variance > ROUNDING else []


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
    further = iter(fresh)
    return [next(further, row) if one else row for row, one in zip(rows, level, strict=True)]
