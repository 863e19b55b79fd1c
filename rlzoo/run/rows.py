"""metrics.csv: one row for each member at each point where metrics are logged."""

import csv
from pathlib import Path

from rlzoo.report.reading import read_table


class Rows:
    """The rows of one run, kept in a file. A new metric adds a column to all of them."""

    def __init__(self, path: Path):
        self.path = path
        self.columns: list[str] = []

    def read(self) -> list[dict[str, str]]:
        """All whole rows."""
        if not self.path.exists():
            return []
        header, rows = read_table(self.path)
        self.columns = self.columns or header
        return [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]

    def write(self, rows: list[dict]) -> None:
        """Put `rows` in place of those that there are."""
        if not self.columns:  # no row was ever written
            return
        temporary = self.path.with_suffix(".new")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.path)

    def add(self, rows: list[dict]) -> None:
        """Append rows."""
        missing = [name for name in rows[0] if name not in self.columns]
        if missing:
            old = self.read()
            # Divergence and times stay at the end.
            names = [*self.columns, *missing]
            tail = [name for name in names if name == "diverged" or name.startswith("time/")]
            self.columns = [name for name in names if name not in tail]
            self.columns += list(dict.fromkeys(tail))
            self.write(old)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns, restval="", lineterminator="\n").writerows(rows)
