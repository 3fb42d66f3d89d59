"""Every layout a CPU can run, through the launcher and the shipped accelerate configs: two real processes each."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import psutil
import pytest
from conftest import ROOT, save_policy

from grpo_math.checks.memory import held, items, setting_of, shape_of
from grpo_math.generation.vllm_engine import free_port
from grpo_math.launch.layouts import read_layout
from grpo_math.models import ModelSource
from grpo_math.recipe.recipe import load_recipe
from grpo_math.runs.folder import read_rows, read_table

pytestmark = pytest.mark.slow

SHARED = ("loss", "grad_norm", "reward", "kl")
REWARDS = {
    "fixed": {"path": str(ROOT / "tests" / "fixed_rollouts.py") + ":reward"},
    "on_cpu": {"path": str(ROOT / "tests" / "fsdp_on_cpu.py") + ":reward", "weight": 0},
}
STEP = {
    "prompts_per_step": 4,
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "beta": 0.1,
    "learning_rate": 1e-2,
    "preflight": False,
}


def launch(*words: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "grpo_math", "launch", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def metrics(folder) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [{key: row[key] for key in SHARED} for row in rows if "loss" in row]


def test_the_same_recipe_is_the_same_optimisation_in_every_layout(write_recipe, tmp_path):
    """Fixed rollouts. One process with batch 2B is two with batch B, whatever is sharded; evaluation and saving too."""
    evaluated = {"before_after": True, "max_samples": 3, "batch_size": 1, "max_completion_length": 24}
    recipe = write_recipe(rewards=REWARDS, eval=evaluated, save_steps=1, **STEP)
    layouts = ["cpu", "multi_gpu", "zero2", "zero3", "fsdp2"]

    def run(layout):
        if layout == "zero3":
            time.sleep(5)  # DeepSpeed compiles an operation on its first use; once is enough
        arguments = ["--layout", layout, "--config", str(recipe), "--output_dir", str(tmp_path / layout)]
        if layout == "cpu":  # one process with twice the completions a pass
            arguments += ["--per_device_train_batch_size", "8"]
        return finish(launch(*arguments))

    with ThreadPoolExecutor(2) as pool:
        outputs = dict(zip(layouts, pool.map(run, layouts), strict=True))
    assert "= 1 process x 2 passes x 8" in outputs["cpu"]
    assert "= 2 processes x 2 passes x 4" in outputs["fsdp2"]
    alone = metrics(tmp_path / "cpu")
    assert len(alone) == 2
    assert alone[1]["kl"] > 0.1  # the first step did train
    for layout in layouts[1:]:
        shared = metrics(tmp_path / layout)
        for step, other in zip(alone, shared, strict=True):
            assert step["loss"] == pytest.approx(other["loss"], rel=1e-5, abs=1e-6), layout
            assert step["reward"] == pytest.approx(other["reward"], abs=1e-6), layout
            assert step["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5), layout
        results = json.loads((tmp_path / layout / "results.json").read_text())
        assert results["after"]["problems"] == 3
        assert (tmp_path / layout / "final" / "model.safetensors").exists()


def test_dynamic_sampling_is_the_same_on_two_processes(write_recipe, tmp_path):
    """Fixed rollouts, three groups of four: the second one is on both processes, and so is a single further group."""
    rewards = {"rare": {"path": str(ROOT / "tests" / "fixed_rollouts.py") + ":rare"}}
    changes = {"prompts_per_step": 3, "per_device_train_batch_size": 6, "max_steps": 4, "completions": {"every": 1}}
    recipe = write_recipe(rewards=rewards, dynamic_sampling={"rounds": 3}, **STEP | changes)

    def run(layout):
        arguments = ["--layout", layout, "--config", str(recipe), "--output_dir", str(tmp_path / layout)]
        if layout == "cpu":
            arguments += ["--per_device_train_batch_size", "12"]
        finish(launch(*arguments))
        folder = tmp_path / layout
        steps = [row for row in read_rows(folder / "metrics.jsonl") if "loss" in row]
        return steps, [read_table(file) for file in sorted((folder / "completions").glob("*.parquet"))]

    with ThreadPoolExecutor(2) as pool:
        (alone, kept), (shared, also_kept) = pool.map(run, ["cpu", "multi_gpu"])
    counts = [f"dynamic_sampling/{name}" for name in ("rounds", "generated_groups", "used_groups")]
    assert any(step["dynamic_sampling/generated_groups"] % 2 for step in alone)  # a group on both
    assert any(0 < step["dynamic_sampling/used_groups"] < 3 for step in alone)
    for step, other in zip(alone, shared, strict=True):
        assert [step[name] for name in counts] == [other[name] for name in counts]
        for name in (*SHARED, "num_tokens", "frac_reward_zero_std", "completions/mean_length"):
            assert step[name] == pytest.approx(other[name], rel=1e-5, abs=1e-6), name
    assert len(kept) == len(also_kept) == 4
    for table, other in zip(kept, also_kept, strict=True):
        for row, same in zip(table, other, strict=True):
            assert row | {"advantage": 0} == same | {"advantage": 0}
            assert row["advantage"] == pytest.approx(same["advantage"], abs=1e-5)


def test_each_strategy_holds_what_the_memory_estimate_has(write_recipe, tokenizer, tmp_path):
    """Between two steps of bfloat16 passes, byte by byte and dtype by dtype, for weights loaded in bfloat16."""
    policy = save_policy(tokenizer, tmp_path / "policy", hidden_size=256)
    rewards = {"held": {"path": str(ROOT / "tests" / "held_memory.py") + ":reward"}, "on_cpu": REWARDS["on_cpu"]}
    recipe = write_recipe(
        model_name_or_path=str(policy), rewards=rewards, bf16=True, dtype="bfloat16", save_strategy="no"
    )
    loaded = load_recipe(["--config", str(recipe)])
    shape = shape_of(ModelSource.of(loaded.keys).config(), loaded)
    head = 2 * shape.vocabulary * shape.hidden
    expected = {  # of all float32 and all bfloat16 tensors; FSDP2 still has the head gathered
        "multi_gpu": (0, 2 + 4, 2),
        "zero2": ((4 + 8) / 2, 2, 0),
        "fsdp2": ((4 + 8) / 2, 0, 0),
    }
    for layout, (wide, narrow, reducer) in expected.items():
        batch = SimpleNamespace(per_device_train_batch_size=4, gradient_accumulation_steps=1, steps_per_generation=1)
        setting = setting_of(loaded, "bfloat16", batch, 64, read_layout(layout).strategy, 2)
        assert held(items(shape, setting), setting) == (wide + narrow + reducer) * shape.parameters
        words = ["--layout", layout, "--config", str(recipe), "--output_dir", str(tmp_path / layout)]
        finish(launch(*words, env=os.environ | {"HELD": str(tmp_path / f"{layout}-held")}))
        for rank in range(2):
            found = json.loads((tmp_path / f"{layout}-held-{rank}").read_text())
            extra = head if layout == "fsdp2" else 0
            assert found.get("float32", 0) == pytest.approx(wide * shape.parameters, abs=10_000), layout
            assert found.get("bfloat16", 0) == pytest.approx(narrow * shape.parameters + extra, abs=10_000), layout
            assert found.get("reducer", 0) == reducer * shape.parameters, layout


def test_two_machines_are_one_run(write_recipe, tmp_path):
    """Both on this one, over the loopback."""
    recipe = write_recipe(rewards=REWARDS, output_dir=str(tmp_path / "run"), **STEP)
    port = str(free_port())
    nodes = [
        launch(
            *f"--layout multi_node --nodes 2 --node_rank {rank} --num_processes 1 --main_process_ip 127.0.0.1".split(),
            "--main_process_port", port, "--config", str(recipe),
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [finish(node) for node in nodes]
    assert "= 2 processes x 2 passes x 4" in outputs[0]
    assert "step 2/2" in outputs[0]
    assert "step 2/2" not in outputs[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_on_all_processes_and_the_run_goes_on_from_there(write_recipe, tmp_path, number):
    """SIGUSR1 as SLURM sends it, to every process."""
    recipe = write_recipe(max_steps=1000, save_steps=1000, num_generations=2)
    words = ["--layout", "multi_gpu", "--config", str(recipe)]
    running = launch(*words)
    for line in running.stdout:
        if line.startswith("step 3/"):
            break
    family = psutil.Process(running.pid).children(recursive=True) if number == signal.SIGUSR1 else []
    for process in [running, *family]:
        process.send_signal(number)
    output = finish(running)
    assert "stopping: the step is finished and saved first" in output
    assert output.count("Continue with: ") == 1
    checkpoint = next((tmp_path / "run").glob("checkpoint-*"))
    step = int(checkpoint.name.partition("-")[2])
    assert not (tmp_path / "run" / "results.json").exists()

    output = finish(launch(*words, "--resume_from_checkpoint", "auto", "--max_steps", str(step + 2)))
    assert f"step {step + 2}/{step + 2}" in output
    rows = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert rows == list(range(1, step + 3))


@pytest.mark.parametrize(("layout", "processes"), [("cpu", 1), ("multi_gpu", 2)])
def test_kill_9_of_a_training_process_is_one_line(write_recipe, layout, processes):
    recipe = write_recipe(max_steps=100_000, save_steps=100_000, num_generations=2, preflight=False)
    running = launch("--layout", layout, "--config", str(recipe))
    for line in running.stdout:
        if line.startswith("step 3/"):
            break
    family = psutil.Process(running.pid).children(recursive=True)
    found = [one for one in family if "grpo_math.train" in one.cmdline()[:4]]
    trainers = [one for one in found if one.ppid() not in {other.pid for other in found}]  # no grading workers
    assert len(trainers) == processes
    trainers[-1].kill()
    output, _ = running.communicate(timeout=120)
    assert running.returncode == 128 + signal.SIGKILL
    assert "Traceback" not in output
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert errors[-1].startswith("error: the training was killed by SIGKILL, usually by the kernel, out of memory")
    assert errors[-1].endswith(f"--layout {layout} --config {recipe} --resume_from_checkpoint auto")
    assert all("lost connection to another process of the run" in line for line in errors[:-1])
    assert len(errors) <= processes


OWN = """
import os
def own(completions, **_):
    with open("HERE/ranks", "a") as file:
        file.write(os.environ["RANK"])
    return [0.0 for _ in completions]
"""


def test_one_process_checks_for_all(write_recipe, tmp_path):
    """As a judge may cost money; the others end as it does."""
    (tmp_path / "own.py").write_text(OWN.replace("HERE", str(tmp_path)))
    rewards = {"own": {"path": f"{tmp_path}/own.py:own"}, "overlong": {"cache_tokens": 100}}
    done = launch("--layout", "multi_gpu", "--config", str(write_recipe(rewards=rewards)))
    output, _ = done.communicate(timeout=120)
    assert done.returncode == 2, output
    assert output.count("error: rewards.overlong: cache_tokens 100 of max_completion_length 8") == 1
    assert "Traceback" not in output
    assert set((tmp_path / "ranks").read_text()) == {"0"}


def test_another_number_of_processes_than_asked_for_is_an_error(write_recipe):
    """`accelerate launch --cpu --num_processes 2` runs one process, and says nothing."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--cpu", "--num_processes", "2"]
    command += ["-m", "grpo_math.train", "--config", str(write_recipe())]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"GRPO_MATH_PROCESSES": "2"})
    assert done.returncode
    assert "error: launch: expected 2 processes, accelerate started 1" in done.stderr


def test_fsdp_that_silently_became_ddp_is_an_error(write_recipe):
    done = launch("--layout", "fsdp2", "--config", str(write_recipe()))
    output, _ = done.communicate(timeout=120)
    assert done.returncode
    assert "error: launch: accelerate replaces FSDP with DDP on CPUs" in output


@pytest.mark.parametrize(
    ("processes", "number", "moment"), [(1, signal.SIGTERM, "loading PyTorch"), (2, signal.SIGKILL, "step 3/")]
)
def test_a_training_whose_accelerate_launch_is_killed_saves_and_ends(write_recipe, tmp_path, processes, number, moment):
    """The launcher alone gets the signal, and leaves its processes behind."""
    recipe = write_recipe(max_steps=100_000, save_steps=100_000, num_generations=2, preflight=False)
    layout = "cpu" if processes == 1 else "multi_gpu"
    words = ["--config_file", str(ROOT / "accelerate_configs" / f"{layout}.yaml"), "--num_processes", str(processes)]
    words += ["--main_process_port", str(free_port())] if processes > 1 else []
    command = [sys.executable, "-m", "accelerate.commands.launch", *words, "-m", "grpo_math.train"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    running = subprocess.Popen([*command, "--config", str(recipe)], env=environment, **options)
    for line in running.stdout:
        if line.startswith(moment):
            break
    family = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(number)
    output, _ = running.communicate(timeout=120)  # until the last process has closed it
    assert running.returncode == -number
    assert "stopping: accelerate launch has exited; the step is finished and saved first" in output
    assert output.count("Continue with: ") == 1
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 1
    assert psutil.wait_procs(family, timeout=60)[1] == []
