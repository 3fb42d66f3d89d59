"""SVAMP's parts for the evidence: whole stories, and nothing lost."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "svamp_stories.py"


def run(*words) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True)


def test_no_story_of_svamp_is_on_both_sides(real_data, tmp_path):
    done = run(real_data / "svamp", tmp_path / "parts")
    assert (done.stdout, done.stderr) == ("74 stories: 700 problems in train.jsonl, 300 in test.jsonl\n", "")
    parts = {name: rows_of(tmp_path / "parts" / f"{name}.jsonl") for name in ("train", "test")}
    rows = rows_of(real_data / "svamp" / "test.jsonl")
    assert sorted(row["ID"] for part in parts.values() for row in part) == sorted(row["ID"] for row in rows)
    phrases = {name: {phrase for row in part for phrase in phrases_of(row)} for name, part in parts.items()}
    shared = [row for row in parts["test"] if phrases["train"] & phrases_of(row)]
    assert len(shared) == 1  # "... per day. How many days will it take to": another story
    assert run(real_data / "svamp", tmp_path / "again").stdout == done.stdout
    for name in parts:
        assert (tmp_path / "again" / f"{name}.jsonl").read_text() == (tmp_path / "parts" / f"{name}.jsonl").read_text()


def test_two_numbers_of_at_most_100_are_a_part_of_their_own(real_data, tmp_path):
    run(real_data / "svamp", tmp_path)
    for name, two, rest in (("train", 187, 513), ("test", 87, 213)):
        parts = [rows_of(tmp_path / f"{name}_{kind}.jsonl") for kind in ("two", "rest")]
        assert [len(part) for part in parts] == [two, rest]
        assert sorted(map(str, parts[0] + parts[1])) == sorted(map(str, rows_of(tmp_path / f"{name}.jsonl")))
        for row in parts[0]:
            numbers = re.findall(r"[\d.]*\d", f"{row['Body']} {row['Question']}")
            assert len(numbers) == 2
            assert max(map(float, numbers)) <= 100


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def phrases_of(row: dict) -> set[tuple[str, ...]]:
    """Eight words in a row, whatever the numbers are."""
    words = re.findall(r"[a-z]+", f"{row['Body']} {row['Question']}".lower())
    return {*zip(*(words[start:] for start in range(8)), strict=False)}


@pytest.mark.parametrize(
    ("words", "says"),
    [((), "usage: python benchmarks/svamp_stories.py SVAMP FOLDER"), (("nowhere", "parts"), "error: path: 'nowhere' is not a local file or folder")],
)  # fmt: skip
def test_a_wrong_call_is_one_line(words, says, tmp_path):
    done = run(*words)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
