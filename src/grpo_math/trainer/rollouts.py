"""What the policy wrote in training, with its verdict and every reward: OUTPUT_DIR/completions/step-STEP.parquet."""

from dataclasses import dataclass
from pathlib import Path

from grpo_math.data import PromptTemplate, completion_text
from grpo_math.rewards import grades_of
from grpo_math.runs.folder import write_table

FILES = 100  # about as many a run, unless the recipe says otherwise


@dataclass(frozen=True)
class Rollouts:
    """Keeps the completions of the first step and then of one step in `every`; 0 keeps none."""

    folder: Path
    template: PromptTemplate
    every: int | None

    def wanted(self, state, stride: int) -> bool:
        """Whether the rollout that is being made, for the next `stride` steps, is one to keep."""
        every = max(1, state.max_steps // FILES) if self.every is None else self.every
        return every > 0 and state.global_step // every > (state.global_step - stride) // every

    def write(self, rows: list[dict], step: int) -> None:
        (self.folder / "completions").mkdir(exist_ok=True)
        write_table(rows, self.folder / "completions" / f"step-{step:06d}.parquet")

    def rows(
        self, step: int, inputs: list[dict], completions: list, ids: list[list[int]], ends: set[int]
    ) -> list[dict]:
        """One row a completion, without its rewards."""
        texts = [completion_text(completion) for completion in completions]
        golds = [row["solution"] for row in inputs]
        full = tuple(self.template.full_text(text) for text in texts)
        grades = grades_of(full, tuple(golds), self.template.answer_style)
        return [
            {
                "step": step,
                "question": row["question"],
                "prompt": prompt_text(row["prompt"]),
                "solution": gold,
                "completion": text,
                "length": len(tokens),
                "truncated": bool(tokens) and tokens[-1] not in ends and not text.endswith(self.template.stop),
                "answer": grade.answer,
                "correct": grade.correct,
                "how": grade.how,
            }
            for row, gold, text, tokens, grade in zip(inputs, golds, texts, ids, grades, strict=True)
        ]


def prompt_text(prompt: str | list[dict]) -> str:
    """As people read it."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
