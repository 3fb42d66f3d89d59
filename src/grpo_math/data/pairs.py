"""Problems as prompts and worked answers, in token ids: what SFT teaches is what GRPO will ask."""

import functools
from typing import TYPE_CHECKING

from grpo_math.data.problem import Problem
from grpo_math.data.prompts import PromptTemplate, in_chat, token_ids
from grpo_math.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Pairs:
    """Rows for TRL's SFTTrainer. The ids of a prompt are those that GRPO feeds, whatever text follows: tokenized in one
    piece, the end of a prompt and the start of an answer could become one token.

    `worked` teaches the worked solution, else the answer alone. `max_length` is in tokens, of prompt and completion.
    """

    def __init__(
        self, template: PromptTemplate, tokenizer: "PreTrainedTokenizerBase", worked: bool, max_length: int | None
    ):
        self.template, self.tokenizer, self.worked, self.max_length = template, tokenizer, worked, max_length

    def row(self, problem: Problem) -> dict[str, list[int]]:
        """`input_ids`, and `completion_mask`, which is 1 where the loss is."""
        prompt, completion = self.ids(problem)
        return {"input_ids": prompt + completion, "completion_mask": [0] * len(prompt) + [1] * len(completion)}

    def ids(self, problem: Problem) -> tuple[list[int], list[int]]:
        """The token ids of the prompt, and of the completion with the token that ends it."""
        prompt = self.template.prompt(problem.question, self.tokenizer, problem.system)
        target = self.template.target(problem, self.worked)
        text, end = target, [self.tokenizer.eos_token_id]
        if isinstance(prompt, list):
            text, end = self.answer_in_chat(prompt, target), []  # the chat template ends it
        completion = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return token_ids(prompt, self.tokenizer), completion + end

    def answer_in_chat(self, prompt: list[dict], target: str) -> str:
        """The answer as the chat template renders it; raises UserError where that changes it."""
        render = functools.partial(in_chat, tokenizer=self.tokenizer, tokenize=False)
        before = render(prompt, add_generation_prompt=True)
        whole = render([*prompt, {"role": "assistant", "content": target}])
        answer = whole.removeprefix(before)
        if answer == whole or target not in answer:
            raise UserError(
                f"prompt_template: the chat template of {self.tokenizer.name_or_path} changes the answer: "
                f"{target!r:.60} becomes {answer!r:.60}: use a template with chat: false, or with a prefill"
            )
        return answer

    def unusable(self, problem: Problem) -> str | None:
        """Why a problem cannot be trained on: TRL would silently cut one that is too long, and with it the answer."""
        if self.worked and not problem.worked:
            return "without a worked solution"
        fits = self.max_length is None or sum(map(len, self.ids(problem))) <= self.max_length
        return None if fits else f"over max_length {self.max_length} tokens"

    def check(self, problem: Problem, ends: set[int]) -> None:
        """Raise UserError where the chat template ends the answer with a token that does not end a generation."""
        tokenizer, (_, completion) = self.tokenizer, self.ids(problem)
        last = next(token for token in reversed(completion) if str(tokenizer.decode([token])).strip())
        if last not in ends:
            raise UserError(
                f"eos_token: the chat template of {tokenizer.name_or_path} ends an answer with "
                f"{tokenizer.decode([last])!r}, but generation ends at {tokenizer.eos_token!r}: set eos_token to the "
                "token that ends an answer"
            )
