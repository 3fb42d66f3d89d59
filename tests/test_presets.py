"""The set-ups people bring: each recipe carries their numbers, and runs through the command a person types."""

import copy
import json
import re
import shutil

import forked
import pytest
import yaml
from conftest import ROOT
from stand_ins import config_of, save_stand_in

from grpo_math.checks import CHECKS, Subject, memory, run_checks
from grpo_math.checks.machine import batch_of
from grpo_math.data.prompts import TEMPLATES
from grpo_math.recipe.file import dotted, read_yaml
from grpo_math.recipe.recipe import Recipe, load_recipe, resolve
from grpo_math.recipe.trl import trl_keys
from grpo_math.train import train


def shipped(name: str, *arguments: str) -> Recipe:
    return load_recipe(["--config", str(ROOT / "recipes" / f"{name}.yaml"), *arguments])


def numbers(recipe: Recipe) -> dict:
    """Every value of a recipe in one flat mapping; ours under the names of the YAML."""
    flat = {**recipe.trainer, **recipe.model, "baseline": recipe.baseline, "eval_every": recipe.eval.every}
    for spec in recipe.rewards:
        flat[spec.name] = spec.params | {"weight": spec.weight, "scale": spec.scale, "bias": spec.bias}
    flat["template"] = recipe.template
    flat["dataset"] = recipe.datasets[0].name
    flat["prompts"] = recipe.prompts_per_step or (
        recipe.trainer["per_device_train_batch_size"]
        * recipe.trainer.get("gradient_accumulation_steps", 1)
        // recipe.trainer.get("num_generations", 1)
    )
    return flat


PLAIN = {"weight": 1.0, "scale": 1.0, "bias": 0.0}
BINARY = {
    "dataset": "gsm8k", "template": TEMPLATES["boxed"], "num_train_epochs": 5, "per_device_train_batch_size": 8, "learning_rate": 1.7e-5, "report_to": "wandb",
}  # fmt: skip
PLUSMINUS = {
    "template": TEMPLATES["qwen_math"],
    "correctness": {"correct": 1.0, "wrong": -1.0, "no_answer": -0.5} | PLAIN, "use_peft": True, "lora_r": 16,
    "lora_alpha": 32, "lora_dropout": 0.05, "beta": 0.05, "num_generations": 2, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4, "learning_rate": 5e-6, "temperature": 0.7, "top_p": 1.0,
    "model_name_or_path": "runs/sft_math/final",
}  # fmt: skip
STUDY = {
    "dataset": "math", "template": TEMPLATES["r1_zero"], "model_name_or_path": "Qwen/Qwen2.5-Math-1.5B", "r1_zero": PLAIN, "num_generations": 8,
    "learning_rate": 1e-5, "loss_type": "grpo",
}  # fmt: skip
ON_POLICY = STUDY | {"max_steps": 200, "prompts": 32, "eval_every": 5, "save_steps": 10}
QA = {
    "heuristic": {"length": 0.2, "formulas": 0.3, "concepts": 0.3, "structure": 0.2} | PLAIN, "beta": 0.1,
    "load_in_4bit": True, "use_peft": True,
}  # fmt: skip
PAPER = {
    "dataset": "gsm8k",
    "model_name_or_path": "Qwen/Qwen2.5-1.5B-Instruct",
    "prompts": 8,
    "max_completion_length": 512,
    "learning_rate": 1e-6,
}
PRESETS = {
    "gsm8k_binary": BINARY | {"prompts": 8, "num_generations": 4, "max_completion_length": 512, "correctness": {"correct": 1.0, "wrong": 0.0} | PLAIN | {"scale": 10}},
    "gsm8k_binary_sft": BINARY | {"prompts": 8},
    "gsm8k_binary_sft_answers": BINARY | {"prompts": 8},
    "math_plusminus": PLUSMINUS | {"dataset": "math", "max_completion_length": 2048},
    "math_plusminus_small": PLUSMINUS | {"max_completion_length": 512},
    "sft_math": {"template": TEMPLATES["qwen_math"], "dataset": "math", "model_name_or_path": "Qwen/Qwen2.5-Math-1.5B", "eos_token": "<|im_end|>"},
    "math_dual_gpu": {"template": TEMPLATES["qwen_math"], "num_generations": 4, "beta": 0.05, "learning_rate": 5e-7, "per_device_train_batch_size": 16, "prompts": 16, "project": "math-grpo", "report_to": "wandb", "r1_zero": PLAIN, "eval_every": 50, "model_name_or_path": "runs/sft_math/final"},
    "r1_zero_reinforce_with_baseline": ON_POLICY | {"baseline": "group", "scale_rewards": "group"},
    "r1_zero_no_baseline": ON_POLICY | {"baseline": "none", "scale_rewards": "none"},
    "r1_zero_grpo_clip": STUDY | {"max_steps": 4 * 200, "prompts": 128, "num_iterations": 4, "epsilon": 0.2, "eval_every": 4 * 5, "save_steps": 4 * 10},
    "dapo": PAPER | {"num_generations": 16, "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0, "loss_type": "dapo", "mask_truncated_completions": False, "generation_batch_size": 16 * 8 * 16, "correctness": {"correct": 1.0, "wrong": -1.0} | PLAIN, "overlong": {"cache_tokens": 102} | PLAIN, "format": None},
    "dr_grpo": PAPER | {"loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.0},
    "gspo": PAPER | {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4, "beta": 0.0, "generation_batch_size": 4 * 8 * 8},
    "cispo": PAPER | {"loss_type": "cispo", "epsilon_high": 5.0, "beta": 0.0, "generation_batch_size": 4 * 8 * 8},
    "tis": PAPER | {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 2.0},
    "qa_heuristic": QA | {"num_train_epochs": 3, "num_generations": 4, "prompts": 2, "per_device_train_batch_size": 2},
    "qa_heuristic_fast_test": QA | {"num_train_epochs": 1, "num_generations": 2, "prompts": 1, "per_device_train_batch_size": 1},
    "qa_heuristic_full_training": QA | {"num_train_epochs": 5, "num_generations": 8, "prompts": 4, "per_device_train_batch_size": 4},
    "qa_heuristic_low_memory": QA | {"num_train_epochs": 3, "num_generations": 2, "prompts": 1, "per_device_train_batch_size": 1},
    "qa_heuristic_from_sft": QA | {"num_train_epochs": 3, "num_generations": 4, "prompts": 2, "learning_rate": 5e-6, "model_name_or_path": "runs/sft_gsm8k/final"},
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_carries_exactly_these_numbers(name):
    found = numbers(shipped(name))
    assert {key: found.get(key) for key in PRESETS[name]} == PRESETS[name]


PAPERS = {  # a recipe, its title in docs/losses.md, and values there that the recipe scales to its base
    "dapo": ("DAPO", {"max_completion_length": 20480, "rewards": {"overlong": {"cache_tokens": 4096}}}),
    "dr_grpo": ("Dr. GRPO", {}),
    "gspo": ("GSPO", {}),
    "cispo": ("CISPO", {}),
    "tis": ("Truncated importance sampling", {}),
}
OF_THE_METHOD = ("loss_type", "scale_rewards", "importance_sampling_level", "beta", "epsilon", "epsilon_high")


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_has_the_same_keys_in_its_recipe_and_in_the_docs(name, tmp_path):
    """And none of the recipe that it is laid over is left."""
    title, scaled = PAPERS[name]
    text = (ROOT / "docs" / "losses.md").read_text()
    documented = re.search(rf"(?ms)^# {re.escape(title)}, (.*?)^(?:---|```)", text)[0].rstrip("-`")
    paper = re.search(r"arXiv:[\d.]+|Yao et al. 2025", documented)[0]
    assert paper in (ROOT / "recipes" / f"{name}.yaml").read_text()
    paper_keys, own = yaml.safe_load(documented), read_yaml(ROOT / "recipes" / f"{name}.yaml")
    assert own.pop("extends") == "gsm8k_qwen2.5_1.5b.yaml"
    found = dict(dotted(own)) | dict(dotted(scaled))
    assert dict(dotted(paper_keys)).items() <= found.items()
    defaults = {key: trl_keys("GRPO")[0][key].default for key in OF_THE_METHOD}
    further = found.keys() - dict(dotted(paper_keys)).keys() - {"generation_batch_size", "rewards.format"}
    assert all(found[key] in (None, default) for key, default in defaults.items() if key in further)
    mine = shipped("math_dual_gpu").dump() + "epsilon: 0.1\nepsilon_high: 0.5\nimportance_sampling_level: token\n"
    (tmp_path / "mine.yaml").write_text(mine)
    (tmp_path / "both.yaml").write_text(f"extends: [mine.yaml, {name}]\nseed: 7\n")
    both, preset = load_recipe(tmp_path / "both.yaml"), shipped(name)
    assert both.trainer["seed"] == 7
    assert both.datasets[0].name == "math"  # and nothing of the preset's own base
    assert both.trainer["learning_rate"] == 5e-7
    if name != "tis":
        assert {key: both.trainer.get(key) for key in OF_THE_METHOD} == {
            key: preset.trainer.get(key) for key in OF_THE_METHOD
        }


@pytest.mark.parametrize("name", ["dapo", "gspo"])
def test_a_paper_laid_over_a_recipe_trains(name, write_recipe, tmp_path):
    """Two rollouts of two optimizer steps each."""
    base = write_recipe("mine.yaml", max_steps=4, per_device_train_batch_size=8, num_generations=4)
    own = {"extends": [base.name, name], "num_generations": 4, "generation_batch_size": 16, "use_vllm": False}
    own |= {"rewards": {"overlong": {"cache_tokens": 2}}} if name == "dapo" else {}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(own))
    assert train(tmp_path / "both.yaml")["steps"] == 4
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert ["completions/mean_length" in row for row in logged] == [True, False, True, False]


def test_the_comparison_runs_differ_in_what_they_are_taught():
    assert shipped("gsm8k_binary_sft").sft.target == "worked"
    assert shipped("gsm8k_binary_sft_answers").sft.target == "answer"
    assert shipped("gsm8k_binary_sft").datasets[0].name == shipped("gsm8k_binary").datasets[0].name


def test_an_on_policy_step_trains_once_on_what_it_generated():
    """No `num_iterations`, no `steps_per_generation`: then the ratio is 1 and nothing is clipped."""
    assert (
        not {"num_iterations", "steps_per_generation", "generation_batch_size"}
        & shipped("r1_zero_no_baseline").trainer.keys()
    )


STAND_INS = {  # beginning of a model's name -> its architecture, and its chat template (None: our own)
    "Qwen/Qwen3-": ("Qwen3ForCausalLM", "qwen3"),
    "Qwen/Qwen3.5-": ("Qwen3_5ForConditionalGeneration", "qwen3_5_nothink"),
    "meta-llama/Llama-3.2-": ("LlamaForCausalLM", "llama3_2"),
    "google/gemma-3-1b": ("Gemma3ForCausalLM", "gemma3"),
    "HuggingFaceTB/SmolLM3-": ("SmolLM3ForCausalLM", "switch"),
    "": ("Qwen2ForCausalLM", None),
}


def stand_in(model: str) -> str:
    return next(architecture for name, (architecture, _) in STAND_INS.items() if model.startswith(name))


NAMES = "Ava Ben Cleo Dan June Nora Omar".split()
THINGS = "apples books coins pens stamps tickets shells cards".split()


@pytest.fixture(scope="module")
def shelf(tokenizer, policy_folder, tmp_path_factory):
    """A stand-in for every model and dataset that a recipe names: models of 10 million parameters in their
    architectures, the tiny policy in place of the quickstart's, and 500 problems in the form of GSM8K, MATH and SVAMP."""
    folder = tmp_path_factory.mktemp("shelf")
    for split, numbers_ in (("train", range(2, 402)), ("test", range(402, 502))):
        gsm8k, math, svamp = [], [], []
        for n in numbers_:
            name, thing, more = NAMES[n % 7], THINGS[n % 8], n % 5 + 2
            question = f"{name} has {n} {thing} and buys {more} more {thing}. How many {thing} does {name} have now?"
            worked = f"{name} begins with {n} {thing}.\nThen {name} has {n} + {more} = {n + more} {thing}."
            gsm8k.append({"question": question, "answer": f"{worked}\n#### {n + more}"})
            solution = f"{worked} So the answer is $\\boxed{{{n + more}}}$."
            body, asked = f"{name} has {n} {thing}. {name} buys {more} more", f"How many {thing} does {name} have now?"
            svamp.append({"Body": body, "Question": asked, "Equation": f"( {n}.0 + {more}.0 )", "Answer": n + more})
            math.append({"problem": question, "solution": solution, "level": f"Level {n % 5 + 1}", "type": "Algebra"})
        for name, rows in (("gsm8k", gsm8k), ("math", math), ("math500", math), ("svamp", svamp)):
            (folder / name).mkdir(exist_ok=True)
            for file in (f"{split}.jsonl", f"{split}_two.jsonl"):  # the part of svamp_stories.py
                (folder / name / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = copy.deepcopy(tokenizer)
    whole.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})  # of Qwen's chat template
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_key_value_heads": 4}
    for architecture, template in set(STAND_INS.values()):
        more = {"vocab_size": 40_000, "max_position_embeddings": 16_384, "head_dim": 64}
        save_stand_in(architecture, template, whole, folder / architecture, "bfloat16", **sizes | more)
    (folder / "policy").symlink_to(policy_folder)
    return folder


RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
EXPLAINED = re.compile(r"(?m)^# check warns of (\w+): \S")


def headers(name: str) -> list[str]:
    """The comments of a recipe, and of those that it extends."""
    text = (ROOT / "recipes" / f"{name}.yaml").read_text()
    extended = re.search(r"(?m)^extends: (\w+)\.yaml$", text)
    return [text, *(headers(extended[1]) if extended else [])]


@pytest.mark.parametrize("name", RECIPES)
def test_check_warns_of_nothing_in_a_recipe_that_its_header_does_not_explain(shelf, name):
    """All checks but that of the machine. And a header explains nothing that is not found."""
    recipe, no_data = resolve(["--config", str(ROOT / "recipes" / f"{name}.yaml")])
    assert [one for one in no_data if "no file or folder" not in one] == []
    model = shelf / ("policy" if name == "quickstart" else stand_in(recipe.keys["model_name_or_path"]))
    words = ["--model_name_or_path", str(model), "--dataset.path", str(shelf / recipe.datasets[0].name)]
    words += ["--eval.datasets.path", str(shelf / "math500")] if recipe.eval.datasets else []
    subject = Subject(*resolve(["--config", str(ROOT / "recipes" / f"{name}.yaml"), *words]))
    checks = {check: parts for check, parts in CHECKS.items() if check != "launch"}
    found = [finding for _, findings in run_checks(subject, checks) for finding in findings if finding.level != "note"]
    assert [str(finding) for finding in found if finding.level == "error"] == []
    warned = {re.match(r"\w+", finding.says)[0] for finding in found}
    own, *inherited = map(EXPLAINED.findall, headers(name))
    assert warned <= {*own}.union(*inherited), list(map(str, found))
    assert {*own} <= warned


QWEN3 = {"head_dim": 128, "num_key_value_heads": 8}
QWEN3_5 = {"num_hidden_layers": 24, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256}
QWEN3_5 |= {"linear_num_key_heads": 16, "linear_num_value_heads": 16}
QWEN3_5 |= {"linear_key_head_dim": 128, "linear_value_head_dim": 128}
SIZES = {  # of the real models: vocabulary, hidden, intermediate, layers, and what else; from their configs
    "Qwen/Qwen3-0.6B": (151_936, 1024, 3072, 28, QWEN3 | {"num_attention_heads": 16}),
    "Qwen/Qwen3-1.7B": (151_936, 2048, 6144, 28, QWEN3 | {"num_attention_heads": 16}),
    "Qwen/Qwen3-4B": (151_936, 2560, 9728, 36, QWEN3 | {"num_attention_heads": 32}),
    "Qwen/Qwen3.5-0.8B": (248_320, 1024, 3584, 24, QWEN3_5 | {"vision": {"depth": 12, "hidden_size": 768, "intermediate_size": 3072}}),
    "Qwen/Qwen3.5-2B": (248_320, 2048, 6144, 24, QWEN3_5 | {"vision": {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096}}),
    "meta-llama/Llama-3.2-1B-Instruct": (128_256, 2048, 8192, 16, {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64}),
    "google/gemma-3-1b-it": (262_144, 1152, 6912, 26, {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256}),
    "HuggingFaceTB/SmolLM3-3B": (128_256, 2048, 11008, 36, {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128}),
}  # fmt: skip
ESTIMATED = re.compile(r"1 GPU with (\d+) GB.* by check's estimate")
PROMPT = 256  # tokens, of the longest prompt


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if ESTIMATED.search(headers(name)[0])])
def test_a_header_names_the_smallest_gpu_that_the_estimate_fits(name):
    recipe = shipped(name)
    model = recipe.keys["model_name_or_path"].removesuffix("-Base")
    vocabulary, hidden, intermediate, layers, more = SIZES[model]
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers} | more
    shape = memory.shape_of(config_of(stand_in(model), vocabulary, **sizes), recipe)
    dtype = recipe.model.get("dtype") or "float32"
    setting = memory.setting_of(recipe, dtype, batch_of(recipe, 1), PROMPT, "ddp", 1)
    fitting = [size for size in memory.CARDS if memory.verdict(shape, setting, size) == "fits"]
    assert int(ESTIMATED.search(headers(name)[0])[1]) == fitting[0]


CPU = "--use_cpu --bf16 false --gradient_checkpointing false --dataloader_pin_memory false --max_steps 2 --save_steps 1"
GRPO = f"{CPU} --use_vllm false --max_completion_length 8 --per_device_train_batch_size 8 --prompts_per_step null"
EVAL = "--eval.max_samples 4 --eval.every 1 --eval.batch_size 4 --eval.max_completion_length 8"
TINY = "--model_name_or_path policy"


QA_ANSWERS = ("Add the two numbers, for example $1 + 1 = 2$.", "Begin with one bowl, then put in\nwhat comes next.")


def data(name: str, held_out: bool = True) -> str:
    adapter = name if name in ("gsm8k", "math") else "json"
    evaluated = f"--eval.datasets.name {adapter} --eval.datasets.path {name}" if held_out else ""
    return f"--dataset.name {adapter} --dataset.path {name} {evaluated}"


@pytest.fixture(scope="module")
def world(tmp_path_factory, policy_folder, problem_folder):
    """A folder to run in, with problems in the forms of GSM8K, MATH and the JSON that people bring."""
    folder = tmp_path_factory.mktemp("world")
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (problem_folder / f"{split}.jsonl").open()]
        for row in rows:
            question, gold = row["question"], row["answer"].rpartition("#### ")[2]
            forms = {
                "math": {"problem": question, "solution": rf"It is $\boxed{{{gold}}}$."},
                "own": {"question": question, "ground_truth": gold, "predicted_answer": "7", "correct": gold == "7"},
                "qa": {"question": question, "answer": QA_ANSWERS[int(gold) // 2 % 2]},
            }
            for name, form in forms.items():
                (folder / name).mkdir(exist_ok=True)
                with (folder / name / f"{split}.jsonl").open("a") as file:
                    file.write(json.dumps(form) + "\n")
    for name, target in (("gsm8k", problem_folder), ("recipes", ROOT / "recipes")):
        (folder / name).symlink_to(target)
    shutil.copytree(policy_folder, folder / "policy")
    config = folder / "policy" / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 512})
    )  # R1-Zero's is long
    return folder


def launch(world, command: str, steps: int = 2) -> dict:
    """`grpo-math VERB --config recipes/NAME.yaml …` for "VERB NAME …"; all metrics, latest values."""
    verb, name, *arguments = command.split()
    words = [verb, "--config", f"recipes/{name}.yaml", *arguments]
    status, output = forked.grpo_math(words, world, WANDB_MODE="offline")
    assert status == 0, output
    metrics = [json.loads(line) for line in (world / "runs" / name / "metrics.jsonl").open()]
    metrics = [row for row in metrics if "eval/accuracy" not in row]
    assert [row["step"] for row in metrics] == list(range(1, steps + 1))
    assert (world / "runs" / name / "final").is_dir()
    return {name: value for row in metrics for name, value in row.items()}


def launch_all(world, *commands: str) -> list[dict]:
    return [launch(world, command) for command in commands]


@pytest.fixture(scope="module")
def warm_world(world):
    """With the warm starts that recipes name: a whole model in runs/sft_math, an adapter in runs/sft_gsm8k."""
    lora = "--use_peft --lora_r 16 --lora_alpha 32 --lora_dropout 0.05"
    launch_all(
        world,
        f"sft sft_math {TINY} {data('math')} {CPU} {EVAL} --eos_token null",
        f"sft sft_gsm8k {TINY} {data('gsm8k')} {CPU} {EVAL} {lora}",
    )
    return world


@pytest.mark.slow
def test_the_binary_run_and_its_two_comparison_runs(world):
    grpo, *sft = launch_all(
        world,
        f"train gsm8k_binary {TINY} {data('gsm8k')} {GRPO} {EVAL}",
        f"sft gsm8k_binary_sft {TINY} {data('gsm8k')} {CPU} {EVAL}",
        f"sft gsm8k_binary_sft_answers {TINY} {data('gsm8k')} {CPU} {EVAL}",
    )
    assert {"reward", "accuracy", "rewards/correctness/mean"} <= grpo.keys()
    assert all(row["loss"] > 0 for row in sft)
    assert len(list((world / "wandb").glob("offline-run-*"))) == 3


@pytest.mark.slow
def test_the_plus_minus_run_from_an_sft_checkpoint_on_peoples_own_json(warm_world):
    arguments = f"{data('own')} {GRPO} {EVAL}"
    for row in launch_all(
        warm_world, *(f"train {name} {arguments}" for name in ("math_plusminus", "math_plusminus_small"))
    ):
        assert {"reward", "accuracy", "kl"} <= row.keys()
        assert row["rewards/correctness/mean"] == -0.5  # an untaught policy boxes nothing
    again = "--max_steps 3 --resume_from_checkpoint runs/math_plusminus/checkpoint-2"
    launch(warm_world, f"train math_plusminus {arguments} {again}", steps=3)


@pytest.mark.slow
def test_the_run_that_evaluates_all_along_from_a_model_and_from_an_adapter(warm_world):
    for start in ("", "--model_name_or_path runs/sft_gsm8k --output_dir runs/math_dual_gpu"):
        row = launch(warm_world, f"train math_dual_gpu {data('math')} {GRPO} {EVAL} {start}")
        assert {"accuracy", "format_accuracy", "kl"} <= row.keys()
        evaluations = [json.loads(line) for line in (warm_world / "runs" / "math_dual_gpu" / "eval.jsonl").open()]
        assert [row["step"] for row in evaluations] == [0, 1, 2]
        shutil.rmtree(warm_world / "runs" / "math_dual_gpu")


@pytest.mark.slow
def test_the_r1_zero_study(world):
    names = ("reinforce_with_baseline", "no_baseline", "grpo_clip")
    longer = GRPO.replace("_length 8", "_length 32")  # room for </think> and an answer
    for row in launch_all(world, *(f"train r1_zero_{name} {TINY} {data('math')} {longer} {EVAL}" for name in names)):
        assert {"reward", "accuracy", "format_accuracy", "clip_ratio/region_mean"} <= row.keys()


@pytest.mark.slow
def test_the_qa_runs_in_4_bits_with_lora_and_a_reward_model(warm_world, tokenizer):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    judge = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **sizes)
    LlamaForSequenceClassification(judge).save_pretrained(warm_world / "judge")
    tokenizer.save_pretrained(warm_world / "judge")
    arguments = f"{data('qa', held_out=False)} {GRPO}"
    rows = launch_all(
        warm_world,
        f"train qa_heuristic {TINY} {arguments}",
        f"train qa_heuristic_fast_test {TINY} {arguments} --rewards.judge.reward_model judge",
        f"train qa_heuristic_full_training {TINY} {arguments} --rewards.heuristic false --rewards.judge.reward_model judge",
        f"train qa_heuristic_low_memory {TINY} {arguments} --load_in_4bit false --use_peft false",
        f"train qa_heuristic_from_sft {arguments}",
    )
    parts = {f"heuristic/{part}" for part in ("length", "formulas", "concepts", "structure")}
    assert [parts <= row.keys() for row in rows] == [True, True, False, True, True]
    assert ["rewards/judge/mean" in row for row in rows] == [False, True, True, False, False]
    final = warm_world / "runs" / "qa_heuristic_fast_test" / "final"
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(warm_world / "policy"), final)
