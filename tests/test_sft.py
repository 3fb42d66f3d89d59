"""The warm start: what is taught, on which tokens, and that GRPO goes on from it."""

import json

import pytest
from conftest import ROWS
from hypothesis import given
from hypothesis import strategies as st

from grpo_math.data.adapters import gsm8k
from grpo_math.data.loading import load_problems
from grpo_math.data.pairs import Pairs
from grpo_math.data.problem import DatasetSpec, Problem
from grpo_math.data.prompts import TEMPLATES, PromptTemplate
from grpo_math.errors import UserError
from grpo_math.grading import boxes, extract, grade, well_formed, without_boxes
from grpo_math.recipe.recipe import load_recipe
from grpo_math.sft import sft
from grpo_math.train import train

BOXED = TEMPLATES["boxed"]
GSM8K = gsm8k({"question": "q", "answer": "3+4=<<3+4=7>>7\n#### 7"})
MATH = Problem("q", r"\frac{1}{2}", r"Half, so $\boxed{\frac{1}{2}}$ it is.")


@pytest.mark.parametrize(
    ("problem", "template", "worked", "answer"),
    [
        (GSM8K, "boxed", "3+4=7\n\\boxed{7}", "\\boxed{7}"),
        (GSM8K, "gsm8k_hash", "3+4=7\n#### 7", "#### 7"),
        (GSM8K, "r1_zero", "3+4=7</think> <answer>7</answer>", "</think> <answer>7</answer>"),
        (MATH, "boxed", r"Half, so $\boxed{\frac{1}{2}}$ it is.", r"\boxed{\frac{1}{2}}"),
        (MATH, "gsm8k_hash", "Half, so $\\frac{1}{2}$ it is.\n#### \\frac{1}{2}", r"#### \frac{1}{2}"),
        (MATH, "r1_zero", r"Half, so $\frac{1}{2}$ it is.</think> <answer>\frac{1}{2}</answer>", r"</think> <answer>\frac{1}{2}</answer>"),
        (Problem("q", '["half", "1/2"]', r"So \boxed{1/2}."), "boxed", r"So \boxed{1/2}.", r"\boxed{half}"),
        (Problem("q", '["half", "1/2"]', r"So \boxed{1/2}."), "gsm8k_hash", "So 1/2.\n#### half", "#### half"),
        (Problem("q", '["half", "1/2"]'), "r1_zero", "</think> <answer>half</answer>", "</think> <answer>half</answer>"),
        (Problem("q", "3", r"\boxed{1} and \boxed{2}"), "boxed", "1 and 2\n\\boxed{3}", r"\boxed{3}"),
    ],
)  # fmt: skip
def test_worked_answers_are_written_in_the_templates_own_style(problem, template, worked, answer):
    template = TEMPLATES[template]
    assert (template.target(problem, worked=True), template.target(problem, worked=False)) == (worked, answer)
    for target in (worked, answer):
        assert grade(template.full_text(target), problem.answer, template.answer_style).correct
        assert well_formed(template.full_text(target), template.answer_style)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (r"$\boxed{4}$", "$4$"), (r"\fbox{a{b}c} \boxed{2}", "a{b}c 2"), (r"\boxed 4 yes", "4 yes"), (r"\boxed{\boxed{1}}", "1"),
        ("none", "none"), (r"\boxed{open", "open"), (r"\boxed", ""), ("", ""), (r"\boxed{}", ""),
    ],
)  # fmt: skip
def test_without_boxes(text, plain):
    assert without_boxes(text) == plain


def test_a_megabyte_is_unboxed_in_no_time():
    for piece in (r"\boxed{", r"\boxed", "{", "}", "\\"):
        without_boxes(piece * (2**20 // len(piece)))


@pytest.mark.parametrize("prefill", ["", "<think>", "<think>\n", "Let me think.\n<think>"])
def test_what_is_taught_behind_a_prefill_is_well_formed(prefill):
    template = PromptTemplate(prefill=prefill, answer_style="answer_tag")
    for problem in (GSM8K, MATH):
        whole = template.full_text(template.target(problem, worked=True))
        assert whole.count("<think>") == 1
        assert grade(whole, problem.answer, "answer_tag").correct
        assert well_formed(whole, "answer_tag") is not prefill.startswith("Let")


@given(st.text(alphabet="{}\\boxed 1$", max_size=30))
def test_nothing_stays_boxed(text):
    assert boxes(without_boxes(text)) == []


@pytest.mark.parametrize(("name", "folder", "split"), [("gsm8k", "gsm8k", "train"), ("math500", "math500", "test")])
def test_every_real_worked_answer_is_right_in_every_style(real_data, name, folder, split):
    problems = load_problems(DatasetSpec(name=name, path=str(real_data / folder), split=split)).problems[:1500]
    for template in (TEMPLATES[name] for name in ("boxed", "gsm8k_hash", "r1_zero")):
        for problem in problems:
            target = template.full_text(template.target(problem, worked=True))
            assert extract(target, template.answer_style) is not None
            assert grade(target, problem.answer, template.answer_style).correct, (problem.answer, target)


@pytest.fixture
def write_sft(write_recipe):
    """A small SFT recipe; the changes are as for `write_recipe`."""

    def write(name: str = "sft.yaml", **changes):
        grpo = dict.fromkeys(("rewards", "num_generations", "max_completion_length"))
        return write_recipe(name, **grpo | {"sft": {"target": "worked"}, "learning_rate": 1e-2} | changes)

    return write


def run(path, *arguments: str) -> dict:
    return sft(load_recipe(["--config", str(path), *arguments], "SFT"))


def rows(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_warm_start_teaches_and_leaves_everything_in_its_folder(write_sft, tmp_path):
    eval_ = {"before_after": True, "every": 10, "max_completion_length": 24}
    results = run(write_sft(max_steps=30, eval=eval_))
    folder = tmp_path / "run"
    assert results == json.loads((folder / "results.json").read_text())
    losses = [row["loss"] for row in rows(folder / "metrics.jsonl") if "loss" in row]
    assert len(losses) == 30
    assert losses[-1] < losses[0] / 2
    assert [row["step"] for row in rows(folder / "eval.jsonl")] == [0, 10, 20, 30]
    assert results["after"]["format_accuracy"] >= results["before"]["format_accuracy"]
    assert (folder / "final" / "model.safetensors").exists()


@pytest.mark.parametrize("template", ["boxed", "r1_zero"])
def test_the_loss_is_on_the_completion_alone_up_to_its_end_token(write_sft, template, tokenizer, monkeypatch):
    """The prompt's tokens are those GRPO feeds, and every token behind them is trained on."""
    from trl import SFTTrainer

    batches = []
    compute_loss = SFTTrainer.compute_loss
    monkeypatch.setattr(
        SFTTrainer, "compute_loss", lambda self, model, inputs, *rest, **more: batches.append(inputs) or compute_loss(self, model, inputs, *rest, **more)
    )  # fmt: skip
    run(write_sft(max_steps=1, prompt_template=template, per_device_train_batch_size=16))
    taught = {}
    for ids, labels in zip(batches[0]["input_ids"].tolist(), batches[0]["labels"].tolist(), strict=True):
        start = next(i for i, label in enumerate(labels) if label != -100)
        taught[tuple(ids[:start])] = tokenizer.decode([label for label in labels[start:] if label != -100])
    template = TEMPLATES[template]
    from grpo_math.data.prompts import token_ids

    expected = {
        tuple(token_ids(template.prompt(row["question"], tokenizer), tokenizer)): template.target(gsm8k(row), True) + "<|end|>"
        for row in ROWS[:16]
    }  # fmt: skip
    assert taught == expected


def test_what_cannot_be_taught_is_dropped_and_counted(write_sft, tmp_path, problem_folder):
    question = {"question": "q", "answer": "1"}
    lines = [question | {"worked": w} for w in ("short", "long " * 500, None)] + [question | {"worked": "short"}] * 7
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    dataset = {"name": "json", "path": str(tmp_path / "rows.jsonl")}
    run(write_sft(dataset=dataset, max_steps=1, max_length=128))
    log = (tmp_path / "run" / "training.log").read_text()
    assert "8 problems of 10 rows, dropped: 1 over max_length 128 tokens, 1 without a worked solution" in log
    answers = write_sft("a.yaml", dataset=dataset, sft={"target": "answer"}, output_dir=str(tmp_path / "answers"))
    run(answers, "--max_steps", "1")
    assert "10 problems of 10 rows" in (tmp_path / "answers" / "training.log").read_text()


def forget_the_end(run_folder):
    """As if the run had been killed between its steps 2 and 4."""
    for gone in ("checkpoint-4", "final", "results.json"):
        (run_folder / gone).rename(run_folder.parent / f"gone-{gone}")


def train_whole_and_in_halves(write_recipe, folder, **keys):
    """One GRPO recipe of four steps twice: uninterrupted in folder/whole, killed and resumed in folder/half."""
    for name in ("whole", "half"):
        path = write_recipe(f"{name}.yaml", output_dir=str(folder / name), max_steps=4, save_steps=2, **keys)
        train(load_recipe(["--config", str(path)]))
    forget_the_end(folder / "half")
    train(load_recipe(["--config", str(path), "--resume_from_checkpoint", "auto"]))


def test_resume_continues_bit_by_bit(write_sft, tmp_path):
    import torch
    from safetensors.torch import load_file

    run(write_sft("whole.yaml", output_dir=str(tmp_path / "whole"), max_steps=4, save_steps=2))
    half = write_sft("half.yaml", output_dir=str(tmp_path / "half"), max_steps=4, save_steps=2)
    run(half)
    forget_the_end(tmp_path / "half")
    assert run(half, "--resume_from_checkpoint", "auto")["steps"] == 4
    assert [row["step"] for row in rows(tmp_path / "half" / "metrics.jsonl")] == [1, 2, 3, 4]
    first, second = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "half"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_recipe_is_for_one_of_the_two(write_recipe, write_sft):
    with pytest.raises(UserError, match=r"sft.yaml: a recipe for SFT, not for GRPO: run it with grpo-math sft"):
        load_recipe(["--config", str(write_sft())], "GRPO")
    with pytest.raises(
        UserError, match=r"recipe.yaml: a recipe for GRPO, not for SFT: run it with grpo-math train, or"
    ):
        load_recipe(["--config", str(write_recipe())], "SFT")


@pytest.mark.parametrize("adapter", [False, True])
def test_grpo_goes_on_from_a_warm_start_and_beta_measures_against_it(write_recipe, write_sft, tmp_path, adapter):
    lora = {"use_peft": True, "lora_r": 2, "lora_dropout": 0.0} if adapter else {}
    start = tmp_path / "sft"
    run(write_sft(output_dir=str(start), max_steps=20, **lora))
    assert (start / "final" / "adapter_config.json").exists() is adapter
    keys = {"beta": 0.5, "max_steps": 4, "learning_rate": 1e-2, "rewards": {"language": {}}, "preflight": False}
    recipe = write_recipe(model_name_or_path=str(start / "final"), **keys)
    train(load_recipe(["--config", str(recipe)]))
    kl = [row["kl"] for row in rows(tmp_path / "run" / "metrics.jsonl")]
    assert abs(kl[0]) < 1e-9
    assert max(kl[1:]) > 1e-6
    if adapter:
        assert (tmp_path / "run" / "final" / "adapter_config.json").exists()


def test_a_run_from_an_adapter_resumes_bit_by_bit(write_recipe, write_sft, tmp_path):
    import torch
    from safetensors.torch import load_file

    run(write_sft(output_dir=str(tmp_path / "sft"), use_peft=True, lora_r=2, lora_dropout=0.0))
    keys = {
        "model_name_or_path": str(tmp_path / "sft" / "final"),
        "beta": 0.5,
        "learning_rate": 1e-2,
        "rewards": {"language": {}},
        "preflight": False,
    }
    train_whole_and_in_halves(write_recipe, tmp_path, **keys)
    whole, half = (rows(tmp_path / name / "metrics.jsonl") for name in ("whole", "half"))
    assert [row["kl"] for row in whole] == [row["kl"] for row in half]
    first, second = (load_file(tmp_path / name / "final" / "adapter_model.safetensors") for name in ("whole", "half"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_own_template_can_be_taught_too():
    template = PromptTemplate(user="Q: {question} A:", chat=False, answer_style="fallback", prefill="Well, ")
    assert template.target(GSM8K, worked=True) == "3+4=7\n\\boxed{7}"


CHANGING = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'].split('</think>')[-1] }}"
    "{% if m['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ENDLESS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'assistant' %}<|user|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TAGS = {"user": "{question}", "answer_style": "answer_tag"}


@pytest.mark.parametrize(
    ("chat_template", "changes", "message"),
    [
        (CHANGING, {"prompt_template": TAGS}, r"changes the answer: '<think>1\+1=2</think> <answer>2</answer>' becomes ' <answer>2"),
        (ENDLESS, {}, r"ends an answer with '<\|user\|>', but generation ends at '<\|end\|>': set eos_token"),
        (ENDLESS, {"eos_token": "<|nope|>"}, r"eos_token: '<\|nope\|>' is not a token of"),
    ],
)  # fmt: skip
def test_a_chat_template_that_would_teach_something_else(
    write_sft, policy_folder, tmp_path, chat_template, changes, message
):
    from test_train import changed_policy

    model = changed_policy(policy_folder, tmp_path / "model", chat_template=chat_template)
    with pytest.raises(UserError, match=message):
        run(write_sft(model_name_or_path=model, **changes))


def test_the_prompts_tokens_stay_what_grpo_feeds_whatever_follows(write_sft, tokenizer):
    """Tokenised in one piece, the end of the prompt and the beginning of the answer would be one token."""
    assert len(tokenizer(" apples")["input_ids"]) == 1
    template = {"user": "{question} apple", "chat": False}
    recipe = load_recipe(["--config", str(write_sft(prompt_template=template))])
    row = Pairs(recipe.template, tokenizer, True, None).row(Problem("q", "1", "s and apples"))
    prompt = tokenizer("q apple")["input_ids"]
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["completion_mask"] == [0] * len(prompt) + [1] * (len(row["input_ids"]) - len(prompt))
    assert tokenizer.decode(row["input_ids"][len(prompt) :]) == "s and apples\n\\boxed{1}<|end|>"


def test_a_chat_template_may_add_to_the_answer(write_sft, policy_folder, tmp_path, tokenizer):
    """As Qwen3's does: an empty thought before it."""
    from test_train import changed_policy
    from transformers import AutoTokenizer

    thinking = CHANGING.replace(
        "m['content'].split('</think>')[-1]", "('<think></think>' if m['role'] == 'assistant' else '') + m['content']"
    )
    model = changed_policy(policy_folder, tmp_path / "model", chat_template=thinking)
    run(write_sft(model_name_or_path=model, max_steps=1))
    recipe = load_recipe(["--config", str(write_sft(model_name_or_path=model))])
    loaded = AutoTokenizer.from_pretrained(model)
    _, completion = Pairs(recipe.template, loaded, True, None).ids(GSM8K)
    assert loaded.decode(completion) == "<think></think>3+4=7\n\\boxed{7}<|end|>"


def test_every_problem_is_looked_at_not_only_the_first(write_sft, policy_folder, tmp_path):
    from test_train import changed_policy

    model = changed_policy(policy_folder, tmp_path / "model", chat_template=CHANGING)
    lines = [{"question": "q", "answer": "1", "worked": worked} for worked in ("plain", "a</think>b")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"changes the answer: 'a</think>b"):
        run(write_sft(model_name_or_path=model, dataset={"name": "json", "path": str(tmp_path / "rows.jsonl")}))


def test_the_turns_end_may_be_named_and_ends_generation_from_then_on(write_sft, policy_folder, tmp_path):
    from test_train import changed_policy
    from transformers import AutoTokenizer, GenerationConfig

    model = changed_policy(policy_folder, tmp_path / "model", chat_template=ENDLESS)
    run(write_sft(model_name_or_path=model, eos_token="<|user|>", max_steps=1))
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "final").eos_token == "<|user|>"
    ends = GenerationConfig.from_pretrained(tmp_path / "run" / "final").eos_token_id
    assert AutoTokenizer.from_pretrained(model).convert_tokens_to_ids("<|user|>") in ends


def test_a_4_bit_run_from_an_adapter_takes_small_steps_and_resumes_bit_by_bit(write_recipe, write_sft, tmp_path):
    """In bfloat16, which TRL would use, a step of 5e-6 is rounded away."""
    import torch
    from safetensors.torch import load_file

    pytest.importorskip("bitsandbytes")
    lora = {"use_peft": True, "lora_r": 2, "lora_dropout": 0.0}
    run(write_sft(output_dir=str(tmp_path / "sft"), max_steps=4, **lora))
    keys = {"model_name_or_path": str(tmp_path / "sft"), "load_in_4bit": True, "beta": 0.1, "learning_rate": 5e-6}
    train_whole_and_in_halves(write_recipe, tmp_path, rewards={"language": {}}, preflight=False, **keys)
    folders = (tmp_path / name / "final" for name in ("sft", "whole", "half"))
    before, whole, half = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert all(torch.equal(whole[name], half[name]) for name in whole)
    changed = sum((whole[name] != before[name]).sum() for name in whole) / sum(map(torch.numel, whole.values()))
    assert changed > 0.9
    assert rows(tmp_path / "whole" / "metrics.jsonl")[0]["kl"] == 0.0
