"""`grpo-math evaluate` and `grpo-math compare`, as a person runs them."""

import json
import re
from pathlib import Path

import pytest

from grpo_math.__main__ import dispatch
from grpo_math.errors import UserError
from grpo_math.evaluation import compare, evaluate
from grpo_math.generation.engines import TransformersEngine
from grpo_math.runs.folder import read_table, write_table

SAMPLED = ["--samples", "4", "--temperature", "1.5", "--batch_size", "8"]


@pytest.fixture
def run(policy_folder, problem_folder, tmp_path):
    def run(*arguments: str, out: str = "out", dataset: str = f"gsm8k={problem_folder}") -> dict:
        words = ["--model", str(policy_folder), "--dataset", dataset, "--max_completion_length", "6"]
        dispatch(["evaluate", *words, "--use_vllm", "false", "--out", str(tmp_path / out), *arguments])
        return json.loads((tmp_path / out / "results.json").read_text())

    return run


def rows_of(out: str, first: str) -> list[list[str]]:
    """The cells of the printed table rows that begin with this one."""
    rows = [re.split(" {2,}", line.strip()) for line in out.splitlines()]
    return [row for row in rows if row[0] == first and len(row) > 1]


def completions(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]


def test_an_evaluation_without_a_recipe_leaves_everything_in_its_folder(run, tmp_path, capsys):
    results = run()
    (found,) = results["evaluations"]
    assert (found["dataset"], found["problems"], found["accuracy"]) == ("gsm8k test", 8, 0)
    assert found["accuracy_high"] == pytest.approx(0.324, abs=1e-3)
    assert results["settings"]["sampling"]["max_new_tokens"] == 6
    assert results["versions"]["transformers"]
    assert results["right"] == {"gsm8k test": [0] * 8}
    rows = completions(tmp_path / "out")
    assert len(rows) == 8
    wanted = {"dataset", "problem", "sample", "question", "gold", "completion", "answer", "correct", "how", "length"}
    assert wanted <= rows[0].keys()
    out = capsys.readouterr().out
    assert rows_of(out, "accuracy") == [["accuracy", "0.000 (0.000-0.324)"]]
    shows = "8 problems can show a difference of 80.1 points (80 % power, where two models disagree on 80 % of them)"
    assert f"\ngsm8k test: {shows}\n" in out


def test_samples_print_the_k_that_was_asked_for(run, capsys):
    (found,) = run(*SAMPLED, "--k", "1,3")["evaluations"]
    assert {"pass@1", "pass@2", "pass@3", "pass@4", "maj@4"} <= found.keys()
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if "@" in line] == ["mean@4", "pass@1", "pass@3", "maj@4"]
    assert "4 samples at temperature 1.5" in out


def test_an_interrupted_evaluation_goes_on_and_ends_as_if_it_had_not_been(run, tmp_path, monkeypatch, capsys):
    whole = run(*SAMPLED, out="whole")
    complete, calls = TransformersEngine.complete, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return complete(*arguments)

    monkeypatch.setattr(TransformersEngine, "complete", interrupted)
    with pytest.raises(SystemExit):
        run(*SAMPLED)
    assert "interrupted: run the same command to continue" in capsys.readouterr().err
    file = tmp_path / "out" / "completions.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 16
    file.write_text("".join(lines[:-1]) + lines[-1][:20])  # killed in the middle of a line
    resumed = run(*SAMPLED)
    assert "continuing after 3 problems finished before" in capsys.readouterr().out
    assert len(calls) == 3 + 3  # the interrupted batch, the one of the half-written problem, the last one
    without = {"seconds": 0}
    assert [row | without for row in resumed["evaluations"]] == [row | without for row in whole["evaluations"]]
    order = sorted(completions(tmp_path / "out"), key=lambda row: (row["problem"], row["sample"]))
    assert order == sorted(completions(tmp_path / "whole"), key=lambda row: (row["problem"], row["sample"]))


def test_a_suite_is_a_list_of_names_or_a_file(run, problem_folder, tmp_path, capsys):
    (tmp_path / "own.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    both = run(dataset=f"gsm8k={problem_folder},json={tmp_path}/own.jsonl", out="names")["evaluations"]
    assert [(found["dataset"], found["problems"]) for found in both] == [
        ("gsm8k test", 8),
        ("own test", 1),
        ("all datasets", 9),
    ]
    (tmp_path / "suite.yaml").write_text(
        f"- {{name: gsm8k, path: {problem_folder}, max_samples: 3}}\n- {{name: json, path: {tmp_path}/own.jsonl}}\n"
    )
    both = run(dataset=f"{tmp_path}/suite.yaml", out="file")["evaluations"]
    assert [found["problems"] for found in both] == [3, 1, 4]
    out = capsys.readouterr().out
    assert rows_of(out, "gsm8k test")[-1] == ["gsm8k test", "own test", "all datasets"]
    assert rows_of(out, "problems")[-1] == ["problems", "3", "1", "4"]


def test_levels_are_broken_down(run, tmp_path, capsys):
    rows = [{"problem": "1+1?", "answer": "2", "level": level, "subject": "Algebra"} for level in (1, 1, 2)]
    (tmp_path / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(dataset=f"math500={tmp_path}/math.jsonl")
    out = capsys.readouterr().out
    assert rows_of(out, "math test, level") == [["math test, level", "problems", "accuracy"]]
    assert rows_of(out, "1") == [["1", "2", "0.000 (0.000-0.658)"]]
    assert rows_of(out, "Algebra") == [["Algebra", "3", "0.000 (0.000-0.561)"]]


def test_what_was_evaluated_otherwise_is_not_overwritten(run, tmp_path):
    run()
    before = (tmp_path / "out" / "results.json").read_text()
    with pytest.raises(UserError, match="has an evaluation with another sampling: use another folder"):
        run(*SAMPLED[:4])
    assert (tmp_path / "out" / "results.json").read_text() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and not an evaluation"):
        run(out="mine")


def test_golds_that_cannot_be_read_are_named(run, tmp_path, capsys):
    (tmp_path / "own.jsonl").write_text('{"question": "1+1?", "answer": "1+1=<<1+1=2>>2\\n#### 2"}\n')
    answered = [
        "--prompt_template.user",
        "{question}",
        "--prompt_template.prefill",
        r"\boxed{3} ",
        "--prompt_template.chat",
        "false",
    ]
    run(*answered, dataset=f"json={tmp_path}/own.jsonl")
    assert "1 golds cannot be read and count as wrong, such as '1+1=<<" in capsys.readouterr().err
    with pytest.raises(UserError, match="nothing to evaluate: give --model M --suite gsm8k"):
        dispatch(["evaluate"])


def test_the_folder_is_named_after_the_model_and_the_settings(policy_folder, problem_folder, write_recipe, tmp_path):
    command = ["--config", str(write_recipe()), "--use_vllm", "false", "--max_completion_length", "4"]
    dispatch(["evaluate", *command])
    dispatch(["evaluate", *command, "--max_samples", "2", "--seed", "3"])
    dispatch(["evaluate", *command])
    folders = list((tmp_path / "run" / "evaluate").iterdir())
    assert len(folders) == 2
    assert all(folder.name.rpartition("-")[0].endswith(policy_folder.name) for folder in folders)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dataset nothing", "eval.datasets[0].name: unknown dataset 'nothing': `grpo-math datasets` lists them"),
        ("--dataset gsm8k=DATA --model /no/such/model", "model_name_or_path: no model at '/no/such/model'"),
        ("--dataset gsm8k=DATA --model EMPTY", "model_name_or_path: no model at"),
        ("--dataset gsm8k=DATA --model WEIGHTLESS", "weightless': it has no weights"),
        ("--dataset gsm8k=DATA --model ADAPTER", "gone, which cannot be loaded"),
        ("--dataset gsm8k=DATA --samples 4", "eval.samples: 4 greedy completions of a problem are identical"),
        (
            "--dataset gsm8k=DATA --samples 4 --temperature 1 --k 8",
            "eval.k: pass@8 needs at least 8 samples, got 4",
        ),
        ("--dataset gsm8k=DATA --split nowhere", "nowhere"),
        ("--dataset json=BLANK", "no problems are left"),
        ("--suite", "--suite: expected one argument"),
        ("--dataset none.yaml", "none.yaml: no such list"),
        ("", "eval.datasets: missing, name the problems to evaluate on"),
        ("--watch POLICY", "is a model, not a run"),
        ("--watch RUN --sampels 2", "--sampels: did you mean --samples?"),
        (
            "--dataset gsm8k=DATA --rewards.format.weight 1 --temprature 1",
            "--temprature: did you mean --temperature?",
        ),
        ("--dataset gsm8k=DATA --device 1", "--device: only with --watch"),
        ("--watch nowhere", "--watch: no folder nowhere"),
        ("--watch DATA --out o", "--watch: the run's recipe sets what is evaluated"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, policy_folder, problem_folder, tmp_path):
    import shutil

    shutil.copytree(policy_folder, tmp_path / "weightless")
    (tmp_path / "weightless" / "model.safetensors").unlink()
    (tmp_path / "empty").mkdir()
    shutil.copytree(tmp_path / "weightless", tmp_path / "adapter")
    (tmp_path / "adapter" / "config.json").unlink()
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "gone"), "r": 2}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    shutil.copy(policy_folder / "model.safetensors", tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "blank.jsonl").touch()
    names = {"DATA": problem_folder, "EMPTY": tmp_path / "empty", "WEIGHTLESS": tmp_path / "weightless"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(f"model_name_or_path: {policy_folder}")
    names |= {"POLICY": policy_folder, "RUN": tmp_path / "run"}
    names |= {"ADAPTER": tmp_path / "adapter", "BLANK": tmp_path / "blank.jsonl"}
    for name, path in names.items():
        arguments = arguments.replace(name, str(path))
    words = arguments.split()
    model = [] if {"--model", "--watch"} & set(words) else ["--model", str(policy_folder)]
    out = [] if "--watch" in words else ["--use_vllm", "false", "--out", str(tmp_path / "o")]
    with pytest.raises(UserError) as caught:
        dispatch(["evaluate", *model, *words, *out])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


FAILING = "def failing(completions, **_):\n    return [1 / 0 for _ in completions]\n"


def test_a_recipes_rewards_are_scored_too(write_recipe, tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text(FAILING)
    failing = {"failing": {"path": f"{tmp_path}/mine.py:failing"}}
    judge = {"judge": {"reward_model": "org/model"}}

    def results(*words: str, rewards: dict) -> dict:
        recipe = write_recipe(rewards=rewards, prompt_template="question_only")
        dispatch(["evaluate", "--config", str(recipe), "--use_vllm", "false", "--out", str(tmp_path / "o"), *words])
        return json.loads((tmp_path / "o" / "results.json").read_text())

    def figures(results: dict) -> set[str]:
        return {name for name in results["metrics"] if "reward" in name and not name.endswith(("_low", "_high"))}

    found = results(rewards={"format": {"bias": 0.5}, "correctness": {"weight": 2.0}})
    assert figures(found) == {"reward", "rewards/format", "rewards/correctness"}
    low, value, high = (found["metrics"][f"reward{end}"] for end in ("_low", "", "_high"))
    assert low <= value == 0.5 <= high
    assert rows_of(capsys.readouterr().out, "reward")[0][1].startswith("0.500 (")
    assert {row["reward"] for row in completions(tmp_path / "o")} == {0.5}
    monkeypatch.setattr(TransformersEngine, "complete", None)  # from here on everything is generated
    with pytest.raises(UserError) as caught:
        results(rewards=failing)
    assert str(caught.value).startswith("reward failing: raised ZeroDivisionError: division by zero, mine.py:2; first")
    assert str(caught.value).endswith(", or evaluate without the rewards: --eval.rewards false")
    assert "\n" not in str(caught.value)
    assert figures(results("--eval.rewards", "false", rewards=failing)) == set()
    assert "reward" not in completions(tmp_path / "o")[0]
    capsys.readouterr()
    assert figures(results(rewards={"format": {}, **judge})) == {"rewards/format"}
    line = "evaluation on gsm8k test: rewards/judge and reward are not computed: rewards.judge is a reward model\n"
    assert capsys.readouterr().err == line


# Two evaluations of the same problems.


@pytest.fixture
def write(tmp_path):
    def write(name: str, right: str, settings: dict | None = None, samples: int = 1):
        """Evaluations of as many problems as `right` has characters, + for right ones."""
        folder = tmp_path / name
        folder.mkdir()
        rows = [
            {
                "dataset": "gsm8k test", "problem": i // samples, "sample": i % samples, "question": f"{i // samples}+1?", "gold": "7",
                "completion": f"I say {sign}", "answer": sign, "correct": sign == "+",
            }
            for i, sign in enumerate(right)
        ]  # fmt: skip
        (folder / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if settings:
            (folder / "settings.json").write_text(json.dumps(settings))
        return str(folder)

    return write


def test_a_comparison_says_plainly_what_can_be_told(write, capsys):
    first, better, same = write("a", "-" * 12 + "+" * 8), write("b", "+" * 20), write("c", "+" + "-" * 11 + "+" * 8)
    dispatch(["compare", first, better, same, "--show", "1"])
    b, c = capsys.readouterr().out.split("\nB: ")[1:]
    (row,) = rows_of(b, "gsm8k test")
    assert row[:4] == ["gsm8k test", "20", "0.400", "1.000"]
    assert row[4].startswith("+0.600 (")
    assert row[5:] == ["0.00049", "12", "0", "B is better than A"]
    assert "won by B: 0+1?\ngold: 7\nA, wrong (-): I say -\nB, right (+): I say +\n" in b
    (row,) = rows_of(c, "gsm8k test")
    assert row[6:] == ["1", "0", "too few changed problems to tell"]
    assert "lost by B" not in c


def test_samples_and_other_settings_and_problems_in_one_only(write, capsys):
    first = write("a", "+-+-+-", {"model": "m", "seed": 1, "sampling": {}}, samples=2)
    second = write("b", "--+---++", {"model": "n", "seed": 2, "sampling": {}}, samples=2)
    dispatch(["compare", first, second])
    out = capsys.readouterr().out
    assert "B was evaluated with another seed\n" in out
    assert rows_of(out, "gsm8k test")[0][:2] == ["gsm8k test", "3"]
    assert rows_of(out, "gsm8k test")[0][5:] == ["0.5", "0", "2", "too few problems to tell"]  # p = 2 / 2^2
    assert "exact sign-flip p" in out
    assert "gsm8k test: 3 problems cannot show a difference\n" in out
    assert "gsm8k test: left out 1 problems that only one of them has" in out
    assert "lost by B: 0+1?\ngold: 7\nA, right (+): I say +\nB, wrong (-): I say -" in out


def test_a_comparison_says_what_so_many_problems_can_show(write, capsys):
    # 10 of 200 won and 10 lost: what changes is 10 % of them, as where nothing is known
    dispatch(["compare", write("a", "+" * 10 + "-" * 190), write("b", "-" * 10 + "+" * 10 + "-" * 180)])
    out = capsys.readouterr().out
    assert rows_of(out, "gsm8k test")[0][5:] == ["1", "10", "10", "not distinguishable"]
    assert "gsm8k test: 200 problems can show a difference of 6.4 points (80 % power, with the spread seen here)" in out


def test_a_dataset_of_one_evaluation_alone_is_named(write, capsys):
    first, second = write("a", "++--"), write("b", "++++")
    for folder, name in ((first, "only a"), (second, "only b")):
        file = Path(folder) / "completions.jsonl"
        more = file.read_text().replace("gsm8k test", name)
        file.write_text(file.read_text() + more)
    dispatch(["compare", first, second])
    out = capsys.readouterr().out
    assert "only a: left out, no problem is in all evaluations\nonly b: left out, no problem" in out
    assert len(rows_of(out, "gsm8k test")) == 1


def test_settings_are_compared_over_their_runs(write, capsys):
    for name, right in (("a-1", 10), ("a-2", 12), ("a-3", 11), ("b-1", 17), ("b-2", 16), ("b-3", 18)):
        folder = write(name, "+" * right + "-" * (20 - right), {"model": name, "seed": right, "sampling": name[0]})
    settings = [str(Path(folder).parent / name) for name in ("a-*", "b-*")]
    dispatch(["compare", "--seeds", *settings])
    out = capsys.readouterr().out
    assert f"A: {settings[0][:-1]}1, {settings[0][:-1]}2, " in out
    assert "not all were evaluated with the same sampling\n" in out
    # 0.50, 0.60, 0.55 and 0.85, 0.80, 0.90: standard error sqrt(2 x 0.05^2 / 3), 4 degrees of freedom: t 2.776 and 0.941
    wanted = ["0.550 (0.500-0.600)", "0.850 (0.800-0.900)", "+0.300 (+0.187 to +0.413)", "0.0018", "B is better than A"]
    assert rows_of(out, "gsm8k test")[0] == ["gsm8k test", "20", *wanted]
    assert (
        "gsm8k test: 3 and 3 runs can show a difference of 15.2 points (80 % power, with the spread seen here)" in out
    )
    a, b = settings[0][:-1], settings[1][:-1]
    dispatch(["compare", "--seeds", f"{a}1, {a}2", f"{a}2,{a}3,", f"{b}1,{b}2"])
    out = capsys.readouterr().out
    assert [row[-1] for row in rows_of(out, "gsm8k test") if len(row) > 2] == ["not distinguishable"] * 2
    for one in (f"{a}1", f"{a}1,{a}1", f"{a}1*"):
        with pytest.raises(UserError, match="is one run: give two or more per setting, separated by commas"):
            dispatch(["compare", "--seeds", settings[1], one])
    absent = f"{a}9"
    for one in (absent, f"{absent}*", f"{a}1,{absent}"):
        with pytest.raises(UserError, match=r"no .*9\*?: check the path or the pattern"):
            dispatch(["compare", "--seeds", settings[1], one])


def test_a_runs_last_evaluation_is_compared(write, tmp_path, capsys):
    rows = read_table(Path(write("a", "++--++--")) / "completions.jsonl")
    for step in (0, 20):
        (tmp_path / "run" / "completions").mkdir(parents=True, exist_ok=True)
        kept = [row | {"correct": row["correct"] or step == 20} for row in rows]
        write_table(kept, tmp_path / "run" / "completions" / f"eval-{step:06d}.parquet")
    dispatch(["compare", str(tmp_path / "a"), str(tmp_path / "run")])
    assert rows_of(capsys.readouterr().out, "gsm8k test")[0][2:4] == ["0.500", "1.000"]


def test_what_cannot_be_compared_is_one_line(write, tmp_path):
    first, blank, cut = write("a", "++"), tmp_path / "blank", tmp_path / "eval-000010.parquet"
    blank.mkdir()
    cut.write_bytes(b"PAR1")
    for arguments, message in (
        ([first], "expected two or more evaluations"),
        ([first, str(tmp_path / "nowhere")], "has no completions.jsonl"),
        ([first, str(blank)], "has no completions.jsonl"),
        ([first, str(cut)], "eval-000010.parquet: no completions: "),
    ):
        with pytest.raises(UserError, match=message):
            dispatch(["compare", *arguments])
    other = tmp_path / "a" / "completions.jsonl"
    (blank / "completions.jsonl").write_text(other.read_text().replace("+1?", "+2?"))
    with pytest.raises(UserError, match="A and B have no problem in common"):
        dispatch(["compare", first, str(blank)])
    for content, message in (
        (
            b'{"dataset": "d", "problem": 0, "sample": 0, "question": "q", "gold": "1", "completion": "c"}',
            "the evaluation is not finished",
        ),
        (
            b'{"dataset": "d", "problem": "0", "sample": 0, "question": ["q"], "gold": "1", "completion": "c"}',
            "completions.jsonl: not the completions of an evaluation",
        ),
        (
            b'{"gold": "1", "completion": "1", "correct": true}',
            "completions.jsonl: not the completions of an evaluation",
        ),
        (b"\xff", "completions.jsonl: no completions: 'utf-8' codec can't decode byte 0xff"),
        (b"[" * 100_000, "completions.jsonl: has no completions"),
    ):
        (blank / "completions.jsonl").write_bytes(content + b"\n")
        with pytest.raises(UserError, match=message):
            dispatch(["compare", first, str(blank)])


def test_an_evaluation_is_a_function_too(policy_folder, problem_folder, tmp_path):
    found = evaluate.evaluate(
        policy_folder,
        dataset=f"gsm8k={problem_folder}",
        max_completion_length=4,
        max_samples=3,
        samples=2,
        temperature=1.0,
        k=[1, 2],
        use_vllm=False,
        out=str(tmp_path / "out"),
    )
    assert found == json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(row["problems"], row["samples"]) for row in found["evaluations"]] == [(3, 2)]
    (one,) = compare.compare(tmp_path / "out", tmp_path / "out")
    assert (len(one.problems), one.difference.won, one.difference.lost) == (3, 0, 0)
