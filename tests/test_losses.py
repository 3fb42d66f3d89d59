"""Advantages, losses and gradients of real training steps, against the formulas written out here, token by token."""

import json
import math
import random
from itertools import chain
from pathlib import Path

import pytest
import torch
from trl import GRPOTrainer

from grpo_math.recipe.recipe import load_recipe
from grpo_math.runs.folder import read_table
from grpo_math.train import train
from grpo_math.trainer import groups
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
        compute_loss = Trainer.compute_loss

        def spy(self, model, batch, *arguments, **keywords):
            loss = compute_loss(self, model, batch, *arguments, **keywords)
            look(self, model, batch, loss)
            seen.append(loss)
            return loss

        monkeypatch.setattr(Trainer, "compute_loss", spy)
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


def distributions(model, batch, temperature: float = 1.0) -> list[torch.Tensor]:
    """log pi of every token of the vocabulary at each completion token that counts: (tokens, vocabulary) a completion."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    logits = (model(input_ids=ids, attention_mask=mask).logits / temperature).log_softmax(-1)
    start = batch["prompt_ids"].shape[1] - 1
    return [logits[i, start : start + n] for i, n in enumerate(batch["completion_mask"].sum(dim=1).tolist())]


def chosen(rows: list[torch.Tensor], batch) -> list[list[torch.Tensor]]:
    return [[row[t, batch["completion_ids"][i, t]] for t in range(len(row))] for i, row in enumerate(rows)]


def log_probabilities(model, batch, temperature: float = 1.0) -> list[list[torch.Tensor]]:
    """log pi(token) of every completion token that counts, a list a completion."""
    return chosen(distributions(model, batch, temperature), batch)


def per_token(batch, name: str) -> list[list[float]]:
    """What TRL keeps of the generation, without the padding."""
    counts = batch["completion_mask"].sum(dim=1).tolist()
    return [row[:n] for row, n in zip(batch[name].tolist(), counts, strict=True)]


def clipped(ratio: torch.Tensor, advantage: float, delta: float) -> torch.Tensor:
    """The clipped surrogate of PPO and GRPO; `delta` bounds a ratio that PPO leaves unbounded (INTELLECT-2)."""
    inside = min(max(ratio.item(), 1 - CLIP), 1 + CLIP)
    bounded = min(ratio.item(), delta)
    if inside * advantage < bounded * advantage:
        return torch.tensor(-inside * advantage)
    return -ratio * advantage if bounded == ratio.item() else torch.tensor(-delta * advantage)


def gate(ratio: torch.Tensor, advantage: float, positive: float, negative: float) -> torch.Tensor:
    """SAPO's soft gate, 4 / tau sigmoid(tau (r - 1)), with a temperature by the sign of the advantage."""
    tau = positive if advantage > 0 else negative
    return -4 / tau / (1 + torch.exp(-tau * (ratio - 1))) * advantage


def gamma(whole: float, k: float, lam: float) -> float:
    """VESPO's weight of a completion by its whole ratio, 1 at 1."""
    return whole**k * math.exp(lam * (1 - whole))


def correction(batch, mode: str, low: float | None, high: float | None) -> list[list[float]]:
    """w, from the log-probabilities that the engine sampled with; a token that it gave none for counts as equal."""
    least, most, weights = -math.inf if low is None else low, math.inf if high is None else high, []
    for ours, theirs in zip(
        per_token(batch, "old_per_token_logps"), per_token(batch, "sampling_per_token_logps"), strict=True
    ):
        differences = [0.0 if math.isnan(q) else p - q for p, q in zip(ours, theirs, strict=True)]
        if mode.startswith("sequence"):
            differences = [sum(differences)] * len(differences)
        found = [math.exp(difference) for difference in differences]
        if mode.endswith("truncate"):
            weights.append([min(max(w, least), most) for w in found])
        else:
            weights.append([w if least <= w <= most else 0.0 for w in found])
    return weights


def by_hand(keys: dict, model, batch, weights: list[list[float]] | None = None) -> torch.Tensor:
    """The loss that a recipe's keys stand for, of one process without accumulation. `weights` is the correction."""
    kind, level = keys.get("loss_type", "dapo"), keys.get("importance_sampling_level", "token")
    rows = distributions(model, batch, keys.get("temperature", 1.0))
    entropies = [-(row.exp() * row).sum(dim=-1) for row in rows]
    highest = sorted(entropy for one in entropies for entropy in one.tolist())
    least = highest[math.ceil((1 - keys.get("top_entropy_quantile", 1.0)) * (len(highest) - 1))]
    now, old = chosen(rows, batch), per_token(batch, "old_per_token_logps")
    sampled = old if weights is None else per_token(batch, "sampling_per_token_logps")
    losses = []
    for i, advantage in enumerate(batch["advantages"].tolist()):
        steps = [n - o for n, o in zip(now[i], old[i], strict=True)]
        weight = [1.0] * len(steps) if weights is None else weights[i]
        ratios = [torch.exp(step) for step in steps]
        if level == "sequence":
            ratios = [torch.exp(sum(steps) / len(steps))] * len(steps)
        if kind == "cispo":
            terms = [-min(ratio.item(), CLIP) * advantage * n for ratio, n in zip(ratios, now[i], strict=True)]
        elif kind == "sapo":
            taus = keys.get("sapo_temperature_pos", 1.0), keys.get("sapo_temperature_neg", 1.05)
            terms = [gate(ratio, advantage, *taus) for ratio in ratios]
        elif kind == "vespo":
            whole = math.exp(sum(step.item() for step in steps)) * math.prod(max(w, 1e-8) for w in weight)
            k, lam = (keys.get("vespo_k_pos", 2.0), keys.get("vespo_lambda_pos", 3.0))
            if advantage < 0:
                k, lam = keys.get("vespo_k_neg", 3.0), keys.get("vespo_lambda_neg", 2.0)
            terms = [-gamma(max(whole, 1e-8), k, lam) * advantage * n for n in now[i]]
            weight = [1.0] * len(steps)  # it is in the whole ratio
        else:
            terms = [clipped(ratio, advantage, keys.get("delta", math.inf)) for ratio in ratios]
        away = [0.0 if math.isnan(q) else q - n.item() for q, n in zip(sampled[i], now[i], strict=True)]
        if advantage < 0 and sum(away) / len(away) > keys.get("off_policy_mask_threshold", math.inf):
            weight = [0.0] * len(steps)
        weight = [w * (entropy >= least) for w, entropy in zip(weight, entropies[i].tolist(), strict=True)]
        terms = [w * term for w, term in zip(weight, terms, strict=True)]
        if beta := keys.get("beta"):
            gaps = [r - n for r, n in zip(per_token(batch, "ref_per_token_logps")[i], now[i], strict=True)]
            factors = ratios if keys.get("use_bias_correction_kl", True) else [1.0] * len(gaps)
            extra = [beta * factor * (torch.exp(gap) - gap - 1) for factor, gap in zip(factors, gaps, strict=True)]
            terms = [term + one for term, one in zip(terms, extra, strict=True)]
        losses.append(sum(terms) / len(terms) if kind in ("grpo", "sapo") else sum(terms))
    if kind in ("grpo", "sapo", "luspo"):
        loss = sum(losses) / len(losses)
    elif kind == "dr_grpo":
        loss = sum(losses) / (len(losses) * LONGEST)
    else:  # dapo, bnpo, cispo, vespo
        loss = sum(losses) / sum(map(len, rows))
    acting = [entropy for one in entropies for entropy in one if entropy.item() >= least]
    return loss - keys.get("entropy_coef", 0.0) * sum(acting) / len(acting)


SEQUENCE = {"importance_sampling_level": "sequence"}
KINDS = ["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "vespo"]
OFF_POLICY = [{"loss_type": kind} for kind in KINDS] + [
    {"loss_type": "grpo"} | SEQUENCE,  # GSPO
    {"loss_type": "luspo"} | SEQUENCE,
    {"loss_type": "sapo", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 0.5},
    {"loss_type": "vespo", "vespo_k_pos": 1.0, "vespo_lambda_pos": 0.5, "vespo_k_neg": 0.5, "vespo_lambda_neg": 1.0},
    {"delta": 1.25},
    {"loss_type": "grpo", "off_policy_mask_threshold": 0.04},
    {"top_entropy_quantile": 0.37},
    {"entropy_coef": 0.1},
    {"entropy_coef": 0.1, "top_entropy_quantile": 0.37},
    {"beta": 0.1},
    {"beta": 0.1, "use_bias_correction_kl": False},
    {"temperature": 0.7, "entropy_coef": 0.1},
]


@pytest.mark.parametrize("keys", OFF_POLICY, ids=lambda keys: "-".join(map(str, keys.values())))
def test_the_loss_and_its_gradient_off_policy(steps, keys):
    """Two optimizer steps on one batch: at the second the ratio is not 1, some of it is clipped, and each key counts."""
    ratios = []
    plain = {name: value for name, value in keys.items() if name in ("loss_type", "importance_sampling_level", "beta")}

    def look(trainer, model, batch, loss):
        now = log_probabilities(model, batch, keys.get("temperature", 1.0))
        assert len(set(map(len, now))) > 2
        old = per_token(batch, "old_per_token_logps")
        ratios.append([math.exp(n.item() - o) for n, o in zip(chain(*now), chain(*old), strict=True)])
        expected = by_hand(keys, model, batch)
        assert loss.item() == pytest.approx(expected.item(), abs=2e-6, rel=2e-6)
        compare_gradients(model, loss, expected)
        if len(ratios) == 2 and keys != plain:
            assert abs(loss.item() - by_hand(plain, model, batch).item()) > 1e-4

    off = {"num_iterations": 2, "learning_rate": 0.05, "lr_scheduler_type": "constant"}
    assert steps(look, epsilon=CLIP, epsilon_high=CLIP, **off | keys) == 2
    assert all(abs(ratio - 1) < 1e-5 for ratio in ratios[0])
    assert any(abs(ratio - 1) > CLIP for ratio in ratios[1])


@pytest.fixture
def like_vllm(monkeypatch):
    """Completions come with log-probabilities as vLLM's do, up to 1.5 away from a uniform policy's, and one is missing;
    TRL corrects them as it does vLLM's."""
    generate = Trainer._generate_single_turn

    def sampled(self, *arguments, **keywords):
        self.use_vllm = False
        completion_ids, _ = generate(self, *arguments, **keywords)
        self.use_vllm = True
        noise, even = random.Random(0), -math.log(len(self.tokenizer))
        logprobs = [[even + noise.uniform(-1.5, 1.5) for _ in ids] for ids in completion_ids]
        logprobs[0][0] = None
        return completion_ids, logprobs

    monkeypatch.setattr(Trainer, "_generate_single_turn", sampled)


MODE, LEAST, MOST = (f"vllm_importance_sampling_{name}" for name in ("mode", "clip_min", "clip_max"))
CORRECTED = [
    {MODE: "token_truncate"},
    {MODE: "token_mask"},
    {MODE: "sequence_truncate"},
    {MODE: "sequence_mask"},
    {MODE: "token_truncate", LEAST: 0.5},
    {MODE: "sequence_mask", LEAST: 0.5},
    {MODE: "sequence_mask", MOST: 20.0},
    {MODE: "token_truncate", "loss_type": "vespo"},
    {MODE: "token_mask", "loss_type": "vespo"},
    {"loss_type": "grpo"} | SEQUENCE,
    {"loss_type": "cispo"},
    {"beta": 0.1},
    {"off_policy_mask_threshold": 0.1},
]


@pytest.mark.parametrize("keys", CORRECTED, ids=lambda keys: "-".join(map(str, keys.values())))
def test_the_correction_of_what_vllm_sampled(steps, like_vllm, keys):
    """w weighs every token's loss, and not its KL term; in VESPO it is a part of the completion's ratio."""
    mode, seen = keys.get(MODE, "sequence_mask"), []

    def look(trainer, model, batch, loss):
        weights = correction(batch, mode, keys.get(LEAST), keys.get(MOST, 3.0))
        kept = batch["importance_sampling_ratio"].expand_as(batch["completion_mask"]).tolist()
        for ours, theirs in zip(weights, kept, strict=True):
            assert theirs[: len(ours)] == pytest.approx(ours, rel=1e-4)
        seen.extend(chain(*correction(batch, mode, None, None)))
        expected = by_hand(keys, model, batch, weights)
        assert loss.item() == pytest.approx(expected.item(), abs=2e-6, rel=2e-5)
        compare_gradients(model, loss, expected)

    off = {"num_iterations": 2, "learning_rate": 0.05, "epsilon": CLIP, "epsilon_high": CLIP}
    assert steps(look, **off | keys) == 2
    assert min(seen) < 0.5
    assert max(seen) > 3


@pytest.mark.parametrize("keys", CORRECTED, ids=lambda keys: "-".join(map(str, keys.values())))
def test_the_correction_on_policy_takes_no_pass_of_its_own(steps, like_vllm, tmp_path, keys):
    """Its weights, loss and metrics are those that TRL computes with a pass before the loss, also over several passes."""
    mode = keys.get(MODE, "sequence_mask")

    def look(trainer, model, batch, loss):
        if len(batch["completion_ids"]) < 8:
            return
        assert "old_per_token_logps" not in batch
        now = [torch.stack(row).detach() for row in log_probabilities(model, batch)]
        batch = batch | {"old_per_token_logps": torch.nn.utils.rnn.pad_sequence(now, batch_first=True)}
        weights = correction(batch, mode, keys.get(LEAST), keys.get(MOST, 3.0))
        kept = batch["importance_sampling_ratio"].expand_as(batch["completion_mask"]).tolist()
        for ours, theirs in zip(weights, kept, strict=True):
            assert theirs[: len(ours)] == pytest.approx(ours, rel=1e-4)
        expected = by_hand(keys, model, batch, weights)
        assert loss.item() == pytest.approx(expected.item(), abs=2e-6, rel=2e-5)
        compare_gradients(model, loss, expected)

    assert steps(look, max_steps=1, **keys) == 1
    several = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 1}
    logs = {}
    for name, iterations in (("ours", 1), ("TRL's", 2)):
        steps(look, **several | {"output_dir": str(tmp_path / name), "num_iterations": iterations} | keys)
        logs[name] = first_log(tmp_path / name)
    assert len(logs["ours"]) == 7 + ("beta" in keys)
    assert logs["ours"] == pytest.approx(logs["TRL's"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kind", ["dapo", "grpo", "dr_grpo"])
def test_a_pass_is_as_long_as_its_longest_completion(steps, tmp_path, monkeypatch, kind):
    """TRL pads it to the longest of the rollout, to the same loss and gradient."""
    several = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 1, "beta": 0.1}
    logs, widths = {}, {"ours": [], "TRL's": []}

    def look(trainer, model, batch, loss):
        widths[Path(trainer.args.output_dir).name].append(batch["completion_ids"].shape[1])

    for name in widths:
        steps(look, **several, output_dir=str(tmp_path / name), loss_type=kind)
        logs[name] = first_log(tmp_path / name)
        monkeypatch.setattr(groups, "trim", lambda batch, multiple: None)
    assert len(set(widths["ours"])) > 1
    assert len(set(widths["TRL's"])) == 1
    assert max(widths["ours"]) == max(widths["TRL's"])
    assert logs["ours"] == pytest.approx(logs["TRL's"], rel=1e-4, abs=1e-6)


def first_log(folder: Path) -> dict[str, float]:
    """What the first step logs of its loss."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    known = next(row for row in rows if "loss" in row)
    return {name: value for name, value in known.items() if name in ("loss", "grad_norm", "kl") or "sampling/" in name}


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


def test_without_a_scale_the_gradient_is_that_of_rloo_but_for_a_factor(steps):
    """1/B sum_i (R_i - mean of the others) sum_t log pi(a_t) (arXiv:2402.14740) is G / (G - 1) T times dr_grpo's."""
    groups = REWARDS[:GENERATIONS], REWARDS[GENERATIONS:]
    left_out = [one - (sum(group) - one) / (GENERATIONS - 1) for group in groups for one in group]

    def look(trainer, model, batch, loss):
        factor = GENERATIONS / (GENERATIONS - 1)
        advantages = [factor * advantage for advantage in batch["advantages"].tolist()]
        assert sorted(advantages) == pytest.approx(sorted(left_out), abs=1e-6)
        now = log_probabilities(model, batch)
        rloo = -sum(a * sum(row) for a, row in zip(advantages, now, strict=True)) / len(now)
        compare_gradients(model, factor * LONGEST * loss, rloo)

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
