"""`grpo-math init`: the recipe of any problems loads, and `check` finds no error in it."""

import json
import shlex

import pytest

from grpo_math.__main__ import dispatch
from grpo_math.check import check
from grpo_math.errors import UserError
from grpo_math.recipe.recipe import load_recipe

SUMS = [(a, b) for a in range(1, 6) for b in range(1, 5)]
ASK = "What is {} plus {}?"
GSM8K = [{"question": ASK.format(a, b), "answer": f"{a}+{b}={a + b}\n#### {a + b}"} for a, b in SUMS]
VERL = [
    {"prompt": [{"role": "user", "content": ASK.format(a, b)}], "reward_model": {"ground_truth": str(a + b)}}
    for a, b in SUMS
]
SHAREGPT = [
    {
        "conversations": [
            {"from": "human", "value": ASK.format(a, b)},
            {"from": "gpt", "value": f"So \\boxed{{{a + b}}}."},
        ]
    }
    for a, b in SUMS
]
ODD = "No,The Question,Final result,Notes\n" + "".join(f'{a},"{ASK.format(a, b)}",{a + b},x\n' for a, b in SUMS)
CHOICE = [
    {"question": ASK.format(a, b), "choices": [a, a + b], "answer": "AB"[a % 2], "explanation": "Add."} for a, b in SUMS
]
BOXED = [{"problem": ASK.format(a, b), "solution": f"Add: $\\boxed{{\\frac{{{a}}}{{{b}}}}}$."} for a, b in SUMS]
NAMED = [
    {"capital of": f"Country {place}, what question", "answer": name} for place, name in enumerate(["Oslo", "Bern"] * 9)
]
IDS = [
    {"problem_id": f"p{a}", "problem_text": ASK.format(a, b), "answer_type": "numeric", "correct_answer": f"{a + b}"}
    for a, b in SUMS
]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("gsm8k.jsonl", lines(GSM8K), ["read as gsm8k", "answers: 20 numbers", "held out: 2 of 20 problems"]),
        ("verl.jsonl", lines(VERL), ["question: 'prompt', answer: 'reward_model.ground_truth'"]),
        ("sharegpt.json", json.dumps(SHAREGPT), ["question: 'conversations', answer: \"the assistant's turn\""]),
        (
            "odd.csv",
            ODD + "9,What is nothing?,,\n",
            ["answer: 'Final result'", "20 problems of 21 rows", "1 without an"],
        ),
        ("choice.jsonl", lines(CHOICE), ["answers: 20 letters", "the options are in choices", "worked: 'explanation'"]),
        ("boxed.jsonl", lines(BOXED), ["answers: 20 expressions", "answer: 'solution'"]),
        (
            "text.jsonl",
            lines(NAMED).replace("capital of", "Question"),
            ["answers: 18 text", "also with the same meaning"],
        ),
        ("ids.jsonl", lines(IDS), ["answer: 'correct_answer'", "answers: 20 numbers"]),
        ("one.jsonl", lines(GSM8K[:1]), ["held out: nothing: there is one problem"]),
        ("two.jsonl", lines(GSM8K[:2]), ["held out: 1 of 2 problems"]),
    ],
)
def test_the_recipe_passes_the_checks(name, text, said, tmp_path, monkeypatch, capsys, policy_folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    dispatch(["init", name, "--model", str(policy_folder)])
    printed = capsys.readouterr().out
    assert [one for one in said if one not in printed] == []
    recipe = (tmp_path / "recipe.yaml").read_text()
    assert [one for one in said if one not in recipe] == []
    assert [str(one) for one in check("recipe.yaml", layout="single_gpu") if one.level == "error"] == []
    with pytest.raises(UserError, match=r"recipe.yaml exists, and init never overwrites"):
        dispatch(["init", name])


def test_no_question_is_in_both_parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    again = [row | {"question": row["question"].upper().replace(" ", "  ")} for row in GSM8K]
    (tmp_path / "mine.jsonl").write_text(lines(GSM8K + again))
    dispatch(["init", "mine.jsonl"])
    train, test = (
        (tmp_path / "recipe_split" / f"{part}.jsonl").read_text().upper().replace("  ", " ").splitlines()
        for part in ("train", "test")
    )
    assert (len(train), len(test), {*train} & {*test}) == (36, 4, set())
    assert load_recipe(tmp_path / "recipe.yaml").eval_datasets[0].split == "test"


def test_odd_names_are_safe_in_the_recipe_and_in_the_shell(tmp_path, monkeypatch, capsys, policy_folder):
    monkeypatch.chdir(tmp_path)
    file, out = tmp_path / "it's {a}\n#b: \x1b[0m.jsonl", tmp_path / "o'ut $(x).yaml"
    rows = [{"- question\n: #": ASK.format(a, b), "&answer": a + b, "choices\n x: {1}": 0} for a, b in SUMS]
    file.write_text(lines(rows))
    dispatch(["init", file.name, "--out", out.name, "--model", str(policy_folder)])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert shlex.split(printed.splitlines()[-1])[-1] == out.name
    recipe = load_recipe(out)
    assert recipe.datasets[0].params["fields"] == {"question": "- question\n: #", "answer": "&answer"}
    assert [str(one) for one in check(str(out), layout="single_gpu") if one.level == "error"] == []


def test_a_relative_path_after_the_name_of_a_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "boxed.jsonl").write_text(lines(BOXED))
    dispatch(["init", "math=boxed.jsonl"])
    assert load_recipe("recipe.yaml").datasets[0].name == "math"
    with pytest.raises(UserError, match="no file or folder none"):
        dispatch(["init", "math=none.jsonl", "--out", "other.yaml"])
    with pytest.raises(UserError, match="--answer: only for files"):
        dispatch(["init", "math=boxed.jsonl", "--answer", "solution", "--out", "other.yaml"])


def test_a_test_split_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text(lines(BOXED))
    (tmp_path / "test.jsonl").write_text('{"x": 1}')
    with pytest.raises(UserError, match=r"eval\.fields: no column"):
        dispatch(["init", "."])
    assert not (tmp_path / "recipe.yaml").exists()


def test_a_test_split_that_is_there_is_taken(tmp_path, problem_folder):
    for number, source in enumerate((problem_folder, problem_folder / "train.jsonl", f"gsm8k={problem_folder}")):
        out = tmp_path / f"{number}.yaml"
        dispatch(["init", str(source), "--out", str(out)])
        recipe = load_recipe(out)
        assert [(one.name, one.path, one.split) for one in (*recipe.datasets, *recipe.eval_datasets)] == [
            ("gsm8k", str(problem_folder), "train"),
            ("gsm8k", str(problem_folder), "test"),
        ]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_function_may_be_the_source(tmp_path, monkeypatch, policy_folder):
    monkeypatch.chdir(tmp_path)
    body = "def load(split):\n    low = 1 if split == 'train' else 50\n    for a in range(low, low + 9):\n"
    (tmp_path / "mine.py").write_text(
        body + "        yield {'question': f'What is {a} plus 1?', 'answer': str(a + 1)}\n"
    )
    dispatch(["init", "./mine.py:load", "--model", str(policy_folder)])
    assert [str(one) for one in check("recipe.yaml", layout="single_gpu") if one.level == "error"] == []
    assert load_recipe("recipe.yaml").eval_datasets[0].split == "test"
    (tmp_path / "train.py").write_text(
        "def load(split):\n    return {'train': [dict(question='1+1?', answer=2)]}[split]\n"
    )
    dispatch(["init", "train.py:load", "--out", "train.yaml", "--model", str(policy_folder)])
    assert not load_recipe("train.yaml").eval.wanted


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        (
            "a.jsonl",
            '{"question": "1+1?", "hint": 2}',
            [],
            r"no column looks like the answer \(the columns are question, hint",
        ),
        ("a.csv", "x,y\n1,2\n", [], r"no column looks like the question \(the columns are x, y\): name it, --question"),
        (
            "a.csv",
            "x,y\n1,2\n",
            ["--question", "z", "--answer", "y"],
            "--question: no column 'z': the columns are x, y",
        ),
        (
            "a.csv",
            "prompt,problem,answer\n1,2,3\n",
            [],
            "problem and prompt: either may be the question: name it, --que",
        ),
        ("a.csv", "data,label\n1,2\n", ["--answer", "label"], r"\(the columns are data, label\): name it, --question"),
        ("a.jsonl", '{"data": {"text": "1"}}', [], "the columns are data, data.text"),
        ("a.jsonl", "", [], "a.jsonl: has no rows"),
        ("~nobody.txt", "1", [], "unsupported file type: use .jsonl"),
        ("a.jsonl", '{"question": "Why?", "answer": ""}', [], "1 without an answer: no problems are left"),
        (
            "a.jsonl",
            lines([{"question": "1+1?", "answer": "It is \\boxed{2}"}]),
            [],
            "if they end with .*, rename the column",
        ),
        ("a.jsonl", lines([{"question": "Why?", "answer": "so " * 20}]), [], "1 of 1 answers are sentences"),
        ("a.jsonl", lines(GSM8K), ["--model", "./none"], "none"),
        ("a.jsonl", lines(GSM8K), ["--model="], "--model: expected a folder or a Hub id"),
        ("a.jsonl", lines(GSM8K), ["--out", "a.txt"], "expected a .yaml file"),
        ("a.jsonl", lines([{"question": "1+1? " * 5_000, "answer": 2}]), [], r"the shortest prompt has [\d,]+ tokens"),
    ],
)
def test_what_cannot_be_a_recipe_is_one_line(name, text, options, message, tmp_path, monkeypatch, policy_folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        dispatch(["init", name, "--model", str(policy_folder), *options])
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == [tmp_path / name]
