"""Weights that do not fit their model are refused by whatever loads it, in one line; tied and padded ones are not."""

import itertools
import json
import math
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file

from grpo_math.__main__ import dispatch
from grpo_math.errors import UserError, run_cli
from grpo_math.generation.vllm_server import words_of
from grpo_math.models import ModelSource, check_weights
from grpo_math.recipe.recipe import load_recipe
from grpo_math.train import train

HEAD, KEY, NORM = "lm_head.weight", "model.layers.0.self_attn.k_proj.weight", "model.norm.weight"
FIX = "save the unwrapped model with save_pretrained, or correct config.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 269060552\n"


def weights(change):
    """Rewrite the weights of a folder."""

    def breaks(folder):
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, {"format": "pt"})

    return breaks


def config(**changes):
    def breaks(folder):
        file = folder / "config.json"
        there = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in there.items() if value is not None}))

    return breaks


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def index(shards, content=None):
    """An index in place of the one file, which becomes the first of these shards."""

    def breaks(folder):
        there = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        names = dict.fromkeys(there, "model-00001-of-00002.safetensors") | shards
        (folder / "model.safetensors.index.json").write_text(
            content or json.dumps({"metadata": {}, "weight_map": names})
        )

    return breaks


def more_tokens(special):
    def breaks(folder):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["<calc>"], special_tokens=special)
        tokenizer.save_pretrained(folder)

    return breaks


def own_end(folder):
    """A special token without a row that ends completions."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(folder)


def no_vocabulary(folder):
    """As where tokenizer.json was not copied: transformers makes an empty tokenizer."""
    (folder / "tokenizer.json").unlink()
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}))


def larger_vocabulary(folder):
    """The tokenizer of another model."""
    from grpo_math.quickstart import make_tokenizer

    make_tokenizer(["".join(word) for word in itertools.permutations("abcdefghij", 4)]).save_pretrained(folder)


def without(there, *keys):
    return {name: tensor for name, tensor in there.items() if name not in keys}


BROKEN = {  # what is done to a model's folder, the line
    "the prefix of a compiled module": (
        weights(lambda there: {f"_orig_mod.{name}": tensor for name, tensor in there.items()}),
        rf"HERE: its weights do not match the architecture in config.json: \d+ missing \(lm_head\.weight, model\.embed_tokens\.weight, model\.layers\.0\.input_layernorm\.weight, \.\.\.\), \d+ unexpected \(_orig_mod\.model\.embed_tokens\.weight, .*\): {FIX}",
    ),
    "the prefix of DDP": (
        weights(lambda there: {f"module.{name}": tensor for name, tensor in there.items()}),
        r"HERE: its weights do not match .* unexpected \(module\.model\.embed_tokens\.weight, ",
    ),
    "one tensor missing": (weights(lambda there: without(there, KEY)), rf"HERE: its weights do not match .*: 1 missing \({KEY}\): {FIX}"),
    "several missing": (weights(lambda there: without(there, KEY, NORM)), rf"HERE: .*: 2 missing \({KEY}, {NORM}\): {FIX}"),
    "one too many": (
        weights(lambda there: there | {"value_head.weight": there[NORM].clone()}),
        rf"HERE: .*: 1 unexpected \(value_head\.weight\): {FIX}",
    ),
    "another shape": (
        weights(lambda there: there | {NORM: there[NORM][:7].clone()}),
        rf"HERE: .*: 1 of another shape \({NORM} \(\(7,\) for \(32,\)\)\): {FIX}",
    ),
    "an embedding cut short": (
        weights(lambda there: there | {"model.embed_tokens.weight": there["model.embed_tokens.weight"][:100].clone()}),
        r"HERE: .*: 1 of another shape \(model\.embed_tokens\.weight \(\(100, 32\) for \(\d+, 32\)\)\)",
    ),
    "a head of its own that is missing": (config(tie_word_embeddings=False), rf"HERE: .*: 1 missing \({HEAD}\): {FIX}"),
    "more layers in the config": (config(num_hidden_layers=4, layer_types=None), r"HERE: .* missing \(model\.layers\.2\.input_layernorm\.weight, "),
    "fewer layers in the config": (config(num_hidden_layers=1, layer_types=None), r"HERE: .* unexpected \(model\.layers\.1\.input_layernorm\.weight, "),
    "another width in the config": (config(hidden_size=64, head_dim=8), r"HERE: .* of another shape \(model\.embed_tokens\.weight \("),
    "a weight that is not a number": (
        weights(lambda there: there | {KEY: there[KEY].fill_(math.nan)}),
        rf"HERE: its weights are not finite \({KEY}\): use an earlier checkpoint, or another model",
    ),
    "no architecture": (config(architectures=None), r"HERE/config\.json has no `architectures`: add the class of the model, as save_pretrained does"),
    "quantised by a method nobody knows": (
        lambda folder: (config(quantization_config={"quant_method": "zzz"})(folder), weights(lambda there: without(there, KEY))(folder)),
        rf"HERE: .*: 1 missing \({KEY}\)",
    ),
    "an architecture that is no model": (config(architectures=["Trainer"]), r"model_name_or_path: no model at 'HERE': "),
    "an architecture nobody knows": (config(architectures=["MyForCausalLM"]), r"model_name_or_path: no model at 'HERE': "),
    "another model's architecture": (config(architectures=["GPT2LMHeadModel"]), r"model_name_or_path: no model at 'HERE': "),
    "a width that heads do not divide": (config(num_attention_heads=3, head_dim=None), r"model_name_or_path: no model at 'HERE': "),
    "a config that is a list": (text("config.json", "[]"), r"HERE/config\.json: not that of a model: "),
    "a tokenizer of null": (text("tokenizer.json", "null"), r"model_name_or_path: no model at 'HERE': "),
    "a tokenizer without a vocabulary": (no_vocabulary, r"prompt_template: the prompt of HERE does not contain the question: its tokenizer has no vocabulary \("),
    "a chat template that reads no text": (
        text("chat_template.jinja", "{% for m in messages %}<|{{ m['role'] }}|>{% endfor %}"),
        r"prompt_template: the prompt of HERE does not contain the question: .* or its chat template ignores the text",
    ),
    "a generation config that cannot be saved": (
        text("generation_config.json", '{"temperature": 0.9, "top_p": 0.6}'),
        r"HERE/generation_config\.json: transformers saves no model with it: .*: correct it, or delete it",
    ),
    "a generation config that is not JSON": (text("generation_config.json", "{"), r"HERE/generation_config\.json: transformers saves no model with it: "),
    "a model without a head": (config(architectures=["LlamaModel"]), r"HERE: LlamaModel in config\.json is not a language model: it has no LM head"),
    "a reward model": (config(architectures=["LlamaForSequenceClassification"]), r"HERE: LlamaForSequenceClassification in config\.json is not a language model"),
    "a pointer for the weights": (text("model.safetensors", POINTER), r"HERE/model\.safetensors: a git-lfs pointer, not the file itself: run `git lfs pull` in its folder"),
    "a pointer for the tokenizer": (text("tokenizer.json", POINTER), r"HERE/tokenizer\.json: a git-lfs pointer, "),
    "a pointer for the config": (text("config.json", POINTER), r"HERE/config\.json: a git-lfs pointer, "),
    "a cut file": (cut, r"HERE/model\.safetensors: damaged or incomplete: copy or download it again"),
    "an empty file": (text("model.safetensors", ""), r"HERE/model\.safetensors: damaged or incomplete: "),
    "a web page for the weights": (text("model.safetensors", "<!DOCTYPE html><html>Not found</html>"), r"HERE/model\.safetensors: damaged or incomplete: "),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"model_name_or_path: no model at 'HERE': .*no file named .*model\.safetensors"),
    "a shard that is not there": (index({NORM: "model-00002-of-00002.safetensors"}), r"model_name_or_path: no model at 'HERE': .*model-00002-of-00002\.safetensors"),
    "an index without metadata": (index({}, '{"weight_map": {}}'), r"model_name_or_path: no model at 'HERE': 'metadata': "),
    "an index that is not JSON": (index({}, "{"), r"model_name_or_path: no model at 'HERE': "),
    "a config that is not JSON": (text("config.json", "{"), r"model_name_or_path: no model at 'HERE': .*not a valid JSON"),
    "an unknown architecture": (config(architectures=["NewForCausalLM"], model_type="new"), r"model_name_or_path: no model at 'HERE': .*`new`"),
    "a token without a row": (
        more_tokens(special=False),
        r"model_name_or_path: the tokenizer of HERE has (\d+) tokens, the model's embedding \d+ rows, none for '<calc>': use the tokenizer that was saved with the model, or save the model with its embedding resized to it",
    ),
    "a larger vocabulary": (larger_vocabulary, r"model_name_or_path: the tokenizer of HERE has .* tokens, the model's embedding \d+ rows, none for "),
    "an end token without a row": (own_end, r"model_name_or_path: the tokenizer of HERE has .* none for '<end>': "),
}  # fmt: skip


@pytest.fixture
def folder(policy_folder, tmp_path):
    return shutil.copytree(policy_folder, tmp_path / "model")


@pytest.mark.parametrize("case", BROKEN)
def test_a_model_that_is_not_whole_is_one_line_and_nothing_is_trained(folder, write_recipe, tmp_path, capsys, case):
    breaks, line = BROKEN[case]
    breaks(folder)
    recipe = write_recipe(model_name_or_path=str(folder))
    assert run_cli(dispatch, ["train", "--config", str(recipe)]) == 2
    said = [line.replace(str(folder), "HERE") for line in capsys.readouterr().err.splitlines() if "Loading" not in line]
    assert len(said) == 1, said
    assert re.match(f"error: {line}", said[0]), said[0]
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert not (tmp_path / "run" / "final").exists()


def padded(folder):
    """A larger embedding than the tokenizer needs, as many models have."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(pad_to_multiple_of=64)
    model.save_pretrained(folder)


def untied(folder):
    config(tie_word_embeddings=False)(folder)
    weights(lambda there: there | {HEAD: there["model.embed_tokens.weight"].clone()})(folder)


def sharded(folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def head_twice(folder):
    """As FSDP2 saves a tied head."""
    weights(lambda there: there | {HEAD: there["model.embed_tokens.weight"].clone()})(folder)


def pointers_that_nobody_reads(folder):
    """What `git lfs pull --include "*.safetensors"` leaves, and what macOS adds."""
    (folder / "pytorch_model.bin").write_text(POINTER)
    (folder / "figure.png").write_text(POINTER)
    (folder / "._model.safetensors").write_text("\0\5\26\7")


def masks(folder):
    """Buffers that old checkpoints hold."""
    weights(lambda there: there | {"transformer.h.0.attn.masked_bias": there[NORM].clone()})(folder)


@pytest.mark.parametrize(
    "change", [pointers_that_nobody_reads, masks, padded, untied, head_twice, sharded, more_tokens(special=True)]
)
def test_padded_vocabularies_own_heads_shards_and_unused_special_tokens_are_accepted(folder, write_recipe, change):
    change(folder)
    results = train(load_recipe(["--config", str(write_recipe(model_name_or_path=str(folder), max_steps=1))]))
    assert results["steps"] == 1


def adapter_of(folder, to):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=2, task_type="CAUSAL_LM")
    ).save_pretrained(to)
    return to


def test_every_verb_refuses_weights_that_do_not_fit(folder, write_recipe, tmp_path, capsys):
    weights(lambda there: without(there, KEY))(folder)
    adapter, line = (
        adapter_of(folder, tmp_path / "adapter"),
        rf"{folder}: its weights do not match .*: 1 missing \({KEY}\): {FIX}",
    )
    recipe, own = (
        write_recipe(model_name_or_path=str(folder)),
        write_recipe("own.yaml", model_name_or_path=str(adapter)),
    )
    warm = write_recipe("sft.yaml", model_name_or_path=str(folder), rewards=None, sft={"target": "worked"}, num_generations=None, max_completion_length=None)  # fmt: skip
    for words in (
        ["sft", "--config", str(warm)],
        ["train", "--config", str(own)],
        ["evaluate", "--config", str(recipe), "--use_vllm", "false", "--out", str(tmp_path / "evaluated")],
        ["evaluate", "--config", str(own), "--use_vllm", "false", "--out", str(tmp_path / "evaluated too")],
        ["export", str(folder), str(tmp_path / "exported")],
        ["export", str(adapter), str(tmp_path / "exported")],
    ):
        with pytest.raises(UserError, match=line):
            dispatch(words)
    for refused in (
        lambda: words_of(ModelSource(str(folder)), {}),
        lambda: words_of(ModelSource(str(adapter)).base, {}),
    ):
        with pytest.raises(UserError, match=line):
            refused()
    assert not (tmp_path / "exported").exists()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        dispatch(["check", "--config", str(recipe)])
    assert re.search(rf"6\. model\n   error: {line}\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": 1}, {"num_hidden_layers": 4}, {"tie_word_embeddings": False}]
)
def test_model_init_kwargs_that_change_the_architecture_are_refused(write_recipe, changes):
    recipe = write_recipe(model_init_kwargs=changes)
    with pytest.raises(UserError, match="its weights do not match the architecture"):
        train(load_recipe(["--config", str(recipe)]))


def test_an_adapters_checkpoint_without_one_of_its_weights_is_not_resumed_from(write_recipe, tmp_path):
    keys = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["q_proj", "v_proj"], "save_steps": 1}
    recipe = str(write_recipe(max_steps=1, **keys))
    train(load_recipe(["--config", recipe]))
    file = tmp_path / "run" / "checkpoint-1" / "adapter_model.safetensors"
    there = load_file(file)
    save_file(without(there, *list(there)[:3]), file, {"format": "pt"})
    with pytest.raises(UserError, match=r"checkpoint-1 lacks 3 weights of the adapter \(base_model"):
        train(load_recipe(["--config", recipe, "--max_steps", "2", "--resume_from_checkpoint", "auto"]))


def test_a_checkpoint_without_one_of_its_weights_is_not_resumed_from(write_recipe, tmp_path, capsys):
    recipe = str(write_recipe(max_steps=1, save_steps=1))
    train(load_recipe(["--config", recipe]))
    weights(lambda there: without(there, KEY))(tmp_path / "run" / "checkpoint-1")
    words = ["train", "--config", recipe, "--max_steps", "2", "--resume_from_checkpoint", "auto"]
    assert run_cli(dispatch, words) == 2
    assert re.search(
        rf"error: .*checkpoint-1: its weights do not match .*: 1 missing \({KEY}\)", capsys.readouterr().err
    )


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 128,
}
ARCHITECTURES = {  # with fused projections, experts, other names of keys, layers of two kinds
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 128},
    "phi3": SIZES | {"pad_token_id": 0},
    "gemma3_text": SIZES | {"head_dim": 8},
    "mixtral": SIZES | {"num_local_experts": 4, "num_key_value_heads": 2},
    "qwen3_5_text": SIZES | {"head_dim": 8},
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_save_pretrained_writes_fits(tmp_path, kind, tied):
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    settings = CONFIG_MAPPING[kind](**ARCHITECTURES[kind], tie_word_embeddings=tied)
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path)
    assert check_weights(ModelSource(str(tmp_path)))
