"""The datasets that have a name, as a table."""

import argparse
import shutil
import sys
import textwrap

from grpo_math.data import ADAPTERS
from grpo_math.evaluation.tables import print_table

HEADER = ["name", "for", "rows", "Hub id", "columns", "golds", "licence", "source"]


def main(_: argparse.Namespace) -> None:
    """Print the table; where the terminal is too narrow for it, each dataset as a paragraph."""
    table = rows()
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if room is None or room >= sum(max(map(len, column)) + 2 for column in zip(HEADER, *table, strict=True)):
        print_table(HEADER, table)
    else:
        lines = textwrap.TextWrapper(room, subsequent_indent=" " * 15, break_on_hyphens=False)
        for name, *cells in table:
            print(lines.fill(f"{name:14} {'; '.join(cells)}"))
    print(
        "\nAn asterisk marks the split that is evaluated on.\n"
        "dataset: {name: gsm8k}, eval: {datasets: [math500, aime24]}; a file or folder: {name: aime24, path: FOLDER}\n"
        "your own: {name: json, path: FILE, FOLDER or HUB_ID, fields: {question: COLUMN, answer: COLUMN}}"
    )


def rows() -> list[list[str]]:
    """A row for each dataset of the Hub."""
    return [
        [
            name,
            ", ".join(adapter.uses),
            ", ".join(f"{split}{'*' * (split == adapter.test)} {count:,}" for split, count in adapter.splits.items()),
            f"{adapter.hub} {adapter.configs[0] or ''}".strip()
            if len(adapter.configs) == 1
            else f"{adapter.hub} {len(adapter.configs)} configs",
            ", ".join(adapter.columns),
            adapter.answers,
            adapter.licence,
            adapter.source,
        ]
        for name, adapter in ADAPTERS.items()
        if adapter.hub
    ]
