"""An evaluation as text: its figures."""

import sys

from rich.console import Console
from rich.table import Table

from grpo_math.evaluation.summary import TOGETHER, Evaluation

WIDE = 10_000  # characters: nothing is wrapped where there is no terminal


def print_tables(found: list[Evaluation], shown: list[int] | None) -> None:
    """Figures down, datasets across; then accuracy by level and subject where a dataset has them. `shown` are the k of
    pass@k, by default the powers of two."""
    samples = found[0].samples
    wanted = {f"pass@{k}" for k in shown or [*(2**n for n in range(1, 20) if 2**n < samples), samples]}
    every = dict.fromkeys(name for one in found for name in one.figures)
    names = [name for name in every if not name.startswith("pass@") or name in wanted]
    labels = {"accuracy": "accuracy" if samples == 1 else f"mean@{samples}", "format_accuracy": "format"}
    rows = [["problems", *(f"{one.problems:,}" for one in found)]]
    for name in names:
        digits = 1 if name == "length" else 3
        figures = [one.figures.get(name) for one in found]
        rows.append([labels.get(name, name), *(figure.text(digits) if figure else "-" for figure in figures)])
    print_table(["", *(one.dataset for one in found)], rows)
    for one in (one for one in found if one.dataset != TOGETHER):
        for column, values in one.groups.items():
            rows = [[value, f"{count:,}", str(figure)] for value, (count, figure) in values.items()]
            print_table([f"{one.dataset}, {column}", "problems", labels["accuracy"]], rows)


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Columns of text; where there is no terminal plain ones, two blanks apart and as wide as they need to be."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    print()
    terminal = sys.stdout.isatty()
    width = None if terminal else WIDE
    Console(force_terminal=terminal, width=width, highlight=False, markup=False, emoji=False).print(table)
