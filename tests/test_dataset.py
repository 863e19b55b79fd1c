"""Data sets: read and written to the bit, refused where wrong, drawn from as asked."""

import dataclasses
import os
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_data
from rlzoo.algorithms import dqn
from scipy import stats

import rlzoo
from rlzoo import cli, collect, dataset, formats, replay
from rlzoo.algorithm import Refused
from rlzoo.dataset import Dataset, from_arrays
from rlzoo.env import Transition
from rlzoo.layouts import FLAGS
from rlzoo.suites.registry import make

SHARED = (
    Path(os.environ.get("RLZOO_DATA", Path(__file__).parents[2] / "shared" / "data")) / "offline"
)
"""data that are no part of the repository"""
LENGTHS, ENDS = (3, 1, 4, 2, 5), "etete"  # e: terminated, t: truncated
N = sum(LENGTHS)


def walk(lengths=LENGTHS, ends=ENDS, obs=np.float32, discrete=True, seed=0):
    """Episodes of random observations; rewards are whole numbers, so that sums are exact."""
    rng, n = np.random.default_rng(seed), sum(lengths)
    draw = lambda shape: rng.integers(0, 2 if obs is bool else 100, shape).astype(obs)
    parts = [draw((length + 1, 3)) for length in lengths]
    last = np.cumsum(lengths) - 1
    flag = lambda kind: np.isin(np.arange(n), last[[end == kind for end in ends]])
    return {
        "obs": np.concatenate([part[:-1] for part in parts]),
        "action": rng.integers(0, 3, n).astype(np.int32)
        if discrete
        else rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        "reward": rng.integers(-90, 90, n).astype(np.float32),
        "next_obs": np.concatenate([part[1:] for part in parts]),
        "terminated": flag("e"),
        "truncated": flag("t"),
    }


def same(a, b):
    """The same bits, types and facts."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape, np.asarray(x).tobytes()) == (
            y.dtype,
            y.shape,
            np.asarray(y).tobytes(),
        )


@pytest.fixture(scope="module")
def data():
    return from_arrays(walk(), env="CartPole-v1", source="a walk", reference=(-10.0, 30.0))


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npz", "hdf5"])
@pytest.mark.parametrize("obs", [np.float32, np.uint8, bool, np.int16, np.int32])
def test_files_give_back_the_bits(tmp_path, suffix, obs):
    arrays = walk(obs=obs, discrete=obs is not np.float32)
    extra = {
        "extra/log_prob": np.linspace(0, 1, N, dtype=np.float32),
        "extra/mask": np.ones((N, 2), bool),
    }
    before = from_arrays(
        arrays | extra, env="x", source="y", reference=(1.5, 2.5), weights=np.arange(1, 6) / 7
    )
    assert before.obs.dtype == obs and before.terminated.dtype == bool
    dataset.save(before, tmp_path / f"new/data.{suffix}")
    same(dataset.load(tmp_path / f"new/data.{suffix}"), before)
    same(
        from_arrays(arrays),
        dataclasses.replace(  # what was given, untouched
            before, extra={}, weights=None, cumulative=None, env="", source="", reference=None
        ),
    )


@pytest.mark.parametrize("obs, discrete", [(np.float32, False), (np.uint8, True), (np.int32, True)])
def test_minari(tmp_path, monkeypatch, obs, discrete):
    """What minari's own API wrote; its data may be both terminated and truncated, which means that
    the task ended."""
    import gymnasium
    import minari
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    arrays = walk(obs=obs, discrete=discrete)
    want = from_arrays(arrays, source="minari:test/walk-v0", reference=(0.0, 9.0))
    buffers = []
    for first, last in zip(want.starts[:-1], want.starts[1:], strict=True):
        part = {name: x[first:last] for name, x in arrays.items()}
        buffers.append(
            EpisodeBuffer(
                observations=np.concatenate([part["obs"], part["next_obs"][-1:]]),
                rewards=list(part["reward"]),
                actions=part["action"]
                if discrete
                else part["action"] * [1, 2] + [0, 1],  # in [-1, 1] and [-1, 3]
                terminations=list(part["terminated"]),
                truncations=list(part["truncated"] | part["terminated"]),
            )
        )
    low, high = np.float32([-1, -1]), np.float32([1, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for an author and the like
        stored = minari.create_dataset_from_buffers(
            "test/walk-v0",
            buffers,
            observation_space=gymnasium.spaces.Box(0, 100, (3,), obs),
            action_space=gymnasium.spaces.Discrete(3)
            if discrete
            else gymnasium.spaces.Box(low, high),
        )
    stored.storage.update_metadata({"ref_min_score": 0.0, "ref_max_score": 9.0})
    got = dataset.load("minari:test/walk-v0")
    if not discrete:  # mapping there and back rounds
        np.testing.assert_allclose(got.action, want.action, atol=3e-7)
        got = dataclasses.replace(got, action=want.action)
    same(got, want)
    with pytest.raises(Refused, match=r"test/none-v0 .*minari download"):
        dataset.load("minari:test/none-v0")
    with pytest.raises(Refused, match="without parts"):
        dataset.load("minari:test/walk-v0?obs=position")


def test_minari_dictionaries_are_joined_by_name():
    obs = {
        "achieved": np.zeros((4, 2)),
        "desired": np.ones((4, 1)),
        "observation": np.full((4, 3), 2.0),
    }
    joined = formats._joined("minari:maze", obs, ["observation", "desired"])
    np.testing.assert_array_equal(joined, np.repeat([[2.0, 2, 2, 1]], 4, 0))
    for keys in ([], ["observation", "goal"]):
        with pytest.raises(
            Refused,
            match=r"parts achieved, desired, observation.*minari:maze\?obs=achieved,desired",
        ):
            formats._joined("minari:maze", obs, keys)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    for name, match in (
        ("none.npz", "there is no file"),
        ("data.csv", "are .npz or .hdf5"),
        ("data.pkl", "are .npz"),
    ):
        if name != "none.npz":
            (tmp_path / name).write_bytes(b"")
        with pytest.raises(Refused, match=match):
            dataset.load(tmp_path / name)
    for name in ("damaged.npz", "damaged.hdf5"):
        (tmp_path / name).write_bytes(b"PK\x03\x04" + bytes(100))
        with pytest.raises(Refused, match=f"{name}.* cannot be read"):
            dataset.load(tmp_path / name)
    np.savez(tmp_path / "objects.npz", **walk() | {"obs": np.array([{}] * N)}, allow_pickle=True)
    with pytest.raises(Refused, match=r"objects.npz: obs cannot be read: Object arrays"):
        dataset.load(tmp_path / "objects.npz")
    np.savez(tmp_path / "other.npz", **walk(), metadata=np.array("not ours"), weights=np.ones(3))
    assert dataset.load(tmp_path / "other.npz").source == "other.npz"
    import h5py

    with h5py.File(tmp_path / "group.hdf5", "w") as file:
        file.create_group("observations")
    with pytest.raises(Refused, match="group.hdf5: observations is a group"):
        dataset.load(tmp_path / "group.hdf5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(Refused, match=r"h5py: pip install 'rlzoo-jax\[data\]'"):
        dataset.load(tmp_path / "damaged.hdf5")
    with pytest.raises(Refused, match="written as .npz or .hdf5"):
        dataset.save(from_arrays(walk()), tmp_path / "data.csv")


# ---- other people's names and layouts ------------------------------------------------------------


def renamed(arrays, **names):
    return {names.get(name, name): x for name, x in arrays.items()}


def test_names(tmp_path):
    want, arrays = from_arrays(walk()), walk()
    d4rl = renamed(
        arrays,
        obs="observations",
        action="actions",
        reward="rewards",
        next_obs="next_observations",
        terminated="terminals",
        truncated="timeouts",
    )
    neorl2 = renamed(arrays, terminated="done") | {
        name: arrays[flag].astype(np.float32)
        for name, flag in (("done", "terminated"), ("truncated", "truncated"))
    }
    same(from_arrays(d4rl), want)
    same(from_arrays(neorl2), want)
    for wrong, match in (
        (renamed(arrays, terminated="done", truncated="time"), "done alone does not say"),
        (d4rl | {"reward": arrays["reward"]}, "reward and rewards are two names for reward"),
        (
            renamed(arrays, obs="states"),
            "no array is called obs or observations; there are: states, action",
        ),
        (neorl2 | {"done": np.full(N, 0.5)}, "terminated: row 0 holds 0.5: must be 0 or 1"),
    ):
        with pytest.raises(Refused, match=match):
            from_arrays(wrong)


def test_missing_successors(capsys):
    """D4RL's layout. Taking the row after everywhere would let truncated episodes go on in the next
    one."""
    arrays = walk()
    got = from_arrays({name: x for name, x in arrays.items() if name != "next_obs"})
    assert (
        "2 rows without a row after them were dropped, 3 terminated rows take their own"
        in capsys.readouterr().err
    )
    arrays["next_obs"][arrays["terminated"]] = arrays["obs"][arrays["terminated"]]
    arrays["truncated"][8] = (
        True  # row 9, the last of its episode, goes; row 3 was an episode of its own
    )
    same(got, from_arrays({name: np.delete(x, [3, 9], 0) for name, x in arrays.items()}))

    naive = walk()
    naive["next_obs"][:-1] = naive["obs"][1:]
    same(
        from_arrays(naive).reward, jnp.asarray(naive["reward"])
    )  # nothing refuses it, so a note must tell
    assert (
        "next_obs of 2 of 2 truncated rows is the first obs of the next episode"
        in capsys.readouterr().err
    )
    unfinished = {name: x[:13] for name, x in walk().items() if name != "next_obs"}
    with pytest.raises(
        Refused, match="truncated: row 9 is the last, but its episode is unfinished"
    ):
        from_arrays(unfinished)
    assert dataset.episodes(from_arrays(unfinished, finish="truncate")).lengths.tolist() == [
        3,
        4,
        1,
        2,
    ]
    with pytest.raises(Refused, match="no row has its successor"):
        from_arrays({name: x[3:4] for name, x in walk().items() if name != "next_obs"})


@pytest.mark.parametrize(
    "successors, padded", [(True, True), (True, False), (False, True), (False, False)]
)
def test_episodes_as_a_stack(successors, padded):
    lengths = np.array([3, 1, 4] if padded else [4, 4, 4])
    rows, never = walk(lengths, "ttt", discrete=False), {"terminated": "never"}
    last = np.cumsum(lengths) - 1
    stack = {
        name: np.zeros((3, 4, *x.shape[1:]), x.dtype)
        for name, x in rows.items()
        if name not in FLAGS
    }
    for name, x in stack.items():
        x[np.arange(4) < lengths[:, None]] = rows[name]
    obs, next_obs = stack["obs"], stack.pop("next_obs")
    if successors:
        stack["obs"] = np.concatenate([obs, np.zeros_like(obs[:, :1])], 1)
        stack["obs"][np.arange(3), lengths] = next_obs[np.arange(3), lengths - 1]
    else:
        rows["truncated"][last[lengths > 1] - 1] = True
        rows = {name: np.delete(x, last, 0) for name, x in rows.items()}
    got = from_arrays(stack | ({"length": lengths} if padded else {}), names=never)
    same(got, from_arrays(rows))
    for length, match in (
        ([3, 0, 4], "episode 1 has 0, must be from 1 to 4"),
        ([3, 1], r"length is int64\[2\]"),
    ):
        with pytest.raises(Refused, match=match):
            from_arrays(stack | {"length": np.array(length)}, names=never)
    with pytest.raises(
        Refused, match=r"action is float32\[3, 3, 2\], but reward holds 3 episodes of 4 steps"
    ):
        from_arrays(stack | {"action": stack["action"][:, 1:]}, names=never)
    with pytest.raises(Refused, match="no array is called terminated or .*; there are: .*reward"):
        from_arrays(stack)


# ---- what is refused -----------------------------------------------------------------------------


def put(name, row, value, discrete=True):
    arrays = walk(discrete=discrete)
    arrays[name][row] = value
    return arrays


WRONG = {
    "no rows": (
        lambda: {name: x[:0] for name, x in walk().items()},
        "obs is float32[0, 3], must have at least one row",
    ),
    "lengths": (lambda: walk() | {"reward": np.zeros(13)}, "reward has 13 rows, obs 15: row 13"),
    "too long": (
        lambda: walk() | {"terminated": np.zeros(16, bool)},
        "terminated has 16 rows, obs 15: row 15",
    ),
    "rank": (
        lambda: walk() | {"reward": np.zeros((N, 2))},
        "reward is float32[15, 2], must be float32[N]",
    ),
    "scalar": (lambda: walk() | {"action": np.int32(1)}, "action has 0 rows, obs 15: row 0"),
    "mixed": (
        lambda: walk() | {"obs": walk(obs=np.uint8)["obs"]},
        "next_obs is float32[15, 3], obs uint8[15, 3]: must be",
    ),
    "shapes": (
        lambda: walk() | {"next_obs": np.zeros((N, 4))},
        "next_obs is float32[15, 4], obs float32[15, 3]",
    ),
    "text": (
        lambda: walk() | {"action": np.array(["left"] * N)},
        "action is an array of <U4, must hold numbers",
    ),
    "objects": (
        lambda: walk() | {"obs": np.array([None] * N)},
        "obs is an array of object, must hold numbers",
    ),
    "complex": (
        lambda: walk() | {"reward": np.ones(N, complex)},
        "reward is an array of complex128",
    ),
    "nan": (lambda: put("reward", 4, np.nan), "reward: row 4 is not finite"),
    "inf": (lambda: put("obs", (slice(6, 9), 1), np.inf), "obs: row 6 (and 2 more) is not finite"),
    "float32": (
        lambda: walk() | {"reward": np.full(N, 1e39)},
        "reward: row 0 (and 14 more) is not finite",
    ),
    "int32": (
        lambda: walk() | {"action": np.full(N, 2**31)},
        "action: row 0 holds 2147483648: does not fit into int32",
    ),
    "extra": (
        lambda: walk() | {"extra/x": np.full(N, np.nan)},
        "extra/x: row 0 (and 14 more) is not finite",
    ),
    "flag": (
        lambda: walk() | {"terminated": np.arange(N)},
        "terminated: row 2 holds 2: must be 0 or 1",
    ),
    "unfinished": (
        lambda: put("terminated", 14, False),
        "truncated: row 14 is the last, but its episode is unfinished",
    ),
    "broken": (lambda: put("next_obs", (5, 2), 200.5), "next_obs: row 5 differs by up to "),
    "shuffled": (
        lambda: {name: x[::-1] for name, x in walk(ends="ttttt").items()},
        "next_obs: row 1 (and 8 more) differs",
    ),
    "negative": (
        lambda: put("action", [3, 7], -1),
        "action: row 3 (and 1 more) is -1, must be at least 0",
    ),
    "range": (
        lambda: put("action", (9, 1), -1.5, False),
        "action: row 9 holds -1.5, must lie in [-1, 1]; bounds=",
    ),
    "fraction": (
        lambda: walk() | {"action": np.full(N, 0.5)},
        "action is float32[15], must be integers [N]",
    ),
    "many-hot": (
        lambda: walk() | {"action": np.zeros((N, 2), int)},
        "action is int32[15, 2], must be integers [N]",
    ),
    "bool": (
        lambda: walk() | {"action": np.zeros(N, bool)},
        "action is bool[15], must be integers [N]",
    ),
    "finish": (lambda: {"finish": "cut"}, "finish='cut': must be 'truncate'"),
    "bounds": (lambda: {"bounds": (0, 1)}, "bounds=(0.0, 1.0) of int32 actions"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refused(name, tmp_path):
    build, message = WRONG[name]
    arrays = build()
    with pytest.raises(Refused) as refused:
        from_arrays(walk(), **arrays) if len(arrays) == 1 else from_arrays(arrays)
    assert message in str(refused.value)


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    arrays = walk() | {"terminated": np.zeros(N, bool)}
    arrays["reward"][1] = np.inf
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(Refused) as refused:
        dataset.load(tmp_path / "data.npz")
    assert str(refused.value).startswith(
        f"{tmp_path / 'data.npz'}: reward: row 1 is not finite; "
        "next_obs: row 2 (and 1 more) differs"
    )
    assert str(refused.value).endswith(
        "is unfinished; finish='truncate' (rlzoo data convert --finish truncate) ends it"
    )


def test_validate_again(data):
    dataset.validate(data)
    dataset.validate(dataclasses.replace(data, reward=data.reward / 10))
    for changes, match in (
        ({"reward": data.reward.at[3].set(jnp.nan)}, "reward: row 3 is not finite"),
        ({"reward": data.reward.astype(jnp.int32)}, r"reward is int32\[15\], must be float32\[N\]"),
        ({"obs": data.obs.astype(jnp.float16)}, r"next_obs is float32\[15, 3\], obs float16"),
        ({"truncated": data.truncated.at[0].set(True)}, "starts do not fit"),
        (
            {"truncated": data.truncated.at[14].set(True)},
            "terminated: row 14 is set where truncated is too",
        ),
    ):
        with pytest.raises(Refused, match=match):
            dataset.validate(dataclasses.replace(data, **changes))


def test_finish(capsys):
    arrays = walk()
    for name in FLAGS:
        arrays[name] = np.zeros(N, bool)
    got = from_arrays(arrays, finish="truncate")
    assert np.diff(got.starts).tolist() == list(LENGTHS) and got.truncated.sum() == 5
    same(
        from_arrays(walk(), finish="truncate"), from_arrays(walk())
    )  # what says how it ends is left alone


def test_types_and_bounds(capsys):
    wide = {
        name: x.astype({"f": np.float64, "i": np.int64}.get(x.dtype.kind, x.dtype))
        for name, x in walk().items()
    }
    same(from_arrays(wide), from_arrays(walk()))
    noted = capsys.readouterr().err.splitlines()
    assert (
        "note: obs: float64 becomes float32" in noted
        and "note: action: int64 becomes int32" in noted
    )
    assert from_arrays(walk() | {"reward": np.arange(N)}).reward.dtype == jnp.float32
    half = from_arrays(
        {name: x.astype(np.float16) if "obs" in name else x for name, x in walk().items()}
    )
    assert half.obs.dtype == jnp.float32
    arrays = walk(discrete=False)
    low, high = np.array([-0.1, -7.0]), np.array([0.1, 7.0])
    native = low + (arrays["action"].astype(np.float64) + 1) / 2 * (high - low)
    native[:2] = low, high
    got = from_arrays(arrays | {"action": native}, bounds=(low, high)).action
    np.testing.assert_allclose(got[2:], arrays["action"][2:], atol=1e-6)
    assert got[:2].tolist() == [[-1, -1], [1, 1]]  # not a rounding error beyond
    with pytest.raises(Refused, match="action: row 1 holds 1.1"):
        from_arrays(arrays | {"action": native}, bounds=(low, high * 0.9))
    with pytest.raises(Refused, match="must be finite, low < high"):
        from_arrays(arrays, bounds=(1, 1))


def test_check():
    cart, swing = make("CartPole-v1"), make("Pendulum-v1")
    rows = walk()
    rows["obs"], rows["next_obs"] = rows["obs"] / 1000, rows["next_obs"] / 1000
    four = rows | {name: np.pad(rows[name], ((0, 0), (0, 1))) for name in ("obs", "next_obs")}
    dataset.check(from_arrays(four | {"action": rows["action"] % 2}), cart)
    dataset.check(from_arrays(rows | {"action": np.zeros((N, 1), np.float32)}), swing)
    for arrays, env, match in (
        (rows, cart, r"obs of the data set are \[3\], those of CartPole-v1 are \[4\]"),
        (rows, swing, "discrete, those of Pendulum-v1 are continuous"),
        (
            walk(discrete=False),
            swing,
            r"actions of the data set are \[2\], those of Pendulum-v1 are \[1\]",
        ),
        (
            four | {"action": np.arange(N) % 3},
            cart,
            "action: row 2 is 2, but CartPole-v1 has 2 actions",
        ),
    ):
        with pytest.raises(Refused, match=match):
            dataset.check(from_arrays(arrays), env)


def test_check_compares_ranges():
    """Shapes alone let data of another scale pass."""
    cart, rows = make("CartPole-v1"), walk()
    rows["action"] = rows["action"] % 2
    for name in ("obs", "next_obs"):
        rows[name] = np.pad(rows[name] / 1000, ((0, 0), (0, 1)))
    inside = from_arrays(rows)
    edge = float(cart.inner.observation_space(cart.params).high[2])
    by_rounding = inside.obs.at[3, 2].set(edge * (1 + 1e-6)).at[4, 1].set(1e9)
    dataset.check(dataclasses.replace(inside, obs=by_rounding), cart)
    for name in ("obs", "next_obs"):
        wide = getattr(inside, name).at[5:8, 2].set(-0.5).at[2, 0].set(7.0)
        match = rf"{name}\[0\]: row 2 is 7, but CartPole-v1 has -4.8 to 4.8 there; so are 1 more"
        with pytest.raises(Refused, match=match):
            dataset.check(dataclasses.replace(inside, **{name: wide}), cart)
    wide = inside.obs.at[5:8, 2].set(-0.5)
    with pytest.raises(Refused, match=r"obs\[2\]: row 5 \(and 2 more\) is -0.5, .* -0.418879 to"):
        dataset.check(dataclasses.replace(inside, obs=wide), cart)
    image = make("Breakout-MinAtar")
    shape = (N, *image.obs_shape)
    grid = {name: np.zeros(shape, np.uint8) for name in ("obs", "next_obs")}
    dataset.check(from_arrays(rows | grid), image)
    grid["obs"][3, 1, 2, 3] = grid["next_obs"][2, 1, 2, 3] = 255
    with pytest.raises(Refused, match=r"obs\[1, 2, 3\]: row 3 is 255, .* has 0 to 1 there"):
        dataset.check(from_arrays(rows | grid, finish="truncate"), image)
    swing = tiny_data.continuous()
    with pytest.raises(Refused, match=r"action\[0\]: row 1 is 2, .* has -1 to 1 there"):
        changed = swing.action.at[1].set(2.0)
        dataset.check(dataclasses.replace(swing, action=changed), make(swing.env))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gymnax_declares_the_ranges_that_it_keeps():
    """Random play stays inside of them, but for those named in LOOSE."""
    import gymnax

    for id in gymnax.registered_envs:
        name = id.partition("-")[0]
        if name in ("MNISTBandit", "probe"):  # needs the network; a test's own
            continue
        data = collect.random(id, 4)
        if id not in dataset.LOOSE:
            dataset.check(data, make(id))


# ---- several data sets ---------------------------------------------------------------------------


def test_several_data_sets(tmp_path, data):
    dataset.save(data, tmp_path / "a.npz")
    assert dataset.load_all(None) is None and dataset.load_all(data) is data
    same(dataset.load_all(tmp_path / "a.npz"), data)
    got = dataset.load_all({"expert": str(tmp_path / "a.npz"), "mixed": data})
    assert list(got) == ["expert", "mixed"] and got["mixed"] is data
    same(got["expert"], data)
    for given, match in (
        ({"expert": data, "mixed": tmp_path / "b.npz"}, "dataset mixed: there is no file .*b.npz"),
        ({"obs": np.zeros(3)}, "dataset 'obs' is ndarray: .*from_arrays"),
        ({"a": {"b": data}}, "dataset 'a' is dict"),
        ({0: data}, "dataset 0 is Dataset: must be a name"),
        ({}, "dataset is dict: must be"),
        ([data], "dataset is list: must be"),
    ):
        with pytest.raises(Refused, match=match):
            dataset.load_all(given)
    tiny = {"a": tiny_data.discrete(), "b": tiny_data.continuous()}
    dataset.check({"a": tiny["a"]}, make("probe-action"))
    with pytest.raises(Refused, match="dataset b: actions of the data set are continuous"):
        dataset.check(tiny, make("probe-action"))


@pytest.mark.parametrize("build", [tiny_data.discrete, tiny_data.continuous])
def test_tiny_data(build, capsys):
    data = build()
    dataset.validate(data)
    dataset.check(data, make(data.env))
    assert (len(data), data.num_episodes, int(data.truncated.sum())) == (48, 32, 8)
    assert data.obs.shape == (48, 1) and data.obs.dtype == jnp.float32
    assert dataset.normalized_score(data, data.reference[1]) == 100
    assert capsys.readouterr().err == "" and float(data.reward.max()) <= 1.0


# ---- statistics and scores -----------------------------------------------------------------------


@pytest.mark.parametrize("obs", [np.float32, np.uint8, bool])
def test_stats(monkeypatch, obs):
    monkeypatch.setattr(dataset, "BLOCK", 4)
    data = from_arrays(walk(obs=obs))
    mean, std = dataset.stats(data)
    rows = np.asarray(data.obs, np.float64)
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-7)
    np.testing.assert_allclose(std, rows.std(0), rtol=1e-7)
    assert mean.dtype == std.dtype == jnp.float32 and mean.shape == data.obs.shape[1:]
    inside = jax.jit(lambda data, eps: dataset.stats(data, eps).std)  # data are traced in `make`
    np.testing.assert_allclose(inside(data, 1e-3), std + 1e-3, rtol=1e-6)
    part = dataset.take(data, [2])
    np.testing.assert_allclose(dataset.stats(part).mean, np.asarray(part.obs).mean(0), rtol=1e-6)


def test_stats_of_large_numbers_and_constants():
    """By float32 sums, a deviation of 1 around 10 million is lost."""
    rng, count = np.random.default_rng(0), 100_000
    obs = np.stack([1e7 + rng.integers(-1, 2, count), np.full(count, 0.1)], 1).astype(np.float32)
    ends = np.ones(count, bool)
    zero = np.zeros(count, np.float32)
    arrays = {"obs": obs, "next_obs": obs, "action": zero[:, None], "reward": zero}
    data = from_arrays(arrays | {"terminated": ends, "truncated": ~ends})
    want = obs.astype(np.float64).std(0)[0]
    np.testing.assert_allclose(dataset.stats(data).std, [want, 0.0], rtol=1e-6)
    assert dataset.stats(data).mean[1] == np.float32(0.1)
    naive = np.mean(obs[:, 0] ** 2) - np.mean(obs[:, 0]) ** 2
    assert abs(naive / want**2 - 1) > 0.1


def test_scores_in_compiled_code(data):
    score = jax.jit(dataset.normalized_score)
    np.testing.assert_allclose(score(data, jnp.array([-10.0, 10.0, 30.0])), [0.0, 50.0, 100.0])
    np.testing.assert_allclose(jax.vmap(score, (None, 0))(data, jnp.arange(2.0)), [25.0, 27.5])


# ---- episodes ------------------------------------------------------------------------------------


def rows_of(data):
    """All rows, as NumPy arrays."""
    return Transition(*(np.asarray(getattr(data, name)) for name in Transition._fields))


def of(data, e):
    """Episode e."""
    first, last = np.asarray(data.starts)[e : e + 2]
    return jax.tree.map(lambda x: x[first:last], rows_of(data))


def test_episodes_take_split_top(data):
    starts, lengths, returns = dataset.episodes(data)
    assert (starts.tolist(), lengths.tolist()) == ([0, 3, 4, 8, 10], list(LENGTHS))
    assert (
        returns.tolist() == [of(data, e).reward.sum() for e in range(5)]
        and returns.dtype == np.float64
    )
    assert (len(data), data.num_episodes, data.discrete) == (N, 5, True)
    assert data.nbytes == N * (12 + 4 + 4 + 12 + 1 + 1) + 6 * 4 + 2 * 12 + 5 * 4

    taken = dataset.take(data, [4, 1, 1])
    dataset.validate(taken)
    assert (taken.env, taken.source, taken.reference) == (data.env, data.source, data.reference)
    for i, e in enumerate((4, 1, 1)):
        same(of(taken, i), of(data, e))
    best = dataset.top(data, 0.3)  # rounded up: 2 of 5
    assert dataset.episodes(best).returns.tolist() == [
        r for r in returns if r in sorted(returns)[-2:]
    ]
    train, validation = dataset.split(data, 0.4, seed=1)
    assert (train.num_episodes, validation.num_episodes) == (3, 2)
    assert sorted(
        [*dataset.episodes(train).returns, *dataset.episodes(validation).returns]
    ) == sorted(returns)
    same(dataset.split(data, 0.4, seed=1)[1], validation)
    assert {dataset.split(data, 0.2, seed=s)[1].reward.shape for s in range(20)} == {
        (n,) for n in LENGTHS
    }
    assert (
        dataset.normalized_score(data, 30.0) == 100 and dataset.normalized_score(data, -10.0) == 0
    )
    for call, match in (
        (lambda: dataset.take(data, [0, 5]), "episode 5 does not exist: there are 5"),
        (lambda: dataset.take(data, []), "as whole numbers"),
        (lambda: dataset.take(data, [True, False]), r"bools \[5\], not as bool\[2\]"),
        (lambda: dataset.split(data, 0.01), "fraction=0.01 of 5 episodes would be 0"),
        (lambda: dataset.top(data, 1.5), r"fraction=1.5: must lie in \(0, 1\]"),
        (
            lambda: dataset.normalized_score(dataclasses.replace(data, reference=None), 1.0),
            "reference=None: a score needs",
        ),
        (
            lambda: dataset.normalized_score(dataclasses.replace(data, reference=(1.0, 1.0)), 1.0),
            r"reference=\(1.0, 1.0\): a score needs",
        ),
    ):
        with pytest.raises(Refused, match=match):
            call()


def test_rewards_are_scaled_by_the_range_of_returns(data):
    returns = dataset.episodes(data).returns
    np.testing.assert_array_equal(data.returns, returns.astype(np.float32))
    scale = jax.jit(dataset.reward_scale)(data)
    assert float(scale) == pytest.approx(1000.0 / (returns.max() - returns.min()), rel=1e-6)
    scaled = from_arrays(walk() | {"reward": np.asarray(data.reward) * float(scale)})
    assert np.ptp(dataset.episodes(scaled).returns) == pytest.approx(1000.0, rel=1e-5)
    flat = from_arrays(walk() | {"reward": np.zeros(N, np.float32)})
    assert float(dataset.reward_scale(flat)) == 1.0
    assert float(dataset.reward_scale(data, 1.0)) == pytest.approx(float(scale) / 1000.0)


def test_returns_are_summed_in_double_precision():
    """By float32 sums, 0.01 a step is lost beside 10 million."""
    count = 2_000
    reward = np.full(count, 0.01, np.float32)
    reward[0] = 1e6
    zero, ends = np.zeros((count, 1), np.float32), np.arange(count) == count - 1
    arrays = {"obs": zero, "next_obs": zero, "action": zero, "reward": reward}
    data = from_arrays(arrays | {"terminated": ends, "truncated": ends & False})
    assert float(data.returns[0]) == pytest.approx(1e6 + 19.99, abs=0.04)
    assert abs(np.cumsum(reward)[-1] - (1e6 + 19.99)) > 1.0


def test_actions_stay_inside():
    action = jnp.array([-1.0, -0.5, 0.0, 0.99999999, 1.0])
    got = np.asarray(dataset.clip_actions(action))
    assert np.abs(got).max() < 1.0 == np.abs(action).max()
    np.testing.assert_allclose(got, [-0.99999, -0.5, 0.0, 0.99999, 0.99999], rtol=1e-6)


def test_the_first_episodes(data):
    same(dataset.first(data, 3), dataset.take(data, [0, 1, 2]))
    same(dataset.first(data, 5), data)
    for count in (0, 6):
        with pytest.raises(Refused, match=f"first: {count} episodes of 5: must be from 1"):
            dataset.first(data, count)


def test_rows_of_the_expert_are_marked(data):
    parts = [dataset.marked(dataset.first(data, 2), True), dataset.marked(data, False)]
    both = dataset.concatenate(parts)
    expert = np.asarray(both.extra["expert"])
    assert expert.dtype == bool and expert.tolist() == [True] * 4 + [False] * N
    dataset.validate(both)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.3, 0.5, 0.8, 1.0])
def test_drawing_from_the_top_alone(data, fraction):
    """The rows that `top` keeps, and each as often as the others."""

    @jax.jit
    def drawn(fraction, key):
        preferred = dataset.prefer_top(data, fraction)
        return dataset.draw(preferred, key, 20_000), preferred.weights

    rows, weights = drawn(fraction, jax.random.key(0))
    best = dataset.top(data, fraction)
    kept = {r for e in np.flatnonzero(weights) for r in range(*np.asarray(data.starts)[e : e + 2])}
    assert sum(dataset.episodes(data).returns[np.flatnonzero(weights)]) == sum(best.returns)
    counts = np.bincount(rows, minlength=N)
    assert set(np.flatnonzero(counts)) == kept and len(kept) == len(best)
    assert stats.chisquare(counts[sorted(kept)]).pvalue > 1e-4


def test_seven_percent_of_a_hundred_episodes_are_seven():
    """0.07 * 100 is 7.000000000000001."""
    data = from_arrays(walk((1,) * 100, "t" * 100))
    assert np.ceil(0.07 * 100) == 8
    assert dataset.top(data, 0.07).num_episodes == 7
    assert float(dataset.prefer_top(data, 0.07).weights.sum()) == 7
    assert float(jax.jit(dataset.prefer_top)(data, 0.07).weights.sum()) == 7
    ties = dataclasses.replace(data, returns=jnp.zeros(100))
    assert np.flatnonzero(dataset.prefer_top(ties, 0.02).weights).tolist() == [0, 1]


def test_concatenate(data):
    other = from_arrays(walk((2, 2), "tt", seed=1), env="CartPole-v1", source="b")
    both = dataset.concatenate([data, other])
    dataset.validate(both)
    assert (
        both.cumulative is None and both.source == "a walk + b" and both.reference == (-10.0, 30.0)
    )
    for e in range(5):
        same(of(both, e), of(data, e))
    same(of(both, 6), of(other, 1))
    share = lambda mixed: (
        float(mixed.cumulative[4]) / 2**31
    )  # of the first data set's rows in a batch
    assert share(dataset.concatenate([data, other], (1, 3))) == pytest.approx(1 / 4)
    picky = dataset.weighted(other, [0, 1])
    mixed = dataset.concatenate([data, picky])
    assert share(mixed) == pytest.approx(N / (N + 4)) and float(mixed.weights[5]) == 0
    with pytest.raises(Refused, match="weights are all 0"):
        dataset.take(picky, [0])
    for parts, ratio, match in (
        ([], None, "no data sets"),
        (
            [data, dataclasses.replace(other, env="Acrobot-v1")],
            None,
            "data set 1 is of 'Acrobot-v1', data set 0 of",
        ),
        ([data, dataclasses.replace(other, reference=(0.0, 1.0))], None, "reference of data set 1"),
        (
            [data, from_arrays(walk(obs=np.uint8), env="CartPole-v1")],
            None,
            r"obs of data set 1 is uint8\[N, 3\], of",
        ),
        (
            [data, dataclasses.replace(other, extra={"x": other.reward})],
            None,
            "extra/x .* of data set 0 missing",
        ),
        ([data, other], (1, 0), "must be 2 positive numbers"),
    ):
        with pytest.raises(Refused, match=match):
            dataset.concatenate(parts, ratio)


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_returns_to_go(data, discount):
    want, total = np.zeros(N), 0.0
    naive = np.zeros(N)
    for i in reversed(range(N)):
        total = float(data.reward[i]) + discount * (
            0.0 if data.terminated[i] or data.truncated[i] else total
        )
        want[i] = total
        naive[i] = float(data.reward[i]) + discount * (
            0.0 if data.terminated[i] or i + 1 == N else naive[i + 1]
        )
    got = jax.jit(dataset.returns_to_go)(data, discount)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-5)
    assert (
        np.abs(got - naive)[3] > 0.1
    )  # cut by terminations alone, an episode collects the next one's rewards


# ---- drawing -------------------------------------------------------------------------------------


DRAWS = 4000
draw = jax.jit(dataset.draw, static_argnums=2)


def fits(index, chance):
    """The p-value of drawing rows `index` where row i has chance[i]; rows with chance 0 must not
    occur."""
    counts = np.bincount(index, minlength=len(chance))
    assert not counts[chance == 0].any()
    return stats.chisquare(counts[chance > 0], chance[chance > 0] * len(index)).pvalue


def test_sample_is_uniform_or_by_weight(data):
    chance = np.full(N, 1 / N)
    index = draw(data, jax.random.key(0), DRAWS)
    assert fits(index, chance) > 0.01
    weights = np.array([0.5, 3.0, 0.0, 1.0, 0.1])
    chance = np.repeat(weights, LENGTHS) / np.repeat(weights, LENGTHS).sum()
    index = draw(dataset.weighted(data, weights), jax.random.key(1), DRAWS)
    assert fits(index, chance) > 0.01
    naive = np.repeat(
        weights / weights.sum() / LENGTHS, LENGTHS
    )  # an episode, then a step: favors short episodes
    assert fits(index, naive) < 1e-6
    for wrong, match in (
        ([1, 1], r"have shape \[2\]"),
        ([1, 1, -1, 1, 1], "episode 2 has -1"),
        ([0] * 5, "are all 0"),
        ([1, 1, 1, np.nan, 1], "episode 3 has nan"),
    ):
        with pytest.raises(Refused, match=match):
            dataset.weighted(data, wrong)
    with pytest.raises(Refused, match="n=0"):
        dataset.sample(data, jax.random.key(0), 0)


def test_weights_of_a_million_episodes():
    """float32 cannot hold a running sum of a million chances, nor draw points between them."""
    count = 1_000_000
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.1, 2.0, count)
    zero = jnp.zeros(count)
    ones = jnp.ones(count, bool)
    data = Dataset(zero, zero, zero, zero, ones, ~ones, jnp.arange(count + 1, dtype=jnp.int32))
    chance = weights / weights.sum()
    got = (
        np.diff(np.asarray(dataset.weighted(data, weights).cumulative, np.float64), prepend=0)
        / 2**31
    )
    assert np.abs(got / chance - 1).max() < 5e-3
    naive = np.diff(np.cumsum(chance.astype(np.float32)), prepend=np.float32(0))
    assert np.abs(naive / chance - 1).max() > 0.2
    index = np.asarray(draw(dataset.weighted(data, weights), jax.random.key(0), 200_000))
    groups = np.argsort(weights)  # a thousand groups of equal weights
    of_group = np.empty(count, int)
    of_group[groups] = np.arange(count) // 1000
    assert fits(of_group[index], chance[groups].reshape(1000, 1000).sum(1)) > 0.01


@pytest.mark.parametrize("pad", ["left", "right"])
def test_windows_stay_within_an_episode(data, pad):
    length, n = 3, 300
    weights = np.array([1, 1, 0, 1, 1])
    compiled = jax.jit(dataset.windows, static_argnums=(2, 3, 4))
    got = jax.tree.map(
        np.asarray, compiled(dataset.weighted(data, weights), jax.random.key(0), n, length, pad)
    )
    rows, episode, starts = rows_of(data), np.repeat(np.arange(5), LENGTHS), np.asarray(data.starts)
    blank = jax.tree.map(lambda x: np.zeros_like(x[0]), rows)
    drawn = got.index[:, -1 if pad == "left" else 0]
    assert set(drawn) == set(np.flatnonzero(weights[episode]))
    for k in np.unique(drawn, return_index=True)[1]:
        i = drawn[k]
        span = range(i - length + 1, i + 1) if pad == "left" else range(i, i + length)
        for place, j in enumerate(span):
            inside = 0 <= j < N and episode[j] == episode[i]
            assert got.mask[k, place] == inside
            here = jax.tree.map(lambda x, at=(k, place): x[at], (got.batch, got.step))
            row = jax.tree.map(lambda x, j=j: x[j], rows) if inside else blank
            same(here, (row, np.int32(j - starts[episode[i]] if inside else 0)))
    naive = episode[np.clip(drawn[:, None] + np.arange(length), 0, N - 1)]
    assert (naive != naive[:, :1]).any()  # windows of rows, whatever they hold, cross
    with pytest.raises(Refused, match="pad='middle'"):
        dataset.windows(data, jax.random.key(0), 2, 2, "middle")


def test_in_compiled_code(data):
    """A traced argument: another data set of the same shapes and facts runs in the same program; a
    loss written for replay takes its batches."""
    traced = []

    @jax.jit
    def loss(data, params, key):
        traced.append(1)
        batch = dataset.sample(data, key, 8)
        assert isinstance(batch, Transition)
        sample = replay.Sample(batch, jnp.full(8, 0.9), jnp.zeros(8, jnp.int32), jnp.ones(8))
        q = lambda params, obs: obs @ params
        return dqn.td_loss(params, params, sample, q, dqn.Config())[0]

    params = jnp.ones((3, 3)) / 100
    again = from_arrays(walk(), env="CartPole-v1", source="a walk", reference=(-10.0, 30.0))
    assert hash(jax.tree.structure(again)) == hash(jax.tree.structure(data))
    losses = [
        float(loss(d, params, jax.random.key(0))) for d in (data, again, dataset.top(data, 1.0))
    ]
    assert losses[0] == losses[1] == losses[2] and np.isfinite(losses[0]) and len(traced) == 1
    assert (
        float(loss(dataclasses.replace(again, reward=again.reward + 1), params, jax.random.key(0)))
        != losses[0]
    )
    assert len(traced) == 1  # the data are not baked in
    loss(dataclasses.replace(data, env="Acrobot-v1"), params, jax.random.key(0))
    assert len(traced) == 2


@rlzoo.config
class Config:
    env: str = rlzoo.static("CartPole-v1")
    total_steps: int = rlzoo.static(400)
    learning_rate: float = 0.02


def learn_the_mean(config, env, dataset=None):
    """A running mean of the rewards drawn."""

    def step(state, t):
        mean, key = state
        key, draw_key = jax.random.split(key)
        reward = rlzoo.dataset.sample(dataset, draw_key, 16).reward.mean()
        return (mean + config.learning_rate * (reward - mean), key), {"loss/x": mean}

    return rlzoo.Algorithm(
        lambda key: (jnp.float32(0), key),
        step,
        lambda state: state[0],
        None,
        steps_per_call=1,
        evaluate=lambda state, key: {"eval/return": state[0]},
        rollouts=False,
    )


def test_train_on_data(tmp_path):
    """The loop hands a data set to every member, and its weights with it."""
    data = tiny_data.discrete()
    episodes = np.split(np.asarray(data.reward), np.asarray(data.starts[1:-1]))
    varied = np.array([len(set(rewards.tolist())) > 1 for rewards in episodes])
    chosen = np.arange(data.num_episodes) == varied.argmax()
    heavy = dataset.weighted(data, chosen.astype(float))
    want = float(episodes[varied.argmax()].mean())
    run = rlzoo.train(
        learn_the_mean,
        Config(env="probe-action"),
        heavy,
        seeds=2,
        out=str(tmp_path / "run"),
        quiet=True,
        cache=False,
    )
    got = [member["eval/return"] for member in run.summary["members"]]
    assert got == pytest.approx([want, want], abs=0.3 * float(data.reward.std()))
    assert got[0] != got[1]


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `rlzoo data ARGV`; gives (exit code, stdout, stderr)."""

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["rlzoo", "data", *map(str, argv)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_describe(command, data, tmp_path):
    heavy = dataset.weighted(data, [0, 0, 1, 0, 0])
    dataset.save(heavy, tmp_path / "data.npz")
    code, out, err = command("describe", tmp_path / "data.npz")
    assert (code, err) == (0, "")
    returns = dataset.episodes(data).returns
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    assert rows["environment"] == ["CartPole-v1"] and rows["source"] == ["a", "walk"]
    assert rows["transitions"][:4] == ["15", "in", "5", "episodes,"]
    assert "60.0% of the episodes terminated, 40.0% truncated" in out
    assert [float(x) for x in rows["return"]] == pytest.approx(
        [returns.mean(), *np.quantile(returns, (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1))], rel=1e-3
    )
    assert [float(x) for x in rows["length"]][:2] == [3, 1]
    assert float(rows["score"][0]) == pytest.approx(100 * (returns.mean() + 10) / 40, rel=1e-3)
    assert f"from episodes of return {returns[2]:.4g}" in out
    assert [float(x) for x in rows["obs[1]"]] == pytest.approx(
        [float(f(data.obs[:, 1])) for f in (jnp.mean, jnp.min, jnp.max)], rel=1e-3
    )
    share = float(jnp.mean(data.action == 2))
    assert f"action 2    {share:>8.1%}" in out and "int32[15]" in out


def test_what_the_command_refuses(command, data, tmp_path):
    def refused(*argv, match):
        code, out, err = command(*argv)
        assert (
            code == 2
            and err.splitlines()[-1].startswith("error: ")
            and match in err.splitlines()[-1]
        ), (out, err)
        return out

    dataset.save(data, tmp_path / "data.npz")
    refused(
        "describe",
        tmp_path / "data.npz",
        "--env",
        "Pendulum-v1",
        match="discrete, those of Pendulum-v1",
    )
    np.savez(tmp_path / "open.npz", **put("terminated", 14, False))
    out = refused(
        "describe", tmp_path / "open.npz", match="open.npz: truncated: row 14 is the last"
    )
    assert "next_obs    float32[15, 3]" in out  # what there is, all the same
    assert command("describe", tmp_path / "open.npz", "--finish", "truncate")[0] == 0
    refused("describe", tmp_path / "none.npz", match="there is no file")
    refused("convert", tmp_path / "data.npz", tmp_path / "open.npz", match="exists already")
    refused(
        "convert", tmp_path / "data.npz", tmp_path / "data.csv", match="written as .npz or .hdf5"
    )
    refused(
        "collect", "--out", tmp_path / "new.npz", match="either a run directory or --random ENV"
    )
    refused(
        "collect",
        tmp_path,
        "--random",
        "CartPole-v1",
        "--out",
        tmp_path / "new.npz",
        match="either a run directory or",
    )
    refused(
        "collect",
        tmp_path,
        "--replay",
        "--noise",
        "0.1",
        "--out",
        tmp_path / "new.npz",
        match="exclude one another",
    )
    refused("collect", tmp_path, "--out", tmp_path / "new.npz", match="is not a run")
    refused("collect", tmp_path, "--out", tmp_path / "data.npz", match="exists already")
    assert command()[0] == 2


def test_convert(command, tmp_path, data):
    dataset.save(data, tmp_path / "data.npz")
    assert command("convert", tmp_path / "data.npz", tmp_path / "data.hdf5")[:2] == (
        0,
        f"wrote {tmp_path / 'data.hdf5'}\n",
    )
    same(dataset.load(tmp_path / "data.hdf5"), data)


# ---- real data -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file, rows, episodes, terminated",
    [
        ("neorl2/DMSD-high-20000-val", 20_000, 200, 0),
        ("neorl2/RandomFrictionHopper-high-20000-val", 20_047, 218, 218),
        ("mbrcsl_pointmaze_regen/pointmaze_1000x200_seed0", 199_000, 1000, 0),
        ("roboverse_small/closed_drawer_prior", 393, 10, 0),
    ],
)
def test_real_data(file, rows, episodes, terminated):
    path = SHARED / f"{file}.npz"
    if not path.exists():
        pytest.skip(f"{path} is not here: set RLZOO_DATA to the folder that holds offline/")
    stored = np.load(path)
    names = {} if "done" in stored else {"terminated": "never"}
    data = dataset.load(path, names=names)
    assert (len(data), data.num_episodes, int(data.terminated.sum())) == (
        rows,
        episodes,
        terminated,
    )
