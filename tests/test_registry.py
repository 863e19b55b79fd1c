"""Environments of one's own: by file, by module, as objects; what is recorded and refused."""

import dataclasses
import functools
import os
import subprocess
import sys
import types
from pathlib import Path

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest

import rlzoo
from rlzoo import wrappers
from rlzoo.algorithm import Refused
from rlzoo.parameters import join, split
from rlzoo.suites import registry

KEY = jax.random.key(0)

CORRIDOR = '''
import gymnax
import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

from walls import WALL

if {guarded}:
    gymnax.register("corridor-of-{name}", lambda: Corridor())
gymnax.register("corridor-of-{name}", lambda: Corridor())


@struct.dataclass
class State:
    place: jax.Array
    time: jax.Array


@struct.dataclass
class Params(environment.EnvParams):
    prize: float = 1.0
    max_steps_in_episode: int = 20


class Corridor(environment.Environment):
    """Right is the prize."""

    def __init__(self, size: int = 5, name: str = "plain"):
        if size < 2:
            raise KeyError("too short")
        self.size = size
        self._name = name
        self.seen = jax.jit(self.see)

    @property
    def default_params(self):
        return Params()

    def reset_env(self, key, params):
        state = State(jnp.int32(0), jnp.int32(0))
        return self.see(state), state

    def step_env(self, key, state, action, params):
        place = jnp.clip(state.place + 2 * action - 1, WALL, self.size)
        state = State(place, state.time + 1)
        over = place == self.size
        return self.see(state), state, params.prize * over, over, {{}}

    def see(self, state):
        return jnp.float32(state.place)[None]

    def action_space(self, params=None):
        return spaces.Discrete(2)

    def observation_space(self, params):
        return spaces.Box(0, self.size, (1,))


class Hidden(Corridor):
    def __init__(self, size):
        super().__init__(size)
        self.size = 2 * size


class Outer:
    class Inner(Corridor):
        pass


def long(size=50):
    return Corridor(size)


def number():
    return 3


SHORT = Corridor(2)
'''


@pytest.fixture
def corridor(tmp_path, request) -> Path:
    """A file with environments; one that it imports stands beside it."""
    folder = tmp_path / "a[1] ü?&=b"
    folder.mkdir()
    name = f"corridor_{abs(hash(request.node.name)):x}"
    (folder / "walls.py").write_text("WALL = 0\n")
    (folder / f"{name}.py").write_text(CORRIDOR.format(name=name, guarded=True))
    before = list(sys.path)
    yield folder / f"{name}.py"
    sys.path[:] = before


def last_place(env: rlzoo.Env) -> float:
    """Where four steps to the right lead."""
    state = env.reset(KEY, 1)
    right = jnp.ones((4, 1), jnp.int32)

    def act(carry, obs, x):
        return carry, x, None

    _, _, steps, _, _ = env.rollout(state, act, None, right, KEY, 4, jnp.int32(0))
    return float(steps.next_obs[-1, 0, 0])


def elsewhere(folder: Path, *ids: str) -> str:
    """What a new process in another folder makes of these ids: the last places, a line each."""
    code = (
        "import sys, test_registry as t, rlzoo\n"
        "for id in sys.argv[1:]: print(t.last_place(rlzoo.make(id)), rlzoo.make(id).id == id)"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, *ids],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- options in ids ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("CartPole-v1", {}),
        ("CartPole-v1", {"length": 0.7, "limit": 5}),
        ("/a?b=c/corridor.py:Corridor", {"size": 3, "names": ["a&b", "c=d?", "ü"], "on": True}),
        ("corridor.py:Outer.Inner", {"x": (1, -2.5), "text": "5", "none": None, "word": "None"}),
        ("jumanji/Snake-v1", {"field": "grid"}),
    ],
)
def test_ids_are_taken_apart_and_joined(name, options):
    assert split(join(name, options)) == (name, options)


def test_numbers_of_numpy_are_written_as_numbers_and_words_as_words():
    options = {"size": np.int64(3), "length": np.float64(0.5), "view": "symbolic"}
    assert join("X", options) == "X?size=3&length=0.5&view=symbolic"
    assert join("X", {"length": jnp.ones(2)}) == "X?length=..."
    with pytest.raises(Refused, match=r"length=Ellipsis must be a number"):
        rlzoo.make("CartPole-v1?length=...")


def test_the_id_has_all_options():
    assert rlzoo.make("CartPole-v1?limit=7", length=0.5).id == "CartPole-v1?limit=7&length=0.5"
    assert rlzoo.make("CartPole-v1?length=1").replace(length=0.25).id == "CartPole-v1?length=0.25"
    assert rlzoo.make("Breakout-MinAtar").id == "Breakout-MinAtar"


def test_an_id_is_shown_without_its_folder():
    assert registry.short("/a?b/c.py:C?path='/d/e'") == "c.py:C?path='/d/e'"
    for id in ("brax/hopper:spring?limit=5", "CartPole-v1", "notebook:C?path='/d/e'"):
        assert registry.short(id) == id


# ---- by file -------------------------------------------------------------------------------------


def test_a_class_a_function_and_an_object_of_a_file(corridor, monkeypatch):
    monkeypatch.chdir(corridor.parent)
    place = f"{corridor}:Corridor"
    env = rlzoo.make(f"./{corridor.name}:Corridor")
    assert env.id == place and last_place(env) == 4 and env.max_steps == 20
    assert (
        last_place(rlzoo.make(f"{corridor.name}:Corridor?size=3&limit=9")) == 1
    )  # of the next episode
    assert rlzoo.make(f"{place}?size=3&prize=2&limit=9").max_steps == 9
    assert rlzoo.make(f"{place}?prize=2").params.prize == 2.0
    assert rlzoo.make(f"{place[: -len('Corridor')]}long").inner.size == 50
    assert rlzoo.make(f"{corridor}:long", size=9).id == f"{corridor}:long?size=9"
    assert rlzoo.make(f"{corridor}:Outer.Inner").inner.size == 5
    assert rlzoo.make(f"{corridor}:SHORT").inner.size == 2


def test_a_file_is_loaded_once_and_may_register_twice(corridor):
    first, second = (rlzoo.make(f"{corridor}:Corridor").inner for _ in range(2))
    assert type(first) is type(second)
    copy = corridor.parent / "copy.py"
    copy.write_text(corridor.read_text())
    assert type(rlzoo.make(f"{copy}:Corridor").inner) is not type(first)  # and registers once more
    with pytest.raises(ValueError, match="already registered"):  # gymnax's own, as ever
        gymnax.register("CartPole-v1", lambda: None)


def test_a_file_cannot_take_a_name_of_gymnax(corridor):
    corridor.write_text("import gymnax\ngymnax.register('CartPole-v1', lambda: None)\n")
    with pytest.raises(Refused, match=r"ValueError: CartPole-v1 is already registered"):
        rlzoo.make(f"{corridor}:Corridor")


def test_a_file_of_a_package_imports_from_it(corridor):
    package = corridor.parent / f"package_of_{corridor.stem}"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "walls.py").write_text("WALL = 1\n")
    text = corridor.read_text().replace("from walls", "from .walls").replace("-of-", "-in-")
    (package / "inside.py").write_text(text)
    env = rlzoo.make(f"{package / 'inside.py'}:Corridor")
    assert type(env.inner).__module__ == f"{package.name}.inside"
    assert registry.id_of(env.inner) == f"{package / 'inside.py'}:Corridor"


def test_a_name_that_the_user_registered_is_recorded_as_file_and_class(corridor):
    rlzoo.make(f"{corridor}:Corridor")
    assert registry.id_of(f"corridor-of-{corridor.stem}") == f"{corridor}:Corridor"
    id = registry.id_of(f"corridor-of-{corridor.stem}?prize=2&limit=3")
    assert id == f"{corridor}:Corridor?prize=2&limit=3"


# ---- as an object --------------------------------------------------------------------------------


@pytest.mark.slow
def test_objects_are_made_again_in_a_new_process_in_another_folder(corridor, tmp_path):
    Corridor = type(rlzoo.make(f"{corridor}:Corridor").inner)
    given = [Corridor(3, name="a&b=c"), Corridor(), functools.partial(Corridor, 2)]
    ids = [rlzoo.make(x).id for x in given]
    assert ids[0] == rf"{corridor}:Corridor?size=3&name='a\x26b=c'"
    assert ids[1:] == [f"{corridor}:Corridor", f"{corridor}:Corridor?size=2"]
    assert elsewhere(tmp_path, *ids) == "1.0 True\n4.0 True\n2.0 True\n"


def test_an_object_and_its_id_make_equal_environments(corridor):
    Corridor = type(rlzoo.make(f"{corridor}:Corridor").inner)
    for given in (Corridor(4), Corridor, corridor_function(corridor)):
        env = rlzoo.make(given)
        assert registry.id_of(given) == env.id == registry.id_of(env) == registry.id_of(env.id)
        assert registry._same(rlzoo.make(env.id), env)
    assert registry.id_of(Corridor(4)) == registry.id_of(Corridor(4)) != registry.id_of(Corridor())
    assert registry.id_of(Corridor) == registry.id_of(Corridor())


def corridor_function(corridor: Path):
    return sys.modules[type(rlzoo.make(f"{corridor}:Corridor").inner).__module__].long


def test_gymnaxs_and_our_own_objects_have_their_names():
    assert registry.id_of(gymnax.environments.CartPole()) == "CartPole-v1"
    assert rlzoo.make(gymnax.environments.CartPole(), length=1).id == "CartPole-v1?length=1"
    assert registry.id_of(gymnax.environments.CartPole) == "CartPole-v1"
    assert registry.id_of(gymnax.environments.DeepSea(size=5)) == "DeepSea-bsuite?size=5"
    assert registry.id_of(rlzoo.make("tile15").inner) == "rlzoo.envs.tiles:Tiles?side=4"
    assert rlzoo.make("rlzoo.envs.tiles:Tiles?side=4").inner.side == 4
    car = gymnax.environments.ContinuousMountainCar()  # not ours of that name
    assert registry.id_of(car).endswith("continuous_mountain_car:ContinuousMountainCar")
    assert (
        registry.id_of(rlzoo.make("MountainCarContinuous-v0").inner) == "MountainCarContinuous-v0"
    )
    assert registry.id_of("brax/hopper:spring?limit=5") == "brax/hopper:spring?limit=5"


def test_an_env_is_taken_as_it_is():
    env = rlzoo.make("CartPole-v1?limit=5")
    assert rlzoo.make(env) is env and registry.id_of(env) == "CartPole-v1?limit=5"
    assert registry.id_of(rlzoo.make(env, length=1.0)) == "CartPole-v1?limit=5&length=1.0"
    varied = env.replace(length=jnp.ones(3))
    assert registry.id_of(varied) == "notebook:CartPole"
    stored = dataclasses.replace(env, inner=wrappers.ResetTo(env.inner, *env.reset(KEY, 2).pool))
    assert registry.id_of(stored) == "notebook:CartPole#2"
    assert registry.id_of(rlzoo.make("brax/hopper:spring?limit=5")) == "brax/hopper:spring?limit=5"


def test_what_cannot_be_made_again_says_so(corridor):
    class Local(probes.OneStepReward):
        pass

    Corridor = type(rlzoo.make(f"{corridor}:Corridor").inner)
    Hidden = sys.modules[Corridor.__module__].Hidden
    changed = Corridor()
    changed.size = 3
    changed.later = 1
    for thing in (Local(), Hidden(3), changed, Corridor(name=jnp.ones(2))):
        id = registry.id_of(thing)
        assert id.startswith("notebook:") and rlzoo.make(thing).id == id
        with pytest.raises(Refused, match=r"cannot be made from its name: .* env=\.\.\."):
            rlzoo.make(id)
    assert registry.id_of(Local(True)).startswith("notebook:") and "Local?continuous=True" in (
        registry.id_of(Local(True))
    )


def test_a_class_of_a_notebook_is_named():
    cell = types.ModuleType("cell")
    exec("import probes\nclass Mine(probes.OneStepReward): pass", vars(cell))
    vars(cell)["Mine"].__module__ = "__main__"
    assert registry.id_of(vars(cell)["Mine"]()) == "notebook:Mine"
    assert registry.id_of(vars(cell)["Mine"]) == "notebook:Mine"


def test_different_objects_of_a_notebook_have_different_ids():
    class Counting(probes.OneStepReward):
        def __init__(self, count):
            super().__init__()
            self.kept = count

    first, equal, other = Counting(1), Counting(1), Counting(2)
    assert registry.id_of(first) == registry.id_of(equal) != registry.id_of(other)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Coridor", r"the environment 'Coridor' is unknown; nearest: Corridor"),
        ("Outer.Iner", r"the environment 'Outer.Iner' is unknown; nearest: Outer"),
        ("Corridor?siz=3", r"has no option 'siz'; nearest: size"),
        ("Corridor?priz=3", r"has no option 'priz'; nearest: prize"),
        ("Corridor?size=1", r"failed: KeyError: 'too short' \(.*corridor_.*\.py, line \d+\)"),
        (
            "Hidden",
            r"needs a value for size; options follow a question mark: .*:Hidden\?size=\.\.\.",
        ),
        ("number", r"gave a int; it should give an environment: a subclass of gymnax"),
        ("WALL", r"is a int; an environment is an id, a gymnax Environment, a class of one, or"),
        ("SHORT?size=3", r"has no option 'size'"),
    ],
)
def test_wrong_names_and_options_of_a_file(corridor, name, message):
    with pytest.raises(Refused, match=message):
        rlzoo.make(f"{corridor}:{name}")


def test_files_that_are_missing_or_fail(tmp_path):
    with pytest.raises(Refused, match=r"there is no file .*/nowhere\.py"):
        rlzoo.make(f"{tmp_path}/nowhere.py:Corridor")
    broken = tmp_path / "broken_one.py"
    broken.write_text("x = 1\nimport no_such_thing\n")
    for _ in range(2):  # also the second time
        with pytest.raises(
            Refused, match=r"No module named 'no_such_thing' \(.*broken_one.py, line 2"
        ):
            rlzoo.make(f"{broken}:Corridor")
    broken.write_text("x = 1\ndef f(:\n")
    with pytest.raises(Refused, match=r"SyntaxError: .* \(.*broken_one.py, line 2\)"):
        rlzoo.make(f"{broken}:Corridor")
    broken.write_text("x = 1\n")
    with pytest.raises(Refused, match=r"has no Corridor, and no other class or function"):
        rlzoo.make(f"{broken}:Corridor")


@pytest.mark.parametrize("id", ["nowhere.at.all:Corridor", "CartPole-v1:spring", "corridor"])
def test_what_is_no_file_is_an_unknown_environment(id):
    with pytest.raises(Refused, match=r"unknown environment .* corridor.py:Corridor"):
        rlzoo.make(id)


def test_gymnasiums_environments_are_refused():
    gymnasium = pytest.importorskip("gymnasium")

    class Theirs(gymnasium.Env):
        pass

    made = lambda: gymnasium.make("CartPole-v1")
    for given in (Theirs, Theirs(), made, made(), functools.partial(gymnasium.make, "CartPole-v1")):
        with pytest.raises(Refused, match=r"is a Gymnasium environment, which runs in NumPy"):
            rlzoo.make(given)


@pytest.mark.parametrize("given", [3, None, int, ["CartPole-v1"], lambda: 3])
def test_what_is_no_environment_is_refused(given):
    with pytest.raises(Refused, match=r"is a .*; an environment is|gave a int"):
        rlzoo.make(given)


def test_parameters_need_a_time_limit():
    class Endless(probes.OneStepReward):
        @property
        def default_params(self):
            return Nothing()

    with pytest.raises(Refused, match="parameters need max_steps_in_episode"):
        rlzoo.make(Endless)


@probes.struct.dataclass
class Nothing:
    pass
