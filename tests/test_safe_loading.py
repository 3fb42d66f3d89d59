"""Nothing that could run code is loaded unless a recipe says so, and no secret stays behind: real files, real loads."""

import contextlib
import io
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from grpo_math.__main__ import dispatch
from grpo_math.data.prompts import TEMPLATES
from grpo_math.errors import UserError, run_cli
from grpo_math.generation.vllm_server import server_words
from grpo_math.models import load_reward_models
from grpo_math.recipe.recipe import load_recipe
from grpo_math.train import train

ALLOW_PICKLES = ("--model_init_kwargs.use_safetensors", "false")
MODEL = """from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({flag!r}).touch()

class OddConfig(LlamaConfig):
    model_type = "odd"

class OddModel(LlamaForCausalLM):
    config_class = OddConfig
"""


class Planted:
    """Pickled, it makes a folder where it is read by a reader who does what a pickle says."""

    def __init__(self, flag: Path):
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (str(self.flag),)


@pytest.fixture(autouse=True)
def no_log_of_an_earlier_run():
    logging.getLogger("grpo_math").handlers.clear()


@pytest.fixture
def flag(tmp_path) -> Path:
    return tmp_path / "code-has-run"


@pytest.fixture
def pickled(policy_folder, tmp_path) -> Path:
    """The policy with its weights as pytorch_model.bin."""
    return as_pickle(policy_folder, tmp_path / "pickled", "model.safetensors", "pytorch_model.bin")


def as_pickle(folder: Path, copy: Path, safe: str, name: str) -> Path:
    import torch
    from safetensors.torch import load_file

    shutil.copytree(folder, copy)
    torch.save(load_file(copy / safe), copy / name)
    (copy / safe).unlink()
    return copy


@pytest.fixture
def odd(policy_folder, tmp_path, flag) -> Path:
    """The policy as a model that transformers does not know, with code of its own."""
    folder = shutil.copytree(policy_folder, tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "odd", "architectures": ["OddModel"]}
    config["auto_map"] = {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddModel"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "odd.py").write_text(MODEL.format(flag=str(flag)))
    return folder


def verbs(recipe: Path, model: Path, tmp_path: Path) -> dict[str, list[str]]:
    config = ["--config", str(recipe), "--model_name_or_path", str(model)]
    return {
        "train": ["train", *config],
        "sft": ["sft", "--config", str(sft_recipe(recipe)), *config[2:]],
        "evaluate": ["evaluate", *config, "--use_vllm", "false", "--out", str(tmp_path / "evaluation")],
        "check": ["check", "--layout", "none", *config],
        "export": ["export", str(model), str(tmp_path / "out")],
    }


def sft_recipe(recipe: Path) -> Path:
    keys = yaml.safe_load(recipe.read_text()) | {"sft": {}}
    for key in ("rewards", "num_generations", "max_completion_length"):
        del keys[key]
    recipe.with_name("sft.yaml").write_text(yaml.safe_dump(keys))
    return recipe.with_name("sft.yaml")


def said(words: list[str], capsys) -> str:
    """What a verb that refuses says."""
    if words[0] == "check":
        with pytest.raises(SystemExit, match="1"):
            dispatch(words)
    else:
        assert run_cli(dispatch, words) == 2
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    return output.err + output.out


VERBS = ("train", "sft", "evaluate", "check", "export")


@pytest.mark.parametrize("verb", VERBS)
def test_pickled_weights_are_refused_by_every_verb(verb, write_recipe, pickled, tmp_path, capsys):
    told = said(verbs(write_recipe(), pickled, tmp_path)[verb], capsys)
    assert f"{pickled} has only pickled weights (pytorch_model.bin), which can run code: convert them to" in told
    assert "model_init_kwargs: {use_safetensors: false}" in told


def test_pickled_weights_that_are_allowed_are_trained_and_evaluated_and_exported(write_recipe, pickled, tmp_path):
    recipe = write_recipe(model_name_or_path=str(pickled), model_init_kwargs={"use_safetensors": False}, beta=0.1)
    for verb in ("train", "evaluate"):
        dispatch(verbs(recipe, pickled, tmp_path)[verb])
    dispatch([*verbs(recipe, pickled, tmp_path)["export"], *ALLOW_PICKLES])
    assert (tmp_path / "out" / "model.safetensors").exists()
    final = tmp_path / "run" / "final"  # safetensors, with the same recipe
    dispatch(["evaluate", "--config", str(recipe), "--model", str(final), "--use_vllm", "false"])


@pytest.mark.parametrize("verb", ["train", "sft", "evaluate", "export"])
def test_no_planted_code_runs_even_where_pickles_are_allowed(verb, write_recipe, pickled, tmp_path, flag, capsys):
    import torch

    torch.save({"weight": Planted(flag)}, pickled / "pytorch_model.bin")
    words = [*verbs(write_recipe(), pickled, tmp_path)[verb], *ALLOW_PICKLES]
    assert "a pickled file is damaged, or holds more than tensors and could run code" in said(words, capsys)
    assert not flag.exists()


@pytest.fixture
def adapter(policy_folder, tmp_path) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy_folder)
    get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM")).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("verb", ["train", "evaluate", "export"])
def test_a_pickled_adapter_and_a_pickled_base_are_refused(verb, write_recipe, adapter, pickled, tmp_path, capsys):
    one = as_pickle(adapter, tmp_path / "pickled_adapter", "adapter_model.safetensors", "adapter_model.bin")
    shutil.copy(pickled / "pytorch_model.bin", one / "model.safetensors")  # a name that counts for no adapter
    told = said(verbs(write_recipe(), one, tmp_path)[verb], capsys)
    assert f"{one} has only pickled weights (adapter_model.bin)" in told
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(pickled)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    told = said(verbs(write_recipe(), adapter, tmp_path)[verb], capsys)
    assert f"{pickled} has only pickled weights (pytorch_model.bin)" in told
    if verb != "train":
        dispatch([*verbs(write_recipe(), adapter, tmp_path)[verb], *ALLOW_PICKLES])


@pytest.mark.parametrize("what", ["weights", "tokenizer"])
def test_a_reward_model_is_loaded_as_safely(what, policy_folder, pickled, odd, monkeypatch, flag):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    folder, message = pickled, "has only pickled weights"
    if what == "tokenizer":
        folder, message = own_tokenizer(policy_folder, odd), "has custom Python code"
    with pytest.raises(UserError, match=message):
        load_reward_models([str(folder)], ["judge"], TEMPLATES["boxed"], {})
    assert not flag.exists()


def own_tokenizer(policy_folder: Path, folder: Path) -> Path:
    """Turn the odd model into one that only brings a tokenizer."""
    shutil.copy(policy_folder / "config.json", folder)
    file = folder / "tokenizer_config.json"
    changes = {"tokenizer_class": "OddTokenizer", "auto_map": {"AutoTokenizer": ["odd.OddTokenizer", None]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("what", ["model", "tokenizer"])
def test_a_models_own_code_is_refused_by_every_verb_and_nobody_is_asked(
    verb, what, write_recipe, policy_folder, odd, tmp_path, flag, monkeypatch, capsys
):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    if what == "tokenizer":
        own_tokenizer(policy_folder, odd)
    told = said(verbs(write_recipe(), odd, tmp_path)[verb], capsys)
    assert f"{odd} has custom Python code, which would run as you: read it, and then allow it with" in told
    assert "trust_remote_code: true" in told
    assert not flag.exists()


def test_a_models_own_code_that_is_allowed_reaches_training_evaluation_and_export(write_recipe, odd, tmp_path, flag):
    recipe = write_recipe(model_name_or_path=str(odd), trust_remote_code=True)
    for verb in ("check", "train"):
        dispatch(verbs(recipe, odd, tmp_path)[verb])
    assert flag.exists()
    final = tmp_path / "run" / "final"
    assert json.loads((final / "config.json").read_text())["model_type"] == "odd"
    dispatch(["evaluate", "--config", str(recipe), "--model", str(final), "--use_vllm", "false"])
    dispatch([*verbs(recipe, odd, tmp_path)["export"], "--trust_remote_code", "true"])


def test_own_code_of_a_model_that_transformers_knows_is_left_alone(write_recipe, odd, policy_folder, tmp_path, flag):
    config = json.loads((policy_folder / "config.json").read_text())
    config["auto_map"] = json.loads((odd / "config.json").read_text())["auto_map"]
    (odd / "config.json").write_text(json.dumps(config))
    dispatch(verbs(write_recipe(), odd, tmp_path)["train"])
    assert not flag.exists()


def test_vllm_reads_safetensors_and_trusts_no_code_unless_asked(write_recipe):
    def words(**keys) -> str:
        recipe = load_recipe(["--config", str(write_recipe(use_vllm=True, **keys))])
        return " ".join(server_words(recipe.keys, recipe.engine, 32, "127.0.0.1", 8000))

    plain = words()
    assert "--load-format safetensors" in plain
    assert "--trust-remote-code" not in plain
    assert "--load-format auto" in words(model_init_kwargs={"use_safetensors": False})
    assert "--load-format dummy" in words(vllm_engine_kwargs={"load_format": "dummy"})
    assert "--trust-remote-code" in words(trust_remote_code=True)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "file", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin"]
)
def test_a_checkpoint_with_planted_code_runs_none(file, zipped, write_recipe, tmp_path, flag):
    import torch

    recipe = write_recipe(save_steps=1)
    train(load_recipe(["--config", str(recipe)]))
    checkpoint = tmp_path / "run" / "checkpoint-1"
    if zipped:
        torch.save(Planted(flag), checkpoint / file)
    else:
        (checkpoint / file).write_bytes(pickle.dumps(Planted(flag)))
    if file == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    resume = load_recipe(["--config", str(recipe), "--resume_from_checkpoint", str(checkpoint)])
    if file == "training_args.bin":  # nobody reads it
        train(resume)
    else:
        with pytest.raises(UserError, match=r"could run code: resume from another$|is damaged: name another"):
            train(resume)
    assert not flag.exists()


@pytest.mark.parametrize("ending", ["pkl", "pt", "pickle", "npy"])
def test_a_pickle_is_no_dataset(ending, write_recipe, tmp_path, flag):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / f"train.{ending}").write_bytes(pickle.dumps([Planted(flag)]))
    for path in (folder, folder / f"train.{ending}"):
        recipe = load_recipe(["--config", str(write_recipe(dataset={"name": "json", "path": str(path)}))])
        with pytest.raises(
            UserError, match=r"has no split 'train' \(it has no data file\)|unsupported file type: use .jsonl"
        ):
            train(recipe)
    assert not flag.exists()


SECRET = "hf_ThisIsNoTokenButLooksLikeOne"
NUMBER = 90210_4711_1871


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("hub_token", {"hub_token": SECRET}),
        ("hub_token", {"hub_token": NUMBER}),
        ("wandb_api_key", {"wandb_api_key": SECRET}),
        ("WANDB_API_KEY", {"WANDB_API_KEY": NUMBER}),
        ("vllm_engine_kwargs.hf_token", {"vllm_engine_kwargs": {"hf_token": SECRET}}),
        ("vllm_engine_kwargs.env.hub-token", {"vllm_engine_kwargs": {"env": {"hub-token": SECRET}}}),
        ("generation_kwargs.access_token", {"generation_kwargs": {"access_token": NUMBER}}),
        ("model_init_kwargs.token", {"model_init_kwargs": {"token": SECRET}}),
        ("model_init_kwargs.use_auth_token", {"model_init_kwargs": {"use_auth_token": SECRET}}),
        ("rewards.judge.api_key", {"rewards": {"judge": {"path": "judge.py:judge", "api_key": SECRET}}}),
        ("rewards.judge.apiKeys", {"rewards": {"judge": {"path": "judge.py:judge", "apiKeys": [SECRET, NUMBER]}}}),
        ("rewards.judge.credentials", {"rewards": {"judge": {"path": "j.py:j", "credentials": {"me": SECRET}}}}),
        ("dataset[0].login.password", {"dataset": [{"path": "rows.py:load", "login": {"password": NUMBER}}]}),
        ("dataset[0].headers.Authorization", {"dataset": [{"path": "rows.py:load", "headers": {"Authorization": SECRET}}]}),
    ],
)  # fmt: skip
def test_a_secret_in_a_recipe_is_refused_and_never_repeated(name, keys, write_recipe, tmp_path, capsys, monkeypatch):
    """Whatever else is wrong with the value that holds it."""
    monkeypatch.chdir(tmp_path)
    Path("judge.py").write_text("def judge(completions, api_key, **columns): ...")
    Path("rows.py").write_text("def load(split, login): ...")
    told = said(["train", "--config", str(write_recipe(**keys))], capsys)
    assert f"{name}: a secret would be saved in the run folder: set it in the environment (HF_TOKEN" in told
    assert SECRET not in told
    assert str(NUMBER) not in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--hub_token", SECRET], [f"--hub_token={SECRET}"], ["--api_key", SECRET], ["--rewards.judge.hub_token", SECRET],
        ["--api_key", f"{{{SECRET}"], ["--api_key", f"{{a: {SECRET}}}"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["train", "check", "evaluate"])
def test_a_secret_on_the_command_line_is_not_repeated(verb, words, write_recipe, capsys):
    with contextlib.suppress(SystemExit):
        assert run_cli(dispatch, [verb, "--config", str(write_recipe()), *words]) == 2
    output = capsys.readouterr()
    assert "error" in output.out + output.err
    assert SECRET not in output.out + output.err


def test_a_launch_with_a_secret_starts_nothing(write_recipe):
    words = ["launch", "--layout", "cpu", "--dry-run", "--config", str(write_recipe()), "--hub_token", SECRET]
    done = subprocess.run([sys.executable, "-m", "grpo_math", *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --hub_token: a secret would be saved")
    assert SECRET not in done.stderr


def test_what_only_sounds_like_a_secret_is_no_secret(write_recipe, tmp_path):
    names = "pad_token eos_token image_token end_token tokens cache_tokens keys tokenizer secretary".split()
    (tmp_path / "mine.py").write_text(f"def mine(completions, {', '.join(names)}, **columns): ...")
    mine = {"path": f"{tmp_path}/mine.py:mine"} | dict.fromkeys(names, "x")
    for changes in (
        {"model_init_kwargs": {"token": True}},
        {"dataset": {"name": "gsm8k", "max_prompt_tokens": 64}},
        {"generation_kwargs": {"eos_token_id": 2, "pad_token_id": 0, "bad_words_ids": [[3]]}},
        {"rewards": {"overlong": {"cache_tokens": 2}, "mine": mine}},
    ):
        load_recipe(["--config", str(write_recipe(**changes))])
    load_recipe(["--config", str(sft_recipe(write_recipe())), "--eos_token", "<|end|>"])


def test_keys_in_the_environment_are_in_no_file_of_a_run(write_recipe, tmp_path, monkeypatch, capsys):
    key = "0123456789abcdef" * 2 + "01234567"
    for name, value in {"WANDB_API_KEY": key, "HF_TOKEN": SECRET, "WANDB_MODE": "offline"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    recipe = write_recipe(report_to="wandb", eval={"before_after": True}, trust_remote_code=False)
    assert run_cli(dispatch, ["train", "--config", str(recipe)]) == 0
    output = capsys.readouterr()
    kept = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"environment" in kept
    for value in (key, SECRET):
        assert value not in output.out + output.err
        assert value.encode() not in kept
