"""Only for tests: accelerate replaces FSDP with DDP on CPUs unless its state calls itself MULTI_GPU.

A recipe's own reward, whose file the trainer imports before it builds anything.
"""

import os

from accelerate import PartialState
from accelerate.utils import DistributedType

plain = PartialState.__init__


def claim(self, *arguments, **keywords):
    plain(self, *arguments, **keywords)
    if self.distributed_type is DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        self.distributed_type = DistributedType.MULTI_GPU


PartialState.__init__ = claim


def reward(completions, **_):
    return [0.0] * len(completions)
