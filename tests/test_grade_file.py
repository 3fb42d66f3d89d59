"""`grpo-math grade`: one verdict explained, or a whole file."""

import json

import pytest

from grpo_math.__main__ import dispatch
from grpo_math.errors import UserError


def write(path, rows) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_one_verdict_is_explained(capsys):
    dispatch(["grade", "--gold", "1/2", "--completion", r"so \boxed{50\%}"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == r"answer: 50\%"
    assert lines[-1] == "verdict: True (number)"
    dispatch(["grade", "--gold", "1/2", "--completion", "half"])
    assert capsys.readouterr().out.splitlines() == ["answer: none in style boxed", "verdict: False (no_answer)"]
    dispatch(["grade", "--gold", "1/2", "--completion", "it is 0.5", "--style", "fallback"])
    assert "verdict: True (number)" in capsys.readouterr().out
    dispatch(["grade", "--gold", "1/2", "--completion", r"\boxed{" + "9" * 5_000 + "}"])
    assert all(len(line) < 300 for line in capsys.readouterr().out.splitlines())


def test_a_file_keeps_its_rows_and_their_order(tmp_path, capsys):
    rows = [{"gold": str(n % 3), "completion": f"\\boxed{{{n}}}", "id": n} for n in range(5_000)]
    rows.append({"gold": "", "completion": "x", "id": 5_000})
    out = tmp_path / "out.jsonl"
    dispatch(["grade", write(tmp_path / "in.jsonl", rows), "--out", str(out), "--workers", "1", "--timeout", "1"])
    graded = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in graded] == list(range(5_001))
    assert [row["correct"] for row in graded[:4]] == [True, True, True, False]
    assert graded[-1] == rows[-1] | {"correct": None, "answer": None, "how": "unparsable_gold"}
    summary = capsys.readouterr().out
    assert summary.startswith("5,001 graded: 3 right, 4,997 wrong, 1 unscored (number 4,997, exact 3")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either FILE.jsonl, or --gold G and --completion C"),
        (["--gold", "1"], "give either FILE.jsonl"),
        (["in.jsonl", "--gold", "1", "--completion", "2"], "give either FILE.jsonl"),
        (["nowhere.jsonl"], "No such file"),
        (["--style", "box", "--gold", "1", "--completion", "2"], "invalid choice: 'box'"),
        (["in.jsonl", "--timeout", "0"], "--timeout: expected at least 0.1 seconds, got 0"),
        (["in.jsonl", "--workers", "0"], "--workers: expected an integer of at least 1, got '0'"),
        (["latin.jsonl"], "not UTF-8 text"),
        (["in.jsonl", "--out", "in.jsonl"], "is the file to be graded: name another"),
        (["in.jsonl", "--out", "."], "--out: . is not a file: name another"),
        (["in.jsonl", "--timeout", "inf"], "--timeout: expected at least 0.1 seconds, got inf"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", [{"gold": "1", "completion": "2"}])
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError) as caught:
        dispatch(["grade", *arguments])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[]", 'line 2: expected {"gold": string, "completion": string}'),
        ({"gold": 4, "completion": "4"}, "line 2: expected"),
        ({"gold": [4], "completion": "4"}, "line 2: expected"),
        ({"gold": [], "completion": "4"}, "line 2: expected"),
        (
            '{"gold": "4", "completion": "4", "id": ' + "4" * 5_000 + "}",
            "line 2: not JSON .Exceeds the limit .4300 digits",
        ),
        ("[" * 100_000, "line 2: not JSON .maximum recursion depth"),
        ({"gold": "4"}, "line 2: expected"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    path = write(tmp_path / "in.jsonl", [{"gold": "1", "completion": "2"}, row])
    with pytest.raises(UserError, match=message):
        dispatch(["grade", path])


def test_of_a_list_of_golds_each_is_right(tmp_path, capsys):
    golds, out = ["1/2", "half"], tmp_path / "out.jsonl"
    said = {
        "\\boxed{0.5}": True,
        "\\boxed{half}": True,
        "\\boxed{1/3}": False,
        "\\boxed{1/2, half}": False,
        "none": False,
    }
    rows = [{"gold": gold, "completion": text} for gold in (golds, json.dumps(golds)) for text in said]
    dispatch(["grade", write(tmp_path / "in.jsonl", rows), "--out", str(out)])
    graded = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["correct"] for row in graded] == [*said.values()] * 2
    assert [{key: row[key] for key in ("gold", "completion")} for row in graded] == rows
    capsys.readouterr()
    dispatch(["grade", "--gold", json.dumps(golds), "--completion", "\\boxed{50\\%}"])
    assert capsys.readouterr().out.splitlines()[1] == "gold as read: Expression 1/2 or Text Text(words='half')"


def test_a_broken_row_leaves_the_earlier_output(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("earlier")
    with pytest.raises(UserError, match="line 2: not JSON"):
        dispatch(["grade", write(tmp_path / "in.jsonl", [{"gold": "1", "completion": "2"}, "{"]), "--out", str(out)])
    assert out.read_text() == "earlier"


def test_any_json_text_is_written_back(tmp_path):
    out, rows = tmp_path / "out.jsonl", [{"gold": "1", "completion": "\\boxed{1} \ud800"}]
    path = write(tmp_path / "in.jsonl", rows)
    (tmp_path / "in.jsonl").write_text("\ufeff" + (tmp_path / "in.jsonl").read_text(), encoding="utf-8")
    dispatch(["grade", path, "--out", str(out)])
    assert json.loads(out.read_text())["completion"] == rows[0]["completion"]
