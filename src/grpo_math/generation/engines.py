"""Completions for evaluation: by transformers, by vLLM in this process, or by a vLLM server over HTTP.

An engine has one method, `generate(prompts, seeds, sampling, done)`: `prompts` are lists of token ids, `seeds` one
number per prompt, and the indexes in `done` are skipped. It yields `{index: completions}` as prompts are finished, one
or several at a time, with `sampling.samples` completions each. No engine changes the random state of a training.
"""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

from grpo_math.data import until_stop
from grpo_math.errors import UserError
from grpo_math.generation.vllm_server import ask, server_url
from grpo_math.models import context_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, Trainer
    from trl import GRPOConfig
    from vllm import LLM

CONCURRENT = 256  # requests to a server at a time; vLLM's own scheduler takes what fits
PORTION = 16  # prompts that a colocated engine has finished; all processes of a training meet after each
HOUR = 3600  # seconds until a server's answer to one prompt is given up

Batches = Iterator["dict[int, list[Completion]]"]


@dataclass(frozen=True)
class Sampling:
    """`samples` completions per prompt at `temperature` (0: greedy) and `top_p`, of at most `max_new_tokens` tokens.

    Generation ends after any of the `stop` strings, with which the text ends then, and at the tokens `ends`.
    """

    max_new_tokens: int
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    ends: frozenset[int] = frozenset()

    def __str__(self) -> str:
        if self.temperature == 0:
            return "greedy"
        return f"{self.samples} samples at temperature {self.temperature:g}, top_p {self.top_p:g}"

    def for_vllm(self, seed: int, room: int) -> dict:
        """The arguments of vLLM's SamplingParams, and the fields of a request to its server: all that the model's
        generation config would set. With a seed, a request has its own generator, and its samples differ."""
        return {
            "n": self.samples,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": min(self.max_new_tokens, room),
            "seed": seed,
            "stop": list(self.stop),
            "include_stop_str_in_output": True,
            "stop_token_ids": sorted(self.ends),
        }


@dataclass(frozen=True)
class Completion:
    """`length` is in tokens, the end token included; `truncated` if it reached the maximal length; `ids` its tokens.

    Of a conversation with tools `text` is the final answer, `length` without the tool results, `truncated` also where
    there is no answer, `ids` with the results, and `conversation` its messages as JSON.
    """

    text: str
    length: int
    truncated: bool
    ids: tuple[int, ...] = field(default=(), compare=False)
    conversation: str = field(default="", compare=False)


def same_random_state() -> AbstractContextManager:
    """A context that restores torch's random state, the CPU's and that of this process's GPU."""
    import torch

    return torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else [])


@contextmanager
def plain_defaults(model: Any) -> Iterator[None]:
    """`generate` fills settings that are not given from the checkpoint's generation config: replace it for a while."""
    from transformers import GenerationConfig

    models: list[Any] = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    own = [one.generation_config for one in models]
    for one in models:
        one.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for one, config in zip(models, own, strict=True):
            one.generation_config = config


class TransformersEngine:
    """`model.generate`, in batches of at most `batch_size` completions whose prompts are about equally long.

    The batches follow from all prompts, done or not, so that an interrupted evaluation samples the same completions.
    """

    def __init__(self, model: "PreTrainedModel | PeftModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int):
        self.model: Any = model
        self.tokenizer, self.batch_size = tokenizer, batch_size
        self.window = context_of(self.model.config)

    def generate(
        self, prompts: list[list[int]], seeds: list[int], sampling: Sampling, done: AbstractSet[int] = frozenset()
    ) -> Batches:
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        size = max(1, self.batch_size // sampling.samples)
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            if missing := set(batch) - done:
                completions = self.complete([prompts[index] for index in batch], seeds[batch[0]], sampling)
                yield {index: found for index, found in zip(batch, completions, strict=True) if index in missing}

    def complete(self, prompts: list[list[int]], seed: int, sampling: Sampling) -> list[list[Completion]]:
        import torch

        tokenizer, model = self.tokenizer, self.model
        inputs = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
        room = self.window - inputs["input_ids"].shape[1]
        new = min(sampling.max_new_tokens, room) if room > 0 else sampling.max_new_tokens  # TRL generates beyond it too
        settings = self.settings(sampling, new)
        was_training = model.training
        model.eval()
        with torch.no_grad(), same_random_state(), plain_defaults(model):
            torch.manual_seed(seed)
            output = model.generate(**inputs, generation_config=settings, tokenizer=tokenizer)
        model.train(was_training)
        rows = output[:, inputs["input_ids"].shape[1] :].tolist()
        completions = [self.completion(row, sampling) for row in rows]
        return [completions[i : i + sampling.samples] for i in range(0, len(completions), sampling.samples)]

    def settings(self, sampling: Sampling, max_new_tokens: int) -> "GenerationConfig":
        from transformers import GenerationConfig

        greedy = sampling.temperature == 0
        return GenerationConfig(
            do_sample=not greedy,
            num_beams=1,
            num_return_sequences=sampling.samples,
            repetition_penalty=1.0,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(sampling.ends),
            pad_token_id=self.tokenizer.pad_token_id,
            **({} if greedy else {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}),
            **({"stop_strings": list(sampling.stop)} if sampling.stop else {}),
        )

    def completion(self, row: list[int], sampling: Sampling) -> Completion:
        """The tokens up to the end or, where a stop string ended them, to the padding."""
        ends = {*sampling.ends, self.tokenizer.pad_token_id}
        end = next((i for i, token in enumerate(row) if token in ends), len(row))
        text = until_stop(str(self.tokenizer.decode(row[:end], skip_special_tokens=True)), sampling.stop)
        if text.endswith(sampling.stop):
            return Completion(text, end, False, tuple(row[:end]))
        return Completion(text, min(end + 1, len(row)), end == len(row), tuple(row[: end + 1]))


def from_vllm(
    ids: list[int], finish_reason: str, sampling: Sampling, tokenizer: "PreTrainedTokenizerBase"
) -> Completion:
    kept = ids[:-1] if ids and ids[-1] in sampling.ends else ids
    text = until_stop(str(tokenizer.decode(kept, skip_special_tokens=True)), sampling.stop)
    return Completion(text, len(ids), finish_reason == "length", tuple(ids))


class VllmEngine:
    """A `vllm.LLM` of this process. Generation stops when the caller stops iterating."""

    def __init__(self, llm: "LLM", tokenizer: "PreTrainedTokenizerBase"):
        self.llm, self.tokenizer = llm, tokenizer
        self.window = llm.llm_engine.model_config.max_model_len

    def generate(
        self, prompts: list[list[int]], seeds: list[int], sampling: Sampling, done: AbstractSet[int] = frozenset()
    ) -> Batches:
        from vllm import SamplingParams

        engine, first = self.llm.llm_engine, self.llm.request_counter.counter
        wanted = [index for index in range(len(prompts)) if index not in done]
        settings = [SamplingParams(**sampling.for_vllm(seeds[i], self.window - len(prompts[i]))) for i in wanted]
        running = {str(first + place): index for place, index in enumerate(wanted)}
        found: list[tuple[int, list[Completion]]] = []
        with same_random_state():
            self.llm.enqueue([{"prompt_token_ids": prompts[i]} for i in wanted], settings, use_tqdm=False)
            try:
                while running:
                    for output in filter(attrgetter("finished"), engine.step()):
                        samples = sorted(output.outputs, key=attrgetter("index"))
                        completions = [
                            from_vllm(list(one.token_ids), one.finish_reason, sampling, self.tokenizer)
                            for one in samples
                        ]
                        found.append((running.pop(output.request_id), completions))
                    while len(found) >= PORTION or (found and not running):
                        yield dict(found[:PORTION])
                        del found[:PORTION]
            finally:
                engine.abort_request(list(running))


class ServerEngine:
    """A vLLM server; one request per prompt, many at a time."""

    def __init__(self, url: str, tokenizer: "PreTrainedTokenizerBase"):
        self.url, self.tokenizer = url, tokenizer
        model = ask(f"{url}/v1/models", timeout=60).json()["data"][0]
        self.model, self.window = model["id"], model["max_model_len"]

    def generate(
        self, prompts: list[list[int]], seeds: list[int], sampling: Sampling, done: AbstractSet[int] = frozenset()
    ) -> Batches:
        pool = ThreadPoolExecutor(CONCURRENT)
        try:
            asked = {
                pool.submit(self.complete, prompt, seeds[index], sampling): index
                for index, prompt in enumerate(prompts)
                if index not in done
            }
            for answered in as_completed(asked):
                yield {asked[answered]: answered.result()}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def complete(self, prompt: list[int], seed: int, sampling: Sampling) -> list[Completion]:
        fields = sampling.for_vllm(seed, self.window - len(prompt))
        fields |= {"model": self.model, "prompt": prompt, "return_token_ids": True}
        try:
            answer = ask(f"{self.url}/v1/completions", HOUR, fields)
        except OSError as error:
            raise UserError(f"the vLLM server at {self.url} does not respond ({type(error).__name__})") from error
        if not answer.ok:
            status = f"status {answer.status_code}, its log has the cause"
            raise UserError(f"the vLLM server at {self.url} refused a request ({status}): {answer.text[:300]}")
        choices = sorted(answer.json()["choices"], key=lambda choice: choice["index"])
        return [from_vllm(c["token_ids"], c["finish_reason"], sampling, self.tokenizer) for c in choices]


Engine = TransformersEngine | VllmEngine | ServerEngine


def generating(trainer: "Trainer") -> AbstractContextManager:
    """Around a whole generation: 16-bit passes then round the float32 weights once and not for every token.

    Not for adapters: with it their frozen weights would be rounded for every token.
    """
    adapter = hasattr(trainer.accelerator.unwrap_model(trainer.model), "peft_config")
    elsewhere = getattr(trainer, "use_vllm", False)  # SFT has no such attribute
    return nullcontext() if adapter or elsewhere else trainer.accelerator.autocast()


@contextmanager
def training_engine(
    trainer: "Trainer", model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int
) -> Iterator[Engine]:
    """The engine that a training generates on, with the current weights of the policy; all processes enter together.

    TRL's record of the last sync stays, so that the training's next generation begins with a sync and an empty prefix
    cache, as without the evaluation.
    """
    vllm, args = getattr(trainer, "vllm_generation", None), cast("GRPOConfig", trainer.args)
    if vllm is None:
        with generating(trainer):
            yield TransformersEngine(model, tokenizer, batch_size)
        return
    vllm.sync_weights()
    trainer.accelerator.wait_for_everyone()
    if vllm.mode == "server":
        yield ServerEngine(server_url(args), tokenizer)
    else:
        if vllm.enable_sleep_mode:
            vllm.llm.wake_up(tags=["kv_cache"])
        yield VllmEngine(vllm.llm, tokenizer)
        if vllm.enable_sleep_mode:
            vllm.llm.sleep(level=2)
            vllm._llm_weights_sleeping = True
    trainer.accelerator.wait_for_everyone()
