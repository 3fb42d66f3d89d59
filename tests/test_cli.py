"""The commands as a person types them: exit statuses, the first line of an error."""

import json
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from conftest import ROOT

from grpo_math.__main__ import dispatch, parse, underscored
from grpo_math.completion import script
from grpo_math.errors import run_cli
from grpo_math.runs.folder import read_table
from grpo_math.verbs import TASKS, VERBS


@pytest.fixture
def grpo_math(monkeypatch, capsys):
    """The exit status, the output and the errors of a command, in this process."""
    monkeypatch.chdir(ROOT)

    def command(*words: str) -> tuple[int, str, str]:
        return run_cli(dispatch, [*words]), *capsys.readouterr()

    return command


def test_a_file_that_cannot_be_written_is_one_line(grpo_math, tmp_path):
    (tmp_path / "grades.jsonl").mkdir()
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"gold": "1", "completion": "2"}\n')
    status, _, errors = grpo_math("grade", str(rows), "--out", str(tmp_path / "grades.jsonl"))
    assert (status, errors.count("\n")) == (2, 1)
    assert "grades.jsonl" in errors


HELP = """
import contextlib, json, sys
from grpo_math.__main__ import dispatch
for arguments in json.loads(sys.argv[1]):
    with contextlib.suppress(SystemExit):
        dispatch(arguments)
    print("heavy:", sorted({"torch", "transformers"} & set(sys.modules)))
"""


def test_help_answers_without_anything_heavy():
    asked = [[], ["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)]
    command = [sys.executable, "-c", HELP, json.dumps(asked)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *answers, end = done.stdout.split("heavy: []\n")
    assert ["grpo-math" in answer for answer in answers] == [True] * len(asked)
    assert end == ""


def test_the_help_fits_a_terminal_and_cuts_nothing_off(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert sorted(" ".join(TASKS.values()).split()) == sorted(VERBS)
    for arguments in ([], *([verb] for verb in VERBS)):
        with pytest.raises(SystemExit):
            dispatch([*arguments, "--help"])
        text = capsys.readouterr().out
        assert " ...\n" not in text.partition("\noptions:\n")[2]
        assert max(map(len, text.splitlines())) <= 80, arguments
    with pytest.raises(SystemExit):
        dispatch(["evaluate", "--help"])
    text = capsys.readouterr().out
    assert "--suite D" in text
    assert "--dataset" not in text
    assert [parse(["evaluate", name, "gsm8k"]).dataset for name in ("--suite", "--dataset", "--datasets")] == [
        "gsm8k"
    ] * 3


def test_bash_completes_verbs_options_keys_and_recipes(tmp_path):
    lines = {
        "grpo-math qui": "quickstart",
        "grpo-math train --learning_r": "--learning_rate",
        "grpo-math launch --config quickstart --eval.before": "--eval.before_after",
        "grpo-math sft --sft.t": "--sft.target",
        "grpo-math check --config math_dual": "math_dual_gpu",
        "grpo-math check --config min": "mine.yaml",
        "grpo-math launch --layout dual_gpu_": "dual_gpu_eval",
        "grpo-math completion z": "zsh",
        "grpo-math evaluate --su": "--suite",
    }
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "script").write_text(script("bash"))
    asked = "\n".join(f"COMP_WORDS=({line}); COMP_CWORD={len(line.split()) - 1}; _shtab_grpo_math; echo ${{COMPREPLY[*]}}" for line in lines)  # fmt: skip
    done = subprocess.run(["bash", "-c", f"source ./script\n{asked}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == list(lines.values())
    assert script("zsh").startswith("#compdef grpo-math")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["trian"],
            "error: unknown verb 'trian': did you mean train?\n",
        ),
        (["train"], "error: no recipe: give one with --config recipes/X.yaml\n"),
        (
            ["train", "--config=nowhere.yaml"],
            "error: nowhere.yaml: no such recipe (No such file or directory): check its path\n",
        ),
        (["train", "--config"], "error: --config: expected one argument\n"),
        (["report"], "error: grpo-math report: the following arguments are required: RUN\n"),
        (["runs", "runs", "more"], "error: grpo-math runs: more: unknown argument\n"),
        (["compare", "a", "b", "--shwo", "2"], "error: grpo-math compare: --shwo: did you mean --show?\n"),
        (
            ["compare", "a", "b"],
            "error: a: has no completions.jsonl: give a folder of grpo-math evaluate, or an evaluated run\nerror: b: has no",
        ),
        (["train", "--config", "quickstart", "--dry_rnu"], "error: --dry_rnu: did you mean --dry_run?\n"),
        (
            ["launch", "--confg=x.yaml", "--layuot", "cpu"],
            "error: --confg: did you mean --config?\nerror: --layuot: did you mean --layout?\n",
        ),
        (["check", "--config", "quickstart", "--strct"], "error: --strct: did you mean --strict?\n"),
        (["check", "--sample", "x"], "error: --sample: expected an integer of at least 1, got 'x'\n"),
        (
            ["train", "--config", "recipes/quickstart.yaml", "--learning_rat", "1", "--max_step", "2"],
            "error: --learning_rat: unknown key, did you mean --learning_rate?\n"
            "error: --max_step: unknown key, did you mean --max_steps?\n",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(grpo_math, arguments, message):
    status, output, errors = grpo_math(*arguments)
    assert errors.startswith(message)
    assert "Traceback" not in errors
    assert output == ""
    assert status == 2


@pytest.mark.parametrize(
    ("word", "read"),
    [
        ("--learning-rate", "--learning_rate"),
        ("--learning-rate=1e-6", "--learning_rate=1e-6"),
        ("--run-name=my-run", "--run_name=my-run"),
        ("--dataset.max-samples", "--dataset.max_samples"),
        ("--rewards.my-reward.max-tokens", "--rewards.my-reward.max_tokens"),  # a name, not a key
        ("my-run", "my-run"),
        ("--- x-y", "--- x-y"),
        ("-1", "-1"),
    ],
)
def test_dashes_count_as_underscores_in_keys(word, read):
    assert underscored(word) == read


def test_a_verbs_options_are_told_from_the_keys_of_the_recipe():
    options = parse("launch --layout zero2 --learning-rate -1e-6 --config r.yaml --use_peft --no-preflight".split())
    assert (options.layout, options.dry_run) == ("zero2", False)
    assert options.words == "--config r.yaml --learning_rate -1e-6 --use_peft --preflight false".split()
    options = parse(["train", "--config=r.yaml", "--beta=0.1", "--dry-run"])
    assert options.dry_run is True
    assert options.words == ["--config", "r.yaml", "--beta=0.1"]
    assert parse(["export", "a", "b", "--trust_remote_code", "true"]).words == ["--trust_remote_code", "true"]


def test_the_module_is_the_same_command():
    command = [sys.executable, "-m", "grpo_math.train", "--config", "nowhere.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "error: nowhere.yaml: no such recipe (No such file or directory): check its path\n"
    assert done.returncode == 2
    done = subprocess.run([sys.executable, "-m", "grpo_math.train", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("usage: grpo-math train")


@pytest.mark.slow
def test_accelerate_launch_trains(write_recipe, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    command += ["-m", "grpo_math.train", "--config", str(write_recipe()), "--max_steps", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "step 1/1  reward" in done.stdout
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()


def test_weights_and_biases_without_a_key_is_one_line(write_recipe, tmp_path):
    words = ["train", "--config", str(write_recipe(report_to="wandb"))]
    status, output = forked.grpo_math(words, tmp_path, WANDB_API_KEY="", WANDB_MODE="online", HOME=str(tmp_path))
    assert "error: report_to: W&B has no API key: run `wandb login`, set WANDB_MODE=offline, or give" in output
    assert "Traceback" not in output
    assert status == 2


def test_two_processes_train_and_evaluate_one_run(write_recipe, tmp_path, monkeypatch):
    """DDP over gloo: the GPU file, told to stay on the CPU."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/multi_gpu.yaml"]
    recipe = write_recipe(eval={"before_after": True}, per_device_train_batch_size=2)
    command += ["-m", "grpo_math.train", "--config", str(recipe), "--max_steps", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 1/1  reward") == 1
    assert json.loads((tmp_path / "run" / "results.json").read_text())["after"]["problems"] == 8
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()
    golds = [row["gold"] for row in read_table(tmp_path / "run" / "completions" / "eval-000000.parquet")]
    assert golds == ["8", "9", "8", "9", "10", "9", "10", "11"]


@pytest.mark.parametrize("path", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_accelerate_config_loads(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.mixed_precision == "no"
    assert path.read_text().startswith("# ")


def test_the_rewards_verb_lists_every_reward_with_its_settings(grpo_math):
    from grpo_math.rewards.reward import REWARDS

    status, output, _ = grpo_math("rewards")
    assert status == 0
    assert all(f"\n{name} " in f"\n{output}" for name in REWARDS)
    assert "{correct: 1.0, wrong: 0.0, no_answer: null}" in output


def test_the_rewards_verb_scores_a_text_with_nothing_but_the_recipe(grpo_math):
    tried = ["rewards", "--try", "recipes/math_plusminus.yaml", "--gold", "4"]
    lines = grpo_math(*tried, "--completion", r"so \boxed{5}", "--rewards.format.weight", "0.5")[1].splitlines()
    assert [line.split() for line in lines] == [
        ["solution:", "4"],
        ["answer:", "5", "(number)"],
        ["score", "weight"],
        ["correctness", "-1", "1"],
        ["format", "1", "0.5"],
        ["reward", "-0.5"],
    ]
    assert grpo_math(*tried)[2] == (
        "error: rewards: give --try recipes/X.yaml and --completion TEXT, or nothing at all\n"
    )
    assert grpo_math(*tried, "--completion")[2] == "error: --completion: expected one argument\n"


def test_the_rewards_verb_gives_an_own_function_what_trl_gives(grpo_math, write_recipe, tmp_path):
    body = (
        "async def f(completions, log_metric, trainer_state, **kwargs):\n    log_metric('m', 1.0)\n    return [0.5]\n"
    )
    (tmp_path / "mine.py").write_text(body)
    recipe = write_recipe(rewards={"mine": {"path": f"{tmp_path}/mine.py:f"}}, model_name_or_path="no/model")
    _, output, _ = grpo_math("rewards", "--try", str(recipe), "--gold", "4", "--completion", "x")
    assert "mine                  0.5        1" in output


def test_the_rewards_verb_takes_the_columns_of_the_first_problem_with_another_gold(tmp_path, capsys):
    root = Path(__file__).parents[1] / "examples" / "own"
    data = f"{{name: json, path: {root}/problems.jsonl, fields: {{question: text, answer: result}}}}"
    recipe = tmp_path / "own.yaml"
    recipe.write_text(f"dataset: {data}\nrewards:\n  working: {{path: {root}/rewards.py:working}}\n")
    keys = ["--model_name_or_path", "no/model"]
    dispatch(["rewards", "--try", str(recipe), "--gold", "5", "--completion", r"2+3=5 \boxed{5}", *keys])
    assert [line.split() for line in capsys.readouterr().out.splitlines()][::3] == [
        ["solution:", "5"],
        ["working", "0.5", "1"],
    ]


def test_the_rewards_verb_counts_tokens_and_takes_the_first_problem(write_recipe, capsys):
    rewards = {"brevity": {"gate": "correctness"}, "correctness": {"scale": 10}, "judge": {"reward_model": "org/judge"}}
    recipe = str(write_recipe(rewards=rewards))
    dispatch(["rewards", "--try", recipe, "--completion", r"--- \boxed{2}"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["solution:", "2"]
    assert [line[0] for line in lines[3:]] == ["brevity", "correctness", "judge", "reward"]
    assert lines[4][1:] == ["10", "1"]
    assert lines[5][1:] == ["-", "1", "a", "reward", "model,", "not", "tried"]
