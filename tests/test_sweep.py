"""`grpo-math sweep`: settings from the command line, the runs as processes, the table by hand-computed numbers."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st
from make_run import make_run

from grpo_math.__main__ import dispatch, parse
from grpo_math.errors import UserError
from grpo_math.evaluation.statistics import holm
from grpo_math.launch.layouts import read_layout
from grpo_math.launch.sweep import (
    combinations,
    make_trials,
    name_of,
    parse_setting,
    parse_settings,
    share_gpus,
    sweep,
    words_of,
)
from grpo_math.recipe.file import parse_arguments
from grpo_math.report.data import read_run
from grpo_math.report.sweep import summarise, write_sweep
from grpo_math.runs.checkpoints import complete_checkpoints

# As much of a training as a sweep sees: it notes that it was started, and learns the faster the higher `beta`. Seed 1
# waits where a file `wait` is, and fails where beta is 0.5 and a file `fail` is.
FAKE = f"""#!{sys.executable}
import json, os, pathlib, signal, sys, time, yaml
recipe = yaml.safe_load(open(sys.argv[sys.argv.index("--config") + 1]))
folder = pathlib.Path(recipe["output_dir"])
here = folder.parents[2]
with (here / "starts").open("a") as starts:
    starts.write(" ".join([sys.argv[3], str(folder.relative_to(here))]) + "\\n")
with (here / "gpus").open("a") as gpus:
    gpus.write(os.environ.get("CUDA_VISIBLE_DEVICES", "none") + "\\n")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while recipe["seed"] == 1 and (here / "wait").exists():
    time.sleep(0.02)
if recipe["seed"] == 1 and recipe["beta"] == 0.5 and (here / "fail").exists():
    print("loading", flush=True)
    sys.exit("error: beta: too much for this policy")
folder.mkdir(parents=True, exist_ok=True)
(folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {{"added_by_the_layout": 1}}))
rows = [(0, 0.1), (4, 0.5 + recipe["beta"] / 2 + recipe["seed"] / 100)]
rows = [{{"step": step, "accuracy": at, "accuracy_low": 0, "accuracy_high": 1, "problems": 10}} for step, at in rows]
(folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
metrics = [{{"step": step, "num_tokens": 100 * step, "step_time": 2.0}} for step in (1, 2, 3, 4)]
(folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in metrics))
(folder / "results.json").write_text('{{"steps": 4}}')
"""


@pytest.fixture
def fake(tmp_path) -> Path:
    program = tmp_path / "python"
    program.write_text(FAKE)
    program.chmod(0o755)
    return program


@pytest.fixture
def options(write_recipe, tmp_path):
    """The parsed options of a sweep with these words, on a recipe that evaluates."""

    def options(*words: str, **changes):
        recipe = write_recipe(**({"eval": {"before_after": True}, "seed": 0} | changes))
        return parse(["sweep", "--config", str(recipe), "--out", str(tmp_path / "out"), *words])

    return options


def starts(folder: Path) -> list[str]:
    return (folder / "starts").read_text().splitlines()


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("learning_rate=1e-6,3e-6", "learning_rate", [1e-6, 3e-6]),
        ("loss_type=dapo, grpo", "loss_type", ["dapo", "grpo"]),
        ("lora_target_modules=[q_proj, v_proj],all-linear", "lora_target_modules", [["q_proj", "v_proj"], "all-linear"]),
        ("rewards.format.weight=0.5", "rewards.format.weight", [0.5]),
        ('prompt_template.user="{question}, please","Q: {question}"', "prompt_template.user", ["{question}, please", "Q: {question}"]),
        ("chat_template_kwargs={a: 1, b: 2},{}", "chat_template_kwargs", [{"a": 1, "b": 2}, {}]),
        ("model_name_or_path=org/a,./b=c", "model_name_or_path", ["org/a", "./b=c"]),
        ("use_vllm=true,no,null", "use_vllm", [True, "no", None]),
    ],
)  # fmt: skip
def test_values_are_yaml_with_commas_between_them(text, key, values):
    assert parse_setting(text) == (key, values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beta", "expected KEY=VALUE,VALUE"),
        ("beta=", "expected KEY=VALUE,VALUE"),
        ("=1", "expected KEY=VALUE,VALUE"),
        ("beta=0,,1", "not YAML"),
        ("beta=[0,1", "not YAML"),
        ("beta=0],[1", "not YAML"),
        ("dataset.split=2020-01-01,train", "quote a date"),
        ("chat_template_kwargs={1: 2, b: 3}", "not YAML"),
        ("prompt_template.system=null,Be brief.", "expected a string"),
        ("config=null", "expected a string"),
        ("beta=0,0.04,0", "beta: 0 is given twice"),
        ("seed=1,2", "seed: give the number of --seeds"),
        ("output_dir=a", "output_dir: give --out"),
    ],
)
def test_values_that_cannot_be_read_are_one_line(text, message):
    with pytest.raises(UserError, match=message):
        parse_settings([text])
    with pytest.raises(UserError) as found:
        parse_settings([text, "beta=1", "beta=2"])
    assert len(str(found.value).splitlines()) == 2  # all of them at once


PRINTABLE = st.characters(categories=["L", "N", "P", "S", "Zs"])
SCALARS = (
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9) | st.text(PRINTABLE, max_size=12)
)
VALUES = st.recursive(SCALARS, lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text("abc", min_size=1), one), max_leaves=5)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=4, unique_by=lambda value: json.dumps(value, sort_keys=True)))
def test_any_values_reach_the_recipe_as_they_are(values):
    key, found = parse_setting("completions.x=" + ",".join(json.dumps(value, ensure_ascii=False) for value in values))
    assert (key, found) == ("completions.x", values)
    for value in found:
        assert parse_arguments(words_of({key: value})) == (None, {"completions": {"x": value}})
    names = [name_of({key: value}) for value in values]
    names.append(name_of({"prompt_template.user": "\N{CJK UNIFIED IDEOGRAPH-95EE}" * 120}))
    assert all("/" not in name and len(name.encode()) <= 120 for name in names)
    assert len({*names}) == len(names)


def test_a_mapping_is_named_by_its_dotted_keys():
    assert name_of({"dynamic_sampling": {"rounds": 3}, "beta": 0}) == "dynamic_sampling.rounds=3,beta=0"
    assert name_of({"rewards": {"format": {"weight": 0.1}, "steps": {}}}).startswith(
        "rewards.format.weight=0.1,rewards.s"
    )


def test_settings_are_all_combinations_or_one_change_at_a_time():
    varied = {"beta": [0, 0.04], "learning_rate": [1e-6, 3e-6, 1e-5]}
    every = combinations(varied, one_at_a_time=False)
    assert [*every][:4] == [
        "beta=0,learning_rate=1e-06", "beta=0,learning_rate=3e-06", "beta=0,learning_rate=1e-05",
        "beta=0.04,learning_rate=1e-06",
    ]  # fmt: skip
    assert len(every) == 6
    assert combinations(varied, one_at_a_time=True) == {
        "baseline": {"beta": 0, "learning_rate": 1e-6},
        "beta=0.04": {"beta": 0.04, "learning_rate": 1e-6},
        "learning_rate=3e-06": {"beta": 0, "learning_rate": 3e-6},
        "learning_rate=1e-05": {"beta": 0, "learning_rate": 1e-5},
    }
    assert combinations({}, False) == combinations({}, True) == {"baseline": {}}


def test_every_recipe_is_checked_before_the_first_run(options, tmp_path):
    wrong = options("--set", "learning_rat=1", "--set", "beta=0,-1", "--set", "learning_rate=1e-6,x")
    with pytest.raises(UserError) as found:
        sweep(wrong)
    assert sorted(str(found.value).splitlines()) == [
        "--beta: expected a number from 0 to 1000, got -1",
        "--learning_rat: unknown key, did you mean --learning_rate?",
        "--learning_rate: expected a number, got 'x'",
    ]
    with pytest.raises(UserError, match=r"^eval: a sweep compares accuracies: add --eval.before_after true$"):
        sweep(options(eval=None))
    assert not (tmp_path / "out").exists()


def test_seeds_begin_with_the_recipes_own_and_a_recipe_is_a_setting_too(options, write_recipe):
    other = write_recipe("other.yaml", eval={"every": 1}, seed=7, beta=0.1)
    names, trials = make_trials(options("--seeds", "2"), {"config": [str(other)], "beta": [0.2, 0.3]})
    assert [(trial.seed, trial.recipe.trainer["beta"]) for trial in trials] == [(7, 0.2), (7, 0.3), (8, 0.2), (8, 0.3)]
    assert all(
        trial.folder.parent.name == trial.setting and trial.folder.name == f"seed-{trial.seed}" for trial in trials
    )
    assert [*names] == [*dict.fromkeys(trial.setting for trial in trials)]


@pytest.mark.parametrize(
    ("layout", "parallel", "gpus", "shares"),
    [
        ("single_gpu", None, ["0", "1"], [["0"], ["1"]]),
        ("single_gpu", None, ["MIG-0h", "GPU-a"], [["MIG-0h"], ["GPU-a"]]),
        ("single_gpu", 1, ["4", "5"], [["4"]]),
        ("single_gpu", 3, ["4", "5"], [["4"], ["5"], ["4"]]),
        ("dual_gpu", None, ["0", "1", "2", "3"], [["0", "1", "2", "3"]]),
        ("dual_gpu", 2, ["0", "1", "2", "3"], [["0", "1"], ["2", "3"]]),
        ("multi_gpu", 2, ["0", "1", "2"], [["0"], ["1"]]),
        ("single_gpu", None, None, [None]),
        ("single_gpu", 2, None, [None, None]),
    ],
)
def test_each_run_gets_its_share_of_the_gpus(layout, parallel, gpus, shares):
    assert share_gpus(gpus, parallel, read_layout(layout)) == shares


def test_one_run_per_gpu(options, fake, nvidia_smi, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,MIG-0h")
    sweep(options("--set", "beta=0,0.5", "--seeds", "1", "--layout", "single_gpu", use_cpu=None, bf16=True))
    assert sorted((tmp_path / "gpus").read_text().splitlines()) == ["4", "MIG-0h"]
    assert sorted(starts(tmp_path)) == ["launch out/beta=0.5/seed-0", "launch out/beta=0/seed-0"]
    out = capsys.readouterr().out
    assert "beta=0 seed 0: started on GPU 4\nbeta=0.5 seed 0: started on GPU MIG-0h\n" in out
    assert "no comparison: it takes two finished runs of beta=0, and two of another setting" in out


def test_a_failed_run_is_reported_and_the_others_go_on(options, fake, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", str(fake))
    (tmp_path / "fail").touch()
    words = ["--set", "beta=0,0.5", "--seeds", "3", "--parallel", "3"]
    with pytest.raises(SystemExit) as ended:
        sweep(options(*words))
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert "beta=0.5 seed 1: failed, ended with status 1: beta: too much for this policy" in out
    assert " 2 of 3 " in out
    found = json.loads((tmp_path / "out" / "sweep.json").read_text())["settings"]
    assert [one["seeds"] for one in found] == [[0, 1, 2], [0, 2]]
    assert list(found[1]["failed"]) == ["1"]
    assert found[1]["after"] == pytest.approx([0.75, 0.77])
    assert (found[0]["tokens"], found[0]["seconds"]) == ([400, 400, 400], [8, 8, 8])

    (tmp_path / "fail").unlink()
    sweep(options(*words))
    assert sorted(starts(tmp_path)) == sorted(
        [f"train out/beta={beta}/seed-{seed}" for beta in ("0", "0.5") for seed in (0, 1, 2)]
        + ["train out/beta=0.5/seed-1"]
    )
    # By hand: both have the spread 0.01, so the standard error is sqrt(2 * 0.01^2 / 3) = 0.008165, t = 30.6, 4 degrees
    change = json.loads((tmp_path / "out" / "sweep.json").read_text())["settings"][1]["difference"]
    assert change["value"] == pytest.approx(0.25)
    assert change["value_high"] - change["value"] == pytest.approx(2.776 * 0.008165, rel=1e-3)
    assert change["shows"] == pytest.approx((2.776 + 0.941) * 0.008165, rel=1e-3)
    assert (change["verdict"], change["test"]) == ("better", "Welch's p")
    text = (tmp_path / "out" / "sweep.md").read_text()
    assert "| beta=0.5 | 3 | 0.100 | 0.760 (0.750-0.770) | 400 | 8 | +0.250 (+0.227 to +0.273) |" in text
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 10_000

    with pytest.raises(UserError, match=r"out/beta=0/seed-0: holds a run with max_steps 2, not 9: restore it, give"):
        sweep(options(*words, max_steps=9))
    before = len(starts(tmp_path))
    sweep(options("--set", "beta=0,0.5,0.7", "--table"))
    assert "beta=0.7  0 of 3  -" in capsys.readouterr().out
    assert len(starts(tmp_path)) == before


def test_stopped_and_killed_sweeps_run_what_is_missing(options, fake, tmp_path):
    code = f"import sys; sys.executable = {str(fake)!r}; from grpo_math.__main__ import main; sys.exit(main())"
    words = ["--set", "beta=0,0.5", "--seeds", "2"]
    options()  # writes the recipe
    command = [sys.executable, "-c", code, "sweep", "--config", "recipe.yaml", "--out", "out", *words]

    def begin(waiting: str) -> subprocess.Popen:
        front = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wait_for(lambda: (tmp_path / "starts").exists() and waiting in starts(tmp_path))
        return front

    (tmp_path / "wait").touch()
    front = begin("train out/beta=0/seed-1")
    with pytest.raises(UserError, match=r"^--out: another process is using .*out: wait for it, or stop it$"):
        sweep(options(*words))
    front.send_signal(signal.SIGTERM)
    assert "stopped: run the same command to continue" in front.communicate()[0]
    assert front.returncode == 128 + signal.SIGTERM

    (tmp_path / "starts").unlink()
    front = begin("train out/beta=0/seed-1")
    family = [psutil.Process(front.pid), *psutil.Process(front.pid).children(recursive=True)]
    assert len(family) == 3  # front, supervisor, training
    for process in family:
        process.kill()
    front.communicate()

    (tmp_path / "wait").unlink()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "out: settings 2, seeds 2, runs 4, finished 2" in done.stdout
    assert starts(tmp_path) == ["train out/beta=0/seed-1", "train out/beta=0/seed-1", "train out/beta=0.5/seed-1"]


def test_a_dry_run_prints_the_missing_runs_and_starts_none(options, fake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sweep(options("--set", "beta=0,0.5", "--seeds", "1", "--dry-run", "--out", "out"))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "at the same time: 1",
        "beta=0 seed 0: grpo-math train --config out/beta=0/seed-0.yaml --resume_from_checkpoint auto",
        "beta=0.5 seed 0: grpo-math train --config out/beta=0.5/seed-0.yaml --resume_from_checkpoint auto",
    ]
    assert not (tmp_path / "out").exists()


def test_the_verdict_is_that_of_compare(tmp_path, capsys):
    """On the same runs, with the number of comparisons accounted for."""
    speeds = {"a": 0.6, "b": 2.0, "c": 0.62}
    found = []
    for name, speed in speeds.items():
        folders = [
            make_run(tmp_path / f"{name}-{seed}", speed=speed + seed / 50, seed=seed, steps=20) for seed in range(3)
        ]
        for accuracy in ("NaN", '"0.9"', "null"):  # a row that someone has changed does not count
            with (folders[0] / "eval.jsonl").open("a") as rows:
                rows.write(f'{{"step": 20, "accuracy": {accuracy}, "accuracy_low": 0, "accuracy_high": 1}}\n')
        found.append(summarise(name, {"beta": speed}, dict(enumerate(map(read_run, folders))), {}))
    write_sweep(tmp_path, found, 3, ["beta"])
    capsys.readouterr()
    dispatch(["compare", "--seeds", *(str(tmp_path / f"{name}-*") for name in speeds)])
    compared = capsys.readouterr().out
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert found["baseline"] == "a"
    for one in found["settings"][1:]:
        change = one["difference"]
        interval = "{value:+.3f} ({value_low:+.3f} to {value_high:+.3f})".format(**change)
        assert f"{interval}  {change['p']:.2g} " in compared
    ps = [one["difference"]["p"] for one in found["settings"][1:]]
    assert [one["difference"]["holm_p"] for one in found["settings"][1:]] == holm(ps)
    assert "2 comparisons: 0.1 with p below 0.05 are to be expected by chance" in (tmp_path / "sweep.md").read_text()
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


def test_holms_p():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # 0.04 > 0.03 * 2 is not: 0.06
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.slow
def test_a_sweep_of_the_tiny_policy_survives_kill_9(write_recipe, tmp_path):
    recipe = write_recipe(eval={"before_after": True}, max_steps=4, save_steps=1, seed=0)
    command = [
        sys.executable,
        "-m",
        "grpo_math",
        "sweep",
        "--config",
        str(recipe),
        "--out",
        str(tmp_path / "out"),
        "--seeds",
        "2",
    ]
    front = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    second = tmp_path / "out" / "baseline" / "seed-1"
    wait_for(lambda: complete_checkpoints(second))
    for process in [psutil.Process(front.pid), *psutil.Process(front.pid).children(recursive=True)]:
        process.kill()
    front.communicate()
    first = (tmp_path / "out" / "baseline" / "seed-0" / "results.json").stat().st_mtime_ns
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "settings 1, seeds 2, runs 2, finished 1" in done.stdout
    assert "continuing from" in second.with_name("seed-1.log").read_text()
    assert (tmp_path / "out" / "baseline" / "seed-0" / "results.json").stat().st_mtime_ns == first
    assert [row["step"] for row in map(json.loads, (second / "eval.jsonl").read_text().splitlines())] == [0, 4]
    assert (tmp_path / "out" / "sweep.md").read_text().count("| baseline | 2 |") == 1
