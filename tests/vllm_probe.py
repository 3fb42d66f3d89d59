"""Only for tests: train as a recipe says, and print as JSON what vLLM sampled and whether it has the trained weights.

python tests/vllm_probe.py --config recipe.yaml
"""

import hashlib
import json
import sys

import torch

from grpo_math import load_recipe, train
from grpo_math.generation.engines import PORTION, Sampling, VllmEngine
from grpo_math.trainer import loop
from grpo_math.trainer.trainer import Trainer

sampled: list[list[int]] = []
generate, run = Trainer._generate_single_turn, loop.run


def recording(self, *arguments, **keywords):
    completion_ids, logprobs = generate(self, *arguments, **keywords)
    sampled.append(completion_ids)
    return completion_ids, logprobs


def compare(trainer) -> dict:
    """vLLM's greedy tokens against the policy's log-probabilities of them."""
    from vllm import SamplingParams

    prompts = [[7, 8, 9], [20, 21], [30, 31, 32, 33]]
    greedy = SamplingParams(temperature=0, max_tokens=16, logprobs=0, ignore_eos=True)
    outputs = trainer.vllm_generation.llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts], greedy, use_tqdm=False
    )
    difference = agree = 0
    trainer.model.eval()
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = list(output.outputs[0].token_ids)
        with torch.no_grad():
            logits = trainer.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].float()
        ours = logits.log_softmax(-1)[range(len(ids)), ids]
        theirs = torch.tensor(
            [step[token].logprob for step, token in zip(output.outputs[0].logprobs, ids, strict=True)]
        )
        difference = max(difference, (ours - theirs).abs().max().item())
        agree += (logits.argmax(-1) == torch.tensor(ids)).sum().item()
    return {"difference": difference, "agree": agree}


def stopped_early(trainer) -> dict:
    """An evaluation of which only the first portion is asked for, and the whole of it afterwards."""
    llm = trainer.vllm_generation.llm
    prompts = [[7 + place, 8, 9] for place in range(2 * PORTION + 1)]
    wanted = prompts, list(range(len(prompts))), Sampling(8, samples=2, temperature=1.0)
    portions = VllmEngine(llm, trainer._tokenizer).generate(*wanted)
    first = next(portions)
    portions.close()
    unfinished = llm.llm_engine.get_num_unfinished_requests()
    portions = list(VllmEngine(llm, trainer._tokenizer).generate(*wanted))
    return {
        "unfinished": unfinished,
        "sizes": [len(portion) for portion in portions],
        "prompts": len({place for portion in portions for place in portion}),
        "same": portions[0] == first,
    }


def probed(trainer, *rest):
    results = run(trainer, *rest)
    weights = b"".join(tensor.contiguous().numpy().tobytes() for tensor in trainer.model.state_dict().values())
    found = {"weights": hashlib.sha256(weights).hexdigest(), "stale": compare(trainer)}
    trainer.vllm_generation.sync_weights()
    engine = trainer.vllm_generation.llm.llm_engine.model_config
    found |= {"synced": compare(trainer), "dtype": str(engine.dtype), "window": engine.max_model_len}
    found["stopped"] = stopped_early(trainer)
    decode = trainer._tokenizer.decode
    found["texts"] = [decode(ids, skip_special_tokens=True) for batch in sampled for ids in batch]
    found["before_last_token"] = [decode(ids[:-1], skip_special_tokens=True) for batch in sampled for ids in batch]
    print(json.dumps(found), flush=True)
    return results


Trainer._generate_single_turn, loop.run = recording, probed
train(load_recipe(sys.argv[1:]))
