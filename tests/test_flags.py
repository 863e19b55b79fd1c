"""Flags: read from a file's text, from its class where that is not enough, and from command
lines."""

import sys
import textwrap
from typing import Literal, Optional

import pytest
import tiny_data

import rlzoo
from rlzoo import dataset
from rlzoo.cli import commands, flags, parsing
from rlzoo.cli.parsing import Field

HEAD = '''"""Own: an algorithm
on two lines.

Kind: online, discrete
"""
import rlzoo
'''
TAIL = """
def make(config, env, dataset=None):
    raise NotImplementedError
"""
PLAIN = """
    env: str = rlzoo.static("CartPole-v1")
    '''environment id'''
    total_steps: int = rlzoo.static(200)
"""


def source(folder, text, name="own"):
    path = folder / f"{name}.py"
    path.write_text(HEAD + textwrap.dedent(text) + TAIL)
    return flags.read(path)


def request(found, *argv):
    return flags.read_request(found, list(argv), "prog")


@pytest.fixture
def plain(tmp_path):
    text = f"""
@rlzoo.config
class Config:{PLAIN}
    width: int = rlzoo.static(4)
    hidden: tuple[int, ...] = rlzoo.static((8, 8))
    rate: float = 0.1
    mode: Literal["a", "b"] = rlzoo.static("a")
"""
    return source(tmp_path, text)


# ---- reading -------------------------------------------------------------------------------------

OWN = {
    "same file": (
        f"@rlzoo.config\nclass Base:{PLAIN}\n@rlzoo.config\nclass Config(Base):\n"
        "    more: int = rlzoo.static(3)\n    '''what more is'''\n",
        3,
    ),
    "No module named": (
        f"import base\n@rlzoo.config\nclass Config(base.Base):{PLAIN}\n"
        "    more: int = rlzoo.static(3)\n    '''what more is'''\n",
        3,
    ),
    "only a name": ("from base import Other as Config\n", 3),
    "a name for a value": (
        f"NUM = 3\n@rlzoo.config\nclass Config:{PLAIN}\n    more: int = rlzoo.static(NUM)\n"
        "    '''what more is'''\n",
        3,
    ),
    "computed": (
        f"@rlzoo.config\nclass Config:{PLAIN}\n    more: int = rlzoo.static(len('abc'))\n"
        "    '''what more is'''\n",
        3,
    ),
    "keyword": (
        f"@rlzoo.config\nclass Config:{PLAIN}\n    more: int = rlzoo.static(default=3)\n"
        "    '''what more is'''\n",
        3,
    ),
    "in quotes": (
        f"@rlzoo.config\nclass Config:{PLAIN}\n    more: 'int' = rlzoo.static(3)\n"
        "    '''what more is'''\n",
        3,
    ),
    "Optional": (
        f"from typing import Optional\n@rlzoo.config\nclass Config:{PLAIN}\n"
        "    more: Optional[int] = rlzoo.static(None)\n    '''what more is'''\n",
        None,
    ),
    "union": (
        f"@rlzoo.config\nclass Config:{PLAIN}\n    more: int | None = rlzoo.static(None)\n"
        "    '''what more is'''\n",
        None,
    ),
}


@pytest.mark.parametrize("text, default", OWN.values(), ids=OWN)
def test_own_config_classes(text, default, tmp_path, monkeypatch, capsys):
    """Every field has its flag, whatever the class is made of."""
    monkeypatch.syspath_prepend(tmp_path)
    base = f"import rlzoo\n@rlzoo.config\nclass Base:{PLAIN}\n"
    more = "    more: int = rlzoo.static(3)\n    '''what more is'''\n"
    other = f"@rlzoo.config\nclass Other(Base):\n{more}"
    (tmp_path / "base.py").write_text(base + other)
    monkeypatch.delitem(sys.modules, "base", raising=False)
    found = source(tmp_path, text)
    fields = {field.name: field for field in found.fields}
    assert [*fields] == ["env", "total_steps", "more"]
    assert fields["more"].default == default and fields["more"].static
    assert fields["more"].doc == "what more is" and fields["env"].doc == "environment id"
    assert request(found, "--more", "5").config == {
        "env": "CartPole-v1",
        "total_steps": 200,
        "more": 5,
    }
    assert request(found, "--sweep", "more=5,6").sweep == {"more": [5, 6]}
    with pytest.raises(SystemExit) as stop:
        request(found, "--help")
    assert stop.value.code == 0 and "what more is" in capsys.readouterr().out


def test_a_plain_file_is_not_imported(tmp_path):
    found = source(tmp_path, f"import nothing_of_this_name\nclass Config:{PLAIN}")
    assert found.module is None and [f.name for f in found.fields] == ["env", "total_steps"]


def test_text_and_class_say_the_same():
    """Of every algorithm file: what the quick reading gives is what the class gives."""
    for name in flags.names():
        found = flags.read(flags.find(name))
        assert found.module is None, f"{name} is slow to describe"
        module = flags.load_file(found.path)
        # as text, since nan is not equal to nan
        assert repr(found.fields) == repr(parsing.fields_of(module.Config))


def test_bounds_and_choices_are_read_and_shown(tmp_path, capsys):
    text = f"""
class Config:{PLAIN}
    bins: int = rlzoo.static(51, least=2, most=1e3)
    '''bins of the head'''
    rate: float = rlzoo.traced(1e-3, above=0.0)
    '''step size'''
    mode: Literal["a", "b"] = rlzoo.static("a")
"""
    found = source(tmp_path, text)
    bins, rate, mode = found.fields[2:]
    assert bins.bounds == {"least": 2, "most": 1e3} and bins.static
    assert rate.bounds == {"above": 0.0} and not rate.static and rate.default == 1e-3
    assert bins.about == "bins of the head (at least 2, at most 1000)"
    with pytest.raises(SystemExit):
        request(found, "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "step size (more than 0) (default: 0.001)" in shown and "--mode {a,b}" in shown
    with pytest.raises(rlzoo.Refused, match="--mode: 'c' is not one of a, b"):
        request(found, "--mode", "c")
    assert mode.kind == Literal["a", "b"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("class Config(:", "own.py, line 7: "),
        (
            "import nothing_of_this_name\nclass Config(nothing_of_this_name.Base): ...",
            "No module named",
        ),
        ("x = 1", "has no class Config"),
    ],
)
def test_files_that_cannot_be_read(text, message, tmp_path):
    with pytest.raises(rlzoo.Refused, match=message):
        source(tmp_path, text)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "own.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(rlzoo.Refused, match="is not a Python file"):
        flags.read(tmp_path / "own.py")


# ---- help ----------------------------------------------------------------------------------------


def test_help_keeps_lines_and_has_own_flags_first(plain, capsys):
    with pytest.raises(SystemExit):
        request(plain, "--help")
    shown = capsys.readouterr().out
    assert "Own: an algorithm\non two lines.\n\nKind: online, discrete\n" in shown
    assert shown.index("--rate") < shown.index("--sweep") < shown.index("--seeds")
    assert plain.about == "Own: an algorithm on two lines." and plain.kind == ["online", "discrete"]


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, text, value",
    [
        (int, "1e6", 1_000_000),
        (int, "1_000", 1_000),
        (float, "-1e-3", -1e-3),
        (bool, "False", False),
        (tuple[int, ...], "1e2x3", (100, 3)),
        (tuple[float, float], "0x1", (0.0, 1.0)),
        (Optional[int], "none", None),  # noqa: UP045
        (float | None, "2", 2.0),
        (Literal["a", 2], "2", 2),
    ],
)
def test_values(kind, text, value):
    found = Field("x", kind, value).read_one(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "kind, text",
    [
        (int, "1.5"),
        (int, "inf"),
        (int, "nan"),
        (int, "1e30"),
        (int, ""),
        (float, "fast"),
        (bool, "yes"),
        (tuple[float, float], "1x2x3"),
        (tuple[int, ...], "8,8"),
    ],
)
def test_wrong_values(kind, text):
    with pytest.raises(ValueError):
        Field("x", kind, None).read_one(text)


def test_a_kind_that_text_cannot_give_has_no_flag(tmp_path):
    found = source(
        tmp_path,
        f"@rlzoo.config\nclass Config:{PLAIN}\n    f: object = rlzoo.static(len)\n",
    )
    assert request(found).config["f"] is len
    with pytest.raises(rlzoo.Refused, match="flag '--f' is unknown"):
        request(found, "--f", "len")


def test_whole_floats(plain):
    found = request(plain, "--total-steps", "1e6", "--hidden", "1e2", "64", "--seeds", "2e0")
    assert found.config["total_steps"] == 1_000_000 and type(found.config["total_steps"]) is int
    assert found.config["hidden"] == (100, 64) and found.options["seeds"] == 2
    swept = request(plain, "--sweep", "total_steps=1e3,2e3", "hidden=1e1x5")
    assert swept.sweep == {"total_steps": [1000, 2000], "hidden": [(10, 5)]}


def test_flags_are_written_freely(plain):
    assert request(plain, "--total_steps=7").config["total_steps"] == 7
    assert request(plain, "--rate", "-inf").config["rate"] == float("-inf")
    assert request(plain, "--width", "1", "--width", "2").config["width"] == 2
    assert request(plain, "--out=~/x").options["out"].startswith("/")


# ---- sweeps --------------------------------------------------------------------------------------


def test_all_sweeps_count(plain):
    found = request(plain, "--sweep", "rate=1,2", "--seeds", "3", "--sweep", "width=3", "mode=a,b")
    assert found.sweep == {"rate": [1.0, 2.0], "width": [3], "mode": ["a", "b"]}
    assert found.members(plain.fields) == 6  # those of one program


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--sweep rate=1 --sweep rate=2", "--sweep has rate twice"),
        ("--sweep rate=1,2 rate=3", "--sweep has rate twice"),
        ("--sweep rate=0.1,0.2,1e-1", "--sweep rate has 0.1 twice"),
        ("--sweep hidden=8x8,8x8", "--sweep hidden has 8x8 twice"),
        ("--sweep rate=nan,nan", "--sweep rate has nan twice"),
        ("--rate 1 --sweep rate=2", "--rate is given, and in --sweep, too"),
        ("--sweep width=2.5", "'2.5' is not a whole number; write it like 4"),
        ("--sweep rat=1", "--sweep field 'rat' is unknown; nearest: rate"),
        ("--sweep rate", "should read field=value,value"),
        ("--sweep mode=c", "'c' is not one of a, b"),
        ("--seeds 1e9", "this asks for 1,000,000,000 members"),
    ],
)
def test_wrong_sweeps(argv, message, plain):
    with pytest.raises(rlzoo.Refused, match=message):
        request(plain, *argv.split())


# ---- data sets -----------------------------------------------------------------------------------

WITH_DATA = f'DATASET = "pendulum-medium-replay"\n\n\n@rlzoo.config\nclass Config:{PLAIN}'


def test_a_file_names_its_data_set(tmp_path, capsys, plain):
    """--help says so, and a run that is given none takes it."""
    found = source(tmp_path, WITH_DATA)
    assert found.dataset == "pendulum-medium-replay" and plain.dataset == ""
    assert request(found).options["dataset"] == ("pendulum-medium-replay",)
    assert request(plain).options["dataset"] == ()
    given = request(found, "--dataset", "a=x.npz", "b=y.npz", "--dataset", "c=z.npz")
    assert given.options["dataset"] == ("a=x.npz", "b=y.npz", "c=z.npz")
    for argv, said in ((found, True), (plain, False)):
        with pytest.raises(SystemExit):
            request(argv, "--help")
        text = " ".join(capsys.readouterr().out.split())
        assert ("(default: pendulum-medium-replay, made on first use)" in text) == said


def test_shares_held_out(plain):
    assert request(plain).options["validation"] is None
    assert request(plain, "--validation", "0.1").options["validation"] == 0.1
    with pytest.raises(rlzoo.Refused, match="'a' is not a number"):
        request(plain, "--validation", "a")


def test_several_processes_find_what_was_made(tmp_path, plain, monkeypatch):
    """Data are read and made before the processes start, in a folder of the environment's name."""
    data = tiny_data.continuous()
    dataset.save(data, tmp_path / "a.npz")
    monkeypatch.chdir(tmp_path)
    asked = request(plain, "--dataset", "a.npz", "--env", "")
    flag, folder = commands._before_spreading(plain, asked)
    assert flag == "--out" and folder.startswith("runs/own/probes.py:ActionReward?continuous=True")
    asked = request(plain, "--dataset", "a.npz", "--out", "x")
    assert commands._before_spreading(plain, asked) == []
    asked = request(plain, "--dataset", "pendulum-exprt", "--out", "x")
    with pytest.raises(rlzoo.Refused, match="nearest: pendulum-expert"):
        commands._before_spreading(plain, asked)
