"""Advantages, losses and gradients of real training steps, against the formulas written out here, token by token."""

import math

import pytest
import torch
from trl import GRPOTrainer

from grpo_math.recipe.recipe import load_recipe
from grpo_math.runs.folder import read_table
from grpo_math.train import train
from grpo_math.trainer.trainer import Trainer

GENERATIONS, LONGEST, CLIP = 4, 16, 0.2
STOPS = {"stop": ["a", "e", "o", "t", "3"]}  # completions of many lengths
REWARDS = [0.0, 1.0, 3.0, 0.0, 2.0, 2.0, 2.0, 2.0]  # two groups: one mixed, one all the same
FIRST = [0.0 - 1.0, 1.0 - 1.0, 3.0 - 1.0, 0.0 - 1.0]  # less the mean of the first group
DEVIATION = math.sqrt((1 + 0 + 4 + 1) / 3)
OF_ALL = math.sqrt(sum((reward - 1.5) ** 2 for reward in REWARDS) / 7)


@pytest.fixture
def steps(write_recipe, tmp_path, monkeypatch):
    """Train with some keys changed; returns (trainer, model, batch, loss) at every call of the loss, checked by `look`."""
    (tmp_path / "mine.py").write_text(f"def f(completions, **_):\n    return {REWARDS}[: len(completions)]\n")
    template = {"user": "Q: {question} A:", "chat": False, **STOPS}

    def run(look, **changes) -> int:
        seen = []
        compute_loss = Trainer._compute_loss

        def spy(self, model, batch):
            loss = compute_loss(self, model, batch)
            look(self, model, batch, loss)
            seen.append(loss)
            return loss

        monkeypatch.setattr(Trainer, "_compute_loss", spy)
        keys = {
            "prompt_template": template,
            "rewards": {"mine": {"path": f"{tmp_path}/mine.py:f"}},
            "max_steps": 2,
            "preflight": False,
        }
        keys |= {"per_device_train_batch_size": 8, "num_generations": GENERATIONS, "max_completion_length": LONGEST}
        train(load_recipe(["--config", str(write_recipe(**keys | changes))]))
        return len(seen)

    return run


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [a / (DEVIATION + 1e-4) for a in FIRST] + [0.0] * 4),
        ({"scale_rewards": "none"}, FIRST + [0.0] * 4),
        ({"scale_rewards": "batch"}, [a / (OF_ALL + 1e-4) for a in FIRST] + [0.0] * 4),
        ({"baseline": "none"}, REWARDS),
    ],
)
def test_advantages(steps, tmp_path, changes, expected):
    def look(trainer, model, batch, loss):
        assert sorted(batch["advantages"].tolist()) == pytest.approx(sorted(expected), abs=1e-6)  # TRL shuffles them

    assert steps(look, **changes, completions={"every": 1}) == 2
    for step in (1, 2):
        kept = read_table(tmp_path / "run" / "completions" / f"completions_{step:05d}.parquet")
        assert [row["advantage"] for row in kept] == pytest.approx(expected, abs=1e-6)


def test_groups_that_earn_the_same_in_sum_teach_nothing(steps, tmp_path):
    (tmp_path / "two.py").write_text(
        "def one(completions, **_):\n    return [1.0, 0.0] * 4 + [None] + [1.0] * 7 + [0.0, 1.0] * 4\n"
        "def other(completions, **_):\n    return [0.0, 1.0] * 4 + [None] + [0.0] * 7 + [0.0, 1.0] * 4\n"
    )

    def look(trainer, model, batch, loss):
        assert sum(advantage == 0 for advantage in batch["advantages"].tolist()) == 16
        assert trainer._metrics["train"]["frac_reward_zero_std"] == [pytest.approx(2 / 3)]

    rewards = {name: {"path": f"{tmp_path}/two.py:{name}", "weight": 0.2} for name in ("one", "other")}
    steps(look, rewards=rewards, per_device_train_batch_size=24, num_generations=8)


@pytest.mark.parametrize(
    "changes", [{}, {"scale_rewards": "batch"}, {"multi_objective_aggregation": "normalize_then_sum"}]
)
def test_groups_that_earn_the_same_teach_nothing_however_their_mean_is_rounded(steps, tmp_path, changes):
    (tmp_path / "even.py").write_text("def f(completions, **_):\n    return [0.2] * 8 + [0.1, 0.7] * 4\n")

    def look(trainer, model, batch, loss):
        assert sum(advantage == 0 for advantage in batch["advantages"].tolist()) == 8
        assert all(abs(advantage) > 0.1 for advantage in batch["advantages"].tolist() if advantage)
        assert trainer._metrics["train"]["frac_reward_zero_std"] == [0.5]

    rewards = {
        "even": {"path": f"{tmp_path}/even.py:f"},
        "format": {"weight": 0.0},
    }  # a float32 mean of eight 0.2 is not 0.2, one of four is
    steps(look, rewards=rewards, per_device_train_batch_size=16, num_generations=8, **changes)


def log_probabilities(model, batch) -> list[list[torch.Tensor]]:
    """log pi(token) of every completion token that counts, a list a completion."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    logits = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    start = batch["prompt_ids"].shape[1]
    return [
        [logits[i, start + t - 1, batch["completion_ids"][i, t]] for t in range(int(batch["completion_mask"][i].sum()))]
        for i in range(len(ids))
    ]


def token_loss(ratio: torch.Tensor, advantage: float) -> torch.Tensor:
    """The clipped surrogate of PPO and GRPO."""
    clipped = min(max(ratio.item(), 1 - CLIP), 1 + CLIP)
    if clipped * advantage < ratio.item() * advantage:
        return torch.tensor(-clipped * advantage)
    return -ratio * advantage


def by_hand(
    loss_type: str, now: list[list[torch.Tensor]], old: list[list[float]], advantages: list[float]
) -> torch.Tensor:
    losses = []
    for new_, old_, advantage in zip(now, old, advantages, strict=True):
        ratios = [torch.exp(n - o) for n, o in zip(new_, old_, strict=True)]
        if loss_type == "gspo":
            whole = torch.exp(sum(n - o for n, o in zip(new_, old_, strict=True)) / len(new_))
            ratios = [whole] * len(new_)
        if loss_type == "cispo":
            losses.append([-min(ratio.item(), CLIP) * advantage * n for ratio, n in zip(ratios, new_, strict=True)])
        else:
            losses.append([token_loss(ratio, advantage) for ratio in ratios])
    tokens, total = sum(map(len, losses)), sum(sum(row) for row in losses)
    if loss_type in ("grpo", "gspo"):
        return sum(sum(row) / len(row) for row in losses) / len(losses)
    if loss_type == "dr_grpo":
        return total / (len(losses) * LONGEST)
    return total / tokens  # dapo, bnpo, cispo: one process, no accumulation


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "gspo"])
def test_the_loss_and_its_gradient_off_policy(steps, loss_type):
    """Two optimizer steps on one batch: at the second the ratio is not 1, and some of it is clipped."""
    ratios = []

    def look(trainer, model, batch, loss):
        now = log_probabilities(model, batch)
        lengths = [len(row) for row in now]
        assert len(set(lengths)) > 2
        old = [row[:n] for row, n in zip(batch["old_per_token_logps"].tolist(), lengths, strict=True)]
        ratios.extend(
            math.exp(n.item() - o) for new_, old_ in zip(now, old, strict=True) for n, o in zip(new_, old_, strict=True)
        )
        expected = by_hand(loss_type, now, old, batch["advantages"].tolist())
        assert loss.item() == pytest.approx(expected.item(), abs=2e-6)
        compare_gradients(model, loss, expected)

    kind = (
        {"loss_type": "grpo", "importance_sampling_level": "sequence"}
        if loss_type == "gspo"
        else {"loss_type": loss_type}
    )
    assert (
        steps(
            look,
            num_iterations=2,
            learning_rate=0.05,
            epsilon=CLIP,
            epsilon_high=CLIP,
            lr_scheduler_type="constant",
            **kind,
        )
        == 2
    )
    half = len(ratios) // 2
    assert all(abs(ratio - 1) < 1e-5 for ratio in ratios[:half])
    assert any(abs(ratio - 1) > CLIP for ratio in ratios[half:])


def compare_gradients(model, loss, expected) -> None:
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, weights, retain_graph=True)
    for one, other in zip(found, torch.autograd.grad(expected, weights), strict=True):
        assert torch.allclose(one, other, atol=2e-6)


def test_without_a_baseline_the_gradient_is_that_of_plain_reinforce(steps):
    """-1/(B T) sum_i R_i sum_t log pi(a_t), with B completions and T the longest (Williams 1992)."""

    def look(trainer, model, batch, loss):
        found = batch["advantages"].tolist()
        assert sorted(found) == sorted(REWARDS)
        now = log_probabilities(model, batch)
        reinforce = -sum(reward * sum(row) for reward, row in zip(found, now, strict=True)) / (len(now) * LONGEST)
        compare_gradients(model, loss, reinforce)

    assert steps(look, baseline="none", loss_type="dr_grpo") == 2


def test_on_policy_grpo_is_reinforce_with_the_groups_mean_as_the_baseline(steps):
    def look(trainer, model, batch, loss):
        now = log_probabilities(model, batch)
        reinforce = -sum(a * sum(row) for a, row in zip(batch["advantages"].tolist(), now, strict=True)) / (
            len(now) * LONGEST
        )
        compare_gradients(model, loss, reinforce)
        assert (
            abs(
                loss.item()
                + sum(a * len(row) for a, row in zip(batch["advantages"].tolist(), now, strict=True))
                / (len(now) * LONGEST)
            )
            < 1e-6
        )

    assert steps(look, scale_rewards="none", loss_type="dr_grpo") == 2


def test_truncated_completions_can_be_left_out(steps):
    def look(trainer, model, batch, loss):
        assert batch["completion_mask"].sum() == 0  # a random policy never ends by itself
        assert loss.item() == 0.0

    template = {"user": "Q: {question} A:", "chat": False}
    assert steps(look, prompt_template=template, mask_truncated_completions=True) == 2


@pytest.mark.parametrize(
    ("changes", "rounded"), [({"bf16": True}, True), ({}, False), ({"bf16": True, "use_peft": True}, False)]
)
def test_all_weights_are_rounded_once_a_generation_and_frozen_ones_not_at_all(steps, monkeypatch, changes, rounded):
    plain, seen = GRPOTrainer._generate_single_turn, []

    def spy(*arguments):
        seen.append(torch.is_autocast_enabled("cpu"))
        return plain(*arguments)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", spy)
    steps(lambda *_: None, max_steps=1, **changes)
    assert seen == [rounded]
