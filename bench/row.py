"""Row of the table in docs/speed.md: a measured number, its goal and verdict; and the timing of both sides of a comparison."""

from __future__ import annotations

import functools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.processes import format_program
from nst_tasks.engine.hardware import detect_precision


@functools.cache
def list_precisions() -> tuple[str, ...]:
    """Return the precisions to measure: mixed only if it is fast here.

    Where bfloat16 is emulated, mixed precision is several times slower than float32, and `auto` never selects it.
    """
    return ("float32", "mixed") if detect_precision() == "mixed" else ("float32",)


@dataclass(frozen=True)
class Row:
    """One measured number: the median over the rounds, and their minimum and maximum.

    `goal` is a lower bound if `at_least`, else an upper bound; a row without a goal is informative only.
    """

    work: str
    against: str
    goal: float | None
    measured: float
    least: float
    largest: float
    unit: str
    detail: str
    at_least: bool = True

    @property
    def verdict(self) -> str:
        """`met`, `not met`, `not measured`, or empty without a goal."""
        if math.isnan(self.measured):
            return "not measured"
        if self.goal is None:
            return ""
        return "met" if (self.measured >= self.goal if self.at_least else self.measured <= self.goal) else "not met"

    def as_plain(self) -> dict[str, Any]:
        """Return the row and its verdict as a dict for JSON."""
        return {**asdict(self), "verdict": self.verdict}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Row:
        """Return the row from the dict that `as_plain` returned."""
        return cls(**{name: value for name, value in plain.items() if name != "verdict"})

    def format_cells(self) -> tuple[str, ...]:
        """Return the cells of the row in a table with the columns `HEADER`."""
        bound = "" if self.goal is None else f"{'≥' if self.at_least else '≤'} {_format_number(self.goal)} {self.unit}"
        spread = f"{_format_number(self.least)} to {_format_number(self.largest)}"
        return self.work, self.against, bound, f"{_format_number(self.measured)} {self.unit}", spread, self.verdict, self.detail


HEADER = ("work", "against", "goal", "measured", "spread", "verdict", "both sides")


def _format_number(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def format_seconds(value: float) -> str:
    """Format a duration with its unit."""
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def build_ratio_row(
    work: str, against: str, goal: float | None, theirs: Sequence[float], ours: Sequence[float], note: str = ""
) -> Row:
    """Return the row of the ratio of their time to ours, round by round."""
    ratios = [their_seconds / our_seconds for their_seconds, our_seconds in zip(theirs, ours, strict=True)]
    detail = f"{format_seconds(statistics.median(theirs))} against our {format_seconds(statistics.median(ours))}"
    detail += f"; {note}" if note else ""
    return Row(work, against, goal, statistics.median(ratios), min(ratios), max(ratios), "x", detail)


def build_cost_row(work: str, goal: float | None, values: Sequence[float], unit: str, detail: str, against: str = "") -> Row:
    """Return the row of a cost whose goal is an upper bound."""
    return Row(work, against, goal, statistics.median(values), min(values), max(values), unit, detail, at_least=False)


def time_alternating(rounds: int, sides: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Return the seconds of each side in each round; odd rounds run the sides in reverse order.

    Each side is called once before, untimed.
    """
    for side in sides.values():
        side()
    seconds_by_side: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            start = time.perf_counter()
            sides[name]()
            seconds_by_side[name].append(time.perf_counter() - start)
    return seconds_by_side


def format_markdown(rows: Iterable[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [HEADER, ("---",) * len(HEADER), *(row.format_cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def run_commands(module: str, arguments: Sequence[str], *commands: Callable[..., list[Row]]) -> None:
    """Run the command that the arguments name, print its rows, and write them as JSON if `--keep` names a file.

    Args:
        module: Name of the benchmark's module.
        commands: Functions whose parameters are the options.
    """

    def finish(rows: list[Row], keep: Path | None) -> None:
        print(format_markdown(rows))
        if keep is not None:
            keep.write_text(json.dumps([row.as_plain() for row in rows]))

    app = typer.Typer(add_completion=False, result_callback=finish)

    @app.callback()
    def options(keep: Annotated[Path | None, typer.Option(help="File that the rows are written to, as JSON.")] = None) -> None:
        """Rows of the table that `make bench` makes."""

    for command in commands:
        app.command()(command)
    app(list(arguments), prog_name=format_program(module))
