"""SVAMP in two parts that share no story, for recipes/smollm2_svamp.yaml.

usage: python benchmarks/svamp_stories.py SVAMP FOLDER [SPLIT]

SVAMP is a folder with test.jsonl; of the copy on the Hub, name both splits: ChilleD/SVAMP FOLDER train+test. The 1,000
problems retell about a hundred stories with other numbers and other questions, and the published splits have most
stories on both sides. Two problems tell one story here where they share at least half of the words of the one with
fewer, among the words in at most COMMON problems; numbers do not count. Chains of such pairs are one story. Stories are
drawn at random until FOLDER/test.jsonl has HELD_OUT problems; a story that would be too many is left to
FOLDER/train.jsonl. Of each, train_two.jsonl and test_two.jsonl have the problems with two numbers of at most LARGEST,
and train_rest.jsonl and test_rest.jsonl the others.
"""

import random
import re
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

from grpo_math.data import DatasetSpec
from grpo_math.data.loading import raw_rows
from grpo_math.errors import UserError, run_cli
from grpo_math.runs.folder import write_rows

COMMON = 60
HELD_OUT = 300
LARGEST = 100


def main(words: list[str]) -> None:
    if len(words) not in (2, 3):
        raise UserError("usage: python benchmarks/svamp_stories.py SVAMP FOLDER [SPLIT]")
    spec = DatasetSpec(name="svamp", path=words[0], split=words[2] if len(words) == 3 else "test", where="")
    rows = sorted(raw_rows(spec), key=lambda row: int(row["ID"].partition("-")[2]))
    told = stories([f"{row['Body']} {row['Question']}" for row in rows])
    random.Random(0).shuffle(told)
    held_out: list[int] = []
    for story in told:
        held_out += story if len(held_out) + len(story) <= HELD_OUT else []
    parts = {"test": sorted(held_out), "train": sorted({*range(len(rows))} - {*held_out})}
    Path(words[1]).mkdir(parents=True, exist_ok=True)
    for name, places in parts.items():
        part = [rows[place] for place in places]
        write_rows(part, Path(words[1]) / f"{name}.jsonl")
        for kind, two in (("two", True), ("rest", False)):
            write_rows([row for row in part if plain(row) == two], Path(words[1]) / f"{name}_{kind}.jsonl")
    print(f"{len(told)} stories: {len(parts['train'])} problems in train.jsonl, {len(held_out)} in test.jsonl")


def plain(row: dict) -> bool:
    """Whether the problem has two numbers, neither above LARGEST."""
    numbers = re.findall(r"\d+(?:\.\d+)?", f"{row['Body']} {row['Question']}")
    return len(numbers) == 2 and max(map(float, numbers)) <= LARGEST


def stories(texts: list[str]) -> list[list[int]]:
    """The places of the texts, story by story."""
    words = [{*re.findall(r"[a-z]+", text.lower())} for text in texts]
    count = Counter(word for found in words for word in found)
    telling = [{word for word in found if count[word] <= COMMON} for found in words]
    story = [*range(len(texts))]
    for one, other in combinations(range(len(texts)), 2):
        alike = 2 * len(telling[one] & telling[other]) >= min(len(telling[one]), len(telling[other]))
        if alike and story[one] != story[other]:
            story = [story[one] if of == story[other] else of for of in story]
    return [[place for place, of in enumerate(story) if of == first] for first in dict.fromkeys(story)]


if __name__ == "__main__":
    sys.exit(run_cli(main))
