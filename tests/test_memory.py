"""The memory estimate: counts against real models, published rules, and what each knob must do."""

import importlib.util
import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from grpo_math.checks.memory import GIB, Setting, Shape, held, items, knobs, peak, setting_of, shape_of, verdict
from grpo_math.recipe.recipe import load_recipe

SEVEN = Shape(7_615_616_512, 6_525_288_448, 7_615_616_512, 28, 3584, 18944, 3584, 512, 152064)  # Qwen2.5-7B's config
FULL = Setting(4, False, False, None, True, False, None, 8, 1, 0, 1024)


def test_parameters_are_counted_on_a_model_without_weights(write_recipe):
    config = LlamaConfig(
        vocab_size=1000, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    real = LlamaForCausalLM(config)
    shape = shape_of(config, load_recipe(["--config", str(write_recipe())]))
    assert shape.parameters == shape.trained == sum(p.numel() for p in real.parameters())
    assert shape.linear == 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)
    assert (shape.query, shape.key_value) == (64, 32)
    keys = {"use_peft": True, "lora_r": 8, "lora_target_modules": ["q_proj", "v_proj"]}
    assert shape_of(config, load_recipe(["--config", str(write_recipe(**keys))])).trained == 3 * 8 * (64 + 64 + 64 + 32)


@pytest.mark.parametrize(
    ("keys", "sequences"), [({}, 16), ({"use_vllm": True}, 0), ({"use_vllm": True, "vllm_mode": "server"}, 0)]
)
def test_only_transformers_generation_has_a_cache_outside_of_vllms_share(write_recipe, keys, sequences):
    batch = SimpleNamespace(per_device_train_batch_size=8, gradient_accumulation_steps=2, steps_per_generation=2)
    setting = setting_of(load_recipe(["--config", str(write_recipe(**keys))]), "float32", batch, 10, "ddp", 1)
    assert setting.sequences == sequences
    assert bool(items(SEVEN, setting)["key-value cache"]) == bool(sequences)


def test_full_float32_training_holds_16_bytes_a_parameter():
    parts = items(SEVEN, FULL)
    held_and_gradients = parts["weights"] + parts["gradients"] + parts["optimizer"]
    assert held_and_gradients == 16 * SEVEN.parameters
    assert peak(parts, FULL) >= held_and_gradients


@pytest.mark.parametrize(
    ("strategy", "weight_bytes", "mixed", "bytes_per_weight"),
    [  # of the weight, its gradient, DDP's copy of that, its float32 copy, the optimizer's states, autocast's copy
        ("ddp", 4, False, (4, 4, 4, 0, 8, 0)),
        ("ddp", 4, True, (4, 4, 4, 0, 8, 2)),
        ("ddp", 2, True, (2, 2, 2, 0, 4, 0)),
        ("zero1", 2, True, (2, 2, 0, 4 / 8, 12 / 8, 0)),
        ("zero2", 2, True, (2, 2 / 8, 0, 4 / 8, 12 / 8, 0)),
        ("zero2", 4, True, (2, 2 / 8, 0, 4 / 8, 12 / 8, 0)),
        ("zero2", 4, False, (4, 4 / 8, 0, 4 / 8, 12 / 8, 0)),
        ("zero3", 2, True, (2 / 8, 2 / 8, 0, 4 / 8, 12 / 8, 0)),
        ("zero3", 4, True, (2 / 8, 2 / 8, 0, 4 / 8, 12 / 8, 0)),
        ("fsdp", 4, False, (4 / 8, 4 / 8, 0, 0, 8 / 8, 0)),
        ("fsdp", 4, True, (4 / 8, 4 / 8, 0, 0, 8 / 8, 0)),
        ("fsdp", 2, True, (4 / 8, 4 / 8, 0, 0, 8 / 8, 0)),
        ("fsdp", 2, False, (2 / 8, 2 / 8, 0, 0, 4 / 8, 0)),
    ],
)
def test_bytes_of_a_trained_weight_on_8_gpus(strategy, weight_bytes, mixed, bytes_per_weight):
    parts = items(SEVEN, replace(FULL, weight_bytes=weight_bytes, mixed=mixed, strategy=strategy, processes=8))
    names = (
        "weights", "gradients", "gradients in DDP's buckets", "gradients in float32", "optimizer",
        "16-bit copies of weights",
    )  # fmt: skip
    assert tuple(parts[name] / SEVEN.parameters for name in names) == pytest.approx(bytes_per_weight)


@pytest.mark.parametrize(("strategy", "frozen", "adapter"), [
    ("ddp", 2, (4, 4, 4, 0, 8)),
    ("zero2", 2, (2, 2 / 8, 0, 4 / 8, 12 / 8)),
    ("zero3", 2 / 8, (2 / 8, 2 / 8, 0, 4 / 8, 12 / 8)),
    ("fsdp", 2 / 8, (4 / 8, 4 / 8, 0, 0, 8 / 8)),
])  # fmt: skip
def test_bytes_of_an_adapter_on_8_gpus(strategy, frozen, adapter):
    shape = replace(SEVEN, trained=10**8)
    parts = items(shape, replace(FULL, weight_bytes=2, mixed=True, peft=True, strategy=strategy, processes=8))
    assert parts["weights"] == pytest.approx(frozen * SEVEN.parameters + adapter[0] * 10**8)
    names = ("gradients", "gradients in DDP's buckets", "gradients in float32", "optimizer")
    assert tuple(parts[name] / 10**8 for name in names) == pytest.approx(adapter[1:])


def test_the_reducer_of_one_process_does_not_exist():
    assert items(SEVEN, FULL)["gradients in DDP's buckets"] == 0


@pytest.mark.parametrize(("stage", "gigabytes"), [("ddp", 120), ("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.9)])
def test_what_the_paper_on_zero_has_for_64_gpus(stage, gigabytes):
    """Rajbhandari et al. 2020, figure 1: 7.5 billion weights, 16-bit passes, Adam with float32 weights."""
    shape = replace(SEVEN, parameters=7_500_000_000, trained=7_500_000_000)
    parts = items(shape, replace(FULL, mixed=True, strategy=stage, processes=64))
    names = ["weights", "gradients", "optimizer"]
    assert sum(parts[name] for name in names) / 1e9 == pytest.approx(gigabytes, abs=0.06)


def test_the_update_of_zero3_has_a_billion_float32_gradients_at_most():
    big = replace(SEVEN, parameters=70 * 10**9, trained=70 * 10**9)
    for shape, size in ((SEVEN, 4 * SEVEN.parameters / 8), (big, 4 * 10**9)):
        parts = items(shape, replace(FULL, mixed=True, strategy="zero3", processes=8))
        assert parts["gradients in float32"] == size
    assert items(big, replace(FULL, mixed=True, strategy="zero2", processes=8))["gradients in float32"] == 35e9


def test_published_peaks_are_within_a_fifth_and_in_the_documentation():
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "benchmarks" / "memory.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    documented = (ROOT / "docs" / "performance.md").read_text().splitlines()
    rows = benchmark.published()
    assert len(rows) >= 5
    for row, ratio in rows:
        assert 0.8 < ratio < 1.2
        assert row in documented, "run: python benchmarks/memory.py --published"


def test_zero3_gathers_a_billion_weights_and_all_of_them_to_generate():
    sharded = replace(FULL, mixed=True, strategy="zero3", processes=8)
    assert items(SEVEN, sharded)["gathered weights"] == 2 * 10**9
    assert items(SEVEN, sharded)["all weights gathered"] == 0  # SFT
    assert items(SEVEN, replace(sharded, sequences=8))["all weights gathered"] == 2 * SEVEN.parameters
    assert items(SEVEN, replace(sharded, sequences=8, vllm=0.3))["all weights gathered"] == 0
    assert items(SEVEN, replace(sharded, sequences=8, vllm=0.3, peft=True))["all weights gathered"] > 0  # merged there


def test_fsdp_gathers_two_layers_and_the_head_and_the_whole_reference_model():
    sharded = replace(FULL, weight_bytes=2, mixed=True, reference=True, strategy="fsdp", processes=8)
    parts = items(SEVEN, sharded)
    assert parts["gathered weights"] == 2 * (2 * SEVEN.linear / 28 + 152064 * 3584)
    assert parts["reference model"] == 2 * SEVEN.parameters / 8
    assert parts["gathered reference model"] == 2 * SEVEN.parameters
    assert peak(parts, sharded) >= held(parts, sharded) + 2 * SEVEN.parameters


def test_4_bits_take_a_seventh_of_float32():
    adapter = replace(SEVEN, trained=40_000_000)
    weights = items(adapter, replace(FULL, peft=True, linear_bytes=0.5625))["weights"] / GIB
    assert 5 < weights < 6  # 6.5e9 x 0.56 bytes, the embeddings in 16 bits, the adapter


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (replace(FULL, weight_bytes=2), ["does not fit"] * 3 + ["fits", "fits"]),
        (replace(FULL, weight_bytes=2, vllm=0.5), ["does not fit"] * 4 + ["tight"]),
        (replace(FULL, weight_bytes=2, vllm=0.1), ["does not fit"] * 4 + ["does not fit"]),
        (FULL, ["does not fit"] * 4 + ["fits"]),
    ],
)
def test_cards_have_room_or_not(setting, said):
    assert [verdict(SEVEN, setting, size) for size in (24, 40, 48, 80, 141)] == said


def test_an_engine_that_sleeps_has_what_the_weights_and_the_optimizer_leave():
    asleep = replace(FULL, weight_bytes=2, sleeps=True)
    assert verdict(SEVEN, replace(asleep, vllm=0.4), 80) == "tight"  # 46 GB held, 32 for vLLM, 1 of CUDA
    assert verdict(SEVEN, replace(asleep, vllm=0.6), 80) == "does not fit"  # 48 for vLLM
    sharded = replace(asleep, mixed=True, vllm=0.5, strategy="zero2", processes=8)
    assert verdict(SEVEN, sharded, 80) == "fits"  # 27 GB held, 40 for vLLM
    assert verdict(SEVEN, replace(sharded, strategy="ddp"), 80) == "does not fit"  # 61 GB held


def test_weights_go_to_a_server_through_two_buffers_of_a_gib_and_the_largest_weight():
    served = replace(FULL, server=0.9)
    parts = items(SEVEN, served)
    assert parts["buffers for the server"] == 2 * (GIB + 4 * 152064 * 3584)  # float32, the embeddings of Qwen2.5-7B
    assert items(SEVEN, FULL)["buffers for the server"] == 0
    tight = replace(served, batch=1, length=1)
    assert peak(parts, tight) >= parts["weights"] + parts["optimizer"] + parts["buffers for the server"]
    small = replace(SEVEN, parameters=10**8, vocabulary=1000)
    assert items(small, served)["buffers for the server"] == 4 * 10**8  # all of it fits into the first
    sharded = replace(served, strategy="fsdp", processes=8)
    assert items(SEVEN, sharded)["buffers for the server"] == 1.5 * parts["buffers for the server"]


def test_the_knobs_that_save_most_come_first():
    found = knobs(SEVEN, FULL)
    saved = [size for _, size in found]
    assert saved == sorted(saved, reverse=True)
    assert found[0][0] == "use_peft and load_in_4bit: true"
    assert all(size > 0 for size in saved)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([2, 4]), st.booleans(), st.booleans(), st.integers(1, 16), st.integers(1, 4), st.integers(64, 4096)
)
def test_less_is_never_more(weight_bytes, mixed, checkpointing, batch, passes, length):
    setting = Setting(weight_bytes, mixed, False, None, checkpointing, True, None, batch, passes, batch, length)
    size = peak(items(SEVEN, setting), setting)
    smaller = [
        replace(setting, checkpointing=True), replace(setting, batch=max(1, batch // 2)), replace(setting, passes=1),
        replace(setting, reference=False), replace(setting, moment_bytes=2), replace(setting, length=length // 2),
    ]  # fmt: skip
    for one in smaller:
        assert peak(items(SEVEN, one), one) <= size
    for one, two in itertools.pairwise((24, 40, 48, 80, 141)):
        order = ("does not fit", "tight", "fits")
        assert order.index(verdict(SEVEN, setting, one)) <= order.index(verdict(SEVEN, setting, two))
