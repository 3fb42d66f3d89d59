"""On paper: what a GRPO step of a 7B, 32B and 70B policy holds on 8, 16 and 64 H100 GPUs, and how long it takes.

usage: python benchmarks/scaling.py

Arithmetic alone: memory is the estimate of `grpo-math check` (grpo_math/memory.py), time is work over the speed of what
does it. Nothing of it was measured by us; the last table sets it beside what others published. See docs/scaling.md.
"""

import itertools
import math
from dataclasses import dataclass, replace

from grpo_math.checks.memory import CONTEXT, GIB, Setting, Shape, held, items, peak

# The workload; lengths are in tokens.
PROMPTS, GROUP = 128, 8  # prompts an optimizer step, and completions of each
PROMPT, MEAN, LONGEST = 200, 1024, 4096  # of a prompt; of a completion, in the mean and at most
BEHIND = PROMPT + MEAN  # what a sampled token attends to, in the mean: lengths fall off exponentially

# H100 SXM, from NVIDIA's data sheet (its tensor figures are with sparsity: half of them dense).
CARD = 80e9  # bytes, as `grpo-math check` counts them
FLOPS = 989e12  # bfloat16, dense, a second
HBM = 3.35e12  # bytes a second
NVLINK = 450e9  # bytes a second in one direction; the sheet's 900 is the sum of both
NETWORK = 50e9  # bytes a second in one direction: 400 Gbit/s a GPU between nodes (DGX H100)
NODE = 8  # GPUs

# How much of that is reached. Assumptions: the checks show how the first two do; nothing stands behind the others.
TRAINING = 0.4  # of FLOPS
DECODE = 0.5  # of HBM while tokens are sampled, and of FLOPS where their products take longer than the reading
COLLECTIVE = 0.8  # of NVLINK and NETWORK
ALL_REDUCE = 20e-6  # seconds to begin one, two a layer and token with tensor parallelism
SCHEDULE = 3e-3  # seconds a token that vLLM plans, samples and stops in
FULL = 0.9  # of a GPU; above that `grpo-math check` calls a fit tight
ENGINE = 4 * GIB  # what a vLLM engine holds besides weights and cache, asleep too
SERVER = 0.9  # of a GPU, for vLLM where it serves (our default)
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of a GPU that trains while vLLM sleeps (vllm_enable_sleep_mode: true)
RANK = 16  # of a LoRA adapter on every linear layer
PARTS = {"multi_gpu": (), "zero2": ("gradients", "optimizer"), "zero3": ("weights", "gradients", "optimizer")}
PARTS["fsdp2"] = PARTS["zero3"]
DTYPES = {4: "float32", 2: "bfloat16"}


def shape(
    layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, vocabulary: int, biases: int
) -> Shape:
    """Of a Llama config (of Qwen2.5 with `biases` 1) with heads of 128 and an output embedding of its own."""
    query, key_value = 128 * heads, 128 * kv_heads
    linear = layers * (2 * hidden * (query + key_value) + 3 * hidden * intermediate)
    small = (2 * layers + 1) * hidden + biases * layers * (query + 2 * key_value)
    count = linear + 2 * vocabulary * hidden + small
    return Shape(count, linear, count, layers, hidden, intermediate, query, key_value, vocabulary)


SHAPES = {  # from the config.json of each
    "Qwen2.5-7B": shape(28, 3584, 18944, 28, 4, 152064, 1),
    "Qwen2.5-32B": shape(64, 5120, 27648, 40, 8, 152064, 1),
    "Llama-3.1-70B": shape(80, 8192, 28672, 64, 8, 128256, 0),
}


@dataclass(frozen=True)
class Plan:
    """A way to run a step. A vLLM server has `serving` GPUs; colocated (0), vLLM has a `share` of each."""

    shape: Shape
    gpus: int
    layout: str
    lora: bool = False
    dtype: int = 4  # bytes of a weight; float32 has bfloat16 passes
    serving: int = 0
    share: float = SERVER
    tensor_parallel: int = 1
    batch: int = 1  # per_device_train_batch_size
    prompts: int = PROMPTS
    ahead: int = 1  # optimizer steps of one generation batch
    correction: bool = True  # vllm_importance_sampling_correction, TRL's default

    @property
    def processes(self) -> int:
        """The most that share out the completions evenly, of the GPUs (in a cluster, the nodes) that do not serve."""
        left = self.gpus - (self.serving if self.gpus <= NODE or not self.serving else NODE)
        return next(count for count in range(left, 0, -1) if self.prompts * GROUP % (count * self.batch) == 0)

    @property
    def passes(self) -> int:
        """gradient_accumulation_steps."""
        return self.prompts * GROUP // (self.processes * self.batch)

    @property
    def compares(self) -> bool:
        """Whether TRL wants log-probs of the policy that generated: then no pass is cut (grpo_math/trainer.py)."""
        return self.correction or self.ahead > 1

    @property
    def length(self) -> float:
        """Tokens a completion takes in a pass: padded to the longest of the rollout, or cut to that of its own pass.

        Cut, the completions at work at the same moment, on all processes, take the time of the longest of them:
        processes wait for each other after every pass, whatever the layout (TRL gathers the loss's metrics there). Of
        so many exponential lengths the longest is MEAN times their harmonic number, in the mean; the cap comes after
        the mean, which makes it about an eighth too long at most.
        """
        if self.compares:
            return PROMPT + LONGEST
        at_work = self.batch * self.processes
        return PROMPT + min(LONGEST, MEAN * sum(1 / count for count in range(1, at_work + 1)))

    @property
    def trained(self) -> int:
        ends = 2 * (self.shape.query + self.shape.key_value) + 3 * self.shape.intermediate + 7 * self.shape.hidden
        return self.shape.layers * RANK * ends if self.lora else self.shape.parameters


def phases(plan: Plan) -> tuple[float, float]:
    """Bytes on a GPU that trains: while it does, and while completions are generated."""
    setting = Setting(
        weight_bytes=plan.dtype, mixed=plan.dtype == 4, peft=plan.lora, linear_bytes=None, checkpointing=True,
        reference=False, optimizer_bytes=8 if plan.lora else 2 * plan.dtype, batch=plan.batch, passes=plan.passes,
        sequences=0, length=PROMPT + LONGEST, shards=dict.fromkeys(PARTS[plan.layout], plan.processes),
    )  # fmt: skip
    parts = items(replace(plan.shape, trained=plan.trained), setting)
    asleep, awake = (0.0, 0.0) if plan.serving else (min(ENGINE, plan.share * CARD), plan.share * CARD)
    return peak(parts, setting) + CONTEXT + asleep, held(parts) + CONTEXT + awake


def room(plan: Plan, width: int = 2, behind: float = BEHIND) -> float:
    """Completions at a time in an engine's cache; `width` is bytes of a weight and of a number that is cached."""
    cache = plan.tensor_parallel * (plan.share * CARD - ENGINE) - width * plan.shape.parameters
    return cache / (2 * plan.shape.layers * plan.shape.key_value * width * behind)


def fits(plan: Plan) -> bool:
    return room(plan) * BEHIND >= PROMPT + LONGEST and max(phases(plan)) <= FULL * CARD


def transfer(size: float, processes: int) -> float:
    """Seconds to gather, or to reduce and scatter, so many bytes: over NVLink, and through a node's network cards."""
    inside = size * (1 - 1 / min(processes, NODE)) / NVLINK
    between = size * (1 - 1 / math.ceil(processes / NODE)) / (NETWORK * NODE)
    return max(inside, between) / COLLECTIVE


def forward(shape: Shape, length: int) -> float:
    """Floating-point operations for a token: all weights but the input embedding, and attention to half of `length`."""
    return 2 * (shape.linear + shape.vocabulary * shape.hidden) + 2 * shape.layers * shape.query * length


def decode(plan: Plan, completions: float, at_a_time: float, mean: int, longest: int, behind: float, width: int = 2):
    """Seconds of one engine. A step is a token of each completion that runs: it reads all weights once, and the cache
    of each; with tensor parallelism every layer adds up its halves twice."""
    shape, parallel = plan.shape, plan.tensor_parallel
    steps = longest + max(0.0, completions / at_a_time - 1) * mean
    tokens = completions * mean
    read = steps * width * shape.parameters + tokens * behind * 2 * shape.layers * shape.key_value * width
    products = 2 * shape.parameters * (tokens + completions * PROMPT)
    added = 2 * shape.layers * tokens * 2 * 2 * shape.hidden * (1 - 1 / parallel) / (NVLINK * COLLECTIVE)
    begun = steps * (SCHEDULE + 2 * shape.layers * ALL_REDUCE * (parallel > 1))
    return max(read / HBM, products * width / 2 / FLOPS) / DECODE / parallel + added + begun


def seconds(plan: Plan) -> dict[str, float]:
    """Of each part of an optimizer step; gathers and reductions wait only where they take longer than the passes."""
    shape, processes, completions = plan.shape, plan.processes, plan.prompts * GROUP
    weights, engines = 2 * shape.parameters, 1 if plan.serving else plan.gpus // plan.tensor_parallel
    generate = decode(plan, plan.ahead * completions / engines, room(plan), MEAN, LONGEST, BEHIND) / plan.ahead
    once = completions / processes * plan.length * forward(shape, plan.length) / (FLOPS * TRAINING)
    logprobs = once if plan.compares else 0.0
    train = once * (3 if plan.lora else 4)  # forward, forward again for its checkpoints, backward: 6PT, 8PT
    gather = transfer(weights, processes) if "weights" in PARTS[plan.layout] else 0.0
    reduce = transfer(2 * plan.trained, processes) * (plan.passes if PARTS[plan.layout] else 2)
    reduce += transfer(weights, processes) if plan.layout == "zero2" else 0.0
    network = (2 + plan.compares) * plan.passes * gather + reduce  # for forward, backward, log-probs
    to_engine = HBM if not plan.serving else COLLECTIVE * (NVLINK if plan.gpus <= NODE else NETWORK)
    sync = (gather + weights / to_engine) / plan.ahead
    step = generate + max(logprobs + train, network) + sync
    return {"generate": generate, "log-probs": logprobs, "train": train, "network": network, "sync": sync, "step": step}


def best(model: str, gpus: int, lora: bool = False, served: bool = False) -> Plan | None:
    """The quickest that fits; float32 weights wherever they do."""
    layouts, dtypes = (("multi_gpu", "fsdp2"), (2,)) if lora else (("zero2", "zero3"), (4, 2))
    shape, found = SHAPES[model], []
    for layout, dtype, parallel in itertools.product(layouts, dtypes, (1, 2, 4, 8)):
        for share in (SERVER,) if served else SHARES:
            serving = parallel if served else 0
            whole = shape.query // 128 % parallel == 0 and serving < gpus
            plan = Plan(shape, gpus, layout, lora, dtype, serving, share, parallel)
            found += [plan] if whole and fits(plan) else []
    return min(found, key=lambda plan: (-plan.dtype, seconds(plan)["step"]), default=None)


def gib(size: float) -> str:
    return f"{size / GIB:.0f}" if size <= FULL * CARD else f"({size / GIB:.0f})"


def table(head: str, rows) -> None:
    print(f"\n| {head} |\n|{'---|' * len(head.split(' | '))}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")


TIMES = ("generate", "log-probs", "train", "network", "step")
SIZES = list(itertools.product(SHAPES, (8, 16, 64)))


def sizes(model: str, gpus: int) -> list[str]:
    kinds = [("zero2", False, 4), ("zero3", False, 4), ("zero3", False, 2), ("multi_gpu", True, 2), ("fsdp2", True, 2)]
    return [gib(max(phases(Plan(SHAPES[model], gpus, *kind, share=0.0)))) for kind in kinds]


def chosen(model: str, gpus: int, lora: bool) -> list[str]:
    plan, what = best(model, gpus, lora), "LoRA" if lora else "full"
    if plan is None:
        return [what, "nothing fits", *["-"] * 10]
    parts, (training, generating) = seconds(plan), map(gib, phases(plan))
    vllm = f"{plan.tensor_parallel} GPUs an engine, {plan.share:.0%} of each"
    times = [f"{parts[name]:.0f}" for name in TIMES]
    bound = max(("generate", "train", "network"), key=parts.get)
    row = [what, f"{plan.layout}, {DTYPES[plan.dtype]}", vllm, f"{training}, {generating}", *times, bound]
    return [*row, f"{parts['sync']:.1f}", f"{gpus * parts['step'] / 3600:.1f}"]


def sides(model: str, gpus: int):
    for lora, served in itertools.product((False, True), repeat=2):
        plan = best(model, gpus, lora, served)
        yield "nothing fits" if plan is None else f"{seconds(plan)['step']:.0f} s, {DTYPES[plan.dtype]}"


def levers(model: str, gpus: int):
    plan = best(model, gpus)
    usual = seconds(plan)["step"] / plan.prompts
    for name, change in {
        "the plan above": {},
        "prompts_per_step: 32": {"prompts": 32},
        "prompts_per_step: 512": {"prompts": 512},
        "per_device_train_batch_size: 4": {"batch": 4},
        "steps_per_generation: 4 x gradient_accumulation_steps": {"ahead": 4},
        "vllm_tensor_parallel_size: 1": {"tensor_parallel": 1},
        "vllm_importance_sampling_correction: false": {"correction": False},
    }.items():
        now = replace(plan, **change)
        parts = seconds(now)
        times = [f"{parts[part]:.0f}" for part in TIMES]
        each = parts["step"] / now.prompts
        yield name, now.passes, gib(phases(now)[0]), *times, f"{each * 1000 / GROUP:.0f}", f"{each / usual:.2f}"


# FP8 on H100 SXM (TensorRT-LLM 1.0, perf-overview.md): model, GPUs, completions, tokens of each, tokens a second.
SERVED = [
    ("Llama-3.1-8B", shape(32, 4096, 14336, 32, 8, 128256, 0), 1, 3000, 2048, 22_714),
    ("Llama-3.3-70B", SHAPES["Llama-3.1-70B"], 2, 3000, 2048, 6_651),
    ("Llama-3.3-70B", SHAPES["Llama-3.1-70B"], 2, 1500, 4096, 4_199),
    ("Llama-3.1-405B", shape(126, 16384, 53248, 128, 8, 128256, 0), 8, 3000, 2048, 4_340),
]
# FSDP with checkpointing, bfloat16, H100 (llm-foundry, scripts/train/benchmarking/README.md): model, layers, hidden
# size, GPUs, tokens of a sequence, tokens a second and GPU.
TRAINED = [
    ("MPT-7B", 32, 4096, 8, 4096, 8_611),
    ("MPT-30B", 48, 7168, 8, 4096, 1_802),
    ("MPT-70B", 80, 8192, 64, 2048, 1_039),
]


def checks():
    """Published tokens a second, beside ours of the same work."""
    for name, model, gpus, completions, tokens, published in SERVED:
        plan, behind = Plan(model, gpus, "zero3", serving=gpus, tensor_parallel=gpus), 128 + tokens / 2
        ours = completions * tokens / decode(plan, completions, room(plan, 1, behind), tokens, tokens, behind, 1)
        yield f"sampling, {name}, {gpus} GPU", tokens, f"{ours:,.0f}", f"{published:,}", f"{ours / published:.2f}"
    for name, layers, hidden, gpus, length, published in TRAINED:
        model = Shape(0, 12 * layers * hidden**2, 0, layers, hidden, 4 * hidden, hidden, hidden, 50432)
        ours = FLOPS * TRAINING / (4 * forward(model, length))
        yield f"training, {name}, {gpus} GPU", length, f"{ours:,.0f}", f"{published:,}", f"{ours / published:.2f}"


HOLDS = "model | GPUs | zero2 | zero3, fsdp2 | the same, bfloat16 weights | LoRA, multi_gpu | LoRA, fsdp2"
CHOSEN = "model | GPUs | what | layout | vLLM, colocated | GiB training, generating | generate | log-probs | train"
CHOSEN += " | network | step | longest phase | sync | GPU hours a step"
SIDES = "model | GPUs | full, colocated | full, server | LoRA, colocated | LoRA, server"
LEVERS = "change | passes | GiB training | generate | log-probs | train | network | step"
LEVERS += " | seconds per 1,000 completions | ratio"


def main() -> None:
    print("GiB on a GPU that only trains; (in brackets): more than 90 % of it")
    table(HOLDS, ([*size, *sizes(*size)] for size in SIZES))
    print("\nThe quickest plan that fits, in seconds; `network` is hidden behind log-probs and train as far as it goes")
    table(CHOSEN, ([*size, *chosen(*size, lora)] for lora in (False, True) for size in SIZES))
    print("\nA step with vLLM colocated, and with a server")
    table(SIDES, ([*size, *sides(*size)] for size in SIZES))
    print("\nWhat moves it: Qwen2.5-7B on 8 GPUs, all weights, in seconds")
    table(LEVERS, levers("Qwen2.5-7B", 8))
    print("\nTokens a second")
    table("work | tokens | by this arithmetic | published | ratio", checks())


if __name__ == "__main__":
    main()
