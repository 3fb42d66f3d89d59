"""What the model sees, and which prompts are dropped."""

import copy

import pytest

from grpo_math.data import prompts
from grpo_math.data.pairs import Pairs
from grpo_math.data.problem import Problem
from grpo_math.data.prompts import (
    TEMPLATES,
    PromptTemplate,
    prompt_ids,
    prompt_lengths,
    to_rows,
    token_ids,
    until_stop,
)
from grpo_math.errors import UserError

QUESTION = "Ava has 3 apples. {How} many?"


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_shows_the_question_once_and_literally(name, tokenizer):
    template = TEMPLATES[name]
    prompt = template.prompt(QUESTION, tokenizer)
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    assert text.count(QUESTION) == 1
    assert isinstance(prompt, list) is template.chat


def test_the_shapes_trl_wants(tokenizer):
    assert TEMPLATES["qwen_math"].prompt("q", tokenizer) == [
        {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."},
        {"role": "user", "content": "q"},
    ]
    assert TEMPLATES["question_only"].prompt("q", tokenizer) == "q"
    assert TEMPLATES["r1_zero"].prompt("q", tokenizer).endswith("User: q\nAssistant: <think>")


def test_a_rows_own_system_message_stands_before_the_templates(tokenizer):
    problem = Problem("q", "1", system="Be brief.")
    asked = {
        name: to_rows([problem], TEMPLATES[name], tokenizer)[0]["prompt"] for name in ("boxed", "qwen_math", "r1_zero")
    }
    assert [turn["role"] for turn in asked["boxed"]] == ["system", "user"]
    assert asked["boxed"][0]["content"] == "Be brief."
    assert asked["qwen_math"][0]["content"].startswith("Be brief.\n\nPlease reason step by step")
    assert asked["r1_zero"].startswith("Be brief.\n\nThe User brings a problem")
    for template in TEMPLATES.values():
        plain = Problem("q", "1")
        (long, short), again = (
            prompt_lengths([problem, plain], template, tokenizer),
            prompt_lengths([problem], template, tokenizer),
        )
        assert short < long == again[0] == len(next(prompt_ids([problem], template, tokenizer)))


@pytest.mark.parametrize("prefill", ["", "<think>"])
def test_a_chat_template_that_refuses_a_rows_system_message_is_one_line(tokenizer, prefill):
    plain = copy.copy(tokenizer)
    plain.chat_template = "{{ raise_exception('no system role') if messages[0].role == 'system' else 'q' }}"
    template = PromptTemplate(prefill=prefill)
    assert prompt_lengths([Problem("q", "1")], template, plain) != [0]
    with pytest.raises(UserError, match=r"^prompt_template: the chat template refuses a prompt: no system role$"):
        prompt_lengths([Problem("q", "1", system="Be brief.")], template, plain)
    with pytest.raises(UserError, match=r"^prompt_template: the chat template refuses a prompt: no system role$"):
        Pairs(template, plain, worked=False, max_length=None).row(Problem("q", "1", system="Be brief."))


def test_a_prefill_in_a_chat_ends_the_rendered_prompt(tokenizer):
    template = PromptTemplate(user="{question}", prefill="Let me see:")
    prompt = template.prompt("q", tokenizer)
    assert prompt == "<|user|>q<|assistant|>Let me see:"
    assert tokenizer.decode(token_ids(prompt, tokenizer)) == prompt
    assert template.full_text(" 4") == "Let me see: 4"


def test_a_begin_token_is_not_doubled():
    class WithBegin:
        bos_token = "<s>"

        def apply_chat_template(self, messages, **_):
            return f"<s>{messages[0]['content']}"

    assert PromptTemplate(prefill="!").prompt("q", WithBegin()) == "q!"


def test_token_counts_are_those_of_the_chat_template(tokenizer):
    messages = TEMPLATES["boxed"].prompt("Ava has 3", tokenizer)
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered.endswith("<|assistant|>")
    assert token_ids(messages, tokenizer) == tokenizer(rendered, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_many_prompts_have_the_ids_of_each(name, tokenizer, monkeypatch):
    template, questions = TEMPLATES[name], ["Ava has 3", "1", "Ava has 3 apples"]
    each = [token_ids(template.prompt(question, tokenizer), tokenizer) for question in questions]
    for size in (1, 2, 3, 4):
        monkeypatch.setattr(prompts, "BATCH", size)
        assert list(prompt_ids([Problem(question, "1") for question in questions], template, tokenizer)) == each


def test_rows_carry_every_meta_column_but_those_of_trl(tokenizer):
    problems = [Problem("a", "1", "w", {"level": 3, "prompt": "clash"}), Problem("b", "2", meta={"source": "s"})]
    assert to_rows(problems, TEMPLATES["question_only"], tokenizer) == [
        {"prompt": "a", "solution": "1", "question": "a", "worked": "w", "level": 3, "source": None},
        {"prompt": "b", "solution": "2", "question": "b", "worked": None, "level": None, "source": "s"},
    ]


@pytest.mark.parametrize(
    "values",
    [[None, "s"], [1, 2.5], [None, 3], [{"x": 1}, {"y": "s"}], [[], [{"x": 1}]], [{}, {"x": 1}], [True, None], ["s", "t"]],
)  # fmt: skip
def test_a_dataset_is_what_datasets_makes_of_the_rows(values):
    from datasets import Dataset

    from grpo_math.data.prompts import to_dataset

    rows = [{"prompt": [{"role": "user", "content": "q"}], "column": value} for value in values]
    made, theirs = to_dataset(rows), Dataset.from_list(rows)
    assert made.features == theirs.features
    assert list(made) == list(theirs)


def test_stop_strings_by_engine():
    template = TEMPLATES["r1_zero"]
    assert template.generation_kwargs(use_vllm=True) == {"stop": ["</answer>"], "include_stop_str_in_output": True}
    assert template.generation_kwargs(use_vllm=False) == {"stop_strings": ["</answer>"]}
    assert TEMPLATES["boxed"].generation_kwargs(use_vllm=True) == {}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("4</answer>.", "4</answer>"),
        ("4</answer>", "4</answer>"),
        ("4</answer>\n\nUser: 5</answer>", "4</answer>"),
        ("4 END</answer>", "4 END"),
        ("</answe", "</answe"),
        ("", ""),
    ],
)
def test_a_text_ends_with_its_first_stop_string(text, kept):
    assert until_stop(text, ("</answer>", "END")) == kept
    assert until_stop(text, ()) == text
