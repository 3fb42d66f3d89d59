"""Plans for any number of GPUs, without one; what is launched for real is in test_layouts.py and test_vllm.py."""

import signal
import subprocess
import sys
from types import SimpleNamespace

import forked
import pytest
from conftest import ROOT

from grpo_math.__main__ import dispatch, parse
from grpo_math.errors import UserError
from grpo_math.generation.processes import how_ended
from grpo_math.generation.vllm_engine import ON_CPU
from grpo_math.launch.layouts import read_layout
from grpo_math.launch.plan import make_plan, outline
from grpo_math.recipe.recipe import load_recipe
from grpo_math.train import train
from grpo_math.trainer.config import check_16_bits, check_world

GPU = {"use_cpu": None, "bf16": True, "use_vllm": True}


@pytest.fixture
def plan(write_recipe, monkeypatch, nvidia_smi):
    """The plan of `grpo-math launch WORDS` on a machine with these GPUs."""

    def plan(words: str, gpus: str = "0,1", deepspeed: str | None = "", **changes):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
        monkeypatch.setattr("grpo_math.launch.plan.find_spec", lambda name: deepspeed)
        monkeypatch.setattr("grpo_math.launch.plan.check_vllm", lambda keys: None)  # it need not be here for a plan
        recipe = write_recipe(**(GPU | changes))
        return make_plan(parse(["launch", *words.split(), "--config", str(recipe)]))

    return plan


def value(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


@pytest.mark.parametrize(
    ("words", "gpus", "processes", "trainer", "server"),
    [
        ("--layout single_gpu", "0,1", 1, "0", None),
        ("--layout single_gpu", "5", 1, "5", None),
        ("--layout dual_gpu", "4,6", 1, "4", "6"),
        ("--layout dual_gpu", "GPU-a,GPU-b,GPU-c", 1, "GPU-a", "GPU-b"),
        ("--layout multi_gpu", "0,1,2,3", 4, "0,1,2,3", None),
        ("--layout multi_gpu --num_processes 2", "0,1,2,3", 2, "0,1", None),
        ("--layout multi_gpu --vllm_mode server", "0,1,2,3", 3, "0,1,2", "3"),
        ("--layout single_gpu", "3,-1,2", 1, "3", None),
        ("--layout dual_gpu", "MIG-0h,MIG-1h", 1, "MIG-0h", "MIG-1h"),
        ("--layout fsdp2 --vllm_mode server --vllm_tensor_parallel_size 2", "0,1,2,3", 2, "0,1", "2,3"),
        ("--layout dual_gpu --vllm_tensor_parallel_size 2", "0,1,2,3", 1, "0", "1,2"),
    ],
)
def test_gpus_are_shared_between_trainer_and_server(plan, words, gpus, processes, trainer, server):
    made = plan(words, gpus, prompts_per_step=12, per_device_train_batch_size=None)
    assert made.processes == processes
    assert made.trainer.environment["CUDA_VISIBLE_DEVICES"] == trainer
    assert (made.server and made.server.environment["CUDA_VISIBLE_DEVICES"]) == server
    assert value(made.trainer.words, "--num_processes") == str(processes)


def test_the_server_is_what_trl_expects(plan, policy_folder):
    made = plan("--layout dual_gpu --vllm_gpu_memory_utilization 0.8", seed=7)
    words = made.server.words
    assert words[0] == str(policy_folder)
    assert str(made.server).startswith(
        "VLLM_SERVER_DEV_MODE=1 VLLM_HOST_IP=127.0.0.1 CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=1 vllm serve "
    )
    expected = {
        "--host": "127.0.0.1", "--weight-transfer-config": '{"backend": "nccl"}', "--logprobs-mode": "processed_logprobs",
        "--max-logprobs": "-1", "--dtype": "bfloat16", "--seed": "7", "--gpu-memory-utilization": "0.8",
    }  # fmt: skip
    assert {name: value(words, name) for name in expected} == expected
    assert made.server.environment["VLLM_SERVER_DEV_MODE"] == "1"
    url = f"http://127.0.0.1:{value(words, '--port')}"
    assert value(made.trainer.words, "--vllm_server_base_url") == url
    assert value(made.trainer.words, "--vllm_mode") == "server"


def test_the_window_holds_the_longest_prompt_and_completion_and_no_more(plan, tokenizer, problem_folder):
    made = plan("--layout dual_gpu", max_completion_length=13)
    from grpo_math.data.loading import load_problems
    from grpo_math.data.problem import DatasetSpec
    from grpo_math.data.prompts import TEMPLATES, token_ids

    problems = load_problems(DatasetSpec(name="gsm8k", path=str(problem_folder))).problems
    prompts = [TEMPLATES["boxed"].prompt(problem.question, tokenizer) for problem in problems]
    longest = max(len(token_ids(prompt, tokenizer)) for prompt in prompts)
    assert value(made.server.words, "--max-model-len") == str(longest + 13)


def test_vllm_engine_kwargs_reach_the_server_and_win(plan):
    engine = {
        "enforce_eager": True, "weight_transfer_config": {"backend": "ipc"}, "kv_cache_dtype": "fp8",
        "enable_prefix_caching": False, "cudagraph_capture_sizes": [1, 2], "block_size": None,
    }  # fmt: skip
    words = plan("--layout dual_gpu", vllm_engine_kwargs=engine).server.words
    assert "--enforce-eager" in words
    assert "--no-enable-prefix-caching" in words
    assert "--cudagraph-capture-sizes 1 2" in " ".join(words)
    assert "--block-size" not in words
    assert value(words, "--weight-transfer-config") == '{"backend": "ipc"}'
    assert value(words, "--kv-cache-dtype") == "fp8"


def test_the_second_gpu_evaluates_as_often_as_the_recipe_would(plan, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    made = plan("--layout dual_gpu_eval", "2,3", eval={"every": 20, "samples": 2, "temperature": 1.0})
    assert made.server is None
    assert (made.trainer.environment["CUDA_VISIBLE_DEVICES"], made.watcher.environment["CUDA_VISIBLE_DEVICES"]) == (
        "2",
        "3",
    )
    assert str(made.watcher).endswith(f"grpo-math evaluate --watch {tmp_path}/run")
    assert (value(made.trainer.words, "--eval.every"), value(made.trainer.words, "--save_steps")) == ("null", "20")
    assert made.trainer.environment["WANDB_MODE"] == "shared"
    assert "--save_steps" not in plan("--layout dual_gpu_eval", eval={"every": 20}, save_steps=5).trainer.words
    assert "held out: gsm8k test, evaluated at each checkpoint" in outline(made).splitlines()


def test_a_server_of_ones_own_is_left_alone(plan):
    made = plan("--layout single_gpu", vllm_mode="server", vllm_server_base_url="http://there:8000")
    assert made.server is None


def test_the_dry_run_of_a_server_prints_its_command(write_recipe, monkeypatch, capsys):
    monkeypatch.setattr("grpo_math.launch.serve.check_vllm", lambda keys: None)
    dispatch(["serve", "--config", str(write_recipe()), "--dry_run"])
    assert capsys.readouterr().out.startswith("vllm serve ")


def test_several_machines(plan):
    words = plan("--layout multi_node --nodes 2 --node_rank 1 --main_process_ip 10.0.0.1", "0,1,2,3").trainer.words
    expected = {"--num_processes": "8", "--num_machines": "2", "--machine_rank": "1", "--main_process_ip": "10.0.0.1"}
    assert {name: value(words, name) for name in expected} == expected


def test_the_batch_is_cut_for_the_processes_of_the_layout(plan):
    made = plan("--layout multi_gpu", prompts_per_step=8, num_generations=8, per_device_train_batch_size=None)
    assert made.batch == {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}


@pytest.mark.parametrize(
    ("offloaded", "given", "threads"),
    [(True, None, "4"), (True, "3", None), (False, None, None)],  # what the environment has is passed on unchanged
)
def test_an_offloaded_optimizer_has_the_cores_of_the_machine(plan, monkeypatch, tmp_path, offloaded, given, threads):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS")
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    text = (ROOT / "accelerate_configs" / "zero2.yaml").read_text()
    own = tmp_path / "own.yaml"
    own.write_text(text.replace("device: none   #", "device: cpu   #") if offloaded else text)
    assert plan(f"--layout {own}").trainer.environment.get("OMP_NUM_THREADS") == threads


def test_sft_is_launched_the_same_way(plan):
    made = plan(
        "--layout multi_gpu", use_vllm=None, rewards=None, num_generations=None, max_completion_length=None, sft={}
    )
    assert "grpo_math.sft" in made.trainer.words


@pytest.mark.parametrize(
    ("words", "gpus", "changes", "message"),
    [
        ("--layout dual_gpu", "0", {}, "--layout: dual_gpu needs GPUs, 1 for training and 1 for the vLLM server; visible are 1 (CUDA_VISIBLE_DEVICES=0): use a smaller layout"),
        ("--layout multi_gpu", "0", {}, "--layout: multi_gpu needs GPUs, 2 for training; visible are 1 (CUDA_VISIBLE_DEVICES=0): use single_gpu"),
        ("--layout multi_gpu --num_processes 8", "0,1", {}, "needs GPUs, 8 for training; visible are 2"),
        ("--layout single_gpu", "", {}, "needs GPUs, 1 for training; visible are 0 (CUDA_VISIBLE_DEVICES=): use --layout cpu"),
        ("--layout single_gpu", "-1", {}, "needs GPUs, 1 for training; visible are 0"),
        ("--layout dual_gpu_eval", "0", {}, "--layout: dual_gpu_eval needs GPUs, 1 for training and 1 for the evaluation; visible are 1 (CUDA_VISIBLE_DEVICES=0)"),
        ("--layout dual_gpu_eval", "0,1", {"dataset": [{"name": "svamp"}, {"name": "math"}]}, "--layout: dual_gpu_eval evaluates every checkpoint: name problems"),
        ("--layout dual_gpu_eval", "0,1", {"eval": {"every": 5, "best": True}}, "eval.best: the evaluation process of dual_gpu_eval keeps no best model"),
        ("--layout dual_gpu", "0,0", {}, "CUDA_VISIBLE_DEVICES: 0,0 has a GPU twice"),
        ("--layout dual_gpu", "0,1", {"use_vllm": False}, "use_vllm: false, but the layout dual_gpu generates with vLLM"),
        ("--layout dual_gpu", "0,1", {"use_vllm": None, "load_in_4bit": True, "use_peft": True}, "use_vllm: vLLM cannot update the weights of a quantised model"),
        ("--layout dual_gpu", "0,1", {"vllm_server_base_url": "http://there:8000"}, "vllm_server_base_url: the layout dual_gpu starts its own server"),
        ("--layout dual_gpu --vllm_server_port 99999", "0,1", {}, "vllm_server_port: expected a port from 1 to 65535, got 99999"),
        ("--layout multi_gpu", "0,1,2", {"vllm_tensor_parallel_size": 2, "prompts_per_step": 6}, "vllm_tensor_parallel_size: 2 does not divide the 3 processes of the run"),
        ("--layout multi_node", "0,1", {}, "--layout: multi_node is for several machines: set their number with --nodes"),
        ("--layout single_gpu --nodes 2", "0,1", {}, "--nodes: the layout single_gpu is for one process"),
        ("--layout multi_node --nodes 2 --vllm_mode server", "0,1", {}, "--nodes: start the server with grpo-math serve"),
        ("--layout multi_node --nodes 2 --main_process_ip h --node_rank 2", "0,1", {}, "--node_rank: 2 of 2 machines: the ranks are 0 to 1"),
        ("--layout multi_node --nodes 0", "0,1", {}, "--nodes: expected an integer of at least 1, got '0'"),
        ("--layout dual_gpu", "0,1,2,3,4", {"vllm_tensor_parallel_size": 3}, "vllm_tensor_parallel_size: 3 does not divide the 4 attention heads of"),
        ("--layout dual_gpu", "0,1", {"vllm_max_model_length": 20}, "vllm_max_model_length: 20 is too small for the longest prompt ("),
        ("--layout nowhere", "0,1", {}, "--layout: unknown layout nowhere: use one of cpu, dual_gpu, dual_gpu_eval, fsdp2, multi_gpu, multi_node, single_gpu, zero2, zero3"),
        ("--layout single_gpu --num_processes 2", "0,1", {}, "--num_processes: the layout single_gpu is for one process"),
        ("--layout multi_gpu --num_processes two", "0,1", {}, "--num_processes: expected an integer of at least 1, got 'two'"),
        ("--layout multi_node --nodes 2", "0,1", {}, "--nodes: give --main_process_ip too"),
        ("--layout multi_gpu", "0,8", {}, "CUDA_VISIBLE_DEVICES: 0,8: no GPU 8 on this machine: see nvidia-smi -L"),
        ("--layout dual_gpu", "GPU-a,GPU-z", {}, "CUDA_VISIBLE_DEVICES: GPU-a,GPU-z: no GPU GPU-z on this machine"),
        ("--layout dual_gpu", "MIG-0h,MIG-7h", {}, "CUDA_VISIBLE_DEVICES: MIG-0h,MIG-7h: no GPU MIG-7h on this machine"),
        ("--layout single_gpu", "all", {}, "CUDA_VISIBLE_DEVICES: all: no GPU all on this machine"),
        ("--layout single_gpu", "gpu0", {}, "CUDA_VISIBLE_DEVICES: gpu0: no GPU gpu0 on this machine"),
        ("--layout single_gpu", "0;1", {}, "CUDA_VISIBLE_DEVICES: 0;1: no GPU 0;1 on this machine"),
        ("--layout multi_gpu", "0,1,2", {"prompts_per_step": 4}, "8 completions cannot be divided evenly among 3 processes: give a multiple of 3 prompts"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_told_before_anything_starts(plan, words, gpus, changes, message):
    with pytest.raises(UserError) as caught:
        plan(words, gpus, **changes)
    assert message in str(caught.value)


def test_a_pytorch_without_cuda_is_named(write_recipe, monkeypatch):
    """On a machine with GPUs nothing else would say why none of them is visible."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.version.cuda", None)
    with pytest.raises(UserError, match=r"visible are 0 \(PyTorch .* is built without CUDA\): use --layout cpu"):
        make_plan(parse(["launch", "--layout", "single_gpu", "--config", str(write_recipe(use_cpu=None))]))


def test_all_that_a_machine_lacks_is_told_at_once_with_what_works_there(write_recipe, monkeypatch):
    def check_vllm(keys):
        raise UserError(f"use_vllm: vLLM is not installed: {ON_CPU}")

    for module in ("grpo_math.launch.plan", "grpo_math.trainer.config"):
        monkeypatch.setattr(f"{module}.check_vllm", check_vllm)
    for function in ("torch.cuda.is_available", "transformers.utils.is_torch_bf16_gpu_available"):
        monkeypatch.setattr(function, lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    recipe = str(write_recipe(**GPU))
    with pytest.raises(UserError) as caught:
        make_plan(parse(["launch", "--config", recipe]))
    assert [line.partition(": ")[0] for line in str(caught.value).splitlines()] == [
        "--layout", "bf16", "use_vllm", "what works here",
    ]  # fmt: skip
    assert "pip install" not in str(caught.value)
    with pytest.raises(UserError, match="\nwhat works here: grpo-math quickstart"):
        train(recipe)


@pytest.mark.parametrize(
    ("changes", "environment", "world", "message"),
    [
        ({}, {"GRPO_MATH_PROCESSES": "4"}, {}, "launch: expected 4 processes, accelerate started 2"),
        ({}, {}, {"n_gpu": 2}, "launch: one process sees 2 GPUs: use grpo-math launch"),
        ({}, {"ACCELERATE_USE_FSDP": "true"}, {"kind": "MULTI_CPU"}, "launch: accelerate replaces FSDP with DDP on CPUs"),
        ({"beta": 0.1}, {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, {}, "beta: 0.1 with FSDP needs the reference model, which would be loaded"),
        ({"load_in_4bit": True, "use_peft": True, "use_vllm": None}, {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, {}, "load_in_4bit, load_in_8bit: ZeRO-3 cannot shard quantised weights"),
        ({"beta": 0.1}, {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false", "GRPO_MATH_PROCESSES": "2"}, {}, None),
    ],
)  # fmt: skip
def test_a_world_that_is_not_what_was_asked_for(write_recipe, monkeypatch, changes, environment, world, message):
    for name, setting in environment.items():
        monkeypatch.setenv(name, setting)
    state = SimpleNamespace(num_processes=2, distributed_type=SimpleNamespace(value=world.get("kind", "MULTI_GPU")))
    config = SimpleNamespace(distributed_state=state, n_gpu=world.get("n_gpu", 1))
    recipe = load_recipe(["--config", str(write_recipe(**changes))])
    if message is None:
        return check_world(recipe, config)
    with pytest.raises(UserError) as caught:
        check_world(recipe, config)
    assert message in str(caught.value)


@pytest.mark.parametrize("layout", ["single_gpu", "dual_gpu", "dual_gpu_eval", "multi_gpu", "zero3"])
@pytest.mark.parametrize("broken", [True, False], ids=["no driver", "no nvidia-smi"])
def test_gpus_on_a_machine_without_one(plan, nvidia_smi, monkeypatch, layout, broken):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    if broken:
        nvidia_smi.write_text("#!/bin/sh\necho NVIDIA-SMI has failed; exit 9\n")
    else:
        monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"^CUDA_VISIBLE_DEVICES: 0,1: no GPU 0 on this machine: see nvidia-smi -L$"):
        plan(f"--layout {layout}", eval={"every": 5})


@pytest.mark.parametrize("layout", ["zero2", "zero3", "own.yaml"])
def test_deepspeed_that_is_not_installed(plan, tmp_path, layout):
    (tmp_path / "own.yaml").write_text((ROOT / "accelerate_configs" / "zero3.yaml").read_text())
    path = tmp_path / layout if layout == "own.yaml" else layout
    plan(f"--layout {path}")
    with pytest.raises(UserError) as caught:
        plan(f"--layout {path}", deepspeed=None)
    assert str(caught.value) == (
        f"--layout: {layout.removesuffix('.yaml')} needs DeepSpeed, which is not installed: pip install -e "
        '".[deepspeed]" -c constraints.txt, or use fsdp2 (without GPUs: multi_gpu)'
    )


@pytest.mark.parametrize(
    "name", ["cpu", "single_gpu", "dual_gpu", "dual_gpu_eval", "multi_gpu", "zero2", "zero3", "fsdp2"]
)
def test_a_copy_of_a_layout_is_that_layout(tmp_path, name):
    (tmp_path / "copy.yaml").write_text((ROOT / "accelerate_configs" / f"{name}.yaml").read_text())
    shipped, copy = read_layout(name), read_layout(f"{tmp_path}/copy.yaml")
    assert (copy.second, copy.strategy, copy.single) == (shipped.second, shipped.strategy, shipped.single)
    assert bool(shipped.second) == name.startswith("dual_gpu")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "bf16: no GPU on this machine supports bfloat16"),
        ({"bf16": None}, "bf16: no GPU on this machine supports bfloat16"),
        ({"bf16": True, "fp16": True}, "bf16: no GPU on this machine supports bfloat16"),
        ({"fp16": True}, None),
        ({"fp16": True, "bf16": None}, None),
        ({"bf16": False}, None),
        ({"use_cpu": True}, None),
    ],
)
def test_fp16_alone_is_no_bf16(monkeypatch, given, message):
    monkeypatch.setattr("transformers.utils.is_torch_bf16_gpu_available", lambda: False)
    if message is None:
        return check_16_bits(given)
    with pytest.raises(UserError, match=message):
        check_16_bits(given)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (3, "ended with status 3"),
        (255, "ended with status 255"),
        (-9, "was killed by SIGKILL, usually by the kernel, out of memory"),
        (137, "was killed by SIGKILL, usually by the kernel, out of memory"),
        (-signal.SIGBUS, "was killed by SIGBUS, usually shared memory is full"),
        (-signal.SIGSEGV, "was killed by SIGSEGV, a crash in compiled code"),
        (-signal.SIGABRT, "was killed by SIGABRT, usually by NCCL"),
        (-signal.SIGTERM, "was killed by SIGTERM"),
    ],
)
def test_how_a_process_ended(status, words):
    assert how_ended(status).startswith(words)


def test_a_port_that_is_taken(plan):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"vllm_group_port: port {port} is in use"):
            plan("--layout dual_gpu", vllm_group_port=port)
        with pytest.raises(UserError, match=f"vllm_server_port: port {port} is in use"):
            plan("--layout dual_gpu", vllm_server_port=port)


def test_a_dry_run_prints_the_plan_and_starts_nothing(write_recipe, tmp_path):
    recipe = write_recipe(prompts_per_step=4, per_device_train_batch_size=None)
    command = [
        sys.executable,
        "-m",
        "grpo_math",
        "launch",
        "--layout",
        "multi_gpu",
        "--config",
        str(recipe),
        "--dry-run",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "layout multi_gpu: 2 training processes on the CPU; completions by transformers"
    assert lines[1] == "each process: per_device_train_batch_size 4, gradient_accumulation_steps 1"
    assert lines[2].startswith("trainer: GRPO_MATH_PROCESSES=2 ")
    assert " accelerate launch --config_file " in lines[2]
    assert not (tmp_path / "run").exists()


def test_the_dry_run_of_a_training_is_a_plan_too(write_recipe, tmp_path, capsys):
    """In the form of launch's, for the processes that there are."""
    recipe = write_recipe(eval={"every": 1}, max_steps=None, num_train_epochs=2)
    dispatch(["train", "--config", str(recipe), "--dry_run"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 training process on the CPU; completions by transformers"
    assert f"trainer: grpo-math train --config {recipe}" in lines
    assert "data:    gsm8k train: 16 problems of 16 rows" in lines
    assert "held out: gsm8k test, evaluated every 1 steps" in lines
    assert "rewards: correctness (weight 1), format (weight 0.2)" in lines
    assert lines[-2:] == ["optimizer steps                   16", f"run folder: {tmp_path}/run"]
    taught = write_recipe("sft.yaml", rewards=None, num_generations=None, max_completion_length=None, sft={})
    dispatch(["sft", "--config", str(taught), "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert "no evaluation" in lines
    assert lines[-2:] == ["optimizer steps                    2", f"run folder: {tmp_path}/run"]
    for words in (["--learning_rat", "1"], ["--per_device_train_batch_size", "3"], ["--dataset.path", "/nowhere"]):
        with pytest.raises(UserError):
            dispatch(["train", "--config", str(recipe), "--dry_run", *words])
    with pytest.raises(UserError, match="a recipe for SFT"):
        dispatch(["train", "--config", str(taught), "--dry_run"])
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_the_recipe_is_told_once_with_status_2(write_recipe):
    recipe = write_recipe(learning_rat=1)
    command = [sys.executable, "-m", "grpo_math", "launch", "--layout", "multi_gpu", "--config", str(recipe)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "has no distributed_type, num_processes: start from one of"),
        ("", "has no distributed_type, num_processes"),
        ("distributed_type: 'NO'", "has no num_processes"),
        ("a: [", "is not YAML"),
        ("\xff", "is not YAML"),
    ],
)
def test_a_layout_of_ones_own_that_is_none(plan, tmp_path, text, message):
    (tmp_path / "own.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=message):
        plan(f"--layout {tmp_path}/own.yaml")


def test_a_layout_of_ones_own_is_what_its_config_contains(plan, tmp_path):
    (tmp_path / "dual_gpu.yaml").write_text((ROOT / "accelerate_configs" / "zero2.yaml").read_text())
    made = plan(f"--layout {tmp_path}/dual_gpu.yaml", use_vllm=None)
    assert (made.server, made.processes) == (None, 2)
    assert read_layout(f"{tmp_path}/dual_gpu.yaml").strategy == "zero2"
    assert [read_layout(name).strategy for name in ("fsdp2", "zero3", "multi_gpu")] == ["fsdp", "zero3", "ddp"]


def test_one_training_machine_with_a_server_elsewhere_keeps_its_own_address(plan):
    made = plan("--layout multi_node --nodes 1 --vllm_mode server --vllm_server_base_url http://n0:8000")
    assert "VLLM_HOST_IP" not in made.trainer.environment  # NCCL meets there


@pytest.mark.parametrize("layout", ["cpu", pytest.param("multi_gpu", marks=pytest.mark.slow)])
def test_a_failing_process_gives_its_status_and_no_traceback(write_recipe, tmp_path, layout):
    recipe = write_recipe(model_name_or_path="/nowhere/x/y")
    status, output = forked.grpo_math(["launch", "--layout", layout, "--config", str(recipe)], tmp_path)
    assert status == 2, output
    assert output.count("error: model_name_or_path: no model at '/nowhere/x/y'") == 1
    assert "Traceback" not in output
