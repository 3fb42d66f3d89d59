"""Groups of completions by their rewards, and their replacement by groups of further prompts; TRL's
importance-sampling ratio.

Rewards have the shape (completions, reward functions), of all processes; a group is `size` adjacent completions. NaN is
no reward, weights have the shape (reward functions,).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from trl import GRPOConfig, GRPOTrainer

ROUNDING = 1e-6  # of equal rewards, summed in float32
LOGGED = [f"sampling_logp_difference/{value}" for value in ("mean", "max")]
LOGGED += [f"importance_sampling_ratio/{value}" for value in ("min", "mean", "max")]


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


def trim(batch: dict[str, Any], multiple: int | str | None) -> None:
    """Remove the columns behind the longest completion of the batch: TRL pads all batches of a rollout to its longest
    one, or to a `multiple` of tokens. Batches with images stay unchanged, and so does the padding before prompts,
    without which positions would be others than in TRL's passes."""
    if multiple or "num_images" in batch:
        return
    mask = batch["completion_mask"]
    longest = max(1, int(mask.sum(dim=1).max()))
    for name, value in batch.items():
        if value.shape == mask.shape and not name.startswith("prompt_"):
            batch[name] = value[:, :longest]


class Correction:
    """The importance-sampling ratio by which TRL weighs the loss of vLLM's completions: the probability of the trained
    policy over that of vLLM. TRL computes it with a forward pass of its own before the loss. Where a rollout ends with
    an optimizer step, the policy of the loss is the one that sampled: its log-probabilities are the same."""

    def __init__(self, trainer: "GRPOTrainer"):
        self.trainer, args = trainer, cast("GRPOConfig", trainer.args)
        self.mode = args.vllm_importance_sampling_mode
        least, most = args.vllm_importance_sampling_clip_min, args.vllm_importance_sampling_clip_max
        self.range = (-math.inf if least is None else least, math.inf if most is None else most)
        every = cast(int, args.steps_per_generation) * args.num_iterations  # passes per rollout
        self.needed = args.gradient_accumulation_steps % every != 0
        self.seen: list[tuple[Tensor, Tensor]] = []  # differences of log-probabilities, and ratios, of this step

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """TRL computes no ratio here, unless it needs its own pass."""
        wanted = self.trainer.vllm_importance_sampling_correction
        self.trainer.vllm_importance_sampling_correction = wanted and self.needed
        yield
        self.trainer.vllm_importance_sampling_correction = wanted

    @contextmanager
    def in_loss(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> Iterator[None]:
        """The forward pass of the model adds the ratio to the batch where TRL has not."""
        wanted = self.trainer.vllm_importance_sampling_correction and "sampling_per_token_logps" in batch
        if not wanted or "importance_sampling_ratio" in batch:
            yield
            return
        with model.register_forward_hook(lambda *passed: self.add(batch, passed[-1].log_probs.detach())):
            yield
        if self.trainer.accelerator.sync_gradients:
            self.log()

    def add(self, batch: dict[str, Tensor], logprobs: Tensor) -> None:
        """Add the ratio to the batch. `logprobs`, (completions, tokens), ends with those of the completions; a token
        without one of vLLM's, NaN, has the ratio 1."""
        mask = batch["completion_mask"] * batch.get("tool_mask", 1)
        away = logprobs[:, -mask.shape[1] :] - batch["sampling_per_token_logps"]
        logs, whole = (away * mask).nan_to_num(nan=0.0), self.mode.startswith("sequence")
        ratio = (logs.sum(dim=1, keepdim=True) if whole else logs).exp()
        kept = ratio.clamp(*self.range)
        ratio = kept if "truncate" in self.mode else ratio.where(ratio == kept, 0.0)
        batch["importance_sampling_ratio"] = ratio
        self.seen.append((away[mask.bool() & ~away.isnan()].abs(), (ratio if whole else ratio[mask.bool()]).flatten()))

    def log(self) -> None:
        """Log TRL's metrics, of all processes and the whole step."""
        parts = map(torch.cat, zip(*self.seen, strict=True))
        away, ratio = (part if part.numel() else part.new_zeros(1) for part in parts)
        self.seen.clear()
        accelerator = self.trainer.accelerator
        mine = [away.mean(), away.max(), ratio.min(), ratio.mean(), ratio.max()]
        everyone = accelerator.gather(torch.stack(mine).to(accelerator.device)).view(-1, len(mine)).T
        for name, values in zip(LOGGED, everyone, strict=True):
            value = getattr(values, name.partition("/")[2])().item()
            self.trainer._metrics["train"][f"sampling/{name}"].append(value)
