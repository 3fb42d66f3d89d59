"""Adapters and reward models: what loads, what is refused, and that an export answers as its run did."""

import json
import shutil

import pytest

from grpo_math.__main__ import dispatch
from grpo_math.data.prompts import TEMPLATES
from grpo_math.errors import UserError
from grpo_math.models import ModelSource, load_reward_models
from grpo_math.models.policy import load_adapter
from grpo_math.recipe.recipe import load_recipe
from grpo_math.train import train


@pytest.fixture(scope="module")
def adapter(policy_folder, tmp_path_factory):
    """A LoRA adapter of the policy, not zero as it would be fresh."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(policy_folder), LoraConfig(r=2, task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy_folder).save_pretrained(folder)
    return folder


def greedy(model, tokenizer) -> list[int]:
    inputs = tokenizer("Ava has 3 apples", return_tensors="pt")
    return model.generate(**inputs, max_new_tokens=32, do_sample=False, eos_token_id=None)[0].tolist()


@pytest.mark.parametrize("where", ["adapter", "run"])
def test_an_export_is_a_plain_checkpoint_with_the_same_greedy_answers(adapter, tokenizer, tmp_path, where, capsys):
    from transformers import AutoModelForCausalLM

    source = adapter
    if where == "run":
        source = tmp_path / "run"
        shutil.copytree(adapter, source / "final")
    dispatch(["export", str(source), str(tmp_path / "out")])
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    apart = load_adapter(ModelSource(str(adapter)))
    assert greedy(merged, tokenizer) == greedy(apart, tokenizer)
    assert greedy(merged, tokenizer) != greedy(apart.unload(), tokenizer)
    assert "float32, for transformers and `vllm serve" in capsys.readouterr().out


def test_an_export_ends_where_its_run_did(adapter, tokenizer, tmp_path):
    """SFT may have taught the end of a chat template's turn, which the base model's generation config does not name."""
    from transformers import AutoTokenizer, GenerationConfig

    turned = changed_adapter(adapter, tmp_path / "turned")
    taught = AutoTokenizer.from_pretrained(adapter)
    taught.eos_token = "<|user|>"
    taught.save_pretrained(turned)
    dispatch(["export", str(turned), str(tmp_path / "out")])
    ends = GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    assert set(ends) == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|user|>")}


def test_an_adapter_without_a_tokenizer_is_exported_with_its_bases(adapter, tmp_path):
    bare = changed_adapter(adapter, tmp_path / "bare")
    for file in bare.glob("tokenizer*"):
        file.unlink()
    dispatch(["export", str(bare), str(tmp_path / "out")])
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_the_export_of_a_whole_model_is_a_copy_in_the_wanted_precision(policy_folder, tokenizer, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    dispatch(["export", str(policy_folder), str(tmp_path / "out"), "--dtype", "bfloat16"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.bfloat16


def test_an_export_without_finite_weights_is_refused(policy_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    model.get_input_embeddings().weight.data[0, 0] = 1e6  # infinite as a float16
    model.save_pretrained(shutil.copytree(policy_folder, tmp_path / "large"))
    with pytest.raises(UserError, match=r"large in float16: its weights are not finite \(model.embed_tokens.weight\)"):
        dispatch(["export", str(tmp_path / "large"), str(tmp_path / "out"), "--dtype", "float16"])
    assert not (tmp_path / "out").exists()


def test_an_export_overwrites_nothing_and_wants_a_model(policy_folder, tmp_path):
    with pytest.raises(UserError, match="no model or adapter there: give a run's folder or a checkpoint"):
        dispatch(["export", str(tmp_path), str(tmp_path / "out")])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UserError, match="out exists already: name a new folder"):
        dispatch(["export", str(policy_folder), str(tmp_path / "out")])


def changed_adapter(adapter, folder, **changes):
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    return folder


def other_policy(tokenizer, folder, **changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes | changes)).save_pretrained(folder)
    return str(folder)


TIED = {
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "a trained copy of the embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "a trained copy of the head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4, 5]},
    "dora": {"target_modules": ["q_proj"], "use_dora": True},
}


def strong_adapter(policy_folder, tokenizer, folder, **settings):
    """An adapter of a model with tied embeddings that changes its logits a lot."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(r=2, task_type="CAUSAL_LM", **settings)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(policy_folder), config)
    assert model.config.tie_word_embeddings
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("settings", TIED.values(), ids=TIED)
def test_an_export_has_the_logits_of_its_adapter_on_tied_embeddings_too(policy_folder, tokenizer, tmp_path, settings):
    import torch
    from transformers import AutoModelForCausalLM

    apart = strong_adapter(policy_folder, tokenizer, tmp_path / "adapter", **settings)
    dispatch(["export", str(tmp_path / "adapter"), str(tmp_path / "out")])
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    prompt = tokenizer("Ava has 3 apples", return_tensors="pt")
    torch.testing.assert_close(whole(**prompt).logits, apart(**prompt).logits, rtol=1e-4, atol=1e-4)


def test_an_export_with_other_logits_is_refused(policy_folder, tokenizer, tmp_path, monkeypatch):
    """As peft's own merge on tied embeddings has."""
    strong_adapter(policy_folder, tokenizer, tmp_path / "adapter", **TIED["embedding"])
    monkeypatch.setattr("grpo_math.models.export.changes_tied_weights", lambda _: False)
    with pytest.raises(UserError, match=r"adapter: merging the adapter changes the logits \(by \d"):
        dispatch(["export", str(tmp_path / "adapter"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_lora_on_tied_embeddings_is_not_trained_with_vllm(write_recipe):
    from grpo_math.checks.findings import Subject

    keys = {"use_peft": True, "lora_target_modules": ["embed_tokens", "q_proj"], "use_vllm": True, "use_cpu": None}
    with pytest.raises(UserError, match="lora_target_modules: the embedding and the head share their weights"):
        _ = Subject(load_recipe(["--config", str(write_recipe(**keys))])).shape


def test_an_adapter_without_its_base_model_is_one_line(adapter, tmp_path, write_recipe):
    lost = changed_adapter(adapter, tmp_path / "lost", base_model_name_or_path="./nowhere")
    message = r"lost is an adapter of \./nowhere, which cannot be loaded: .*: put that model there, or correct .*lost/adapter_config.json"
    recipe = write_recipe(model_name_or_path=str(lost))
    for verb in (
        lambda: train(load_recipe(["--config", str(recipe)])),
        lambda: dispatch(["evaluate", "--config", str(recipe), "--use_vllm", "false"]),
    ):
        with pytest.raises(UserError, match=message) as caught:
            verb()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"hidden_size": 64}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}])
def test_an_adapter_of_another_model_is_one_line(adapter, tokenizer, tmp_path, changes):
    base = other_policy(tokenizer, tmp_path / "base", **changes)
    moved = changed_adapter(adapter, tmp_path / "moved", base_model_name_or_path=base)
    with pytest.raises(UserError, match="its weights do not fit it"):
        load_adapter(ModelSource(str(moved)))


@pytest.mark.parametrize(
    "lost", ["base_model.model.lm_head.weight", "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
)
def test_an_adapter_without_one_of_its_weights_is_one_line(policy_folder, tokenizer, tmp_path, lost):
    from safetensors.torch import load_file, save_file

    strong_adapter(policy_folder, tokenizer, tmp_path / "adapter", **TIED["a trained copy of the head"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    there = load_file(file)
    del there[lost]
    save_file(there, file)
    with pytest.raises(UserError, match="its weights do not fit it"):
        load_adapter(ModelSource(str(tmp_path / "adapter")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_peft": True, "lora_r": 16, "lora_alpha": 8}, r"lora_r: 16 \(the adapter has 2\): training continues with the adapter"),
        ({"use_peft": False}, r"use_peft: False \(the adapter has True\): training"),
        ({"use_peft": True, "lora_target_modules": ["q_proj"]}, r"lora_target_modules: \['q_proj'\] \(the adapter has \['q_proj', 'v_proj'\]\)"),
        ({"use_peft": True, "use_dora": True, "lora_dropout": 0.5}, r"lora_dropout: 0.5 \(the adapter has 0.0\), use_dora: True \(the adapter has False\)"),
    ],
)  # fmt: skip
def test_lora_settings_that_are_not_the_adapters_are_refused_with_the_numbers(adapter, write_recipe, changes, message):
    recipe = write_recipe(model_name_or_path=str(adapter), **changes)
    with pytest.raises(UserError, match=message):
        train(load_recipe(["--config", str(recipe)]))


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_target_modules": ["all-linear"]},
        {"lora_target_modules": ["v_proj", "q_proj"]},
        {"lora_r": 2, "lora_modules_to_save": []},
    ],
)
def test_lora_settings_that_are_the_adapters_are_not_refused(adapter, write_recipe, changes):
    recipe = write_recipe(model_name_or_path=str(adapter), use_peft=True, max_steps=1, **changes)
    assert train(load_recipe(["--config", str(recipe)]))["steps"] == 1


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter_model.safetensors", None, "no readable adapter weights"),
        ("adapter_model.safetensors", "junk", "no readable adapter weights"),
        ("adapter_config.json", "{junk", "not a readable LoRA adapter"),
        ("adapter_config.json", '{"peft_type": "NEW"}', "not a readable LoRA adapter"),
        ("adapter_config.json", '{"peft_type": "IA3", "base_model_name_or_path": "x"}', "not a readable LoRA adapter: its type is"),
        ("adapter_config.json", '{"peft_type": "LORA"}', "adapter_config.json names no base_model_name_or_path"),
    ],
)  # fmt: skip
def test_a_broken_adapter_is_one_line(adapter, tmp_path, file, content, message):
    broken = changed_adapter(adapter, tmp_path / "broken")
    (broken / file).unlink()
    if content:
        (broken / file).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_adapter(ModelSource(str(broken)))
    assert "\n" not in str(caught.value)


def test_an_adapter_without_a_tokenizer_takes_that_of_its_base(adapter, tmp_path, write_recipe):
    bare = changed_adapter(adapter, tmp_path / "bare")
    for file in bare.glob("tokenizer*"):
        file.unlink()
    assert train(load_recipe(["--config", str(write_recipe(model_name_or_path=str(bare), max_steps=1))]))["steps"] == 1


def test_a_quantised_model_is_trained_through_an_adapter_only(write_recipe):
    pytest.importorskip("bitsandbytes")
    with pytest.raises(UserError, match="quantised weights cannot be trained: set use_peft: true"):
        train(load_recipe(["--config", str(write_recipe(load_in_4bit=True))]))


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(write_recipe):
    with pytest.raises(UserError, match=r"no model at 'runs/sft_math/final': no such folder"):
        train(load_recipe(["--config", str(write_recipe(model_name_or_path="runs/sft_math/final"))]))


@pytest.fixture(scope="module")
def judge(tokenizer, tmp_path_factory):
    """A reward model: a sequence classifier with one label."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **sizes)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("alone", [True, False])
def test_a_reward_model_scores_alone_or_beside_functions(write_recipe, judge, tmp_path, alone):
    rewards = {"helpful": {"reward_model": str(judge), "weight": 0.5}} | ({} if alone else {"format": {}})
    train(load_recipe(["--config", str(write_recipe(rewards=rewards, max_steps=1))]))
    (row,) = (json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert row["rewards/helpful/std"] > 0
    expected = 0.5 * row["rewards/helpful/mean"] + (0 if alone else row["rewards/format/mean"])
    assert row["reward"] == pytest.approx(expected)


def test_what_is_no_reward_model_is_refused(judge, adapter, policy_folder, tokenizer, tmp_path):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    def load(folder):
        return load_reward_models([str(folder)], ["judge"], TEMPLATES["boxed"], {})

    with pytest.raises(
        UserError, match=r"rewards.judge.reward_model: .* is not a reward model, .*: 1 missing \(score.weight\)"
    ):
        load(policy_folder)
    with pytest.raises(
        UserError, match=r"rewards.judge.reward_model: .* is an adapter: merge it into its base model first"
    ):
        load(adapter)
    with pytest.raises(UserError, match=r"rewards.judge.reward_model: .*nowhere: no reward model there"):
        load(tmp_path / "nowhere")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForSequenceClassification(LlamaConfig(vocab_size=len(tokenizer), num_labels=3, **sizes)).save_pretrained(
        tmp_path / "three"
    )
    tokenizer.save_pretrained(tmp_path / "three")
    with pytest.raises(
        UserError, match=r"trained head for one label: 1 of another shape \(score.weight \(\(3, 16\) for \(1, 16\)\)\)"
    ):
        load(tmp_path / "three")
    shutil.copytree(judge, tmp_path / "plain")
    plain = AutoTokenizer.from_pretrained(judge)
    plain.chat_template = None
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(UserError, match="its tokenizer has no chat template, but the prompts are chats"):
        load(tmp_path / "plain")
