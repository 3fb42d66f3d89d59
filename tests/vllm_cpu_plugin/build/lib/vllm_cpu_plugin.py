"""Only for tests: vLLM's build for CPUs takes new weights. Without effect on any other platform.

vLLM calls `register` in every process of an engine (entry point group `vllm.general_plugins`).
"""


def register() -> None:
    """Keep CPU linears as plain weights: vLLM packs them for speed, after which `load_weights`, by which TRL brings the
    trained weights, fails."""
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
