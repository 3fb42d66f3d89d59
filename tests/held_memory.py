"""Only for tests: what a training process holds between two steps, written to the file HELD-RANK.

A recipe's own reward. Tensors of Python are counted once per storage; the buckets of DDP's reducer live in C++, and DDP
logs their sizes.
"""

import gc
import json
import os
from collections import Counter
from pathlib import Path

import torch


def held() -> dict[str, int]:
    """Bytes of all tensors by dtype, and of DDP's buckets."""
    found = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and one.device.type == "cpu"]
    local = [getattr(one, "_local_tensor", one) for one in found]
    storages = {one.untyped_storage().data_ptr(): (one.dtype, one.untyped_storage().nbytes()) for one in local}
    sizes: Counter[str] = Counter()
    for dtype, size in storages.values():
        sizes[str(dtype).removeprefix("torch.")] += size
    for one in gc.get_objects():
        if isinstance(one, torch.nn.parallel.DistributedDataParallel):
            log = one._get_ddp_logging_data()
            buckets = log.get("rebuilt_bucket_sizes") or log["bucket_sizes"]
            sizes["reducer"] += sum(int(size) for size in buckets.split(",") if size.strip())
    return sizes


def reward(completions, trainer_state, **_):
    if trainer_state.global_step == 1:
        Path(f"{os.environ['HELD']}-{os.environ.get('RANK', 0)}").write_text(json.dumps(held()))
    return [len(str(one)) % 7 / 7 for one in completions]
