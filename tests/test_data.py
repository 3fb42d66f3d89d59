"""Every source becomes the one normal form, and what is dropped is counted."""

import json

import pytest

from grpo_math.data.adapters import ADAPTERS, gsm8k, json_rows, math, reasoning_gym, svamp
from grpo_math.data.loading import load_problems, mix_parts
from grpo_math.data.problem import DatasetSpec, Problem, Problems, Unusable, fingerprint
from grpo_math.errors import UserError


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}
ASSISTANT = {"role": "assistant", "content": r"It is \boxed{4}."}
MATH_ROW = {"problem": "What is $1+1$?", "level": "Level 3", "type": "Number Theory", "solution": r"It is $\boxed{2}$."}


@pytest.mark.parametrize(
    ("adapter", "row", "problem"),
    [
        (
            gsm8k,
            {"question": " How many? ", "answer": "5*2 = <<5*2=10>>10\nso $<<10*100=1000>>1,000.\n#### 1,000"},
            Problem("How many?", "1000", "5*2 = 10\nso $1,000."),
        ),
        (gsm8k, {"question": "q", "answer": "How many? ** 7\n#### -7"}, Problem("q", "-7", "How many? ** 7")),
        (gsm8k, {"question": "q", "answer": "an << unclosed mark\n#### 3"}, Problem("q", "3", "an")),
        (
            math,
            MATH_ROW,
            Problem("What is $1+1$?", "2", r"It is $\boxed{2}$.", {"level": 3, "subject": "Number Theory"}),
        ),
        (
            math,
            {"problem": "p", "solution": r"\boxed{1} or \fbox{\frac{1}{\sqrt{2}}}", "level": "Level ?"},
            Problem(
                "p", r"\frac{1}{\sqrt{2}}", r"\boxed{1} or \fbox{\frac{1}{\sqrt{2}}}", {"level": None, "subject": None}
            ),
        ),
        (
            math,
            {"problem": "p", "solution": r"\boxed{9}", "answer": "(3, \\pi)", "level": 2, "subject": "Algebra"},
            Problem("p", r"(3, \pi)", r"\boxed{9}", {"level": 2, "subject": "Algebra"}),
        ),
        (
            svamp,
            {"Body": "There are 87 oranges", "Question": "How many?", "Answer": 145.0, "Type": "Sum"},
            Problem("There are 87 oranges. How many?", "145", None, {"type": "Sum"}),
        ),
        (
            svamp,
            {"Body": "Two", "Question": "q", "Answer": 7.5, "Equation": "( ( 10.05 + 3.0 ) / 2.0 )", "Type": "Sum"},
            Problem("Two. q", "7.5", "( 10.05 + 3 ) / 2 = 7.5", {"type": "Sum"}),
        ),
        (
            svamp,
            {"Body": "Two.", "Question": "How many?", "Answer": 2.5},
            Problem("Two. How many?", "2.5", None, {"type": None}),
        ),
        (json_rows, {"question": "q", "answer": 4, "source": "s"}, Problem("q", "4", None, {"source": "s"})),
        (json_rows, {"problem": "q", "ground_truth": "4", "correct": True}, Problem("q", "4", None, {"correct": True})),
        (json_rows, {"prompt": "q", "final_answer": "4"}, Problem("q", "4")),
        (json_rows, {"question": "q", "prompt": "p", "answer": "4"}, Problem("q", "4", None, {"prompt": "p"})),
        (json_rows, {"question": "q", "answer": "4", "worked": "2+2"}, Problem("q", "4", "2+2")),
        (
            reasoning_gym,
            {"question": "4 + 3 =", "answer": "7", "metadata": {"source_dataset": "chain_sum"}},
            Problem("4 + 3 =", "7", None, {"task": "chain_sum"}),
        ),
    ],
)
def test_a_row_becomes_a_problem(adapter, row, problem):
    assert adapter(row) == problem


@pytest.mark.parametrize(
    ("row", "problem"),
    [  # verl, DAPO, TRL, OpenR1-Math, NuminaMath, ShareGPT, Alpaca
        (
            {"data_source": "d", "prompt": [SYSTEM, USER], "ability": "math", "reward_model": {"ground_truth": "4", "style": "rule"}, "extra_info": {"index": 3}},
            Problem("2+2?", "4", None, {"data_source": "d", "ability": "math", "reward_model": {"ground_truth": "4", "style": "rule"}, "extra_info": {"index": 3}}, "Be brief."),
        ),
        ({"prompt": [USER], "reward_model": {"ground_truth": '["4", "four"]'}}, Problem("2+2?", '["4", "four"]', None, {"reward_model": {"ground_truth": '["4", "four"]'}})),
        ({"prompt": [USER], "solution": "4"}, Problem("2+2?", "4")),
        ({"prompt": [USER], "solution": r"$\boxed{4}$"}, Problem("2+2?", "4", r"$\boxed{4}$")),
        ({"problem": "2+2?", "solution": "Two and two.", "answer": "4", "messages": [USER, ASSISTANT]}, Problem("2+2?", "4", None, {"solution": "Two and two.", "messages": [USER, ASSISTANT]})),
        ({"problem": "2+2?", "solution": r"So \boxed{3}, no, \boxed{4}.", "messages": [USER, ASSISTANT]}, Problem("2+2?", "4", r"So \boxed{3}, no, \boxed{4}.", {"messages": [USER, ASSISTANT]})),
        ({"messages": [USER, ASSISTANT], "answer": "4"}, Problem("2+2?", "4", r"It is \boxed{4}.")),
        ({"messages": [USER, ASSISTANT]}, Problem("2+2?", "4", r"It is \boxed{4}.")),
        ({"conversations": [{"from": "system", "value": " "}, {"from": "human", "value": "2+2?"}, {"from": "gpt", "value": r"It is \boxed{4}."}]}, Problem("2+2?", "4", r"It is \boxed{4}.")),
        ({"instruction": "Add.", "input": "2+2?", "output": "4"}, Problem("Add.\n\n2+2?", "4", None, {"input": "2+2?"})),
        ({"instruction": "2+2?", "input": "", "output": r"It is \boxed{4}."}, Problem("2+2?", "4", r"It is \boxed{4}.", {"input": ""})),
        ({"question": "2+2?", "answer": [4.0, "four", 4]}, Problem("2+2?", '["4", "four"]')),
        ({"question": "2+2?", "answer": ["4"]}, Problem("2+2?", "4")),
        ({"question": "2+2?", "answer": 10**30}, Problem("2+2?", "1" + "0" * 30)),
    ],
)  # fmt: skip
def test_the_shapes_of_rows_that_people_have(row, problem):
    assert json_rows(row) == problem


def test_fields_reach_into_mappings():
    row = {"extra": {"asked": [SYSTEM, USER], "gold": {"text": 4}, "way": "w"}}
    fields = {"question": "extra.asked", "answer": "extra.gold.text", "worked": "extra.way"}
    assert json_rows(row, fields) == Problem("2+2?", "4", "w", row, "Be brief.")
    fields["answer"] = "extra.gold.txt"
    with pytest.raises(UserError, match=r"the columns are extra, extra.asked, extra.gold, extra.gold.text, extra.way"):
        json_rows(row, fields)


@pytest.mark.parametrize(
    ("adapter", "row", "params", "reason"),
    [
        (gsm8k, {"question": "q", "answer": "no mark"}, {}, "without '####' before the answer"),
        (gsm8k, {"question": "q", "answer": "#### "}, {}, "without an answer"),
        (math, {"problem": "p", "solution": "no box"}, {}, "without an answer"),
        (math, {"problem": "p", "solution": r"\boxed{unclosed"}, {}, "without an answer"),
        (math, MATH_ROW, {"levels": [4, 5]}, "of other levels"),
        (math, MATH_ROW, {"subjects": ["algebra"]}, "of other subjects"),
        (json_rows, {"question": "q", "answer": None}, {}, "without an answer"),
        (json_rows, {"question": "question", "answer": "answer"}, {}, "that repeats the header"),
        (json_rows, {"question": "q", "answer": float("nan")}, {}, "without an answer"),
        (json_rows, {"question": "q", "answer": {"text": "1"}}, {}, "with an answer that is not text"),
        (json_rows, {"question": "q", "answer": [["1"], ["2"]]}, {}, "with an answer that is not text"),
        (json_rows, {"question": "q", "answer": ["1", None]}, {}, "without an answer"),
        (json_rows, {"question": "q", "answer": []}, {}, "without an answer"),
        (json_rows, {"question": "q", "answer": b"1"}, {}, "with an answer that is not text"),
        (json_rows, {"question": "q", "answer": float("inf")}, {}, "without an answer"),
        (json_rows, {"question": "q", "answer": float("-inf")}, {}, "without an answer"),
        (json_rows, {"question": b"q", "answer": "1"}, {}, "with a question that is not text"),
        (json_rows, {"question": {"text": "q"}, "answer": "1"}, {}, "with a question that is not text"),
        (json_rows, {"question": ["q"], "answer": "1"}, {}, "with a question that is not text"),
        (json_rows, {"question": 7, "answer": "1"}, {}, "with a question that is not text"),
        (json_rows, {"question": json.dumps([USER]), "answer": "1"}, {}, "with a question that is not text"),
        (json_rows, {"question": str([USER]), "answer": "1"}, {}, "with a question that is not text"),
        (json_rows, {"question": "q", "answer": ("1", "2")}, {}, "with an answer that is not text"),
        (json_rows, {"question": "q", "answer": "['2', '2.0']"}, {}, "with an answer that is not text"),
        (json_rows, {"question": '[{"name": null, "role": "user", "content": "q"}]', "answer": "1"}, {}, "with a question that is not text"),
        (json_rows, {"question": "{'role': 'user', 'content': 'q'}", "answer": "1"}, {}, "with a question that is not text"),
        (json_rows, {"prompt": [USER], "reward_model": None}, {}, "without an answer"),
        (json_rows, {"prompt": [USER], "extra": None}, {"fields": {"answer": "extra.gold"}}, "without an answer"),
        (
            json_rows,
            {"prompt": [USER | {"content": [{"type": "text", "text": "q"}]}], "answer": "1"},
            {},
            "with a question that is not text",
        ),
        (json_rows, {"prompt": [USER, ASSISTANT, USER], "answer": "1"}, {}, "with turns that are not one question"),
        (
            json_rows,
            {"prompt": [USER, ASSISTANT, USER, ASSISTANT], "answer": "1"},
            {},
            "with turns that are not one question",
        ),
        (json_rows, {"prompt": [USER, SYSTEM], "answer": "1"}, {}, "with turns that are not one question"),
        (json_rows, {"prompt": [SYSTEM, ASSISTANT], "answer": "1"}, {}, "with turns that are not one question"),
        (
            json_rows,
            {"prompt": [USER, {"role": "tool", "content": "4"}], "answer": "1"},
            {},
            "with turns that are not one question",
        ),
        (json_rows, {"prompt": [], "answer": "1"}, {}, "with turns that are not one question"),
        (json_rows, {"messages": [USER, {"role": "assistant", "content": r"\boxed{4"}]}, {}, "without an answer"),
        (json_rows, {"messages": [USER, {"role": "assistant", "content": "It is 4."}]}, {}, "without an answer"),
        (json_rows, {"prompt": [USER], "solution": r"\boxed{4"}, {}, "without an answer"),
    ],
)  # fmt: skip
def test_an_unusable_row_says_why(adapter, row, params, reason):
    with pytest.raises(Unusable, match=reason):
        adapter(row, **params)


@pytest.mark.parametrize("subject", ["number_theory", "Number Theory", "number theory"])
def test_subjects_are_matched_however_they_are_written(subject):
    assert math(MATH_ROW, levels=[3], subjects=[subject]).answer == "2"


def test_a_few_of_math_are_of_all_subjects(tmp_path):
    for subject in ("algebra", "geometry"):
        write_jsonl(tmp_path / "train" / f"{subject}.jsonl", [{**MATH_ROW, "type": subject}] * 20)
    problems = load_problems(DatasetSpec(name="math", path=str(tmp_path), max_samples=20)).problems
    assert {problem.meta["subject"] for problem in problems} == {"algebra", "geometry"}


def test_one_malformed_row_is_dropped_and_counted(tmp_path):
    rows = [*GSM8K_ROWS, {"question": "q", "answer": None}, {"question": "", "answer": "#### 1"}]
    loaded = load_problems(DatasetSpec(name="gsm8k", path=write_jsonl(tmp_path / "r.jsonl", rows)))
    assert loaded.dropped == {"with a malformed cell": 1, "without a question": 1}


def test_named_fields(tmp_path):
    row = {"frage": "q", "antwort": 3.0, "weg": "w", "question": "other"}
    fields = {"question": "frage", "answer": "antwort", "worked": "weg"}
    assert json_rows(row, fields) == Problem("q", "3", "w", {"question": "other"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "p", "prompt": "q", "answer": "1"}, "no column 'question' for the question (the columns are problem, prompt, answer): name it, {question: COLUMN}"),
        ({"messages": [USER], "conversations": [USER], "answer": "1"}, "no column 'question' for the question (the columns are messages, conversations, answer): name it, {question: COLUMN}"),
        ({"messages": [USER]}, "no column 'answer' for the answer (the columns are messages): name it, {answer: COLUMN}"),
        ({"question": "p", "label": "1"}, "no column 'answer' for the answer (the columns are question, label): name it, {answer: COLUMN}"),
    ],
)  # fmt: skip
def test_ambiguous_or_missing_columns_are_an_error_not_a_guess(row, message):
    with pytest.raises(UserError) as caught:
        json_rows(row)
    assert message in str(caught.value)
    assert str(caught.value).startswith("fields: no column")


def test_fields_name_known_roles_and_columns_that_are_there():
    row = {"question": "q", "answer": "1"}
    with pytest.raises(UserError, match=r"fields: quesion: unknown key, use one of question, answer, worked"):
        json_rows(row, {"quesion": "question"})
    with pytest.raises(UserError, match=r"no column 'steps' for the worked .*, or give fields without it$"):
        json_rows(row, {"worked": "steps"})


def test_every_adapter_shows_a_row():
    assert all('{"' in adapter.parse.__doc__ for adapter in ADAPTERS.values())


GSM8K_ROWS = [{"question": f"q{n}", "answer": f"#### {n}"} for n in range(10)]


@pytest.mark.parametrize("layout", ["train.jsonl", "main/train.jsonl", "data/train.jsonl", "train/rows.jsonl"])
def test_local_folders_in_the_layouts_people_have(tmp_path, layout):
    write_jsonl(tmp_path / layout, GSM8K_ROWS)
    write_jsonl(tmp_path / "test.jsonl", GSM8K_ROWS[:1])
    assert len(load_problems(DatasetSpec(name="gsm8k", path=str(tmp_path))).problems) == 10


def test_configs_are_kept_apart(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", GSM8K_ROWS)
    write_jsonl(tmp_path / "train_socratic.jsonl", GSM8K_ROWS[:2])
    assert load_problems(DatasetSpec(name="gsm8k", path=str(tmp_path))).rows == 10
    assert load_problems(DatasetSpec(name="gsm8k", path=str(tmp_path), config="socratic")).rows == 2
    write_jsonl(tmp_path / "hub" / "main" / "train.jsonl", GSM8K_ROWS[:3])
    write_jsonl(tmp_path / "hub" / "socratic" / "train.jsonl", GSM8K_ROWS[:4])
    assert load_problems(DatasetSpec(name="gsm8k", path=str(tmp_path / "hub"))).rows == 3
    assert load_problems(DatasetSpec(name="gsm8k", path=str(tmp_path / "hub"), config="socratic")).rows == 4


def test_math_as_one_json_file_a_problem(tmp_path):
    for subject in ("algebra", "geometry"):
        for n in range(2):
            path = tmp_path / "train" / subject / f"{n}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({**MATH_ROW, "type": subject}))
    loaded = load_problems(DatasetSpec(name="math", path=str(tmp_path), params={"subjects": ["algebra"]}))
    assert str(loaded) == f"{tmp_path.name} train: 2 problems of 4 rows, dropped: 2 of other subjects"


def test_math_in_the_hubs_seven_configs(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    for subject in ("algebra", "geometry"):
        (tmp_path / subject).mkdir()
        parquet.write_table(pa.Table.from_pylist([MATH_ROW]), tmp_path / subject / "train-00000-of-00001.parquet")
    assert load_problems(DatasetSpec(name="math", path=str(tmp_path))).rows == 2
    assert load_problems(DatasetSpec(name="math", path=str(tmp_path), config="algebra")).rows == 1


@pytest.mark.parametrize(
    ("ending", "compression"),
    [(ending, "") for ending in (".json", ".jsonl", ".csv", ".parquet", ".JSONL")]
    + [(ending, compression) for ending in (".json", ".jsonl", ".csv", ".parquet") for compression in (".gz", ".zst")]
    + [(".jsonl", ".GZ")],
)
def test_own_rows_from_every_kind_of_file(tmp_path, ending, compression):
    rows = [{"question": f"What is {n}+1, please?", "answer": str(n + 1)} for n in range(3)]
    path = tmp_path / f"rows{ending}"
    if ending == ".json":
        path.write_text(json.dumps(rows))
    elif ending == ".csv":  # as a spreadsheet saves it
        path.write_text("\ufeffquestion,answer\n" + "".join(f'"{row["question"]}",{row["answer"]}\n' for row in rows))
    elif ending == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_jsonl(path, rows)
    if compression:
        import pyarrow as pa

        content, folder = path.read_bytes(), tmp_path / "packed"
        folder.mkdir()
        kind = {".gz": "gzip", ".zst": "zstd"}[compression.lower()]
        with pa.output_stream(str(folder / f"train{ending}{compression}"), compression=kind) as file:
            file.write(content)
        path = folder  # the split's file is found there
        if compression == ".gz":
            (folder / f"train{ending}").write_bytes(content)  # of which it is a copy
    problems = load_problems(DatasetSpec(name="json", path=str(path))).problems
    assert problems == [Problem(row["question"], row["answer"]) for row in rows]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.jsonl", '{"question": "q", "answer": "1"}\n{oops\n', "r.jsonl, line 2: not JSON"),
        ("r.jsonl", '"a string"\n', "r.jsonl, row 1: expected an object with named columns, got 'a string'"),
        ("r.csv", "question,answer\nq,1,000\n", "r.csv, row 1: more cells than columns: quote cells that contain commas"),
        ("r.jsonl", '{"question": "q", "answer": "1"}\n' + "[" * 100_000, "r.jsonl, line 2: not JSON (maximum recursion depth"),
        ("r.jsonl", '{"question": "q", "answer": "1"}\n\0\0\0\n', "r.jsonl, line 2: not JSON (Expecting value)"),
        ("r.csv", "question,answer,answer\nq,1,2\n", "r.csv: two columns have the same name (question, answer, answer)"),
        ("r.csv", "question;answer\nq;1\n", "r.csv: expected commas between columns, got 'question;answer'"),
        ("r.jsonl.gz", "no gzip", "r.jsonl.gz: cannot be read as jsonl"),
        ("r.csv.zst", "no zstd", "r.csv.zst: cannot be read as csv"),
        ("r.csv", 'question,answer\nq,1\n"q,2\nq,3\n', "r.csv, after row 1: cannot be read as csv (unexpected end of data)"),
        ("r.csv", "question,answer\nq,1\nq," + "1" * 200_000, "r.csv, after row 1: cannot be read as csv (field larger than field limit"),
        ("r.csv.txt", "q", "r.csv.txt: unsupported file type: use .jsonl, .json, .csv, .parquet, or these with .gz or .zst"),
        ("r.json", "[1, 2]", "r.json, row 1: expected an object with named columns, got 1"),
        ("r.json", "{", "r.json: cannot be read as json"),
        ("r.json", '{"question": "q"}\n{"question": "r"}\n', "r.json: several JSON values: if each line is a row, rename"),
        ("r.parquet", "no parquet", "r.parquet: cannot be read as parquet"),
        ("r.txt", "q", "r.txt: unsupported file type: use .jsonl, .json, .csv, .parquet"),
        ("r.jsonl", "", "r train: 0 problems of 0 rows: no problems are left"),
        ("r.jsonl", '{"question": "q", "answer": ""}\n', "r train: 0 problems of 1 rows, dropped: 1 without an answer"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        load_problems(DatasetSpec(name="json", path=str(tmp_path / name), where="eval.datasets[1]."))
    assert str(caught.value).startswith("eval.datasets[1]")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", [".jsonl", ".json"])
def test_numbers_and_signs_that_json_does_not_know_are_read(tmp_path, ending):
    """NaN, infinity, a NUL in a text, an integer that Python does not read."""
    rows = [
        f'{{"question": "q{n}\\u0000", "answer": "1", "column": {n}}}'
        for n in ("NaN", "Infinity", "-Infinity", "8" * 5_000)
    ]
    path = tmp_path / f"r{ending}"
    path.write_text("\n".join(rows) if ending == ".jsonl" else f"[{','.join(rows)}]")
    problems = load_problems(DatasetSpec(name="json", path=str(path))).problems
    assert [problem.question[-1] for problem in problems] == ["\0"] * 4
    assert problems[3].meta == {"column": "8" * 5_000}
    path.write_text(
        '[{"question": "q", "answer": 1e999}]' if ending == ".json" else '{"question": "q", "answer": 1e999}'
    )
    with pytest.raises(UserError, match="dropped: 1 without an answer"):
        load_problems(DatasetSpec(name="json", path=str(path)))


def test_a_dataset_that_was_saved_to_disk(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = [{"prompt": [USER], "answer": [str(n), "n"], "image": b"\x00"} for n in range(4)]
    DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows[:1])).save_to_disk(tmp_path / "both")
    Dataset.from_list(rows, split="validation").save_to_disk(tmp_path / "one")
    Dataset.from_list(rows).save_to_disk(tmp_path / "nameless")

    def count(folder, split, **keys):
        return len(load_problems(DatasetSpec(name="json", path=str(tmp_path / folder), split=split, **keys)).problems)

    found = [("both", "train"), ("both", "test"), ("one", "validation"), ("nameless", "train"), ("both/train", "train")]
    assert [count(*one) for one in found] == [4, 1, 4, 4, 4]
    for folder, split, there in (
        ("both", "dev", "train, test"),
        ("one", "train", "validation"),
        ("nameless", "test", "train"),
    ):
        with pytest.raises(
            UserError, match=rf"^dataset.path: .*{folder} has no split '{split}' \(it has {there}\): set"
        ):
            count(folder, split)
    with pytest.raises(UserError, match=r"has no split 'train' of config 'socratic' \(it has train, test\)"):
        count("both", "train", config="socratic")
    for content in ("", "[]", "{}", '{"splits": 1}'):
        (tmp_path / "both" / "dataset_dict.json").write_text(content)
        with pytest.raises(UserError, match=r"^dataset.path: .*both: not what save_to_disk writes"):
            count("both", "train")
    next((tmp_path / "nameless").glob("*.arrow")).write_bytes(b"no arrow")
    with pytest.raises(UserError, match=r"^dataset.path: .*nameless: cannot be read as a dataset"):
        count("nameless", "train")


def test_the_wrong_adapter_says_what_the_row_looks_like(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [{"prompt": "q", "label": "1"}])
    with pytest.raises(
        UserError,
        match=r"^dataset.name: row 1 of .* is not a row of gsm8k .*its columns are prompt, label.*use name: json",
    ):
        load_problems(DatasetSpec(name="gsm8k", path=path))


def test_a_missing_split_lists_what_is_there(tmp_path):
    write_jsonl(tmp_path / "test.jsonl", GSM8K_ROWS)
    with pytest.raises(UserError, match=r"has no split 'train' \(it has test.jsonl\)"):
        load_problems(DatasetSpec(name="gsm8k", path=str(tmp_path)))
    for number in range(8):
        write_jsonl(tmp_path / f"part{number}.jsonl", GSM8K_ROWS)
    with pytest.raises(UserError, match=r"part6.jsonl, part7.jsonl, \.\.\.\): set another"):
        load_problems(DatasetSpec(name="gsm8k", path=str(tmp_path)))


def test_without_network_the_error_asks_for_a_local_path():
    with pytest.raises(UserError, match=r"'openai/gsm8k' is not a local file or folder.*give the folder, path: FOLDER"):
        load_problems(DatasetSpec(name="gsm8k"))
    with pytest.raises(UserError, match=r"mine.py:load is a function, but gsm8k reads files: set name: null"):
        load_problems(DatasetSpec(name="gsm8k", path="mine.py:load"))


def test_max_samples_shuffle_seed_and_a_filter(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", GSM8K_ROWS)

    def answers(**keys):
        return [problem.answer for problem in load_problems(DatasetSpec(name="gsm8k", path=path, **keys)).problems]

    assert answers(max_samples=3) == ["0", "1", "2"]
    assert answers(shuffle_seed=1) == answers(shuffle_seed=1) != answers(shuffle_seed=2)
    assert sorted(answers(shuffle_seed=1)) == [str(n) for n in range(10)]

    def keep(problems):
        return [None if int(problem.answer) % 2 else "even" for problem in problems]

    loaded = load_problems(DatasetSpec(name="gsm8k", path=path, max_samples=3), keep)
    assert [problem.answer for problem in loaded.problems] == ["1", "3", "5"]
    assert loaded.dropped == {"even": 3}


def test_a_users_own_loader(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from grpo_math.data.problem import Problem\n"
        "def load(split, count: int = 2):\n"
        "    yield {'question': split, 'answer': 1, 'source': 'mine'}\n"
        "    for n in range(count - 1):\n"
        "        yield Problem(f'q{n}', '2')\n"
    )
    spec = DatasetSpec(path=f"{file}:load", split="test", params={"count": 3})
    assert load_problems(spec).problems == [
        Problem("test", "1", None, {"source": "mine"}),
        Problem("q0", "2"),
        Problem("q1", "2"),
    ]
    file.write_text("def load(split):\n    return ['text']\n")
    with pytest.raises(
        UserError,
        match=r"^dataset.path: the function yielded 'text': yield Problem objects or dicts with question and answer",
    ):
        load_problems(spec := DatasetSpec(path=f"{file}:load"))
    file.write_text("def load(split):\n    yield {'question': 'q', 'answer': 1}\n    raise OSError('disk')\n")
    with pytest.raises(UserError, match="raised OSError: disk"):
        load_problems(DatasetSpec(path=f"{file}:load"))
    file.write_text(
        "import itertools\ndef load(split):\n    return ({'question': 'q', 'answer': n} for n in itertools.count())\n"
    )
    assert load_problems(DatasetSpec(path=f"{file}:load", max_samples=3)).rows == 3
    file.write_text("import no_such_module\n")
    with pytest.raises(UserError, match=r"importing .* failed .ModuleNotFoundError: No module named 'no_such_module'"):
        load_problems(spec)


def test_reasoning_gym_makes_other_problems_for_the_test_split():
    spec = {"name": "reasoning_gym", "params": {"task": "gsm_symbolic", "size": 5, "seed": 1}}
    train, again, test = (load_problems(DatasetSpec(**spec, split=s)).problems for s in ("train", "train", "test"))
    assert len(train) == 5
    assert train == again
    assert not {p.question for p in train} & {p.question for p in test}
    with pytest.raises(UserError, match=r"^dataset.task: no 'no_such_task' in reasoning_gym"):
        load_problems(DatasetSpec(name="reasoning_gym", params={"task": "no_such_task"}))


def parts(*sizes):
    made = [[Problem(f"{i}-{n}", str(n)) for n in range(size)] for i, size in enumerate(sizes)]
    return [Problems("t", problems, list(range(1, len(problems) + 1)), len(problems), {}) for problems in made]


def mix(sizes, weights):
    return mix_parts(parts(*sizes), [DatasetSpec(weight=weight) for weight in weights], seed=0)


def test_a_mixture_keeps_its_weights_and_repeats_nothing():
    mixed = mix((100, 30), [0.75, 0.25])
    assert [sum(p.question.startswith(f"{i}-") for p in mixed) for i in (0, 1)] == [90, 30]
    assert len({p.question for p in mixed}) == len(mixed)
    assert len(mix((5, 7), [None, None])) == 12
    assert len(mix((7, 5), [0.7, 0.2])) == 9


@pytest.mark.parametrize("weights", [[1.0, None], [1.0, 0], [1.0, -2.0]])
def test_half_weighted_mixtures_are_refused(weights):
    with pytest.raises(UserError, match="weight above 0"):
        mix((3, 3), weights)


def test_the_fingerprint_changes_with_any_question_answer_or_order():
    a, b = Problem("q", "1"), Problem("q", "2")
    prints = {fingerprint(problems) for problems in ([a], [b], [a, b], [b, a], [])}
    assert len(prints) == 5
    assert fingerprint([a]) == fingerprint([Problem("q", "1", "worked", {"meta": 1})])
    assert len({fingerprint([one]) for one in (a, Problem("q", "1", system="s"), Problem("q", '["1", "2"]'))}) == 3


def test_real_gsm8k(real_data):
    train = load_problems(DatasetSpec(name="gsm8k", path=str(real_data / "gsm8k")))
    test = load_problems(DatasetSpec(name="gsm8k", path=str(real_data / "gsm8k"), split="test"))
    assert (len(train.problems), len(test.problems)) == (7473, 1319)
    assert not train.dropped + test.dropped
    assert all(problem.answer.lstrip("-").replace(".", "").isdigit() for problem in train.problems + test.problems)
    assert not any("<<" in problem.worked or "####" in problem.worked for problem in train.problems)
    assert train.problems[0].answer == "72"


def test_real_math500(real_data):
    loaded = load_problems(DatasetSpec(name="math500", path=str(real_data / "math500"), split="test"))
    assert len(loaded.problems) == 500
    assert {problem.meta["level"] for problem in loaded.problems} == {1, 2, 3, 4, 5}
    hard = DatasetSpec(name="math500", path=str(real_data / "math500"), split="test", params={"levels": [5]})
    assert 0 < len(load_problems(hard).problems) < 500
    rows = [json.loads(line) for line in (real_data / "math500" / "test.jsonl").read_text().splitlines()]
    assert [math(row).answer for row in rows] == [row["answer"] for row in rows]
    boxed = [math({**row, "answer": None}).answer for row in rows]
    assert sum(mine == row["answer"] for mine, row in zip(boxed, rows, strict=True)) >= 495  # spelled alike


def test_real_svamp(real_data):
    problems = load_problems(DatasetSpec(name="svamp", path=str(real_data / "svamp"), split="test")).problems
    assert len(problems) == 1000
    assert (problems[0].answer, problems[0].worked) == ("145", "290 / 2 = 145")
    assert problems[0].question.endswith("into 93 groups. How big is each group of bananas?")
    fields = {"question": "Question", "answer": "Answer"}
    spec = DatasetSpec(name="json", path=str(real_data / "svamp" / "test.jsonl"), params={"fields": fields})
    assert load_problems(spec).problems[0].meta["ID"] == "chal-777"


@pytest.mark.parametrize(
    ("worked", "kept"), [("steps", "steps"), ("  ", None), (None, None), (5, Unusable), ([1], Unusable)]
)
def test_a_worked_solution_is_text_or_nothing(worked, kept):
    row = {"question": "q", "answer": "1", "worked": worked}
    if kept is Unusable:
        with pytest.raises(Unusable, match="with a worked solution that is not text"):
            json_rows(row)
    else:
        assert json_rows(row).worked == kept
