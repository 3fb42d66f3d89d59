"""Accuracy figures, and the completions behind them."""

import pytest

from grpo_math.data import Problem
from grpo_math.errors import UserError
from grpo_math.evaluate import generate_greedy, grade_all, summarise, wilson_interval
from grpo_math.prompts import PromptTemplate


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.278), (5, 10, 0.237, 0.763), (10, 10, 0.722, 1.0), (1121, 1319, 0.829, 0.868)],
)  # the first three are in Newcombe 1998, Statistics in Medicine 17:857-872, by the same formula
def test_wilsons_interval(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=6e-4)


@pytest.fixture(scope="module")
def policy(policy_folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(policy_folder)


PROMPTS = ["Ava has 3 apples", "Ava", "Ava has 3 apples and gets 2 more. How many?", "How many?"]


def test_batches_change_nothing(policy, tokenizer):
    template = PromptTemplate(chat=False)
    one = generate_greedy(policy, tokenizer, PROMPTS, template, 6, batch_size=1)
    assert one == generate_greedy(policy, tokenizer, PROMPTS, template, 6, batch_size=4)
    assert all(length == 6 and truncated for _, length, truncated in one)


def test_the_models_mode_and_the_random_state_stay(policy, tokenizer):
    import torch

    policy.train()
    state = torch.get_rng_state()
    generate_greedy(policy, tokenizer, PROMPTS, PromptTemplate(chat=False), 2, 4)
    assert policy.training
    assert torch.equal(state, torch.get_rng_state())


def test_sampling_defaults_of_the_checkpoint_do_not_leak_into_greedy(policy, tokenizer):
    template = PromptTemplate(chat=False)
    plain = generate_greedy(policy, tokenizer, PROMPTS, template, 6, 4)
    policy.generation_config.repetition_penalty = 5.0
    policy.generation_config.temperature = 3.0
    try:
        assert generate_greedy(policy, tokenizer, PROMPTS, template, 6, 4) == plain
    finally:
        policy.generation_config.repetition_penalty = policy.generation_config.temperature = None


def test_an_end_token_ends_and_counts(policy, tokenizer):
    template = PromptTemplate(chat=False)
    inputs = tokenizer("Ava", return_tensors="pt")
    first = int(policy(**inputs).logits[0, -1].argmax())
    policy.generation_config.eos_token_id = [tokenizer.eos_token_id, first]
    try:
        assert generate_greedy(policy, tokenizer, ["Ava"], template, 5, 1) == [("", 1, False)]
    finally:
        policy.generation_config.eos_token_id = tokenizer.eos_token_id


def test_a_summary_counts_an_unreadable_gold_as_wrong(policy, tokenizer):
    rows = grade_all(policy, tokenizer, [Problem("Ava", "3"), Problem("Ava has", "")], PromptTemplate(chat=False), 3, 2)
    rows[0] |= {"correct": True, "well_formed": True}
    rows[1] |= {"correct": None}
    summary = summarise(rows, step=7, seconds=1.234)
    assert (summary.accuracy, summary.format_accuracy, summary.problems, summary.step) == (0.5, 0.5, 2, 7)
    assert summary.interval == pytest.approx((0.0945, 0.9055), abs=1e-3)


def test_a_mistake_in_the_held_out_problems_names_their_key_and_leaves_file_names_alone(write_recipe, tmp_path):
    from grpo_math.evaluate import load_eval_problems
    from grpo_math.recipe import load_recipe

    broken = tmp_path / "my.dataset.jsonl"
    for line, message in (
        ("{", f"{broken}, line 1: not JSON"),
        ('{"q": 1}', "name it, eval.dataset.fields: {question: COLUMN}"),
    ):
        broken.write_text(line + "\n")
        recipe = load_recipe(["--config", str(write_recipe(eval={"dataset": {"name": "json", "path": str(broken)}}))])
        with pytest.raises(UserError) as caught:
            load_eval_problems(recipe)
        assert message in str(caught.value)
