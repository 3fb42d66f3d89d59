"""The datasets that have a name: rows in the shape of their cards, from the Hub and from folders."""

import json
import sys

import pytest
from conftest import ROOT

from grpo_math.checks.show_datasets import HEADER, main, rows
from grpo_math.data import DatasetSpec, Overlap, load_parts, load_problems, titles
from grpo_math.data.adapters import ADAPTERS, EVALUATION
from grpo_math.data.prompts import TEMPLATES
from grpo_math.errors import UserError
from grpo_math.recipe.entries import dataset_spec, named_specs

# Invented problems in the columns and nesting of each card: the rows, then what is left of them as question, answer
# and worked solution, then the reasons for which the others are dropped.
NUMINA = {"problem_type": "Algebra", "question_type": "math-word-problem", "source": "olympiads", "synthetic": False}
VALID = {"problem_is_valid": "Yes", "solution_is_valid": "Yes"}
R1 = {
    "uuid": "a-1", "is_reasoning_complete": [True, True], "generations": ["<think>", "<think>"],
    "correctness_math_verify": [True, False], "correctness_llama": None, "finish_reasons": None,
    "correctness_count": 1, "messages": [{"content": "2+3?", "role": "user"}, {"content": "5", "role": "assistant"}],
}  # fmt: skip
OLYMPIAD = {
    "id": 7, "solution": ["Add."], "context": None, "image_1": None, "modality": "Text-only", "difficulty": "Competition",
    "unit": None, "answer_type": "Numerical", "error": None, "question_type": "Open-ended", "subfield": "Algebra",
    "subject": "Math", "language": "English",
}  # fmt: skip
DAPO = {
    "data_source": "math_dapo", "source_prompt": [{"content": "Solve this: 2+3?", "role": "user"}], "ability": "MATH",
    "reward_model": {"ground_truth": "5", "style": "rule"}, "extra_info": {"index": "b-2"},
}  # fmt: skip
PLUS = {
    "perturbation_type": "numerical substitution",
    "seed_question": "1+1?",
    "seed_solution": "2",
    "seed_answer": "2",
}
SHAPES = {
    "gsm8k": ([{"question": "2+3?", "answer": "2+3 = <<2+3=5>>5\n#### 5"}], [("2+3?", "5", "2+3 = 5")], {}),
    "gsm_plus": (
        [
            {"question": "2+3?", "solution": "2+3 = 5", "answer": "5", **PLUS},
            {"question": "2 and some?", "solution": "Unknown.", "answer": "None", **PLUS},
        ],
        [("2+3?", "5", "2+3 = 5")],
        {"whose answer has None": 1},
    ),
    "svamp": (
        [
            {"ID": "x-1", "Body": "Two and three", "Question": "How many?", "Equation": "( 2.0 + 3.0 )", "Answer": "5.0", "Type": "Addition", "question_concat": "Two and three How many?"},
        ],
        [("Two and three. How many?", "5", "2 + 3 = 5")],
        {},
    ),
    "math": (
        [{"problem": "$2+3$?", "level": "Level 1", "type": "Algebra", "solution": r"It is $\boxed{5}$."}],
        [("$2+3$?", "5", r"It is $\boxed{5}$.")],
        {},
    ),
    "math500": (
        [{"problem": "$2+3$?", "solution": r"It is $\boxed{5}$.", "answer": "5", "subject": "Algebra", "level": 1, "unique_id": "test/x"}],
        [("$2+3$?", "5", r"It is $\boxed{5}$.")],
        {},
    ),
    "aime24": (
        [{"id": 60, "problem": "$2+3$?", "solution": "Add.", "answer": "005", "url": "u", "year": "2024"}],
        [("$2+3$?", "005", "Add.")],
        {},
    ),
    "aime25": ([{"problem": "$2+3$?", "answer": "5", "id": "0"}], [("$2+3$?", "5", None)], {}),
    "amc23": ([{"id": 0, "answer": "5", "url": "u", "question": "$2+3$?"}], [("$2+3$?", "5", None)], {}),
    "hmmt": (
        [{"problem_idx": 1, "problem": "$2+3$?", "answer": r"\frac{10}{2}", "problem_type": ["Algebra"]}],
        [("$2+3$?", r"\frac{10}{2}", None)],
        {},
    ),
    "minerva_math": ([{"question": "$2+3$?", "answer": "5"}], [("$2+3$?", "5", None)], {}),
    "olympiadbench": (
        [
            {**OLYMPIAD, "question": "$x^2=4$?", "final_answer": ["$-2,2$"], "is_multiple_answer": True},
            {**OLYMPIAD, "question": "See <image_1>: 2+3?", "final_answer": ["5"], "is_multiple_answer": False},
            {**OLYMPIAD, "question": "Prove it.", "final_answer": None, "is_multiple_answer": False},
        ],
        [("$x^2=4$?", "$-2,2$", None)],
        {"whose question has <image_1>": 1, "without an answer": 1},
    ),
    "dapo_math_17k": ([{"prompt": "2+3?", "solution": "5", **DAPO}], [("2+3?", "5", None)], {}),
    "deepscaler": (
        [
            {"problem": "$2+3$?", "answer": "5", "solution": "Add."},
            {"problem": "$2+4$?", "answer": "6", "solution": ""},
            {"problem": "$2+5$?", "answer": "", "solution": ""},
        ],
        [("$2+3$?", "5", "Add."), ("$2+4$?", "6", None)],
        {"without an answer": 1},
    ),
    "openr1_math": (
        [
            {"problem": "2+3?", "solution": "Add.", "answer": "5", **NUMINA, **R1},
            {"problem": "Which is 5?", "solution": "B", "answer": "B", **NUMINA, **R1, "question_type": "MCQ"},
        ],
        [("2+3?", "5", "Add.")],
        {"whose question_type has MCQ": 1},
    ),
    "numina_math": (
        [
            {"problem": "2+3?", "solution": "Add.", "answer": "5", **NUMINA, **VALID},
            {"problem": "Show it.", "solution": "See.", "answer": "proof", **NUMINA, **VALID},
            {"problem": "Show it.", "solution": "See.", "answer": "proof", **NUMINA, **VALID, "question_type": "proof"},
            {"problem": "2+?", "solution": "So.", "answer": "5", **NUMINA, **VALID, "problem_is_valid": "Incomplete"},
        ],
        [("2+3?", "5", "Add.")],
        {"whose answer has proof": 1, "whose question_type has proof": 1, "whose problem_is_valid has Incomplete": 1},
    ),
    "big_math": (
        [{"problem": "2+3?", "answer": "5", "source": "orca_math", "domain": ["Mathematics -> Algebra"], "llama8b_solve_rate": 0.5}],
        [("2+3?", "5", None)],
        {},
    ),
    "deepmath": (
        [{"question": "$2+3$?", "final_answer": "5", "difficulty": 5.0, "topic": "Algebra", **{f"r1_solution_{n}": "long" for n in (1, 2, 3)}}],
        [("$2+3$?", "5", None)],
        {},
    ),
}  # fmt: skip


def spec_of(name: str, **entry) -> DatasetSpec:
    """The dataset as a recipe that names it and no split reads it: an evaluation set in `eval:`, the others in
    `dataset:`."""
    problems: list[str] = []
    entry = {"name": name, **entry}
    if name in EVALUATION:
        (spec,) = named_specs([entry], {"split": "test"}, problems)
    else:
        (spec,) = dataset_spec(entry, "dataset.", problems)
    assert problems == []
    return spec


def test_every_name_reads_rows_of_its_card_from_a_folder_and_from_the_hub(tmp_path, monkeypatch):
    import datasets

    asked = []

    def on_the_hub(path, config, split):
        asked.append((path, config, split))
        return datasets.Dataset.from_list(given)

    monkeypatch.setattr(datasets, "load_dataset", on_the_hub)
    assert [*SHAPES] == [name for name, adapter in ADAPTERS.items() if adapter.hub]
    for name, (given, wanted, dropped) in SHAPES.items():
        adapter = ADAPTERS[name]
        split = adapter.test if name in EVALUATION else "train"
        folder = tmp_path / name
        for config in adapter.configs[:1]:
            inside = folder / (config or "data")
            inside.mkdir(parents=True)
            datasets.Dataset.from_list(given).to_parquet(inside / f"{split}-00000-of-00001.parquet")
        for spec in (spec_of(name, path=str(folder)), spec_of(name), spec_of(name, config="other")):
            loaded = load_problems(spec)
            assert spec.split == split
            times = 1 if spec.path or spec.config else len(adapter.configs)
            found = [(one.question, one.answer, one.worked) for one in loaded.problems]
            assert (name, found) == (name, wanted * times)
            assert (name, loaded.dropped) == (name, {reason: count * times for reason, count in dropped.items()})
            assert not {*adapter.skip} & loaded.problems[0].meta.keys()
        hub = [(adapter.hub, config, split) for config in (*adapter.configs, "other")]
        assert asked[-len(hub) :] == hub


def test_a_skipped_column_is_read_where_fields_name_it(tmp_path):
    import datasets

    datasets.Dataset.from_list(SHAPES["deepmath"][0]).to_parquet(tmp_path / "train.parquet")
    fields = {"question": "question", "answer": "final_answer", "worked": "r1_solution_1"}
    (problem,) = load_problems(spec_of("deepmath", path=str(tmp_path), fields=fields)).problems
    assert problem.worked == "long"
    assert problem.meta == {"difficulty": 5.0, "topic": "Algebra"}


@pytest.mark.parametrize(
    ("name", "layout", "wrong"),
    [
        ("deepscaler", "deepscaler.json", "notes/other.json"),
        ("olympiadbench", "OlympiadBench/OE_TO_maths_en_COMP/OE_TO_maths_en_COMP.parquet", "OlympiadBench/OE_MM/x.parquet"),
        ("openr1_math", "data/train-00000-of-00001.parquet", "all/train-00000-of-00001.parquet"),
        ("dapo_math_17k", "all/train-00000-of-00001.parquet", "en/train-00000-of-00001.parquet"),
    ],
)  # fmt: skip
def test_a_copy_of_the_hubs_files_is_read_without_the_other_configs(tmp_path, name, layout, wrong):
    import datasets

    data = datasets.Dataset.from_list(SHAPES[name][0])
    for place in (layout, wrong):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        if place.endswith("json"):
            (tmp_path / place).write_text(json.dumps(SHAPES[name][0]))
        else:
            data.to_parquet(tmp_path / place)
    assert load_problems(spec_of(name, path=str(tmp_path))).rows == len(SHAPES[name][0])


def test_rows_are_dropped_by_a_pattern_and_a_broken_one_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"question": "q", "answer": "1", "kind": null}\n{"question": "q", "answer": "1", "kind": "other"}\n'
    )

    def loaded(drop):
        return load_problems(DatasetSpec(name="json", path=str(tmp_path / "rows.jsonl"), params={"drop": drop}))

    assert str(loaded({"kind": "^(?!other)", "no such column": "."})) == (
        "rows train: 1 problems of 2 rows, dropped: 1 whose kind has None"
    )
    for drop, message in (
        ({"kind": "("}, "'(' is not a regular expression"),
        ({"kind": 5}, "5 is not a regular expression"),
    ):
        with pytest.raises(UserError, match=r"^dataset.drop.kind: ") as caught:
            loaded(drop)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("specs", "wanted"),
    [
        ([{"name": "json", "path": "one/set"}, {"name": "json", "path": "two/set"}], ["one/set train", "two/set train"]),
        ([{"name": "json", "path": "one/set", "split": "test"}], ["one/set test"]),
        ([{"name": "gsm8k", "path": "my/gsm8k"}, {"name": "gsm8k"}], ["my/gsm8k train", "gsm8k train"]),
        ([{"name": "math", "config": "algebra"}, {"name": "math", "config": "geometry"}], ["math train", "math train geometry"]),
        ([{"name": "gsm8k"}] * 3, ["gsm8k train", "gsm8k train again", "gsm8k train again again"]),
        ([{"path": "mine.py:load"}], ["mine.py:load train"]),
    ],
)  # fmt: skip
def test_each_dataset_has_a_title_of_its_own(specs, wanted):
    assert titles([DatasetSpec(**spec) for spec in specs]) == wanted


def folder_of(path, split: str, question: str):
    path.mkdir()
    (path / f"{split}.jsonl").write_text(
        f'{{"question": "{question}", "problem": "{question}", "answer": "1", "solution": "s"}}\n'
    )
    return str(path)


def test_decontamination_compares_with_the_evaluation_sets_that_it_names(tmp_path, monkeypatch):
    names = {"aime24": "train", "aime25": "test"}
    tests = [spec_of(name, path=folder_of(tmp_path / name, split, f"In {name}?")) for name, split in names.items()]
    (tmp_path / "rows.jsonl").write_text(
        "".join(
            f'{{"question": "{question}", "answer": "1"}}\n' for question in ("In aime24?", "in AIME25", "In none?")
        )
    )

    def dropped(*tests, decontaminate):
        spec = DatasetSpec(name="json", path=str(tmp_path / "rows.jsonl"), decontaminate=decontaminate)
        return sum(load_parts([spec], TEMPLATES["boxed"], None, tests)[0].dropped.values())

    assert dropped(*tests, decontaminate=True) == dropped(*tests, decontaminate=["aime25"]) == 2
    assert dropped(tests[0], decontaminate=True) == 1
    made = []  # a mixture reads the test sets once
    monkeypatch.setattr("grpo_math.data.loading.Overlap", lambda problems: made.append(Overlap(problems)) or made[-1])
    mine = DatasetSpec(name="json", path=str(tmp_path / "rows.jsonl"), decontaminate=True)
    assert [part.dropped.total() for part in load_parts([mine, mine], TEMPLATES["boxed"], None, tests)] == [2, 2]
    assert len(made) == 1
    for there in (tests[:1], []):
        with pytest.raises(
            UserError,
            match=r"^dataset.decontaminate: aime25: neither on this machine nor readable from the Hub.*name: aime25, path: FOLDER",
        ):
            dropped(*there, decontaminate=["aime25"])


def test_the_table_is_printed_for_pipes_and_for_narrow_terminals(capsys, monkeypatch):
    main(None)
    out = capsys.readouterr().out
    lines = [line.split("  ")[0] for line in out.splitlines()]
    assert lines[1 : len(SHAPES) + 2] == ["name", *SHAPES]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    main(None)
    table = capsys.readouterr().out.partition("\nAn asterisk")[0]
    assert max(map(len, table.splitlines())) <= 60
    assert all(word in table for row in rows() for cell in row for word in cell.split())
    monkeypatch.setenv("COLUMNS", "300")
    main(None)
    assert len(capsys.readouterr().out.splitlines()) == len(out.splitlines())


def test_the_table_of_the_documentation_is_that_of_the_code():
    page = (ROOT / "docs" / "datasets.md").read_text()
    for row in [HEADER, *rows()]:
        cells = [f"`{row[0]}`" if row is not HEADER else row[0], *row[1:]]
        assert f"| {' | '.join(cells)} |".replace("*", r"\*") in page
