"""Preflight: what is wrong is said in one line before a model is loaded, and what is right passes."""

import contextlib
import functools
import json
import logging
import operator
import os
import re
import socket
import sys
import time

import pytest
import transformers
import yaml
from conftest import ROOT
from huggingface_hub import constants

from grpo_math.__main__ import dispatch, parse
from grpo_math.check import check, subject_of
from grpo_math.checks import CHECKS, run_checks
from grpo_math.checks.findings import Finding, Subject
from grpo_math.checks.losses import losses
from grpo_math.checks.rewards import completions
from grpo_math.checks.setup import truncated_sampling
from grpo_math.data.sources import hub_answers
from grpo_math.errors import UserError, run_cli
from grpo_math.grading import grade_batch
from grpo_math.recipe.recipe import load_recipe

GOOD = [{"question": f"What is {n}+1?", "answer": str(n + 1)} for n in range(20)]
OWN = {"name": "json", "path": "ROWS"}


@pytest.fixture
def no_model(monkeypatch):
    """Loading any model fails the test; its shapes alone, on the meta device, do not."""
    plain = transformers.PreTrainedModel.from_pretrained.__func__

    def load(cls, *arguments, device_map=None, **keys):
        if device_map == {"": "meta"}:
            return plain(cls, *arguments, device_map=device_map, **keys)
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", classmethod(load))


@pytest.fixture
def first_line(write_recipe, tmp_path, capsys, no_model):
    """The first line that a training with these keys prints as its error; ROWS is a file with these rows, HERE its
    folder."""

    def run(keys: dict, rows: list | str = GOOD, verb: str = "train") -> str:
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "rows.jsonl").write_text(text)
        (tmp_path / "mine.py").write_text(MINE)
        keys = json.loads(json.dumps(keys).replace("ROWS", f"{tmp_path}/rows.jsonl").replace("HERE", str(tmp_path)))
        path = write_recipe(
            **{"dataset": {"name": "json", "path": f"{tmp_path}/rows.jsonl"}, "use_vllm": False, **keys}
        )
        assert run_cli(dispatch, [verb, "--config", str(path)]) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        line = next(line for line in said.splitlines() if line.startswith("error: "))
        return line.removeprefix("error: ").replace(str(tmp_path), "HERE")

    return run


MINE = """
def raises(completions, **_):
    raise RuntimeError("no luck")

def wrong_count(completions, **_):
    return [1.0]

def text(completions, **_):
    return ["good"] * len(completions)

def nan(completions, **_):
    return [float("nan")] * len(completions)

def wants(completions, hint, **_):
    return [1.0] * len(completions)

def load(split):
    raise OSError("no disk")

def load_texts(split):
    return ["What is 1+1?"]

def silent(completions, **_):
    assert completions == []

def in_a_library(completions, **_):
    return list(map(__import__("json").loads, ["{"]))

def load_nothing(split):
    raise ValueError
"""
ASKED, SAID = {"role": "user", "content": "What?"}, {"role": "assistant", "content": "Why?"}
BROKEN_DATA = [  # the dataset's further keys, its rows, the line
    ({}, "", "dataset: rows train: 0 problems of 0 rows: no problems are left"),
    ({}, "{]", "dataset.path: HERE/rows.jsonl, line 1: not JSON (Expecting property name enclosed in double quotes): correct or delete the line"),
    ({}, "[1]\n", "dataset.path: HERE/rows.jsonl, row 1: expected an object with named columns, got [1]"),
    ({}, [{"text": "What?"}], "dataset.fields: no column 'question' for the question (the columns are text): name it, {question: COLUMN}"),
    ({}, [{"question": "What?"}], "dataset.fields: no column 'answer' for the answer (the columns are question): name it, {answer: COLUMN}"),
    ({}, [{"question": "What?", "final": "1"}], "dataset.fields: no column 'answer' for the answer (the columns are question, final): name it, {answer: COLUMN}"),
    ({"fields": {"question": "q"}}, GOOD, "dataset.fields: no column 'q' for the question (the columns are question, answer): name it, {question: COLUMN}"),
    ({"fields": {"gold": "answer"}}, GOOD, "dataset.fields: gold: unknown key, use one of question, answer, worked"),
    ({}, [{"question": "What?", "answer": None}], "dataset: rows train: 0 problems of 1 rows, dropped: 1 without an answer: no problems are left"),
    ({}, [{"question": "", "answer": "1"}], "dataset: rows train: 0 problems of 1 rows, dropped: 1 without a question: no problems are left"),
    ({}, [{"question": "What?", "answer": {"text": "1"}}], "dataset: rows train: 0 problems of 1 rows, dropped: 1 with an answer that is not text: no problems are left"),
    ({}, [{"question": "What?", "answer": float("inf")}], "dataset: rows train: 0 problems of 1 rows, dropped: 1 without an answer: no problems are left"),
    ({}, [{"question": {"text": "What?"}, "answer": "1"}], "dataset: rows train: 0 problems of 1 rows, dropped: 1 with a question that is not text: no problems are left"),
    ({}, [{"prompt": [ASKED, SAID, ASKED], "answer": "1"}] * 2, "dataset: rows train: 0 problems of 2 rows, dropped: 2 with turns that are not one question: no problems are left"),
    ({}, [{"messages": [ASKED]}], "dataset.fields: no column 'answer' for the answer (the columns are messages): name it, {answer: COLUMN}"),
    ({"fields": {"answer": "reward_model.gold"}}, [{"prompt": [ASKED], "reward_model": {"ground_truth": "1"}}], "dataset.fields: no column 'reward_model.gold' for the answer (the columns are prompt, reward_model, reward_model.ground_truth): name it, {answer: COLUMN}"),
    ({}, [{"messages": [ASKED, SAID], "conversations": [], "answer": "1"}], "dataset.fields: no column 'question' for the question (the columns are messages, conversations, answer): name it, {question: COLUMN}"),
    ({}, [{"instruction": f"What is {n}+1?", "input": "", "output": f"It is, if you think about it for a little while and then count them well, {n + 1}."} for n in range(4)], "rows train: 4 of 4 golds are solutions, not answers: rows 1 (It is, if you think about it for a littl), 2 (It is, if you think about it for a littl), 3 (It is, if you think about it for a littl): dataset: {name: gsm8k or math} extracts the answer from them, or name a column with only the answer"),
    ({}, '{"question": "What?", "answer": "1"}\n' + "[" * 100_000, "dataset.path: HERE/rows.jsonl, line 2: not JSON (maximum recursion depth exceeded while decoding a JSON array from a unicode string): correct or delete the line"),
    ({"name": "gsm8k"}, [{"problem": "What?", "answer": "#### 1"}], "dataset.name: row 1 of rows train is not a row of gsm8k (no column 'question'; its columns are problem, answer): use name: json with fields"),
    ({"name": "gsm8k"}, GOOD, "dataset: rows train: 0 problems of 20 rows, dropped: 20 without '####' before the answer: no problems are left"),
    ({"name": "math"}, [{"problem": "What?"}], "dataset.name: row 1 of rows train is not a row of math (no column 'solution'; its columns are problem): use name: json with fields"),
    ({"name": "math", "levels": [9]}, [{"problem": "What?", "solution": "\\boxed{1}", "level": "Level 1"}], "dataset: rows train: 0 problems of 1 rows, dropped: 1 of other levels: no problems are left"),
    ({"max_prompt_tokens": 2}, GOOD, "dataset: rows train: 0 problems of 20 rows, dropped: 20 over 2 prompt tokens: no problems are left"),
    ({"decontaminate": True}, GOOD, "dataset.decontaminate: no test set to compare with: name one, eval: {datasets: ...}"),
    ({"pass_rate": {"file": "HERE/none"}}, GOOD, "dataset.pass_rate.file: no file HERE/none: create it with grpo-math evaluate --config R --split train --samples 8 --temperature 1 --out FOLDER"),
    ({"pass_rate": {"min": 0.1}}, GOOD, "HERE/recipe.yaml: dataset.pass_rate.file: missing, expected the folder of grpo-math evaluate --split train --samples 8"),
    ({"pass_rate": {"file": "r", "min": 0.9, "max": 0.1}}, GOOD, "HERE/recipe.yaml: dataset.pass_rate: expected 0 <= min <= max <= 1, got min 0.9 and max 0.1"),
    ({"pass_rate": {"file": "r", "most": 0.1}}, GOOD, "HERE/recipe.yaml: dataset.pass_rate.most: unknown key, use one of file, min, max, require"),
    ({"pass_rate": 0.5}, GOOD, "HERE/recipe.yaml: dataset.pass_rate: expected a mapping or null, got 0.5"),
    ({}, GOOD[:1], "dataset: 1 problems, but one generation batch takes 2 (4 completions / num_generations 2): lower prompts_per_step (or per_device_train_batch_size, gradient_accumulation_steps), or add problems"),
    # golds
    ({}, [{"question": f"What is {n}+1?", "answer": f"{n}+1={n + 1}\n#### {n + 1}"} for n in range(4)], "rows train: 4 of 4 golds are solutions, not answers: rows 1 (0+1=1 #### 1), 2 (1+1=2 #### 2), 3 (2+1=3 #### 3): dataset: {name: gsm8k or math} extracts the answer from them, or name a column with only the answer"),
    ({}, [{"question": "half a \ud800 sign", "answer": "1"}], "dataset: rows train: 0 problems of 1 rows, dropped: 1 with a malformed cell: no problems are left"),
    ({}, [*GOOD, *({"question": f"Why {n}?", "answer": "\\frac{"} for n in range(3))], "rows train: 3 of 23 golds cannot be graded as right by any completion: rows 21 (\\frac{), 22 (\\frac{), 23 (\\frac{): use a column with only the final answer (dataset.fields), or delete these rows"),
]  # fmt: skip
BROKEN_KEYS = [
    ({"dataset": {"path": "HERE/mine.py:load"}}, "dataset.path: HERE/mine.py:load raised OSError: no disk, mine.py:18"),
    ({"dataset": {"path": "HERE/mine.py:load_texts"}}, "dataset.path: the function yielded 'What is 1+1?': yield Problem objects or dicts with question and answer"),
    ({"rewards": {"m": {"path": "HERE/mine.py:raises"}}}, "reward m: raised RuntimeError: no luck, mine.py:3; first of its 8 completions: [{'role': 'assistant', 'content': '\\\\boxed{1}'}]. Fix the function, or remove it from rewards"),
    ({"dataset": {"path": "HERE/mine.py:load_nothing"}}, "dataset.path: HERE/mine.py:load_nothing raised ValueError, mine.py:30"),
    ({"rewards": {"m": {"path": "HERE/mine.py:silent"}}}, "reward m: raised AssertionError, mine.py:24; first of its 8 completions: [{'role': 'assistant', 'content': '\\\\boxed{1}'}]. Fix the function, or remove it from rewards"),
    ({"rewards": {"m": {"path": "HERE/mine.py:in_a_library"}}}, "reward m: raised JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1), mine.py:27; first of its 8 completions: [{'role': 'assistant', 'content': '\\\\boxed{1}'}]. Fix the function, or remove it from rewards"),
    ({"rewards": {"m": {"path": "HERE/mine.py:wrong_count"}}}, "reward m: returned 1 scores for 8 completions: return one per completion, in order (None where one cannot be scored)"),
    ({"rewards": {"m": {"path": "HERE/mine.py:text"}}}, "reward m: returned 'good' for the completion '\\\\boxed{1}': return a finite float, or None where it cannot be scored"),
    ({"rewards": {"m": {"path": "HERE/mine.py:nan"}}}, "reward m: returned nan for the completion '\\\\boxed{1}': return a finite float, or None where it cannot be scored"),
    ({"rewards": {"m": {"path": "HERE/mine.py:wants"}}}, "rewards.m: needs hint, the data has question, solution, worked: give it as a setting, rewards: {m: {hint: ...}}, or add the column"),
    ({"rewards": {"correctness": {}, "overlong": {"cache_tokens": 8}}}, "rewards.overlong: cache_tokens 8 of max_completion_length 8: it would penalise every completion: rewards: {overlong: {cache_tokens: 2}}"),
    ({"sync_ref_model": True}, "sync_ref_model: TRL refuses it without a reference model (beta: 0): sync_ref_model: false"),
    ({"generation_kwargs": {"top_kk": 5}}, "generation_kwargs.top_kk: unknown key of transformers' GenerationConfig, did you mean generation_kwargs.top_k?"),
    ({"max_completion_length": 512}, "the longest prompt (73 tokens) and max_completion_length 512 are 585 tokens, the model's context is 256: max_completion_length: 183"),
    ({"num_generations": 3}, "num_generations: 3 does not divide the 4 completions of a step (per_device_train_batch_size 4 x gradient_accumulation_steps 1 x processes 1): make it a divisor, or set prompts_per_step instead"),
    ({"model_name_or_path": "HERE/nowhere"}, "model_name_or_path: no model at 'HERE/nowhere': no such folder: give a folder with config.json, weights and a tokenizer, or a Hub id that can be reached"),
    ({"loss_type": "grp"}, "HERE/recipe.yaml: loss_type: unknown value 'grp': use one of grpo, dr_grpo, dapo, bnpo, cispo, sapo, luspo, vespo"),
    ({"alarms": {"stop_on": ["nam"]}}, "HERE/recipe.yaml: alarms.stop_on: unknown value 'nam': use one of nan, reward, zero_std, truncated, entropy, kl, importance, timeouts, length, spike, composition, diverged, tools"),
    ({"alarms": {"steps": 0}}, "HERE/recipe.yaml: alarms.steps: expected at least 1, got 0"),
    ({"alarms": ["nan"]}, "HERE/recipe.yaml: alarms: expected a mapping such as {stop_on: [nan]}, got ['nan']"),
    ({"dtype": "float64"}, "HERE/recipe.yaml: dtype: unknown value 'float64': use one of auto, bfloat16, float16, float32"),
    ({"save_steps": 0}, "HERE/recipe.yaml: save_steps: expected more than 0, got 0"),
    ({"generation_kwargs": "x"}, "HERE/recipe.yaml: generation_kwargs: expected a mapping or null, got 'x'"),
    ({"rewards": {"m": {"path": "builtins:max"}}}, "builtins:max: its parameters have no names: wrap it in a Python function"),
    ({"preflight": "no"}, "HERE/recipe.yaml: preflight: expected true or false, got 'no'"),
    ({"use_peft": True, "lora_modules_to_save": ["lm_haed"]}, "lora_modules_to_save: the model has no lm_haed: leave it out"),
    ({"use_peft": True, "lora_target_modules": ["q_proj"]}, "use_peft: peft refuses it: Target modules q_proj not found in the base model. Please check the target modules and try again: see lora_target_modules (TRL takes a list of one for a pattern)"),
    ({"learning_rat": 1}, "HERE/recipe.yaml: learning_rat: unknown key, did you mean learning_rate?"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "rows", "line"), BROKEN_DATA, ids=range(len(BROKEN_DATA)))
def test_broken_data_is_one_line_before_a_model_is_loaded(first_line, keys, rows, line):
    assert first_line({"dataset": OWN | keys}, rows) == line


@pytest.mark.parametrize(("keys", "line"), BROKEN_KEYS, ids=range(len(BROKEN_KEYS)))
def test_a_broken_recipe_is_one_line_before_a_model_is_loaded(first_line, keys, line):
    assert first_line(keys) == line


def test_the_traceback_of_an_own_reward_is_in_the_log(first_line, tmp_path):
    first_line({"rewards": {"m": {"path": "HERE/mine.py:in_a_library"}}})
    log = (tmp_path / "run" / "training.log").read_text()
    assert f'File "{tmp_path}/mine.py", line 27, in in_a_library\n' in log
    assert "json.decoder.JSONDecodeError: Expecting property name" in log


@pytest.fixture
def no_hub(monkeypatch):
    """A Hub that refuses connections, or one that takes them and says nothing; the context counts its connections."""

    def start(stack: contextlib.ExitStack, silent: bool) -> socket.socket:
        hub = stack.enter_context(socket.socket())
        hub.bind(("127.0.0.1", 0))
        hub.setblocking(False)
        if silent:
            hub.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        hub_answers.cache_clear()
        return hub

    yield start
    hub_answers.cache_clear()


NO_HUB = [  # the key and the name of what is neither here nor in the Hub's cache
    ({"model_name_or_path": "org/model"}, "model_name_or_path", "org/model"),
    ({"dataset": {"name": "svamp"}}, "dataset.path", "ChilleD/SVAMP"),
    ({"dataset": [{"name": "json", "path": "org/rows"}]}, "dataset[0].path", "org/rows"),
    ({"rewards": {"m": {"reward_model": "org/judge"}}}, "rewards.m.reward_model", "org/judge"),
    ({"eval": {"every": 1, "datasets": ["math500"]}}, "eval.datasets[0].path", "HuggingFaceH4/MATH-500"),
]


@pytest.mark.parametrize(("keys", "key", "name"), NO_HUB, ids=[name for _, _, name in NO_HUB])
def test_a_hub_that_does_not_answer_is_one_line_before_a_model_is_loaded(first_line, no_hub, keys, key, name):
    with contextlib.ExitStack() as stack:
        no_hub(stack, silent=False)
        line = first_line(keys)
    assert (
        line
        == f"{key}: the Hub is not reachable (or HF_HUB_OFFLINE is set), {name} is not in its cache: download it and give its folder, {key}: FOLDER"
    )


def test_a_silent_hub_is_asked_once(findings, no_hub, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("grpo_math"), "propagate", True)
    with contextlib.ExitStack() as stack:
        hub = no_hub(stack, silent=True)
        found = findings(model_name_or_path="org/model", dataset={"name": "svamp"}, eval={"datasets": "math500"})
        hub.accept()[0].close()
        with pytest.raises(BlockingIOError):
            hub.accept()
    assert [text for _, level, text in found if level == "error"][:2] == [
        "model_name_or_path: the Hub is not reachable (or HF_HUB_OFFLINE is set), org/model is not in its cache: download it and give its folder, model_name_or_path: FOLDER",
        "dataset.path: the Hub is not reachable (or HF_HUB_OFFLINE is set), ChilleD/SVAMP is not in its cache: download it and give its folder, dataset.path: FOLDER",
    ]  # fmt: skip
    assert re.fullmatch(
        r"warning: the Hub, http://127.0.0.1:\d+, does not answer \(ReadTimeout: timed out\): using only its cache "
        r"\(HF_HUB_OFFLINE=1 skips the attempt\)",
        next(record.getMessage() for record in caplog.records if record.name == "grpo_math"),
    )
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.fixture
def findings(write_recipe, tmp_path, no_model):
    """Everything that the checks say of a recipe with these keys, as (check, level, text)."""

    def run(*words: str, **keys) -> list[tuple[str, str, str]]:
        (tmp_path / "mine.py").write_text(MINE)
        path = write_recipe(**{"use_vllm": False, "num_generations": 4, **keys})
        subject = subject_of(parse(["check", "--config", str(path), "--layout", "none", *words]))
        return [(name, one.level, str(one)) for name, found in run_checks(subject) for one in found]

    return run


def wrong(found: list[tuple[str, str, str]]) -> list[tuple[str, str]]:
    return [(level, text) for _, level, text in found if level != "note"]


def test_a_good_recipe_has_no_errors_and_no_warnings(findings):
    found = findings()
    assert wrong(found) == []
    assert {name for name, _, _ in found} == CHECKS.keys() - {"recipe"}
    assert any("gsm8k train: all 16 golds are graded as right" in text for _, _, text in found)


UNEQUAL = "rewards: {correctness: {weight: 1.0}} would tell them apart"
RIGHT = "rewards: {correctness: {correct: 1.0, wrong: 0.0, no_answer: 0.0}}"
HURTS = [
    ({"eval": {"every": 1, "max_completion_length": 512}}, "error", "the longest prompt of gsm8k test (74 tokens) and max_completion_length 512 are 586 tokens, the model's context is 256: eval: {max_completion_length: 182}"),
    ({"num_generations": 2}, "warning", "num_generations: 2 completions per group: most groups have equal rewards, and the mean is noisy: num_generations: 8"),
    ({"temperature": 0.1}, "warning", "temperature: 0.1: the completions of a group will hardly differ: temperature: 1.0"),
    ({"rewards": {"correctness": {}, "format": {"weight": 2}}}, "warning", "rewards: format alone scores 2 (a wrong completion over an empty one), a right answer 1 more: raise the weight of correctness"),
    ({"rewards": {"format": {}}}, "error", f"rewards: a wrong answer scores 1, as much as the right one: {UNEQUAL}"),
    ({"rewards": {"correctness": {"wrong": 2.0}}}, "error", f"rewards: a wrong answer scores 2, more than the right one: {RIGHT}"),
    ({"rewards": {"correctness": {"weight": 0.1}, "brevity": {}}}, "error", 'rewards: "empty" scores 0.962, a perfect completion 0.1: lower the weight of rewards.brevity, or give it gate: correctness'),
    ({"rewards": {"correctness": {"no_answer": 1.0}}}, "error", f'rewards: "empty box" scores 1, a perfect completion 1: {RIGHT}'),
    ({"rewards": {"language": {"scale": 1e-12, "bias": 0.5}}}, "error", f"rewards: a perfect, a wrong, an empty and every other completion score 0.5: there is nothing to learn from: {UNEQUAL}"),
    ({"rewards": {"correctness": {"wrong": -1.0, "no_answer": 0.0}}}, "warning", "rewards: an ordinary wrong completion scores -1, others score more (empty box 0, cut off 0, an echo 0, nonsense 0, empty 0): lower the weight of what rewards them"),
    ({"rewards": {"correctness": {}, "language": {"weight": 0.1, "scale": 0.0, "bias": 1.0}}}, "warning", "rewards.language: scores 1 for a perfect, a wrong, an empty and every other completion: it has no effect: rewards: {language: false}, or check what it reads"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "level", "line"), HURTS, ids=range(len(HURTS)))
def test_what_hurts_is_named_with_the_line_to_change(findings, keys, level, line):
    assert (level, line) in wrong(findings(**keys))


@pytest.mark.parametrize("rewards", [{"random": {}}, {"random": {"chance": 0.1}, "correctness": {"weight": 0.5}}])
def test_a_control_with_random_rewards_is_no_mistake(findings, rewards):
    found = findings(rewards=rewards)
    assert ("note", "random: a control, which reads no completion: not tried here") in [one[1:] for one in found]
    assert not [text for level, text in wrong(found) if text.startswith("rewards")]


FIXED = [  # keys, and the fix of their finding as words of the command line
    ({"rewards": {"format": {}}}, ["--rewards.correctness.weight", "1.0"]),
    ({"rewards": {"correctness": {"wrong": 2.0}}}, ["--rewards.correctness", "{correct: 1.0, wrong: 0.0, no_answer: 0.0}"]),
    ({"rewards": {"correctness": {"no_answer": 1.0}}}, ["--rewards.correctness", "{correct: 1.0, wrong: 0.0, no_answer: 0.0}"]),
    ({"rewards": {"correctness": {"weight": 0.1}, "brevity": {}}}, ["--rewards.brevity.gate", "correctness"]),
    ({"rewards": {"language": {"scale": 1e-12, "bias": 0.5}}}, ["--rewards.correctness.weight", "1.0"]),
    ({"rewards": {"correctness": {"weight": -1.0}}}, ["--rewards.correctness.weight", "1.0"]),
    ({"top_p": 0.9}, ["--top_p", "1.0"]),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "words"), FIXED, ids=range(len(FIXED)))
def test_the_fix_of_a_finding_is_one(findings, keys, words):
    before, after = wrong(findings(**keys)), wrong(findings(*words, **keys))
    assert before[0] not in after
    assert "error" not in [level for level, _ in after]


def rates(folder, *rights: int) -> str:
    """A file of 4 completions for each of the first problems of GOOD, of which so many are right."""
    rows = [
        {"question": row["question"], "gold": row["answer"], "correct": sample < right}
        for row, right in zip(GOOD, rights, strict=False)
        for sample in range(4)
    ]
    (folder / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_a_training_with_too_few_groups_that_can_teach_does_not_start(first_line, tmp_path):
    """Of groups of two, 1 - 1/4 - 1/4 = 1/2 differ at a pass rate of a half, in the mean of four problems 1/8."""
    given = {"file": rates(tmp_path, 0, 0, 2, 4), "require": 0.2}
    assert first_line({"dataset": OWN | {"pass_rate": given}}) == (
        "dataset.pass_rate.require: 0.12 of the groups (num_generations 2) have an advantage on average, "
        "expected at least 0.2: of 4 problems 2 are never right and 1 always: pass_rate: {min: 0.01, max: 0.99} keeps the 1 between"
    )


SAMPLED = [  # keys, the level, its beginning and its end; None: nothing is found
    ({"top_p": 1, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "generation_kwargs": {"presence_penalty": 0}}, None),
    ({"use_vllm": True, "top_p": 1.0, "generation_kwargs": {"top_k": -1, "min_p": None}}, None),
    ({"use_vllm": True, "top_p": 0.9}, "error", "top_p: 0.9: vLLM's", "(up to 160 tokens, 1e-8 at worst; measured at top_p 0.9 after 160 tokens: 0.0006 to 0.012): top_p: 1.0"),
    ({"use_vllm": True, "top_k": 50, "min_p": 0.1}, "error", "top_k: 50, min_p: 0.1: vLLM's", "(up to 160 tokens; measured at top_p 0.9 after 160 tokens: 0.0006 to 0.012): top_k: 0, min_p: 0.0"),
    ({"use_vllm": True, "generation_kwargs": {"presence_penalty": -1}}, "error", "generation_kwargs.presence_penalty: -1: vLLM's", "leave out generation_kwargs.presence_penalty"),
    ({"use_vllm": True, "top_p": 0.9, "generation_kwargs": {"top_p": 1.0}}, None),  # these count
    ({"use_vllm": True, "top_p": 0.9, "vllm_importance_sampling_correction": False}, "warning", "top_p: 0.9: samples come from another distribution", "top_p: 1.0"),
    ({"use_vllm": True, "top_p": 0.9, "vllm_importance_sampling_mode": "token_truncate"}, "warning", "top_p: 0.9: samples", "top_p: 1.0"),
    ({"use_vllm": True, "vllm_mode": "server", "repetition_penalty": 1.05}, "error", "repetition_penalty: 1.05: vLLM's", "repetition_penalty: 1.0"),
    ({"top_p": 0.9}, "warning", "top_p: 0.9: samples come from another distribution than the trained one", "top_p: 1.0"),
    ({"generation_kwargs": {"no_repeat_ngram_size": 3}}, "warning", "generation_kwargs.no_repeat_ngram_size: 3: samples", "leave out generation_kwargs.no_repeat_ngram_size"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "expected"), [(keys, expected) for keys, *expected in SAMPLED], ids=range(len(SAMPLED)))  # fmt: skip
def test_sampling_from_another_distribution_is_named(write_recipe, keys, expected):
    recipe = load_recipe(write_recipe(max_completion_length=160, num_generations=4, **keys))
    found = [(one.level, str(one)) for one in truncated_sampling(recipe.trainer, recipe.max_completion_length)]
    if expected == [None]:
        assert found == []
        return
    ((level, text),) = found
    assert (level, text[: len(expected[1])], text[-len(expected[2]) :]) == tuple(expected)


def test_the_weight_of_a_truncated_sample_is_the_product_of_the_kept_shares(tokenizer):
    """By TRL's formula: with q = p / kept share over the tokens kept, log p - log q is the logarithm of that share."""
    import torch

    torch.manual_seed(0)
    policy = torch.randn(160, 50).softmax(-1)
    ordered, places = policy.sort(descending=True)
    kept = torch.zeros_like(policy, dtype=torch.bool).scatter(1, places, ordered.cumsum(-1) - ordered < 0.9)
    share = (policy * kept).sum(-1)
    nucleus = policy * kept / share[:, None]
    tokens = torch.multinomial(nucleus, 1)
    weight = (policy.gather(1, tokens).log() - nucleus.gather(1, tokens).log()).sum().exp()
    assert weight.item() == pytest.approx(share.log().sum().exp().item(), rel=1e-4)
    assert 0.9**160 <= weight.item() < 0.01


SEQUENCE, VLLM, LIGER = {"importance_sampling_level": "sequence"}, {"use_vllm": True}, {"use_liger_kernel": True}
SMALL = {"epsilon": 3e-4}
LOSSES = [  # the keys, and the findings with their fixes
    (VLLM | {"loss_type": "vespo"}, ["error vllm_importance_sampling_mode: sequence_mask: TRL refuses it for loss_type: vespo, which takes the ratios of tokens: vllm_importance_sampling_mode: token_truncate"]),
    ({"loss_type": "vespo"}, []),
    (VLLM | {"loss_type": "vespo", "vllm_importance_sampling_correction": False}, []),
    (VLLM | {"vllm_importance_sampling_clip_max": 0.0}, ["error vllm_importance_sampling_clip_min, vllm_importance_sampling_clip_max: they exclude 1, the ratio where vLLM and the trainer agree: vllm_importance_sampling_clip_min: null, vllm_importance_sampling_clip_max: 3.0"]),
    (VLLM | {"vllm_importance_sampling_clip_min": 1.5}, ["error vllm_importance_sampling_clip_min, vllm_importance_sampling_clip_max: they exclude 1, the ratio where vLLM and the trainer agree: vllm_importance_sampling_clip_min: null, vllm_importance_sampling_clip_max: 3.0"]),
    (VLLM | {"vllm_importance_sampling_clip_max": 1.0, "vllm_importance_sampling_clip_min": 0.5}, []),
    ({"vllm_importance_sampling_correction": False, "vllm_importance_sampling_mode": "token_mask"}, ["warning vllm_importance_sampling_mode: no effect with vllm_importance_sampling_correction: false: vllm_importance_sampling_mode: null"]),
    ({"sync_ref_model": True}, ["error sync_ref_model: TRL refuses it without a reference model (beta: 0): sync_ref_model: false"]),
    ({"sync_ref_model": True, "beta": 0.1, "ref_model_sync_steps": 8}, []),
    ({"sync_ref_model": True, "beta": 0.1, "use_peft": True}, ["error sync_ref_model: TRL refuses it for an adapter, whose reference is its base model: sync_ref_model: false"]),
    ({"ref_model_sync_steps": 8, "ref_model_mixup_alpha": 0.5}, ["warning ref_model_sync_steps, ref_model_mixup_alpha: no effect with sync_ref_model: false: ref_model_sync_steps: null, ref_model_mixup_alpha: null"]),
    (LIGER, ["error use_liger_kernel: liger-kernel is not installed: use_liger_kernel: false"]),
    (LIGER | {"liger_kernel_config": {"fused_linear_cross_entropy": True}}, ["error use_liger_kernel: liger-kernel is not installed: use_liger_kernel: false", "error liger_kernel_config: TRL refuses fused_linear_cross_entropy, it has its own head: liger_kernel_config: {fused_linear_cross_entropy: false}"]),
    ({"router_aux_loss_coef": 0.01}, ["error router_aux_loss_coef: TRL refuses it for a model that is not a mixture of experts: router_aux_loss_coef: null"]),
    ({"use_peft": True, "lora_target_modules": ["lm_head", "q_proj", "v_proj"]}, ["error lora_target_modules: TRL refuses lm_head, whose weight it reads without the adapter: lora_target_modules: [q_proj, v_proj]"]),
    ({"use_peft": True, "lora_target_modules": ["lm_head"]}, ["error lora_target_modules: TRL refuses lm_head, whose weight it reads without the adapter: lora_target_modules: null"]),
    (SMALL | {"loss_type": "luspo"}, ["warning loss_type: luspo with the ratios of tokens is not LUSPO, which clips the ratio of a whole completion: importance_sampling_level: sequence"]),
    (SMALL | SEQUENCE | {"loss_type": "luspo"}, []),
    (SMALL | SEQUENCE, ["warning importance_sampling_level: sequence with loss_type: dapo is not GSPO: long completions count more: loss_type: grpo"]),
    (SMALL | SEQUENCE | {"loss_type": "grpo"}, []),
    (SEQUENCE | {"loss_type": "grpo"}, ["warning importance_sampling_level: sequence with epsilon 0.2 clips nothing: a completion's ratio stays near 1: epsilon: 3.0e-4, epsilon_high: 4.0e-4"]),
    (SMALL | SEQUENCE | {"loss_type": "grpo", "beta": 0.1}, ["warning use_bias_correction_kl: with importance_sampling_level: sequence it does not correct the bias: use_bias_correction_kl: false"]),
    (SEQUENCE | {"loss_type": "sapo"}, ["warning importance_sampling_level: sequence: loss_type: sapo is defined by the ratios of tokens: importance_sampling_level: token"]),
    (SEQUENCE | {"loss_type": "vespo"}, ["warning importance_sampling_level: sequence: loss_type: vespo is defined by the ratios of tokens: importance_sampling_level: token"]),
    ({"loss_type": "cispo"}, ["warning loss_type: cispo with epsilon_high 0.2 clips nearly everything: it is the limit of the ratio itself: epsilon_high: 5.0"]),
    ({"loss_type": "cispo", "epsilon_high": 0.28}, ["warning loss_type: cispo with epsilon_high 0.28 clips nearly everything: it is the limit of the ratio itself: epsilon_high: 5.0"]),
    ({"loss_type": "cispo", "epsilon_high": 5.0, "epsilon": 0.1}, ["warning epsilon: no effect with loss_type: cispo: epsilon: null"]),
    ({"delta": 1.2}, ["warning delta: 1.2 is not above 1 + epsilon_high, and clips in its place: delta: 4.0"]),
    ({"delta": 4.0}, []),
    ({"loss_type": "sapo", "delta": 4.0, "epsilon_high": 0.3}, ["warning delta: no effect with loss_type: sapo: delta: null", "warning epsilon_high: no effect with loss_type: sapo: epsilon_high: null"]),
    ({"sapo_temperature_neg": 1.1, "vespo_k_pos": 1.0}, ["warning sapo_temperature_neg: no effect with loss_type: dapo: sapo_temperature_neg: null", "warning vespo_k_pos: no effect with loss_type: dapo: vespo_k_pos: null"]),
    ({"multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "none"}, ["warning scale_rewards: no effect with multi_objective_aggregation: normalize_then_sum: scale_rewards: null"]),
    ({"use_bias_correction_kl": False}, ["warning use_bias_correction_kl: no effect with beta: 0.0: use_bias_correction_kl: null"]),
    ({"entropy_coef": 0.01, "entropy_target": 0.5}, ["warning entropy_target: no effect with use_adaptive_entropy: false: entropy_target: null"]),
    ({"use_adaptive_entropy": True, "entropy_target": 0.5}, []),
]  # fmt: skip


@pytest.fixture
def of_the_loss(write_recipe):
    """The findings about the loss of a recipe with these keys."""

    def run(**keys) -> list[Finding]:
        return list(losses(Subject(load_recipe(["--config", str(write_recipe(**keys))]))))

    return run


@pytest.mark.parametrize(("keys", "lines"), LOSSES, ids=range(len(LOSSES)))
def test_settings_of_the_loss_that_trl_refuses_ignores_or_misreads(of_the_loss, keys, lines):
    """Every fix removes its finding, and all of them together every finding."""
    found = of_the_loss(**keys)
    assert [f"{one.level} {one}" for one in found] == lines
    fixes = [yaml.safe_load(f"{{{one.fix}}}") for one in found]
    for one, fix in zip(found, fixes, strict=True):
        assert one not in of_the_loss(**keys | fix)
    assert of_the_loss(**functools.reduce(operator.or_, fixes, keys)) == []


PAPERS = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "losses.md").read_text(), re.DOTALL)[1].split("---\n")


@pytest.mark.parametrize("keys", PAPERS, ids=[keys.partition(",")[0] for keys in PAPERS])
def test_the_keys_of_each_paper_parse_and_are_its_method(of_the_loss, keys):
    for use_vllm in (False, True):
        assert of_the_loss(**{"use_vllm": use_vllm} | yaml.safe_load(keys)) == []


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_the_losses_of_the_shipped_recipes_are_what_they_say(path):
    recipe = load_recipe(path)
    assert recipe.sft or list(losses(Subject(recipe))) == []


def test_rules_of_thumb_are_for_models_of_some_size(findings, tokenizer, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    big = LlamaForCausalLM(LlamaConfig(vocab_size=20_000, hidden_size=256, num_hidden_layers=4, num_attention_heads=4))
    big.save_pretrained(tmp_path / "big")
    tokenizer.save_pretrained(tmp_path / "big")
    keys = {"model_name_or_path": str(tmp_path / "big"), "learning_rate": 2e-5, "max_completion_length": 100}
    assert wrong(findings(**keys)) == [
        ("warning", "learning_rate: 2e-05: usual for GRPO is about 1.0e-6, rarely above 1e-05: learning_rate: 1.0e-6"),
        ("warning", "max_completion_length: 100 tokens, and the prompt asks for reasoning: many may be cut off: max_completion_length: 512"),
    ]  # fmt: skip
    assert wrong(findings(**keys, use_peft=True)) == wrong(findings(**keys))[1:]


def test_rewards_that_want_more_than_a_text_are_no_errors(findings, tmp_path):
    """Whole groups, a run with an end, tokens with an end token. To fail on an empty completion is an error: a training
    would stop there, but for `on_reward_error: skip`."""
    (tmp_path / "own.py").write_text(OWN_REWARDS)
    for name, said in (("annealed", []), ("grouped", []), ("tokens", []), ("first_word", ["error"])):
        keys = {"rewards": {"correctness": {}, name: {"path": f"{tmp_path}/own.py:{name}"}}}
        found = [(level, text) for level, text in wrong(findings(**keys)) if "raised" in text or level == "error"]
        assert [level for level, _ in found] == said, found
    assert "IndexError: list index out of range" in found[0][1]
    assert found[0][1].endswith("(seen with empty completions)")
    assert wrong(findings(**keys, on_reward_error="skip")) == [("warning", found[0][1])]


OWN_REWARDS = """
def annealed(completions, trainer_state, **_):
    done = trainer_state.global_step / trainer_state.max_steps
    return [done + len(one[0]["content"]) / 1000 for one in completions]

async def grouped(prompts, completions, **_):
    assert all(prompts[i] == prompts[i - i % 4] for i in range(len(prompts)))
    return [len(one[0]["content"]) / 1000 for one in completions]

def tokens(completion_ids, **_):
    return [ids[-1] + len(ids) / 1000 for ids in completion_ids]

def first_word(completions, **_):
    return [float(len(one[0]["content"].split()[0])) for one in completions]
"""


def test_an_own_reward_that_pays_for_nothing_is_an_error(findings, tmp_path):
    """`all` of an empty list is true; a reward of lengths knows no gold, and what fails on nonsense is named too."""
    (tmp_path / "own.py").write_text(HOLLOW_REWARDS)
    for name, line in (("all_parts", "rewards.all_parts: 8 of 138 answers without content are right, such as '' for '2' and '4'"),
                       ("first_part", "reward first_part: raised IndexError"), ("careful", None), ("short", None),
                       ("substring", "rewards.substring: 8 of 138 answers without content are right, such as ''")):  # fmt: skip
        found = findings(rewards={"correctness": {}, name: {"path": f"{tmp_path}/own.py:{name}"}})
        errors = [text for _, level, text in found if level == "error"]
        assert [text[: len(line or "")] for text in errors] == ([line] if line else []), errors
    found = findings(rewards={"correctness": {}, "any_box": {"path": f"{tmp_path}/own.py:any_box"}})
    assert any(text.startswith("rewards.any_box: takes the solution, but scores a wrong") for _, _, text in found)


def test_golds_that_are_text_among_numbers_are_named_with_their_rows(findings, tmp_path):
    odd = [{"question": f"Why {n}?", "answer": gold} for n, gold in enumerate(["see figure", "-1/2", "unknown"])]
    data = {"name": "json", "path": f"{tmp_path}/rows.jsonl"}
    says = "rows train: 2 of 23 golds are text and 21 numbers: rows 21 (see figure), 23 (unknown): delete these rows, or ignore this if they are answers"  # fmt: skip
    for rows, lines in ((GOOD + odd, [("warning", says)]), (GOOD[:5] + odd, [])):  # fewer numbers: text is usual there
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert wrong(findings(dataset=data)) == lines


HOLLOW_REWARDS = """
import re

def parts(completions):
    texts = [one[0]["content"] for one in completions]
    boxes = [re.search(r"boxed.(.*).", text) for text in texts]
    return [[part for part in re.split(r"[{,}]", box[1]) if part] if box else [""] for box in boxes]

def all_parts(completions, solution, **_):
    return [float(all(part == gold for part in some)) for some, gold in zip(parts(completions), solution)]

def first_part(completions, solution, **_):
    return [float(some[0] == gold) for some, gold in zip(parts(completions), solution)]

def careful(completions, solution, **_):
    return [float(some == [gold]) for some, gold in zip(parts(completions), solution)]

def substring(completions, solution, **_):
    return [float("".join(some) in gold) for some, gold in zip(parts(completions), solution)]

def any_box(completions, solution, **_):
    return [float("boxed" in one[0]["content"]) for one in completions]

def short(completions, **_):
    return [-len(one[0]["content"]) / 1000 for one in completions]
"""


GOLDS = ["5", "-5", "0", "\\frac{1}{2}", "even", "(1, 2)", '["8", "-8"]', "x + 1", "12.50", "x < 3"]


@pytest.mark.parametrize("style", ["boxed", "hash", "answer_tag", "fallback"])
def test_no_shipped_reward_takes_a_wrong_completion_for_a_right_one(write_recipe, tmp_path, style):
    rows = [{"question": f"Q{n}?", "answer": gold, "worked": f"One sees {n} + 9."} for n, gold in enumerate(GOLDS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own, template = OWN | {"path": f"{tmp_path}/rows.jsonl"}, {"user": "{question}", "answer_style": style}
    subject = Subject(load_recipe(write_recipe(dataset=own, prompt_template=template)))
    table = completions(subject.problems, subject)
    assert list(table) == ["perfect", "wrong", "wrong in the box", "negated answer", "several boxes", "empty box", "cut off", "an echo", "nonsense", "empty"]  # fmt: skip
    for kind, texts in table.items():
        right = [one.correct for one in grade_batch(texts, [one.answer for one in subject.problems], style)]
        assert right == [kind == "perfect"] * len(GOLDS), (kind, list(zip(texts, right, strict=True)))


TEXTS = {  # golds of which half a completion, or one negated, is right too; and 7 of the nonsense
    "units": [f"{n} \\text{{ cm}}" for n in range(1, 9)],
    "either sign": [[f"{n}", f"-{n}"] for n in range(1, 9)],
    "sevens": ["7"] * 8,
}


@pytest.mark.parametrize("style", ["boxed", "hash", "answer_tag", "fallback"])
@pytest.mark.parametrize("golds", TEXTS.values(), ids=TEXTS)
def test_correctness_alone_is_no_mistake_whatever_the_golds(findings, tmp_path, style, golds):
    rows = [{"question": f"Q{n}?", "answer": gold, "worked": f"{gold}, as seen."} for n, gold in enumerate(golds)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own, template = OWN | {"path": f"{tmp_path}/rows.jsonl"}, {"user": "{question}", "answer_style": style}
    found = findings(dataset=own, prompt_template=template, rewards={"correctness": {}})
    assert [one for one in wrong(found) if "rewards" in one[1]] == []


OTHER_REWARDS = """
import re

def text(one):
    return one[0]["content"]

def last_line(completions, solution):
    return [float(text(one).endswith(f"Answer: {gold}")) for one, gold in zip(completions, solution)]

def likeness(completions, worked):
    return [len({*text(one).split()} & {*(whole or "").split()}) for one, whole in zip(completions, worked)]

def short(completions):
    return [-len(text(one)) / 1000 for one in completions]
"""


def test_rewards_that_read_something_else_than_the_box_stop_no_training(findings, tmp_path):
    """What an own reward gives is not known where it tells none of the completions apart; small differences between
    wrong completions, and credit for the right reasoning, are no faults."""
    (tmp_path / "other.py").write_text(OTHER_REWARDS)
    own = {name: {"path": f"{tmp_path}/other.py:{name}"} for name in ("last_line", "likeness", "short")}
    for rewards, levels in (
        ({"last_line": own["last_line"]}, {"warning"}),
        ({"last_line": own["last_line"], "language": {"weight": 0.1}}, {"warning"}),
        ({"correctness": {}, "likeness": own["likeness"] | {"weight": 0.02}}, set()),
        ({"correctness": {}, "short": own["short"]}, set()),
        ({"correctness": {}, "repetition": {}}, set()),
        ({"correctness": {}, "overlong": {"cache_tokens": 16}, "brevity": {"gate": "correctness"}}, set()),
    ):
        found = wrong(findings(rewards=rewards, max_completion_length=64))
        assert {level for level, _ in found} == levels, found


def test_a_grader_that_pays_for_nothing_is_an_error(findings, monkeypatch):
    """As the grader once did: every comparison of an empty list was all right, and an empty matrix raised."""

    def once(gold, answer):
        if "matrix" in answer:
            raise IndexError
        return (True, "structure") if not re.search(r"[^{},]", answer) else (gold == answer, "exact")

    monkeypatch.setattr(sys.modules["grpo_math.grading.equal"], "settle", once)
    monkeypatch.setattr(sys.modules["grpo_math.grading.extraction"], "has_content", lambda text: True)
    errors = [text for name, level, text in findings() if level == "error" and name == "golds"]
    assert errors[0].startswith("the grader: 7 of 138 answers without content are right, such as '{}' for '2' and '3'")
    assert errors[1].startswith("the grader fails on 6 answers without content, such as")


def test_duplicates_are_named_with_their_rows(findings, tmp_path):
    rows = [*GOOD, GOOD[3], {"question": " What  is 5+1?", "answer": "7"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert wrong(findings(dataset={"name": "json", "path": f"{tmp_path}/rows.jsonl"})) == [
        ("error", "rows train: 1 questions have several answers, such as rows 6 (6), 22 (7): delete the wrong ones"),
        ("warning", "rows train: 2 of 22 repeat a question, such as rows 4 (4), 21 (4): delete them, or they count twice"),
    ]  # fmt: skip


def test_duplicates_may_name_several_answers_in_any_order(findings, tmp_path):
    again = [{"question": f"Which {n}?", "answer": answer} for n in range(2) for answer in (["7", "-7"], ["-7", "7"])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*GOOD, *again)))
    found = wrong(findings(dataset={"name": "json", "path": f"{tmp_path}/rows.jsonl"}))
    assert [level for level, _ in found] == ["warning"]


def test_all_checks_run_on_a_recipe_that_is_broken_in_several_places(findings):
    found = findings("--learning_rat", "1", "--rewards.fromat.weight", "1", "--generation_kwargs", "{top_kk: 1}")
    errors = [(name, text) for name, level, text in found if level == "error"]
    assert [name for name, _ in errors] == ["recipe"] * 3
    assert errors[0][1] == "--learning_rat: unknown key, did you mean --learning_rate?"
    assert errors[1][1].startswith("rewards.fromat: not a shipped reward, did you mean format?")
    assert {name for name, level, _ in found if level == "note"} >= {
        "data",
        "golds",
        "rewards",
        "prompt",
        "batch",
        "memory",
    }


def test_a_recipe_with_hardly_anything_is_checked_as_far_as_it_goes(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text("learning_rate: 1.0e-6\n")
    assert cli("check", "--config", str(tmp_path / "r.yaml"), "--layout", "none") == 1
    said = capsys.readouterr().out
    assert "error: dataset: missing, add dataset: {name: gsm8k}" in said
    assert "not checked: see the error above" in said
    assert "9. launch\n   the layout is not checked: fix the recipe first\n   error: bf16: " in said
    assert said.endswith("r.yaml: 4 errors, no warnings\n")


def cli(*words: str) -> int:
    try:
        return run_cli(dispatch, list(words))
    except SystemExit as ended:
        return ended.code


# --- the pains of bare TRL ----------------------------------------------------------------------------------------


def test_bare_golds_of_math_pass_and_crossed_ones_do_not(findings, real_data):
    texts = [text for name, _, text in findings(dataset={"name": "math500", "path": f"{real_data}/math500", "split": "test"}) if name == "golds"]  # fmt: skip
    assert texts[0] == "math500 test: all 500 golds are graded as right"
    assert texts[1].startswith(("0 of", "1 of", "2 of"))


def test_all_golds_of_gsm8k_pass_in_seconds(findings, real_data):
    for split, count in (("train", "7,473"), ("test", "1,319")):
        found = findings(dataset={"name": "gsm8k", "path": f"{real_data}/gsm8k", "split": split})
        assert ("golds", "note", f"gsm8k {split}: all {count} golds are graded as right") in found


def test_a_think_tag_that_the_chat_template_prefills_wants_room_for_its_end(
    first_line, policy_folder, tokenizer, tmp_path
):
    import shutil

    folder = tmp_path / "thinker"
    shutil.copytree(policy_folder, folder)
    template = tokenizer.chat_template + "{% if add_generation_prompt %}<think>\n{% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    style = {"user": "{question}", "answer_style": "answer_tag"}
    keys = {"model_name_or_path": str(folder), "prompt_template": style, "rewards": {"correctness": {}, "format": {}}}
    least = 1 + len(tokenizer("</think> <answer>1</answer>")["input_ids"])
    assert first_line(keys) == (
        f"max_completion_length: 8 tokens, and the shortest answer takes {least}, </think> and end token included: no "
        "completion can be right: max_completion_length: 4096"
    )


def test_overlap_with_the_test_set_is_counted_and_dropped(findings, tmp_path):
    run = "a b c d e f g h"
    train = [*GOOD, {"question": "WHAT is 1, plus 2", "answer": "3"}, {"question": f"{run} x", "answer": "1"}]
    test = [{"question": "What is 1 plus 2?", "answer": "3"}, {"question": f"y {run} z", "answer": "1"}]
    for name, rows in (("train", train), ("test", test)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"name": "json", "path": str(tmp_path)}
    found = findings(dataset=data)
    name = tmp_path.name
    says = f"{name} test: of 22 training problems 1 are test problems, 1 more with 8 words in a row of a test problem"
    assert wrong(found) == [("warning", f"{says}: dataset: {{decontaminate: true}} drops them")]
    kept, compared = (
        [text for name, _, text in findings(dataset={**data, "decontaminate": True}) if name == part]
        for part in ("data", "contamination")
    )
    assert compared == [
        "not compared with the test sets of gsm8k, gsm_plus, svamp, math, math500, aime24, aime25, amc23, hmmt, minerva_math, olympiadbench: neither named in eval: {datasets: ...} nor in the dataset's folder or the Hub's cache",
        f"{name} test: of 20 training problems 0 are test problems, 0 more with 8 words in a row of a test problem",
    ]  # fmt: skip
    assert kept[0] == (
        f"{name} train: 20 problems of 22 rows, dropped: 1 that are test problems, 1 with 8 words in a row of a test problem"
    )


def test_a_folder_without_a_test_split_is_no_mistake_where_nothing_is_evaluated(findings, tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GOOD))
    assert wrong(findings(dataset={"name": "json", "path": str(tmp_path)})) == []


def test_the_held_out_problems_are_said_to_show_what_they_can(findings):
    def shown(**keys) -> list[str]:
        return [text for _, _, text in findings(eval=keys) if "can show" in text]

    says = "8 problems can show a difference of 80.1 points (80 % power, where two models disagree on 80 % of them)"
    assert shown(before_after=True) == [f"gsm8k test: {says}"]
    assert shown(before_after=True, samples=4, temperature=1.0) == shown(before_after=False) == []


# --- the verb -------------------------------------------------------------------------------------------------------


def test_check_prints_its_findings_and_ends_with_1_on_errors(write_recipe, capsys):
    path = write_recipe(use_vllm=False, num_generations=4)
    assert cli("check", "--config", str(path), "--layout", "cpu", "--sample", "2") == 0
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line[:1].isdigit()] == [
        f"{number}. {name}" + (": ok" if name == "recipe" else "") for number, name in enumerate([*CHECKS, "sample"], 1)
    ]
    assert "of 2 right" in said
    assert said.endswith("recipe.yaml: no errors, no warnings\n") or "warning: " in said
    assert cli("check", "--config", str(path), "--layout", "none", "--json", "--temperature", "0.2") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    warned = [one for one in found["findings"] if one["level"] == "warning"]
    assert warned[0].keys() == {"number", "check", "level", "says", "fix"}
    assert warned[0]["fix"] == "temperature: 1.0"
    strictly = ("check", "--config", str(path), "--layout", "none", "--strict")
    assert cli(*strictly) == 0
    assert cli(*strictly, "--temperature", "0.2") == 1
    assert capsys.readouterr().out.endswith("recipe.yaml: no errors, 1 warning\n")
    assert cli(*strictly, "--json", "--temperature", "0.2") == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
    assert cli("check", "--config", str(path), "--layout", "none", "--max_completion_length", "1000") == 1
    assert cli("check", "--config", str(path), "--layout", "nowhere") == 2
    assert cli("check", "--config", str(path), "--sample", "no") == 2


def test_what_is_missing_offline_is_named_once(write_recipe, capsys):
    path = str(write_recipe(model_name_or_path="org/model", dataset={"name": "gsm8k", "max_prompt_tokens": 64}))
    assert cli("check", "--config", path, "--layout", "none", "--eval.every", "2") == 1
    errors = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("   error: ")]
    for key in ("model_name_or_path", "dataset.path"):
        assert [line.partition(", ")[0] for line in errors if key in line] == [
            f"error: {key}: the Hub is not reachable (or HF_HUB_OFFLINE is set)"
        ]


def test_no_preflight_goes_on_all_the_same(write_recipe, tmp_path):
    (tmp_path / "mine.py").write_text("def picky(completions, **_):\n    assert '\\\\boxed' not in completions[0][0]['content']\n    return [0.0] * len(completions)\n")  # fmt: skip
    path = str(write_recipe(use_vllm=False, rewards={"picky": {"path": f"{tmp_path}/mine.py:picky"}}))
    assert cli("train", "--config", path) == 2
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert cli("train", "--config", path, "--no_preflight") == 0


def test_a_check_of_gsm8k_takes_seconds(write_recipe, real_data, capsys):
    data = {"name": "gsm8k", "path": f"{real_data}/gsm8k", "max_prompt_tokens": 240}
    path = write_recipe(dataset=data, use_vllm=False)
    start = time.monotonic()
    status, output = cli("check", "--config", str(path), "--layout", "cpu"), capsys.readouterr().out
    print(f"{time.monotonic() - start:.1f} s")
    assert status == 0, output
    assert "golds are graded as right" in output


def test_check_in_python_returns_the_findings(write_recipe):
    path = write_recipe(use_vllm=False, num_generations=4)
    found = check(path, temperature=0.2, rewards={"format": {"weight": 0.1}})
    assert {one.check for one in found} == CHECKS.keys()
    assert [(one.check, one.fix) for one in found if one.level == "warning"] == [("recipe", "temperature: 1.0")]
    assert [one.says for one in check(path, layout="cpu", learning_rat=1) if one.level == "error"] == [
        "--learning_rat: unknown key, did you mean --learning_rate?"
    ]
    with pytest.raises(UserError, match="unknown layout nowhere"):
        check(path, layout="nowhere")
