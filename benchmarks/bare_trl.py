"""The run that `grpo_math.train` is measured against: TRL's GRPOTrainer called directly (benchmarks/overhead.py)."""

import json
import sys
from pathlib import Path


def constant(completions, **_):
    """A reward that costs nothing and tells completions apart, so that there is something to learn."""
    return [float(len(completion) % 2) for completion in map(str, completions)]


def main(model: str, data: str, output_dir: str, arguments: dict, callback=None):
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    wanted = "\n\nThink step by step and put your final answer within \\boxed{}."
    dataset = Dataset.from_list(
        [{"prompt": [{"role": "user", "content": row["question"] + wanted}], "solution": row["answer"]} for row in rows]
    )
    trainer = GRPOTrainer(
        model=model,
        args=GRPOConfig(
            output_dir=output_dir,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            **arguments,
        ),
        reward_funcs=constant,
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[callback] if callback else None,
    )
    trainer.train()
    trainer.save_model(f"{output_dir}/final")


if __name__ == "__main__":
    main(*sys.argv[1:4], json.loads(sys.argv[4]))
