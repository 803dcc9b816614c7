"""The terminal table prints the page's numbers."""

import io

from rich.console import Console

from sordino.report.model import System
from sordino.report.rows import count, megabytes, rate
from sordino.report.table import table
from tests.report import made_up


def printed(systems):
    screen = io.StringIO()
    Console(width=160, file=screen).print(table(systems, "German [test]"))
    return screen.getvalue().splitlines()


def test_rows_and_columns():
    lines = printed(made_up.report().systems)
    assert "German [test]" in lines[0]
    header = [cell.strip() for cell in lines[2].split("┃")[1:-1]]
    wanted = ["system", "layers", "MB", "% of teacher", "BLEU", "chrF", "chrF++", "retention %", "RTF"]
    assert header == wanted
    found = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert [row[0] for row in found] == [system.label for system in made_up.report().systems]
    assert found[-1] == ["nf4 export", "24", "5,410", "32.2", "40.67", "65.60", "62.90", "98.8", "0.290"]


def test_missing_values_are_dashes_and_labels_no_markup():
    lines = printed((System("x", "[bold]x[/bold]"),))
    cells = [cell.strip() for cell in next(line for line in lines if line.startswith("│")).split("│")[1:-1]]
    assert cells == ["[bold]x[/bold]", *["–"] * 8]


def test_units():
    assert [megabytes(size) for size in (420_000, 7_540_000, 8_649_000_000)] == ["0.42", "7.5", "8,649"]
    assert [count(number) for number in (64, 503_040, 207_437_824, 8_397_094_912)] == [
        "64",
        "503.0 k",
        "207.4 M",
        "8.397 B",
    ]
    assert [rate(value) for value in (0.21, 3.456, 75.4)] == ["0.210", "3.46", "75"]
