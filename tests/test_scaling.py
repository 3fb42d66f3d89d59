"""benchmarks/scaling.py: its counts against published models and torch's counter, its limits, the page that shows it."""

import itertools
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[1]
scaling = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "scaling.py")))
SEVEN = scaling.SHAPES["Qwen2.5-7B"]
PLAN = scaling.Plan(SEVEN, 8, "zero3", share=0.4)


def test_models_have_the_parameters_that_were_published():
    counts = [shape.parameters for shape in scaling.SHAPES.values()]
    assert counts == [7_615_616_512, 32_763_876_352, 70_553_706_496]


@pytest.mark.parametrize(
    ("frozen", "checkpointing", "times"), [(False, False, 3), (False, True, 4), (True, False, 2), (True, True, 3)]
)
def test_operations_of_a_training_pass_are_those_torch_counts(frozen, checkpointing, times):
    config = LlamaConfig(
        hidden_size=256, num_hidden_layers=4, intermediate_size=512, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=1000, tie_word_embeddings=False, attn_implementation="eager", use_cache=False,
    )  # fmt: skip
    model, tokens = LlamaForCausalLM(config).train(), torch.zeros(2, 64, dtype=torch.long)
    if frozen:  # as under an adapter: gradients pass through, the weights have none
        model.requires_grad_(False).enable_input_require_grads()
    if checkpointing:
        model.gradient_checkpointing_enable()
    with FlopCounterMode(display=False) as counted:
        model(tokens, labels=tokens).loss.backward()
    shape = scaling.shape(4, 256, 512, 2, 1, 1000, 0)
    plain = tokens.numel() * scaling.forward(shape, 2 * 64)  # this attention computes both halves
    # A checkpoint stops before its last product, and the head has none; attention has a backward pass, frozen or not.
    assert times - 0.35 * checkpointing <= counted.get_total_flops() / plain <= times * 1.05


@pytest.mark.parametrize("layout", scaling.PARTS)
def test_twice_the_gpus_never_hold_more_on_each(layout):
    for shape, lora, dtype, serving in itertools.product(scaling.SHAPES.values(), (False, True), (2, 4), (0, 4)):
        sizes = [scaling.phases(scaling.Plan(shape, gpus, layout, lora, dtype, serving)) for gpus in (8, 16, 32, 64)]
        for few, many in itertools.pairwise(sizes):
            assert many[0] <= few[0]
            assert many[1] <= few[1]


@pytest.mark.parametrize(("gpus", "batch"), [(1, 1), (8, 1), (8, 4), (64, 1)])
def test_a_pass_is_as_long_as_the_longest_of_its_drawn_completions_and_at_most_an_eighth_longer(gpus, batch):
    plan, seeded = replace(PLAN, gpus=gpus, batch=batch, correction=False), torch.Generator().manual_seed(0)
    lengths = torch.empty(20_000, gpus * batch).exponential_(1 / scaling.MEAN, generator=seeded)
    drawn = scaling.PROMPT + lengths.clamp(max=scaling.LONGEST).amax(dim=1).mean().item()
    assert drawn < plan.length < 9 / 8 * drawn
    assert plan.length <= replace(plan, correction=True).length == scaling.PROMPT + scaling.LONGEST


def test_without_the_correction_there_are_no_logprobs_and_passes_are_cut_but_not_where_a_rollout_is_of_several_steps():
    corrected, cut = (scaling.seconds(replace(PLAN, correction=correction)) for correction in (True, False))
    assert corrected["log-probs"] == pytest.approx(corrected["train"] / 4)
    assert cut["log-probs"] == 0
    assert cut["train"] < corrected["train"]
    assert cut["network"] < corrected["network"]
    several = replace(PLAN, ahead=4)
    assert scaling.seconds(replace(several, correction=False)) == scaling.seconds(several)


def test_training_scales_with_the_gpus_and_generation_not_below_its_longest_completion():
    few, many = (scaling.seconds(replace(PLAN, gpus=gpus)) for gpus in (8, 64))
    assert many["train"] == pytest.approx(few["train"] / 8)
    floor = scaling.LONGEST * (2 * SEVEN.parameters / scaling.HBM / scaling.DECODE + scaling.SCHEDULE)
    assert floor < many["generate"] < few["generate"]
    assert scaling.seconds(replace(PLAN, gpus=1024))["generate"] == pytest.approx(floor, rel=0.01)


def test_generation_scales_with_the_completions_where_they_fill_the_cache():
    one, two = (scaling.seconds(replace(PLAN, prompts=prompts))["generate"] for prompts in (2**14, 2**15))
    assert two == pytest.approx(2 * one, rel=0.02)


def test_where_passes_are_cut_more_gpus_wait_for_longer_completions():
    few, many = (scaling.seconds(replace(PLAN, gpus=gpus, correction=False))["train"] for gpus in (8, 64))
    assert few / 8 < many < few / 4


def test_nothing_is_exchanged_by_one_gpu_and_a_second_node_is_no_quicker():
    assert scaling.transfer(1e9, 1) == 0
    assert scaling.transfer(1e9, 64) > scaling.transfer(1e9, 16) >= scaling.transfer(1e9, 8)


@pytest.mark.parametrize("lora", [False, True])
def test_what_is_chosen_fits_and_is_what_the_launcher_takes(lora):
    for (model, gpus), served in itertools.product(scaling.SIZES, (False, True)):
        plan = scaling.best(model, gpus, lora, served)
        if plan is not None:
            assert max(scaling.phases(plan)) <= scaling.FULL * scaling.CARD
            assert plan.shape.query // 128 % plan.tensor_parallel == plan.gpus % plan.tensor_parallel == 0
            assert plan.passes * plan.batch * plan.processes == scaling.PROMPTS * scaling.GROUP


def test_the_page_shows_what_the_script_prints(capsys):
    scaling.main()
    page = (ROOT / "docs" / "scaling.md").read_text()
    tables = [block for block in capsys.readouterr().out.split("\n\n") if block.startswith("|")]
    assert len(tables) == 5
    assert all(f"\n\n{table.strip()}\n" in page for table in tables)
