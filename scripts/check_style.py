"""How readable the text of the code is, in numbers, beside the goals of our style.

    python scripts/check_style.py

Prints a table and, with exit code 1, what misses a goal. Docstrings, comments and blank lines are
no lines of code; a divider is a comment.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("algorithms", "rlzoo", "envs", "scripts", "tests")
TOKENS = {"algorithms": 9.5, "rlzoo": 11.0, "envs": 11.0}
"""folder -> most tokens in a line of code, on average"""
COMMENTS = {"algorithms": 8.0}
"""folder -> fewest comments in 100 lines of code"""
COLUMNS = 100
WHOLE = ("algorithms", "envs")
"""folders of which every file is shown; of the others, the ten files with the densest lines"""
SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


class Size(NamedTuple):
    """What a file, or a folder, holds."""

    lines: int
    """of code"""
    tokens: int
    comments: int
    longest: int
    """columns of the longest line"""

    @property
    def density(self) -> float:
        return self.tokens / max(self.lines, 1)

    @property
    def comment_rate(self) -> float:
        return 100 * self.comments / max(self.lines, 1)


def docstring_lines(text: str) -> set[int]:
    """Numbers of the lines of strings that stand alone."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            value = getattr(statement, "value", None)
            if isinstance(statement, ast.Expr) and isinstance(value, ast.Constant):
                found |= {*range(statement.lineno, statement.end_lineno + 1)}
    return found


def measure(text: str) -> Size:
    """The size of a file with this text."""
    docstrings = docstring_lines(text)
    lines: set[int] = set()
    tokens = comments = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        first, last = token.start[0], token.end[0]
        comments += token.type == tokenize.COMMENT
        if token.type not in SILENT and first not in docstrings:
            tokens += 1
            lines |= {*range(first, last + 1)}
    longest = max(map(len, text.splitlines()), default=0)
    return Size(len(lines), tokens, comments, longest)


def together(sizes: list[Size]) -> Size:
    lines, tokens, comments, longest = zip(*sizes, strict=True)
    return Size(sum(lines), sum(tokens), sum(comments), max(longest))


def missed(folder: str, files: dict[Path, Size]) -> list[str]:
    """The goals that a folder misses, in words."""
    whole = together(list(files.values()))
    found = []
    most = TOKENS.get(folder)
    if most and whole.density > most:
        found.append(f"{folder}/: {whole.density:.2f} tokens a line, at most {most}")
    least = COMMENTS.get(folder)
    if least and whole.comment_rate < least:
        found.append(f"{folder}/: {whole.comment_rate:.1f} comments, at least {least}")
    for path, size in files.items():
        if size.longest > COLUMNS:
            found.append(f"{path}: a line of {size.longest} columns, at most {COLUMNS}")
    return found


def main() -> None:
    table = Table("tokens a line, comments per 100", "tokens", "comments", "longest line", "lines")
    for column in table.columns[1:]:
        column.justify = "right"

    def add(name: str, size: Size, style: str = "") -> None:
        numbers = (f"{size.density:.1f}", f"{size.comment_rate:.1f}", size.longest, size.lines)
        table.add_row(name, *map(str, numbers), style=style)

    faults = []
    for folder in FOLDERS:
        paths = sorted((ROOT / folder).rglob("*.py"))
        files = {path.relative_to(ROOT): measure(path.read_text()) for path in paths}
        add(f"{folder}/", together(list(files.values())), "bold")
        shown = [path for path in files if files[path].lines]
        if folder not in WHOLE:
            shown = sorted(shown, key=lambda path: -files[path].density)[:10]
        for path in shown:
            add(f"  {path.relative_to(folder)}", files[path])
        faults += missed(folder, files)
    Console().print(table)
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
