"""Today's architectures, small: each trains, is evaluated and exported by the class that TRL takes."""

import json
from collections.abc import Iterator

import pytest
import torch
import transformers
from stand_ins import save_stand_in

from grpo_math.checks import Subject
from grpo_math.models import ModelSource, freeze_vision, load_model
from grpo_math.models.export import export
from grpo_math.recipe.recipe import load_recipe
from grpo_math.sft import sft
from grpo_math.train import train

TRAINED = {  # architecture -> chat template
    "Qwen3ForCausalLM": "qwen3",
    "Gemma3ForCausalLM": "gemma3",
    "SmolLM3ForCausalLM": "switch",
    "Qwen3_5ForConditionalGeneration": "qwen3_5_nothink",
}
VISION = "Qwen3_5ForConditionalGeneration"


def weights(folder) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(8, 24)[None]).logits


@pytest.fixture
def stand_in(tokenizer, tmp_path):
    """As on the Hub: Qwen3.5's checkpoints hold a multi-token prediction head, which transformers leaves out, and the
    settings of a processor."""

    def save(architecture: str, template: str | None = None):
        from safetensors.torch import save_file

        folder = save_stand_in(architecture, template, tokenizer, tmp_path / "model")
        if architecture == VISION:
            more = weights(folder) | {"mtp.fc.weight": torch.zeros(2, 2)}
            save_file(more, folder / "model.safetensors", {"format": "pt"})
        if architecture.endswith("ForConditionalGeneration"):
            (folder / "preprocessor_config.json").write_text('{"patch_size": 4}')
        return folder

    return save


def changed(before: dict, after: dict) -> Iterator[str]:
    return (name for name in after if not torch.equal(before[name], after[name]))


@pytest.mark.parametrize("architecture", TRAINED)
def test_an_architecture_trains_and_its_export_is_what_was_trained(architecture, stand_in, write_recipe, tmp_path):
    folder, run = stand_in(architecture, TRAINED[architecture]), tmp_path / "run"
    rewards = {"varied": {"path": f"{__file__}:varied"}}
    evaluated = {"before_after": True, "max_samples": 2, "rewards": False}
    recipe = load_recipe(
        ["--config", str(write_recipe(model_name_or_path=str(folder), rewards=rewards, eval=evaluated, beta=0.1, save_steps=2, gradient_checkpointing=True, preflight=False))]
    )  # fmt: skip
    results = train(recipe)
    assert (results["steps"], results["after"]["problems"]) == (2, 2)

    before, after = weights(folder), weights(run / "final")
    assert before.keys() - after.keys() == ({"mtp.fc.weight"} if architecture == VISION else set())
    unchanged = after.keys() - set(changed(before, after))
    assert all("visual" in name for name in unchanged)
    assert bool(unchanged) == (architecture == VISION)

    export(ModelSource(str(run / "final")), tmp_path / "out")
    assert weights(tmp_path / "out").keys() == after.keys()
    named = json.loads((tmp_path / "out" / "config.json").read_text())["architectures"]
    assert named == [architecture]
    evaluated = load_model({"model_name_or_path": str(run / "checkpoint-2"), "use_cpu": True})
    loaded = getattr(transformers, architecture).from_pretrained(tmp_path / "out")
    assert type(evaluated) is type(loaded)
    torch.testing.assert_close(logits(loaded), logits(evaluated), rtol=0, atol=0)
    if architecture != VISION:
        same = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        torch.testing.assert_close(logits(same), logits(loaded), rtol=0, atol=0)
    for copy in (run / "final", run / "checkpoint-2", tmp_path / "out"):
        assert (copy / "preprocessor_config.json").exists() == (architecture == VISION)


def varied(completion_ids, **_):
    return [float(sum(ids) % 7) for ids in completion_ids]


@pytest.mark.parametrize("verb", [train, sft])
def test_an_adapter_of_a_vision_language_model_is_trained_where_text_passes(verb, stand_in, write_recipe, tmp_path):
    from grpo_math.models.policy import load_adapter

    folder = stand_in(VISION)
    keys = {"model_name_or_path": str(folder), "use_peft": True, "lora_r": 2, "lora_target_modules": ["all-linear"], "max_steps": 1}  # fmt: skip
    keys |= {"preflight": False, "rewards": {"varied": {"path": f"{__file__}:varied"}}}
    if verb is sft:
        keys |= {"rewards": None, "num_generations": None, "max_completion_length": None, "sft": {"target": "worked"}}
    recipe = load_recipe(["--config", str(write_recipe(**keys))], "SFT" if verb is sft else "GRPO")
    verb(recipe)
    adapter = load_adapter(ModelSource(str(tmp_path / "run" / "final")))
    moved = {name for name, one in adapter.named_parameters() if "lora_B" in name and one.any()}
    assert moved
    assert not any("visual" in name for name in moved)
    export(ModelSource(str(tmp_path / "run" / "final")), tmp_path / "out")
    loaded = getattr(transformers, VISION).from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(loaded), logits(adapter), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", [VISION, "Gemma3ForConditionalGeneration"])
def test_the_memory_estimate_counts_the_frozen_part_of_a_vision_language_model(architecture, stand_in, write_recipe):
    folder = stand_in(architecture)
    whole = getattr(transformers, architecture).from_pretrained(folder)
    freeze_vision(whole)
    frozen = {name.split(".")[1] for name, one in whole.named_parameters() if not one.requires_grad}
    assert frozen == ({"visual"} if architecture == VISION else {"vision_tower", "multi_modal_projector"})
    text = sum(one.numel() for one in whole.parameters() if one.requires_grad)
    for keys, trained in (
        ({}, text),
        ({"use_peft": True, "lora_r": 1, "lora_target_modules": ["q_proj", "k_proj"]}, None),
    ):
        recipe = load_recipe(["--config", str(write_recipe(model_name_or_path=str(folder), **keys))])
        shape = Subject(recipe).shape
        assert shape.parameters == whole.num_parameters()
        assert trained is None or shape.trained == trained
    attention = [one for name, one in whole.get_decoder().named_modules() if name.endswith(("q_proj", "k_proj"))]
    assert shape.trained == sum(one.in_features + one.out_features for one in attention)
