"""Completions by transformers; vLLM's are in test_vllm.py."""

import pytest

from grpo_math.generation.engines import Completion, Sampling, TransformersEngine, from_vllm

TEXTS = ["Ava has 3 apples", "Ava", "Ava has 3 apples and gets 2 more. How many?", "How many?"]


@pytest.fixture(scope="module")
def policy(policy_folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(policy_folder)


@pytest.fixture
def generate(policy, tokenizer):
    def generate(batch_size: int = 4, done=frozenset(), texts=TEXTS, **changes) -> dict:
        sampling = Sampling(**{"max_new_tokens": 6, "ends": frozenset({tokenizer.eos_token_id})} | changes)
        prompts = [tokenizer(text)["input_ids"] for text in texts]
        engine = TransformersEngine(policy, tokenizer, batch_size)
        batches = engine.generate(prompts, [7, 8, 9, 10][: len(prompts)], sampling, done)
        return {index: found for batch in batches for index, found in batch.items()}

    return generate


def test_batches_change_nothing(generate):
    one = generate(batch_size=1)
    assert one == generate(batch_size=4)
    assert all(done.length == 6 and done.truncated for (done,) in one.values())


def test_samples_differ_are_seeded_and_go_on_as_they_would_have(generate):
    sampled = {"samples": 4, "temperature": 2.0, "batch_size": 8}
    whole = generate(**sampled)
    assert {len(samples) for samples in whole.values()} == {4}
    assert any(len({one.text for one in samples}) > 1 for samples in whole.values())
    assert whole == generate(**sampled)
    rest = generate(**sampled, done={0, 2})
    assert rest == {index: whole[index] for index in (1, 3)}


def test_the_models_mode_and_the_random_state_stay(generate, policy):
    import torch

    policy.train()
    state = torch.get_rng_state()
    generate(samples=2, temperature=1.0)
    assert policy.training
    assert torch.equal(state, torch.get_rng_state())


def test_sampling_defaults_of_the_checkpoint_do_not_leak_in(generate, policy):
    plain = generate()
    policy.generation_config.repetition_penalty = 5.0
    policy.generation_config.temperature = 3.0
    try:
        assert generate() == plain
    finally:
        policy.generation_config.repetition_penalty = policy.generation_config.temperature = None


def test_an_end_token_ends_and_counts(generate, policy, tokenizer):
    inputs = tokenizer("Ava", return_tensors="pt")
    first = int(policy(**inputs).logits[0, -1].argmax())
    ends = frozenset({tokenizer.eos_token_id, first})
    assert generate(texts=["Ava"], ends=ends) == {0: [Completion("", 1, False)]}


def test_completions_end_with_the_models_context_but_too_long_a_prompt_is_answered_as_in_training(generate, policy):
    room = policy.config.max_position_embeddings
    (fits,) = generate(texts=["How" * (room - 10)], max_new_tokens=40).values()
    (beyond,) = generate(texts=["How" * (room + 10)], max_new_tokens=4).values()
    assert fits[0].length <= 40
    assert beyond[0].length == 4


def test_vllms_tokens_become_the_same_text(tokenizer):
    end, sampling = tokenizer.eos_token_id, Sampling(4, ends=frozenset({tokenizer.eos_token_id}))
    ids = tokenizer("Ava has")["input_ids"]
    assert from_vllm([*ids, end], "stop", sampling, tokenizer) == Completion("Ava has", len(ids) + 1, False)
    assert from_vllm(ids, "length", sampling, tokenizer) == Completion("Ava has", len(ids), True)
    stopped = Sampling(4, ends=sampling.ends, stop=("ha",))
    assert from_vllm(ids, "stop", stopped, tokenizer) == Completion("Ava ha", len(ids), False)
