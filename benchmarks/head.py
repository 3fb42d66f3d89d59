"""TRL's head (log-probabilities and entropy without whole logits) on a CPU, by the size of its tiles.

usage: python benchmarks/head.py

Forward and backward of 1,024 tokens of SmolLM2-135M's width and vocabulary, 16-bit; the sizes in turn, five rounds
after one of warm-up: median seconds, and the spread.
"""

import statistics
import time

import torch
from spread import spread
from trl.kernels import chunked_logprob

from grpo_math.checks.memory import TILE

TILE_ON_CPU = (512, 2048)
SIZES = [TILE, (4096, 8192), (4096, 2048), (1024, 1024), (256, 4096), TILE_ON_CPU]  # tokens, vocabulary entries
TOKENS, HIDDEN, VOCABULARY = 1024, 576, 49152


def main() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    weight = (0.03 * torch.randn(VOCABULARY, HIDDEN)).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (TOKENS,))

    def seconds(tokens: int, entries: int) -> float:
        chunked_logprob.TOKEN_CHUNK_SIZE = tokens
        arguments = (hidden, weight, None, targets, 1.0, entries, None, 1.0, ("log_probs", "entropy"))
        started = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logprobs = chunked_logprob.ChunkedLogProbFunction.apply(*arguments)[0]
        logprobs.sum().backward()
        return time.perf_counter() - started

    rounds = [[seconds(*size) for size in SIZES] for _ in range(6)][1:]
    print("| tokens x entries | seconds | of TRL's |\n|---|---|---|")
    for size, found in zip(SIZES, zip(*rounds, strict=True), strict=True):
        ratio = statistics.median(one / first[0] for one, first in zip(found, rounds, strict=True))
        print(f"| {size[0]:,} x {size[1]:,} | {spread(found, '.2f')} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
