"""Models that think: what the chat template opens, where the answer stands, and budgets that are too small."""

import copy
import functools
import shutil
from pathlib import Path

import pytest
from stand_ins import config_of, save_stand_in
from transformers import GenerationConfig

from grpo_math.checks import Subject
from grpo_math.checks.setup import template, thinking
from grpo_math.data import TEMPLATES, Problem, PromptTemplate, token_ids
from grpo_math.evaluation import Benchmark, setup_of, solve
from grpo_math.evaluation.solve import grade_rows
from grpo_math.generation import Completion
from grpo_math.models import load_tokenizer
from grpo_math.recipe.parts import EvalSpec
from grpo_math.recipe.recipe import load_recipe
from grpo_math.runs.folder import read_table
from grpo_math.train import train

ON, OFF = {"enable_thinking": True}, {"enable_thinking": False}
BOXED = TEMPLATES["boxed"]
RESPONSE = {  # as TRL's for Qwen3, without tools
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "reasoning_content": {"open": "<think>", "close_pattern": r"</think>\s*", "content": "text"},
        "content": {"close_pattern": r"<\|end\|>", "content": "text"},
    },
}


@pytest.fixture(scope="module")
def thinker(tokenizer, tmp_path_factory):
    """The folder of a tiny Qwen3 with one of the chat templates; `split`: which describes the model's responses."""

    @functools.lru_cache
    def folder(template: str | None, split: bool = False) -> str:
        place, own = tmp_path_factory.mktemp("thinker"), copy.deepcopy(tokenizer)
        if split:
            own.response_template = RESPONSE
        return str(save_stand_in("Qwen3ForCausalLM", template, own, place))

    return folder


def loaded(folder: str, template: PromptTemplate = BOXED, variables: dict | None = None):
    keys = {"model_name_or_path": folder, "chat_template_kwargs": variables}
    return load_tokenizer(keys, template)


@pytest.mark.parametrize(
    ("template", "variables", "prefill", "opening", "thinks", "switch"),
    [
        ("qwen3", None, "", "", True, True),
        ("qwen3", ON, "", "", True, True),
        ("qwen3", OFF, "", "", False, True),
        ("qwen3_5_nothink", None, "", "", False, True),
        ("qwen3_5_nothink", ON, "", "<think>\n", True, True),
        ("qwen3_5_think", None, "", "<think>\n", True, True),
        ("qwen3_5_think", OFF, "", "", False, True),
        ("switch", None, "", "", True, True),
        ("switch", OFF, "", "", False, True),
        ("always", None, "", "<think>\n", True, False),
        ("always", OFF, "", "<think>\n", True, False),
        ("always", None, "I add. ", "<think>\n", True, False),
        ("always", None, "</think>\n", "", False, False),
        ("switch", None, "<think>", "", True, True),
        ("qwen2_5", None, "", "", False, False),
        (None, None, "", "", False, False),
    ],
)
def test_what_a_chat_template_does_about_thinking(thinker, template, variables, prefill, opening, thinks, switch):
    asked = PromptTemplate(user="{question}", prefill=prefill)
    tokenizer = loaded(thinker(template), asked, variables)
    found = asked.opening(tokenizer), asked.thinks(tokenizer), asked.can_stop_thinking(tokenizer)
    assert found == (opening, thinks, switch)


def test_plain_text_thinks_where_its_prefill_does(thinker):
    tokenizer = loaded(thinker("qwen3"))
    assert TEMPLATES["r1_zero"].thinks(tokenizer)
    assert not TEMPLATES["question_only"].thinks(tokenizer)


def test_with_the_switch_off_a_prompt_ends_with_an_empty_thought(thinker):
    for chat in ("switch", "qwen3"):
        tokenizer = loaded(thinker(chat), variables=OFF)
        prompt = tokenizer.decode(token_ids(BOXED.prompt("q", tokenizer), tokenizer))
        assert prompt.rstrip().endswith("<think>\n\n</think>")


TAGS = PromptTemplate(user="{question}", answer_style="answer_tag")
LAST = PromptTemplate(user="{question}", answer_style="fallback")
GRADED = [  # chat template, prompt template, completion as generated, its answer, in the style
    ("always", BOXED, r"2+2=4, so \boxed{4}", None, False),  # cut off while thinking
    ("always", BOXED, r"maybe \boxed{3}</think> \boxed{4}", "4", True),
    ("always", BOXED, r"\boxed{4}</think> That is it.", None, False),
    ("always", BOXED, r"</think>\boxed{4}", "4", True),
    ("always", BOXED, r"<think>\boxed{3}</think>\boxed{4}", "4", True),  # it opens another thought itself
    ("always", BOXED, r"<think>\boxed{4}", None, False),
    ("always", LAST, "The answer is 4.", None, False),
    ("always", LAST, "The answer is 3.</think>It is 4.", "4", True),
    ("always", TAGS, "2+2=4</think> <answer>4</answer>", "4", True),
    ("always", TAGS, "2+2=4 <answer>4</answer>", None, False),
    ("switch", BOXED, r"<think>\boxed{3}</think>\boxed{4}", "4", True),
    ("switch", BOXED, r"<think>\boxed{4}", None, False),
    ("switch", BOXED, r"\boxed{4}", "4", True),  # it did not think
    ("switch", TAGS, "<think>t</think> <answer>4</answer>", "4", True),
    ("switch", LAST, "<think>The answer is 4.", None, False),
    (None, BOXED, r"a \boxed{4}", "4", True),
]  # fmt: skip


def cases_of(chat: str | None, asked: PromptTemplate) -> tuple[list[str], list[tuple]]:
    """The completions as generated, and what is graded: text, answer, whether it is in the style."""
    cases = [(text, answer, formed) for named, style, text, answer, formed in GRADED if (named, style) == (chat, asked)]
    opening = "<think>\n" if chat == "always" else ""
    return [text for text, *_ in cases], [(opening + text, *rest) for text, *rest in cases]


@pytest.mark.parametrize(("chat", "asked"), dict.fromkeys((chat, asked) for chat, asked, *_ in GRADED))
def test_an_evaluation_grades_what_follows_the_thinking(thinker, chat, asked):
    tokenizer = loaded(thinker(chat))
    texts, expected = cases_of(chat, asked)
    setup = setup_of(EvalSpec(), asked, tokenizer, {tokenizer.eos_token_id}, 64, 0)
    solved = solve(Recorded(texts), Benchmark("b", [Problem("2+2?", "4")] * len(texts)), setup)
    rows = grade_rows([row for rows in solved for row in rows], asked)
    assert [(row["completion"], row["answer"], row["well_formed"]) for row in rows] == expected


@pytest.mark.parametrize(
    ("chat", "asked", "split"), [("always", BOXED, False), ("always", BOXED, True), ("always", TAGS, True), ("switch", BOXED, True)]
)  # fmt: skip
def test_a_training_grades_the_same_text(thinker, write_recipe, tmp_path, monkeypatch, chat, asked, split):
    """Also where the tokenizer has TRL put the thinking into a field of its own."""
    from trl import GRPOTrainer

    folder, (texts, expected) = thinker(chat, split), cases_of(chat, asked)
    tokenizer = loaded(folder)
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    ids += ids[: len(ids) % 2]  # whole groups
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", lambda *_: (ids, None))
    path = write_recipe(
        model_name_or_path=folder, prompt_template=asked.model_dump(), max_steps=1, preflight=False,
        per_device_train_batch_size=len(ids), rewards={"format": {}},
    )  # fmt: skip
    train(load_recipe(["--config", str(path)]))
    rows = read_table(tmp_path / "run" / "completions" / "completions_00001.parquet")
    found = [(row["completion"][0]["content"], row["answer"], row["rewards/format"]) for row in rows]
    assert found[: len(texts)] == expected


class Recorded:
    """An engine that generates these texts."""

    def __init__(self, texts: list[str]):
        self.texts = texts

    def generate(self, prompts, seeds, sampling, done=frozenset()):
        yield {place: [Completion(text, 3, False)] for place, text in enumerate(self.texts)}


@pytest.fixture
def said(thinker, write_recipe, tmp_path):
    """What the check of thinking finds, for a tiny model or, from its config alone, one of 10 million parameters."""

    def check(chat: str, length: int, large: bool = True, **keys) -> list[tuple[str, str, str]]:
        folder = Path(thinker(chat))
        if large:
            folder = Path(shutil.copytree(folder, tmp_path / "large"))
            config_of("Qwen3ForCausalLM", 40_000, hidden_size=256).save_pretrained(folder)
        recipe = write_recipe(model_name_or_path=str(folder), max_completion_length=length, **keys)
        found = thinking(Subject(load_recipe(["--config", str(recipe)])))
        return [(one.level, one.says, one.fix) for one in found]

    return check


OPENS = ("note", "the chat template opens <think> for the model: it counts as part of the completion", "")
SHORT = (
    "max_completion_length: {:,} tokens, and the model thinks before it answers: one cut off while thinking has no "
    "answer (Qwen3's model cards recommend 32,768; this warns below 4,096)"
)
SWITCH = "chat_template_kwargs: {enable_thinking: false}, or max_completion_length: 4096"


@pytest.mark.parametrize(
    ("chat", "length", "keys", "expected"),
    [
        ("qwen3", 4095, {}, [("warning", SHORT.format(4095), SWITCH)]),
        ("qwen3", 4096, {}, []),
        ("qwen3", 64, {"chat_template_kwargs": OFF}, []),
        ("qwen3", 64, {"large": False}, []),
        ("qwen3_5_nothink", 64, {}, []),
        ("qwen3_5_nothink", 512, {"chat_template_kwargs": ON}, [OPENS, ("warning", SHORT.format(512), SWITCH)]),
        ("always", 512, {}, [OPENS, ("warning", SHORT.format(512), "max_completion_length: 4096")]),
        ("qwen2_5", 64, {}, []),
        ("qwen3", 64, {"prompt_template": "r1_zero"}, []),
    ],
)
def test_a_budget_is_warned_of_where_the_model_thinks(said, chat, length, keys, expected):
    assert said(chat, length, **keys) == expected


@pytest.mark.parametrize(
    ("chat", "keys", "closing"),
    [
        ("always", {}, r"</think>\boxed{3}"),
        ("always", {"prompt_template": "gsm8k_hash"}, "</think>#### 3"),
        ("switch", {"prompt_template": "r1_zero"}, "</think> <answer>3</answer>"),
    ],
)
def test_a_budget_without_room_for_the_shortest_answer_is_an_error(said, thinker, chat, keys, closing):
    """The golds of the tiny problems are 2 to 11; the tokenizer writes each digit as a token."""
    least = 1 + len(loaded(thinker(chat))(closing, add_special_tokens=False)["input_ids"])
    says = (
        f"max_completion_length: {least - 1} tokens, and the shortest answer takes {least}, </think> and end token "
        "included: no completion can be right"
    )
    assert ("error", says, "max_completion_length: 4096") in said(chat, least - 1, large=False, **keys)
    assert not [one for one in said(chat, least, large=False, **keys) if one[0] == "error"]


def test_a_variable_that_the_chat_template_lacks_is_warned_of(thinker, write_recipe):
    variables = {"enable_thinkin": False, "enable_thinking": False}
    recipe = write_recipe(model_name_or_path=str(thinker("qwen3")), chat_template_kwargs=variables)
    found = template(Subject(load_recipe(["--config", str(recipe)])))
    assert [one.says.partition(":")[0] for one in found if one.level == "warning" and "kwargs" in one.says] == [
        "chat_template_kwargs.enable_thinkin"
    ]


def test_a_tokenizer_that_hides_the_end_of_the_thinking_is_an_error(said, thinker):
    from transformers import AutoTokenizer

    folder = thinker("always")
    own = AutoTokenizer.from_pretrained(folder)
    own.add_special_tokens({"additional_special_tokens": ["</think>"]})
    hidden = said("always", 64, large=False)
    assert hidden == [OPENS]
    own.save_pretrained(folder)
    (_, says, fix) = said("always", 64, large=False)[1]
    thinker.cache_clear()
    assert says.startswith("model_name_or_path: </think> is a special token, which is removed from completions")
    assert fix == 'set "special": false for it in tokenizer_config.json and tokenizer.json'


def test_a_stop_string_that_completions_lose_is_an_error(thinker, write_recipe, tmp_path):
    """The fix makes it an end token, as one that the model has is."""
    folder = Path(shutil.copytree(thinker("qwen2_5"), tmp_path / "model"))
    tokenizer = loaded(str(folder))
    number = tokenizer.convert_tokens_to_ids("<|user|>")

    def errors(*stop: str) -> list[tuple[str, str]]:
        asked = {"user": "{question}", "answer_style": "boxed", "stop": list(stop)}
        recipe = load_recipe(["--config", str(write_recipe(model_name_or_path=str(folder), prompt_template=asked))])
        return [(one.says.partition(",")[0], one.fix) for one in template(Subject(recipe)) if one.level == "error"]

    assert errors(tokenizer.eos_token, "</answer>", "<|user") == []
    assert errors("<|user|>") == [
        (
            "prompt_template.stop: <|user|> is a special token",
            f"leave it out, and add {number} to eos_token_id in generation_config.json",
        )
    ]
    ends = GenerationConfig(eos_token_id=[tokenizer.eos_token_id, number])
    ends.save_pretrained(folder)
    assert errors("<|user|>") == []
