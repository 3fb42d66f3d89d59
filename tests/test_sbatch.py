"""scripts/*.sbatch, with stand-ins for SLURM's commands and for grpo-math."""

import contextlib
import os
import signal
import subprocess
import time

import pytest
from conftest import ROOT

STAND_INS = {
    "scontrol": 'if [ "$1" = show ]; then printf "n0\\nn1\\nn2\\n"; else echo "$*" >> "$OUT/scontrol"; fi',
    # SLURM's kills its tasks when it is told to end
    "srun": """
        while [[ $1 == --* ]]; do echo "$1" >> "$OUT/srun"; shift; done
        "$@" & TASK=$!; echo $TASK > "$OUT/$2.pid"
        trap 'kill -9 $TASK' TERM
        wait $TASK""",
    "getent": '[ "$*" = "ahostsv4 n0" ] && [ -n "$ADDRESS" ] && echo "$ADDRESS STREAM n0"',
    "squeue": 'echo "7.0 serve"; echo "7.1 train"',
    "scancel": '[ "$*" = "--signal=TERM 7.1" ] && kill -TERM $(cat "$OUT/launch.pid")',
    "grpo-math": """
        trap 'echo saved > "$OUT/saved"; exit 0' TERM
        echo "$*" >> "$OUT/$1"
        until [ -e "$OUT/serve" ] || [ -n "$ALONE" ]; do sleep 0.05; done
        [ "$1" = "$ENDS" ] && exit $STATUS
        while :; do sleep 0.05; done""",
}


@pytest.fixture
def job(tmp_path, request):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in STAND_INS.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)

    def start(*words: str, script: str = "train.sbatch", **settings: str) -> subprocess.Popen:
        environment = os.environ | {
            "PATH": f"{tools}:{os.environ['PATH']}", "OUT": str(tmp_path), "STATUS": "0", "ENDS": "", "ADDRESS": "127.0.0.1", "ALONE": "",
            "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[0-2]", **settings,
        }  # fmt: skip
        running = subprocess.Popen(
            ["bash", str(ROOT / "scripts" / script), *words],
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        request.addfinalizer(lambda: end(running))
        return running

    return start


def end(job: subprocess.Popen) -> None:
    """With all that it has started: a stand-in told to end before it can listen leaves its task behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    job.wait()


def words(file) -> str:
    deadline = time.monotonic() + 10
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return file.read_text()


def test_one_node_serves_and_the_others_train(job, tmp_path):
    running = job("r.yaml", "--learning_rate", "2e-6", ENDS="launch")
    assert running.wait(10) == 0
    served = words(tmp_path / "serve")
    assert served.startswith(
        "serve --config r.yaml --resume_from_checkpoint auto --learning_rate 2e-6 --host 127.0.0.1"
    )
    port = int(served.split()[-1])
    assert 1024 <= port < 65536
    launched = words(tmp_path / "launch")
    assert "--layout multi_node --nodes 2 --main_process_ip n1" in launched
    assert f"--vllm_server_base_url http://127.0.0.1:{port} " in launched
    assert "--nodelist=n1,n2" in words(tmp_path / "srun")
    assert not (tmp_path / "scontrol").exists()


@pytest.mark.parametrize("address", ["", "192.0.2.1"])  # of nobody (RFC 5737)
def test_a_server_without_an_address_of_its_own_is_not_started(job, tmp_path, address):
    running = job("r.yaml", ADDRESS=address)
    assert running.wait(10) == 2
    error = running.stderr.read().decode().splitlines()[-1]
    assert error == f"error: n0 cannot listen on '{address}', which n1 has for it: check getent ahostsv4 n0 there"
    assert not (tmp_path / "serve").exists()


def test_no_server_of_ours_listens_everywhere():
    """vLLM's development endpoints take new weights from whoever reaches them."""
    for folder in ("scripts", "accelerate_configs", "src", "benchmarks"):
        for file in (ROOT / folder).rglob("*"):
            assert not file.is_file() or b"0.0.0.0" not in file.read_bytes(), file


@pytest.mark.parametrize("alone", [False, True], ids=["train.sbatch", "one_node.sbatch"])
def test_out_of_time_it_saves_and_is_requeued(job, tmp_path, alone):
    running = job("--config", "r.yaml", script="one_node.sbatch", ALONE="1") if alone else job("r.yaml")
    for step in ("launch",) if alone else ("launch", "serve"):
        words(tmp_path / step)
    time.sleep(0.3)
    running.send_signal(signal.SIGTERM)
    assert running.wait(10) == 0
    assert (tmp_path / "saved").exists()
    assert words(tmp_path / "scontrol") == "requeue 7\n"


@pytest.mark.parametrize("ends", ["launch", "serve"])
def test_a_training_or_a_server_that_fails_ends_the_job(job, tmp_path, ends):
    assert job("r.yaml", ENDS=ends, STATUS="2").wait(10) == 2
    assert not (tmp_path / "scontrol").exists()


def test_one_node_launches_and_passes_its_status_on(job, tmp_path):
    words = "--layout", "dual_gpu", "--config", "r.yaml"
    assert job(*words, script="one_node.sbatch", ALONE="1", ENDS="launch", STATUS="2").wait(10) == 2
    assert (
        tmp_path / "launch"
    ).read_text() == "launch --layout dual_gpu --config r.yaml --resume_from_checkpoint auto\n"
    assert not (tmp_path / "scontrol").exists()
