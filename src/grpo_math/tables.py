"""An evaluation's figures as text."""

from grpo_math.evaluation import Evaluation


def print_tables(found: list[Evaluation], shown: list[int] | None) -> None:
    """Figures down, datasets across; then accuracy by level and subject where a dataset has them."""
    samples = found[0].samples
    powers = [k for k in (2, 4, 8, 16, 32, 64, 128, 256) if k < samples]
    wanted = {f"pass@{k}" for k in shown or [*powers, samples]}  # pass@1 is the mean
    names = [name for name in found[0].figures if not name.startswith("pass@") or name in wanted]
    labels = {"accuracy": "accuracy" if samples == 1 else f"mean@{samples}", "format_accuracy": "format"}
    rows = [["", *(one.dataset for one in found)], ["problems", *(f"{one.problems:,}" for one in found)]]
    for name in names:
        cells = [one.figures[name] for one in found]
        if name == "length":
            rows.append([name, *(f"{c.value:.1f} ({c.low:.1f}-{c.high:.1f})" for c in cells)])
        else:
            rows.append([labels.get(name, name), *map(str, cells)])
    print_columns(rows)
    for one in found:
        for column, values in one.groups.items():
            print_columns(
                [[f"{one.dataset}, {column}", "problems", labels["accuracy"]]]
                + [[value, f"{count:,}", str(figure)] for value, (count, figure) in values.items()]
            )


def print_columns(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
