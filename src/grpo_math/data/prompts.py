"""Prompts: a template turns a `Problem` into the prompt, and defines where the answer is expected."""

import functools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from grpo_math.data.problem import Problem
from grpo_math.errors import one_line
from grpo_math.grading import accepted, boxes, without_boxes

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

BATCH = 1_000  # prompts that are tokenized together
NO_THINKING = "chat_template_kwargs: {enable_thinking: false}"  # the switch, as a recipe has it
OPENED, CLOSED = re.compile(r"<think>\s*$"), re.compile(r"</think>\s*$")  # at the end of a prompt


class PromptTemplate(BaseModel):
    r"""What is asked, and where the answer is expected.

    `user` holds the question as `{question}`; every other brace is literal. `chat` sends `system` and `user`
    through the tokenizer's chat template; without it the prompt is plain text, for base models. A row's own system
    message stands before `system`, or before the plain text. `prefill` begins the
    completion for the model and counts as part of it. Generation ends after any of the `stop` strings.
    `answer_style` is `boxed` (`\boxed{}`), `hash` (`#### n`), `answer_tag` (`<answer>`), or `fallback`: the first of
    these there is, else the last number.
    """

    model_config = ConfigDict(frozen=True)

    user: str = Field(default="{question}", description="the user's message, with {question} where the question goes")
    system: str | None = Field(default=None, description="the system message")
    answer_style: Literal["boxed", "hash", "answer_tag", "fallback"] = Field(
        default="boxed", description="how the final answer is marked"
    )
    stop: tuple[str, ...] = Field(default=(), strict=False, description="strings that end a completion")
    prefill: str = Field(default="", description="text with which every completion begins")
    chat: bool = Field(
        default=True, description="use the tokenizer's chat template; false: plain text, for base models"
    )

    def prompt(
        self, question: str, tokenizer: "PreTrainedTokenizerBase", system: str | None = None
    ) -> str | list[dict]:
        """The prompt column for TRL: a list of messages, or a string (plain text, or a chat with a prefill)."""
        text = self.user.replace("{question}", question)
        if not self.chat:
            return "\n\n".join(filter(None, (system, text))) + self.prefill
        system = "\n\n".join(filter(None, (system, self.system)))
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": text})
        if not self.prefill:
            return messages
        rendered = in_chat(messages, tokenizer, tokenize=False, add_generation_prompt=True)
        return rendered.removeprefix(tokenizer.bos_token or "") + self.prefill

    def opening(self, tokenizer: "PreTrainedTokenizerBase") -> str:
        """The `<think>` that the chat template opens for the model: it counts as part of the completion, or what is
        cut off while thinking would have an answer."""
        return "".join(OPENED.findall(self.generation_prompt(tokenizer)))

    def thinks(self, tokenizer: "PreTrainedTokenizerBase") -> bool:
        """Whether the model thinks before it answers: its chat template opens `<think>`, or has the switch
        `enable_thinking: false`, which closes an empty one, and it is not used."""
        prompt = self.generation_prompt(tokenizer)
        if OPENED.search(prompt) or OPENED.search(self.prefill):
            return True
        return not CLOSED.search(prompt) and self.can_stop_thinking(tokenizer)

    def can_stop_thinking(self, tokenizer: "PreTrainedTokenizerBase") -> bool:
        """Whether the chat template has the switch `enable_thinking: false`."""
        return CLOSED.search(self.generation_prompt(tokenizer, enable_thinking=False)) is not None

    def generation_prompt(self, tokenizer: "PreTrainedTokenizerBase", **variables: Any) -> str:
        """What a completion follows, with these variables of the chat template, without the prefill; "" for plain text
        and for a prefill that ends the thinking."""
        prompt = self.model_copy(update={"prefill": ""}).prompt("?", tokenizer)
        if isinstance(prompt, str) or "</think>" in self.prefill:
            return ""
        return in_chat(prompt, tokenizer, tokenize=False, add_generation_prompt=True, **variables)

    def full_text(self, completion: str) -> str:
        """What is graded: the prefill and the completion."""
        return self.prefill + completion

    def target(self, problem: Problem, worked: bool) -> str:
        """The completion that SFT teaches: the worked solution (or nothing but the answer), in the answer style."""
        reasoning, right = (problem.worked or "").strip() if worked else "", accepted(problem.answer)
        if self.answer_style == "answer_tag":
            opening = "" if "<think>" in self.prefill else "<think>"
            whole = f"{opening}{without_boxes(reasoning)}</think> <answer>{right[0]}</answer>"
        elif self.answer_style == "hash":
            whole = f"{without_boxes(reasoning)}\n#### {right[0]}"
        elif boxes(reasoning) in ([answer] for answer in right):
            whole = reasoning
        else:
            whole = f"{without_boxes(reasoning)}\n\\boxed{{{right[0]}}}"
        return whole.strip()

    def generation_kwargs(self, use_vllm: bool) -> dict:
        """The stop strings, as vLLM's SamplingParams or transformers' GenerationConfig names them."""
        if not self.stop:
            return {}
        if use_vllm:
            return {"stop": list(self.stop), "include_stop_str_in_output": True}
        return {"stop_strings": list(self.stop)}


TEMPLATES = {
    "boxed": PromptTemplate(user="{question}\n\nThink step by step and put your final answer within \\boxed{}."),
    # The system prompt that the Qwen2.5-Math models were trained with (their model card).
    "qwen_math": PromptTemplate(system="Please reason step by step, and put your final answer within \\boxed{}."),
    # Plain text for base models, in the form of DeepSeek-R1-Zero (arXiv:2501.12948, table 1), in our own words.
    "r1_zero": PromptTemplate(
        user="The User brings a problem and the Assistant solves it. The Assistant first reasons inside <think> "
        "</think>, then gives only the final answer inside <answer> </answer>, like so: <think> reasoning </think> "
        "<answer> final answer </answer>.\nUser: {question}\nAssistant: ",
        prefill="<think>",
        answer_style="answer_tag",
        stop=("</answer>",),
        chat=False,
    ),
    "question_only": PromptTemplate(chat=False),
    "gsm8k_hash": PromptTemplate(
        user="{question}\n\nThink step by step and end with a line that holds only #### and the final number.",
        answer_style="hash",
    ),
}


def until_stop(text: str, stop: tuple[str, ...]) -> str:
    """The text up to and with the first stop string in it: the token that completes one may have more characters."""
    ends = [text.index(string) + len(string) for string in stop if string in text]
    return text[: min(ends, default=None)]


def completion_text(completion: str | list[dict]) -> str:
    """The text of a completion that is graded: of a conversation its last message, the final answer, with the thinking
    that was parsed out of it. It is empty where there is no answer."""
    if isinstance(completion, str):
        return completion
    last = completion[-1]
    thought = last.get("reasoning_content") or last.get("thinking")
    text = f"<think>{thought}</think>\n{last['content']}" if thought else last["content"]
    return "" if unanswered(completion) else text


def unanswered(completion: str | list[dict]) -> bool:
    """Whether a conversation ends with a tool call or with its result, so that it has no final answer."""
    last = {} if isinstance(completion, str) else completion[-1]
    return last.get("role") == "tool" or bool(last.get("tool_calls"))


def token_ids(prompt: str | list[dict], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The token ids TRL will feed the model for this prompt."""
    return tokenized([prompt], tokenizer)[0]


def tokenized(prompts: list[Any], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """The token ids of texts, or of conversations."""
    if isinstance(prompts[0], str):
        return tokenizer(prompts)["input_ids"]
    return in_chat(prompts, tokenizer, add_generation_prompt=True, return_dict=True)["input_ids"]


def in_chat(messages: list, tokenizer: "PreTrainedTokenizerBase", **how: Any) -> Any:
    """What the chat template makes of messages; raises UserError where it refuses them, as some do a system message."""
    from jinja2 import TemplateError

    with one_line("prompt_template: the chat template refuses a prompt", kinds=(TemplateError,)):
        return tokenizer.apply_chat_template(messages, **how)


def prompt_ids(
    problems: list[Problem], template: PromptTemplate, tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[list[int]]:
    """The token ids of many prompts, batch by batch: a fast tokenizer spreads a batch over all cores."""
    for start in range(0, len(problems), BATCH):
        batch = problems[start : start + BATCH]
        yield from tokenized([template.prompt(one.question, tokenizer, one.system) for one in batch], tokenizer)


def prompt_lengths(
    problems: list[Problem], template: PromptTemplate, tokenizer: "PreTrainedTokenizerBase"
) -> list[int]:
    """The length of each prompt in tokens, chat template included."""
    known = counted(template, tokenizer)
    asked = [(problem.question, problem.system) for problem in problems]
    new = {key: problem for key, problem in zip(asked, problems, strict=True) if key not in known}
    known.update(zip(new, map(len, prompt_ids(list(new.values()), template, tokenizer)), strict=True))
    return [known[key] for key in asked]


@functools.lru_cache(maxsize=4)
def counted(template: PromptTemplate, tokenizer: "PreTrainedTokenizerBase") -> dict[tuple[str, str | None], int]:
    """The length by question and system message: filters, checks and engines ask for the same ones."""
    return {}


# What TRL passes to reward functions itself, or what we add: a meta column of that name would clash.
RESERVED_COLUMNS = {
    "prompt", "prompts", "completion", "completions", "completion_ids", "solution", "question", "environment",
    "environments", "image", "images", "tools", "trainer_state", "log_extra", "log_metric", "template", "grades",
    "max_completion_length", "worked",
}  # fmt: skip


def meta_columns(problems: list[Problem]) -> set[str]:
    """The names of the problems' further columns, without those that TRL or we pass to reward functions."""
    return {name for problem in problems for name in problem.meta} - RESERVED_COLUMNS


def to_rows(
    problems: list[Problem],
    template: PromptTemplate,
    tokenizer: "PreTrainedTokenizerBase",
    columns: set[str] | None = None,
) -> list[dict]:
    """One row per problem: prompt, solution, question, worked, and these `columns` of meta (default: all), None where a
    problem lacks one."""
    columns = meta_columns(problems) if columns is None else columns
    return [
        {
            "prompt": template.prompt(problem.question, tokenizer, problem.system),
            "solution": problem.answer,
            "question": problem.question,
            "worked": problem.worked,
            **{name: problem.meta.get(name) for name in sorted(columns)},
        }
        for problem in problems
    ]


def to_dataset(rows: list[dict]) -> "Dataset":
    """The rows as TRL takes them."""
    from datasets import Dataset
    from datasets.fingerprint import generate_random_fingerprint
    from pyarrow import Table

    # any other fingerprint takes a pickled copy of the table
    return Dataset(Table.from_pylist(rows), fingerprint=generate_random_fingerprint())
