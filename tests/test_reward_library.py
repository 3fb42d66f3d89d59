"""Every shipped reward on what models write: nothing, garbage, two answers, junk behind the answer, ten times the length."""

import math
import random

import pytest
from test_rewards import call, score

from grpo_math.data.prompts import TEMPLATES
from grpo_math.rewards.library import REWARDS, likeness
from grpo_math.rewards.reward import RewardSpec, build_rewards, settings

GOOD = "3*4=12\n12-8=4\nSo the answer is \\boxed{4}."
TEXTS = {
    "good": GOOD,
    "empty": "",
    "garbage": "}{ \\\\ ## %% }} !!",
    "two answers": GOOD + " Or \\boxed{5}.",
    "junk behind": GOOD + " And so on and so on and so on.",
    "ten times": "\n".join([GOOD] * 10),
    "unicode": "三乘四等於十二\uff0c所以答案是 \\boxed{\uff14}",
    "chinese": "答案很簡單",
    "greek": "θ = π/2, so \\boxed{4}",
}
EXPECTED = {  # rows as TEXTS; lengths are in characters here, max_completion_length is 512
    "correctness": [1, 0, 0, 0, 1, 1, 1, 0, 1],
    "format": [1, 0, 0, 1, 1, 1, 1, 0, 1],
    "r1_zero": [1, 0, 0, 0, 1, 1, 1, 0, 1],
    "brevity": [0.984, 1, 0.997, 0.972, 0.952, 0.079, 0.995, 1, 0.996],
    "cosine": [0.992, -1, -0.999, -0.986, 0.976, 0.54, 0.998, -1, 0.998],
    "overlong": [0, 0, 0, 0, 0, -0.273, 0, 0, 0],
    "repetition": [0, 0, 0, -0.113, -0.243, -0.899, 0, 0, 0],
    "steps": [0.667, 0, 0, 0.667, 0.667, 0.667, 0, 0, 0.333],
    "language": [1, 0, 0, 1, 1, 1, 0.294, 0, 1],
}


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", EXPECTED)
def test_what_each_reward_gives(name, chat):
    found = score(name, list(TEXTS.values()), chat=chat)
    assert [round(value, 3) for value in found] == [float(value) for value in EXPECTED[name]]


def test_every_reward_is_in_the_table():
    assert EXPECTED.keys() | {"heuristic", "random"} == REWARDS.keys()


def test_the_random_reward_follows_the_seed_and_nothing_else():
    def drawn(texts, **params):
        random.seed(3)
        (reward,) = build_rewards([RewardSpec(name="random", params=params)], TEMPLATES["boxed"])
        return call(reward, texts, ["4"] * len(texts))

    assert drawn(["\\boxed{4}"] * 1000) == drawn([""] * 1000)
    assert 440 < sum(drawn([""] * 1000)) < 560
    assert 60 < sum(drawn([""] * 1000, chance=0.1)) < 150
    assert sum(drawn([""] * 100, chance=1.0)) == 100


REFERENCE = "A prime number has exactly two divisors.\n1. Check that $n > 1$.\n2. Test divisors up to $\\sqrt{n}$."


@pytest.mark.parametrize(
    ("completion", "parts"),
    [
        (REFERENCE, (1, 1, 1, 2 / 3)),
        ("", (0, 0, 0, 0)),
        ("  \n", (0, 0, 0, 0)),
        ("A prime number.", (3 / 19, 0, 2 / 7, 0)),
        (" ".join([REFERENCE] * 10), (1 / 10, 1, 1, 2 / 3)),
        ("Therefore:\n- $n$ and $m$", (5 / 19, 1, 0, 1)),
        ("$n$ $n$ $n$", (3 / 19, 1 / 2, 0, 0)),
        ("well-known T-shirt and/or", (3 / 19, 0, 0, 0)),
        ("質數只有兩個因數", (1 / 19, 0, 0, 0)),
    ],
)
def test_the_four_parts_of_the_heuristic(completion, parts):
    assert likeness(completion, REFERENCE) == pytest.approx(parts)


def test_the_heuristic_weighs_and_logs_its_parts_and_prefers_the_worked_solution():
    logged = {}
    found = score("heuristic", [REFERENCE], worked=[REFERENCE], log_metric=logged.__setitem__)
    assert found == pytest.approx([0.2 + 0.3 + 0.3 + 0.2 * 2 / 3])
    assert logged == pytest.approx(
        {"heuristic/length": 1, "heuristic/formulas": 1, "heuristic/concepts": 1, "heuristic/structure": 2 / 3}
    )
    assert score("heuristic", ["4"], worked=[None]) == pytest.approx([0.2 + 0.3 + 0.3])  # nothing to say but 4


@pytest.mark.parametrize(
    ("text", "formulas"),
    [
        ("a+b", 1), ("x = 5", 1), ("3*4=12, 12-8=4", 2), (r"\frac{1}{2}", 1), (r"\(x\) and \[y\]", 2), ("f(x)", 0),
        ("no formula - here", 0), ("10/5", 1), ("$x$ and $x$", 1), ("(a+b)*c", 1), ("\\" * 50, 0), ("$" * 50, 0),
        ("He pays $5 for 3 apples, so 3*5=15 and $6 for pears.", 1), ("3 at $4, 3*4=$12", 1), ("$1 and $2 and $3", 0),
    ],
)  # fmt: skip
def test_what_counts_as_a_formula(text, formulas):
    from grpo_math.rewards.library import features

    assert features(text)[1] == formulas


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("x\u2081\u00b2 + y\u2082 = \u00bd\u00b7z\u2083", 1.0), ("Vi\u1ec7t Nam", 1.0), ("\uff21nswer", 1.0), ("\u1f00\u03c1\u03c7\u03ae", 1.0),
        ("\u0434\u0430", 0.0), ("da \u0434\u0430", 0.5), ("12 + 3", 0.0), ("\u211d \u2208 \U0001d538", 1.0), ("2\u207f = a\u2099 + x\u1d62", 1.0), ("\u8cea a", 0.5),
    ],
)  # fmt: skip
def test_what_counts_as_a_foreign_letter(text, share):
    assert score("language", [text]) == [share]


def test_r1_zero_logs_format_and_accuracy_apart():
    logged = {}
    texts = ["t</think> <answer>4</answer>", "t</think> so <answer>4</answer>", "t</think> <answer>5</answer>", ""]
    found = score("r1_zero", texts, template=TEMPLATES["r1_zero"], log_metric=logged.__setitem__)
    assert found == [1.0, 0.0, 0.0, 0.0]
    assert (logged["accuracy"], logged["format_accuracy"]) == (0.5, 0.5)


def test_the_length_rewards_at_their_ends():
    from grpo_math.rewards.library import brevity, cosine, cosine_between, overlong

    ids = [[0] * n for n in (0, 256, 512, 600)]
    assert brevity(ids, 512) == pytest.approx([1, 0.5, 0, 0])
    assert overlong([[0] * n for n in (384, 448, 512, 600)], 512) == [0, -0.5, -1, -1]
    assert cosine_between(2.0, 1.0, 10, 10) == pytest.approx(1.0)
    assert cosine_between(1.0, 0.0, 1, 3) == pytest.approx((1 + math.cos(math.pi / 3)) / 2)
    assert settings(cosine)["wrong_short"] == -1.0


def test_the_cosine_is_that_of_trl():
    """TRL's own grader judges; the curve is the same."""
    from trl.rewards import get_cosine_scaled_reward

    texts = ["\\boxed{4}" + " so" * n for n in (0, 10, 100)] + ["\\boxed{5}" + " so" * n for n in (0, 10, 100)]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    ids = [[ord(character) for character in text] for text in texts]
    expected = get_cosine_scaled_reward(max_len=512)(chats, ["4"] * 6, ids)
    assert score("cosine", texts) == pytest.approx(expected)
