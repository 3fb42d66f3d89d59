"""How long prompts are: which are dropped, and what is counted once."""

import dataclasses
from pathlib import Path

import pytest
from huggingface_hub import constants

from grpo_math.data import lengths
from grpo_math.data.lengths import kept_lengths, length_filter, longest_prompt, prompt_lengths
from grpo_math.data.problems import DatasetSpec, Problem, load_problems
from grpo_math.data.prompts import TEMPLATES, PromptTemplate, token_ids
from grpo_math.trainer.training import each, first_reason

QUESTIONS = ["Ava has 3", "Ava has 3 apples", "1"]


@pytest.fixture
def counting(monkeypatch, tmp_path):
    """Two prompts are many; every list that is counted is noted."""
    counted, plain = [], lengths.prompt_ids
    monkeypatch.setattr(lengths, "MANY", 2)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))

    def note(questions, *rest):
        counted.extend([questions] if questions else [])
        return plain(questions, *rest)

    monkeypatch.setattr(lengths, "prompt_ids", note)
    lengths.counted.cache_clear()
    yield counted
    lengths.counted.cache_clear()


def files() -> list[Path]:
    return sorted(Path(constants.HF_HOME).rglob("*.json"))


def test_long_prompts_are_dropped_with_a_reason(tokenizer):
    template = PromptTemplate()
    short, long = Problem("Ava has 3", "3"), Problem("Ava has 3 apples " * 20, "3")
    size = len(token_ids(template.prompt(short.question, tokenizer), tokenizer))
    assert length_filter(template, tokenizer, size)([short, long]) == [None, f"over {size} prompt tokens"]
    assert length_filter(template, tokenizer, size - 1)([short]) == [f"over {size - 1} prompt tokens"]
    assert length_filter(template, tokenizer, None)([long]) == [None]
    assert length_filter(template, tokenizer, 1)([]) == []
    assert longest_prompt([short, long, short], template, tokenizer) > size


def test_a_filter_sees_what_those_before_it_keep():
    seen = []

    def odd(problems):
        seen.extend(problem.answer for problem in problems)
        return ["odd" if int(problem.answer) % 2 else None for problem in problems]

    problems = [Problem("q", str(number)) for number in range(6)]
    small = each(lambda problem: "small" if int(problem.answer) < 3 else None)
    assert first_reason(small, odd)(problems) == ["small", "small", "small", "odd", None, "odd"]
    assert seen == ["3", "4", "5"]


def test_no_row_is_read_that_is_not_wanted(tmp_path):
    file = tmp_path / "mine.py"
    rows = "({'question': f'{n}', 'answer': f'{n}' if n < 5 else 1 / 0} for n in range(9))"
    file.write_text(f"def load(split):\n    yield from {rows}\n")
    loaded = load_problems(
        DatasetSpec(path=f"{file}:load", max_samples=2), each(lambda one: int(one.answer) % 2 and "odd")
    )
    assert ([one.answer for one in loaded.problems], loaded.places, loaded.rows) == (["0", "2"], [1, 3], 3)
    assert loaded.dropped == {"odd": 1}


def test_lengths_are_counted_once(tokenizer, counting):
    problems = [Problem(question, "1") for question in [*QUESTIONS, QUESTIONS[0]]]
    found = prompt_lengths(problems, TEMPLATES["boxed"], tokenizer)
    assert found == [len(token_ids(TEMPLATES["boxed"].prompt(one.question, tokenizer), tokenizer)) for one in problems]
    assert prompt_lengths(problems[::-1], TEMPLATES["boxed"], tokenizer) == found[::-1]
    assert counting == [QUESTIONS[:1], QUESTIONS]  # the first one for the file's name
    lengths.counted.cache_clear()  # as in another process
    assert prompt_lengths(problems, TEMPLATES["boxed"], tokenizer) == found
    assert counting[2:] == [QUESTIONS[:1]]
    assert len(files()) == 1


def test_whatever_changes_a_prompt_is_counted_anew(tokenizer, counting, monkeypatch):
    import copy

    template = TEMPLATES["boxed"]
    other = copy.deepcopy(tokenizer)
    other.chat_template = f"3 3 3 {tokenizer.chat_template}"
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["Ava has"])
    longer = dataclasses.replace(template, user="Think. {question}")
    cases = [
        (QUESTIONS, template, tokenizer),
        (QUESTIONS[:2], template, tokenizer),
        (QUESTIONS[::-1], template, tokenizer),
        (["Ava has 3\nAva has 3 apples", "1"], template, tokenizer),
        (QUESTIONS, longer, tokenizer),
        (QUESTIONS, template, other),
        (QUESTIONS, template, more),
    ]
    for made, case in enumerate(cases, 1):
        expected = [len(token_ids(case[1].prompt(question, case[2]), case[2])) for question in case[0]]
        assert kept_lengths(*case) == kept_lengths(*case) == expected
        assert len(files()) == made
    monkeypatch.setattr(lengths, "__version__", "9")
    kept_lengths(*cases[0])
    assert len(files()) == len(cases) + 1


def test_a_damaged_file_or_no_room_is_no_matter(tokenizer, counting, monkeypatch, tmp_path):
    case = (QUESTIONS, TEMPLATES["boxed"], tokenizer)
    found = kept_lengths(*case)
    for damaged in (b"", b"\0" * 9, b"\xff", files()[0].read_bytes()[:-1], b"[1]", b"{}", b"null", b"[" * 9999):
        files()[0].write_bytes(damaged)
        assert kept_lengths(*case) == found
        assert kept_lengths(*case) == found
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "file"))
    assert kept_lengths(*case) == found
