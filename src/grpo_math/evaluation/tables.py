"""An evaluation as text: how far it is, and its figures."""

import time

from grpo_math.evaluation.solve import TOGETHER, Benchmark, Evaluation

EVERY = 10  # seconds between two lines of progress


class Progress:
    """gsm8k test: 120 of 200 problems, 3.4 a second, 0:24 left

    What is left is said once a tenth is done: a server answers none of its many requests for a while, then several.
    """

    def __init__(self, benchmark: Benchmark, done: int):
        self.title, self.count, self.done = benchmark.title, len(benchmark.problems), done
        self.started = self.said = time.perf_counter()
        self.new = 0

    def step(self, count: int) -> None:
        self.new += count
        now = time.perf_counter()
        if now > self.said + EVERY:
            self.said = now
            pace = self.new / (now - self.started)
            waiting = self.count - self.done - self.new
            left = (
                f", {int(waiting / pace) // 60}:{int(waiting / pace) % 60:02d} left" if self.new >= waiting / 9 else ""
            )
            speed = f"{self.done + self.new:,} of {self.count:,} problems, {pace:.3g} a second"
            print(f"{self.title}: {speed}{left}", flush=True)

    def end(self) -> float:
        seconds = time.perf_counter() - self.started
        print(f"{self.title}: {self.count:,} problems in {seconds:.0f} s", flush=True)
        return seconds


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
    for one in (one for one in found if one.dataset != TOGETHER):
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
