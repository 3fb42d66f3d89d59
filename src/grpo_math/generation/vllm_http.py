"""Asking a vLLM server: where it is, whether it answers, and what."""

import time
from collections.abc import Callable
from urllib.parse import urlsplit

from grpo_math.errors import UserError


def ask(url: str, timeout: float = 5):
    """GET without a proxy: (status, JSON or None). OSError where nobody answers."""
    import requests

    with requests.Session() as session:
        session.trust_env = False
        answer = session.get(url, timeout=timeout)
    return answer.status_code, answer.json() if answer.ok and answer.content else None


def wait_until_healthy(base_url: str, timeout: float, still_there: Callable[[], None] = lambda: None) -> None:
    """Return once the server answers; `still_there` may raise while it does not. Raises UserError after `timeout`
    seconds, and where something else than a vLLM server answers."""
    started, said = time.monotonic(), 0
    while True:
        still_there()
        waited = time.monotonic() - started
        try:
            status, _ = ask(f"{base_url}/health")
        except OSError as error:
            status, reason = None, type(error).__name__
        if status == 200:
            return
        if status is not None and status != 503:
            raise UserError(f"vllm_server_base_url: {base_url}/health answers {status}: it is no vLLM server")
        if waited > timeout:
            raise UserError(
                f"vllm_server_base_url: no vLLM server at {base_url} after {timeout:.0f} s ({status or reason}): start "
                "it with grpo-math serve, let grpo-math launch start it, or raise vllm_server_timeout"
            )
        if waited > said + 10:
            said += 10
            print(f"waiting for the vLLM server at {base_url}, {said} s", flush=True)
        time.sleep(0.5)


def server_url(config) -> str:
    """Where the recipe's server is; the slash at the end of a URL, with which TRL would find nothing, is taken away."""
    if config.vllm_server_base_url is None:
        return f"http://{config.vllm_server_host}:{config.vllm_server_port}"
    url = config.vllm_server_base_url = config.vllm_server_base_url.rstrip("/")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise UserError(f"vllm_server_base_url: {url!r} is no address: write http://HOST:PORT")
    return url
