"""The text of the code: counted, checked and formatted as scripts/check_style.py and ruff say."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlzoo.suites.files import load

ROOT = Path(__file__).parent.parent
style = load(ROOT / "scripts" / "check_style.py")
TEXT = '''"""Two lines
of a docstring."""

# a comment
def add(a, b):
    """One line."""
    return (  # the sum
        a + b
    )
'''


def test_what_a_file_holds():
    size = style.measure(TEXT)
    # def add ( a , b ) :   return ( a + b )
    assert size == style.Size(lines=4, tokens=8 + 6, comments=2, longest=23)
    assert size.density == 3.5 and size.comment_rate == 50
    assert style.measure("") == style.Size(0, 0, 0, 0)


def test_what_misses_a_goal():
    good = style.Size(lines=100, tokens=950, comments=8, longest=100)
    path = Path("algorithms/x.py")
    assert style.missed("algorithms", {path: good}) == []
    bad = style.Size(lines=100, tokens=970, comments=6, longest=101)
    assert style.missed("algorithms", {path: bad, Path("algorithms/y.py"): good}) == [
        "algorithms/: 9.60 tokens a line, at most 9.5",
        "algorithms/: 7.0 comments, at least 8.0",
        "algorithms/x.py: a line of 101 columns, at most 100",
    ]


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_ruff(command):
    beside = Path(sys.executable).with_name("ruff")
    ruff = beside if beside.exists() else shutil.which("ruff")
    if not ruff:
        pytest.skip("ruff is not installed")
    ended = subprocess.run(
        [ruff, *command.split(), "--no-cache", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
