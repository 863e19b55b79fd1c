"""Files and layouts of others: what is not read is said, what is not stored is asked for."""

import dataclasses
import warnings

import numpy as np
import pytest
from test_dataset import LENGTHS, SHARED, N, command, renamed, same, walk  # noqa: F401

from rlzoo import dataset, formats, layouts
from rlzoo.algorithm import Refused
from rlzoo.dataset import from_arrays


def without(arrays, *names):
    return {name: x for name, x in arrays.items() if name not in names}


# ---- which array is which ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dones_float", "masks", "end"])
def test_no_array_for_terminated_is_an_error(name):
    """Once it was taken as never, and cutting where successors break took real ends for cuts."""
    arrays = renamed(walk(), terminated=name)
    for finish in (None, "truncate"):
        with pytest.raises(Refused) as refused:
            from_arrays(arrays, finish=finish)
        assert "no array is called terminated or terminals" in str(refused.value)
        assert f"there are: obs, action, reward, next_obs, {name}, truncated;" in str(refused.value)
        assert "names={'terminated': 'NAME'}" in str(refused.value)
        assert "--names terminated=NAME" in str(refused.value)
    same(from_arrays(arrays, names={"terminated": name}), from_arrays(walk()))


def test_names_that_are_said(capsys):
    want, arrays = from_arrays(walk()), walk()
    masks = renamed(arrays, terminated="masks") | {"masks": 1.0 - arrays["terminated"]}
    same(from_arrays(masks, names={"terminated": "1-masks"}), want)
    ends = renamed(arrays, truncated="cuts")
    ends["terminated"] = arrays["terminated"] | arrays["truncated"]
    said = {"terminated": "terminated-cuts", "truncated": "cuts"}
    same(from_arrays(ends, names=said), want)
    assert "left out" not in capsys.readouterr().err
    same(from_arrays(renamed(arrays, obs="s"), names={"obs": "s"}), want)
    both = arrays | {"rewards": arrays["reward"]}
    same(from_arrays(both, names={"reward": "reward"}), want)
    assert "note: left out: rewards" in capsys.readouterr().err
    for name in ("terminals", "terminations", "terminal", "dones"):
        same(from_arrays(renamed(arrays, terminated=name)), want)
    for names, match in (
        ({"terminal": "x"}, "names: array 'terminal' is unknown; nearest: terminated"),
        ({"terminated": "x"}, "names: no array is called x; there are: obs, action"),
        ({"reward": "never"}, "names: no array is called never"),
        ({"terminated": "1-x"}, "names: no array is called 1-x"),
        ({"terminated": "truncated-terminated"}, "terminated: row 2 holds -1.0: must be 0 or 1"),
    ):
        with pytest.raises(Refused, match=match):
            from_arrays(arrays, names=names)
    assert layouts.names_from(["terminated=1-masks", "obs=s"]) == {
        "terminated": "1-masks",
        "obs": "s",
    }
    for words, match in (
        (["terminated"], "'terminated' should read ARRAY=NAME"),
        (["obs=a", "obs=b"], "obs is given twice"),
    ):
        with pytest.raises(Refused, match=match):
            layouts.names_from(words)


def test_done_may_mean_an_end_of_either_kind():
    arrays = renamed(walk(), terminated="dones", truncated="timeouts")
    with pytest.raises(Refused, match=r"dones alone does not say .*--names terminated=dones"):
        from_arrays(without(arrays, "timeouts"))
    arrays["dones"] = arrays["dones"] | arrays["timeouts"]
    with pytest.raises(Refused, match=r"dones is set at all 2 truncated rows: .*=dones-timeouts"):
        from_arrays(arrays)
    same(from_arrays(arrays, names={"terminated": "dones-timeouts"}), from_arrays(walk()))
    assert from_arrays(arrays, names={"terminated": "dones"}).terminated.sum() == 5


def test_cuts_that_nothing_shows_are_asked_for():
    """Where successors come from the row after and nothing marks a cut, an episode would go on in
    the next one."""
    arrays = without(walk(ends="eeeee"), "next_obs", "truncated")
    with pytest.raises(Refused, match=r"neither next_obs nor truncated .*--names truncated=NAME"):
        from_arrays(arrays)
    with pytest.raises(Refused, match="neither next_obs nor truncated"):
        from_arrays(arrays, finish="truncate")
    got = from_arrays(arrays, names={"truncated": "never"})
    assert dataset.episodes(got).lengths.tolist() == list(LENGTHS) and got.terminated.sum() == 5
    arrays = without(walk(ends="eeeee"), "truncated")
    arrays["next_obs"][:-1] = arrays["obs"][1:]  # made, as a reader of D4RL might
    with pytest.raises(Refused, match=r"row after at all 4 terminated rows, .*truncated=NAME"):
        from_arrays(arrays)
    assert from_arrays(arrays, names={"truncated": "never"}).num_episodes == 5
    shown = from_arrays(without(walk(), "truncated"), finish="truncate")
    same(shown, from_arrays(walk()))


# ---- what is decided is said ---------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npz", "hdf5", "minari"])
def test_both_flags_on_a_row(tmp_path, monkeypatch, capsys, suffix):
    """The task did end, whatever the file; once all but Minari's were refused."""
    arrays = walk(discrete=False)
    want = from_arrays(arrays)
    arrays["truncated"] = arrays["truncated"] | arrays["terminated"]
    path = write(tmp_path, monkeypatch, arrays, suffix)
    got = dataset.load(path)
    assert (
        "note: 3 rows are both terminated and truncated: taken as term" in capsys.readouterr().err
    )
    same(dataclasses.replace(got, source=""), want)


@pytest.mark.parametrize("suffix", ["npz", "hdf5", "minari"])
def test_every_source_says_what_it_leaves_out(tmp_path, monkeypatch, capsys, suffix):
    arrays = walk(discrete=False) | {"infos/speed": np.ones(N), "infos/qpos": np.ones((N, 2))}
    loose = {} if suffix == "minari" else {"tag": np.array("x"), "weights": np.ones(3)}
    path = write(tmp_path, monkeypatch, arrays | loose, suffix)
    dataset.load(path)
    note = next(x for x in capsys.readouterr().err.splitlines() if "left out" in x)
    assert set(note.removeprefix("note: left out: ").split(", ")) == {"infos/ (2 arrays)", *loose}
    shown = formats.contents(formats.read(path)[0])
    assert f"infos/qpos   float64[{LENGTHS[0] if suffix == 'minari' else N}, 2]" in shown


def test_what_else_is_said(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", **walk(), metadata=np.array("not ours"))
    dataset.load(tmp_path / "a.npz")
    assert "note: left out: metadata" in capsys.readouterr().err
    from_arrays(walk() | {"length": np.array(LENGTHS)})
    assert "note: left out: length (the arrays are not stacked" in capsys.readouterr().err
    arrays = walk() | {f"x{i}": np.ones(N) for i in range(20)}
    from_arrays(arrays)
    assert "x10, x11 and 8 more" in capsys.readouterr().err
    from_arrays(without(walk(), "truncated"), finish="truncate")
    assert "finish='truncate' ended 2 episodes that broke off" in capsys.readouterr().err


def write(folder, monkeypatch, arrays, suffix):
    """`arrays` as a file; those in `infos/` are groups or infos where the format has these."""
    if suffix == "minari":
        return write_minari(folder, monkeypatch, arrays)
    path = folder / f"data.{suffix}"
    if suffix == "npz":
        np.savez(path, **arrays)
        return path
    import h5py

    with h5py.File(path, "w") as file:
        for name, x in arrays.items():
            file[name] = "x" if x.dtype.kind == "U" else x
    return path


def write_minari(folder, monkeypatch, arrays):
    """`arrays` by minari's own API; gives its id."""
    import gymnasium
    import minari
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    last = np.flatnonzero(arrays["terminated"] | arrays["truncated"])
    buffers = []
    for first, end in zip([0, *last[:-1] + 1], last + 1, strict=True):
        part = {name: x[first:end] for name, x in arrays.items()}
        infos = {n.partition("/")[2]: x for n, x in part.items() if n.startswith("infos/")}
        buffers.append(
            EpisodeBuffer(
                observations=np.concatenate([part["obs"], part["next_obs"][-1:]]),
                actions=part["action"],
                rewards=list(part["reward"]),
                terminations=list(part["terminated"]),
                truncations=list(part["truncated"]),
                infos=infos,
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for an author and the like
        minari.create_dataset_from_buffers(
            "test/walk-v0",
            buffers,
            observation_space=gymnasium.spaces.Box(0, 100, (3,), np.float32),
            action_space=gymnasium.spaces.Box(-1.0, 1.0, (2,)),
        )
    return "minari:test/walk-v0"


# ---- layouts -------------------------------------------------------------------------------------


def test_columns():
    """NeoRL-2's own files hold rewards and flags [N, 1], other libraries discrete actions too."""
    arrays = renamed(walk(), terminated="done")
    columns = {
        name: x[:, None] if name in ("action", "reward", "done", "truncated") else x
        for name, x in arrays.items()
    }
    same(from_arrays(columns), from_arrays(walk()))
    one = {"terminated": "never"}
    images = without(walk(ends="ttttt"), "terminated")
    for name in ("obs", "next_obs"):
        images[name] = np.repeat(images[name][:, None], 5, axis=1)
    columns = images | {"reward": images["reward"][:, None], "action": images["action"][:, None]}
    same(from_arrays(columns, names=one), from_arrays(images, names=one))
    stack = without(walk((1,) * N, "t" * N), "terminated")
    stack = {name: x[:, None] for name, x in stack.items()}
    got = from_arrays(stack, names=one)
    assert got.obs.shape == (N, 3) and got.num_episodes == N


def test_padding_without_length(capsys):
    """Zeros after an episode's end were read as one more episode."""
    lengths = np.array([3, 1, 4])
    rows, stack = walk(lengths, "ett", discrete=False), {}
    for name, x in rows.items():
        stack[name] = np.zeros((3, 4, *x.shape[1:]), x.dtype)
        stack[name][np.arange(4) < lengths[:, None]] = x
    with pytest.raises(Refused, match="episode 0 holds only zeros after its end: give length"):
        from_arrays(stack)
    same(from_arrays(stack | {"length": lengths}), from_arrays(rows))
    streams = {name: x.reshape(3, 5, *x.shape[1:]) for name, x in walk().items()}
    streams["truncated"][:2, -1] = ~streams["terminated"][:2, -1]
    got = from_arrays(streams)  # several episodes one after the other in each
    assert got.num_episodes == 6 and len(got) == N


def test_actions_that_the_environment_clips(capsys):
    arrays = walk(discrete=False)
    arrays["action"][4, 1], arrays["action"][7] = 1.25, [-3, 2]
    with pytest.raises(Refused, match=r"action: row 4 \(and 1 more\) .*clip=True .*--clip\) clips"):
        from_arrays(arrays)
    want = arrays | {"action": np.clip(arrays["action"], -1, 1)}
    same(from_arrays(arrays, clip=True), from_arrays(want))
    assert "clip=True clipped the actions of 2 of 15 rows" in capsys.readouterr().err
    wide = arrays | {"action": arrays["action"] * 4}
    same(from_arrays(wide, clip=True, bounds=(-4, 4)), from_arrays(want))
    with pytest.raises(Refused, match="clip: only continuous actions"):
        from_arrays(walk(), clip=True)


# ---- other people's files ------------------------------------------------------------------------


def test_d4rl_v2(tmp_path, capsys):
    """Its file: names of its own, groups beside them."""
    import h5py

    arrays = walk(discrete=False)
    with h5py.File(tmp_path / "hopper.hdf5", "w") as file:
        for name, x in arrays.items():
            file[formats.D4RL[name]] = x
        file["infos/action_log_probs"] = np.zeros(N)
        file["infos/qpos"] = np.zeros((N, 6))
        file["metadata/algorithm"] = np.bytes_("SAC")
        file["metadata/policy/fc0/weight"] = np.zeros((4, 4))
        file["metadata/policy/fc0/bias"] = np.zeros(4)
    got = dataset.load(tmp_path / "hopper.hdf5")
    same(dataclasses.replace(got, source="", reference=None), from_arrays(arrays))
    said = capsys.readouterr().err
    assert (
        "note: left out: infos/ (2 arrays), metadata/algorithm, metadata/policy/fc0/ (2 arrays)"
        in said
    )
    assert got.reference == (-20.272305, 3234.3)
    assert "hopper.hdf5: scores of 0 and 100 are D4RL's returns of -20.2723 and 3234.3" in said
    said = dataset.load(tmp_path / "hopper.hdf5", names={"reward": "infos/action_log_probs"})
    assert not said.reward.any()
    with h5py.File(tmp_path / "hopper.hdf5", "a") as file:
        file.move("timeouts", "infos/timeouts")
        file.move("terminals", "infos/over")
    with pytest.raises(Refused, match=r"no array is called terminated .*there are: .*infos/ \(4"):
        dataset.load(tmp_path / "hopper.hdf5")
    got = dataset.load(tmp_path / "hopper.hdf5", names={"terminated": "infos/over"})
    same(dataclasses.replace(got, source="", reference=None), from_arrays(arrays))


def test_references_of_d4rl(tmp_path, capsys):
    """100 * (1000 + 20.272305) / (3234.3 + 20.272305) is 31.349... for hopper."""
    import h5py

    for name, task in {
        "hopper-medium-v2": "hopper",
        "hopper_medium_replay-v2.hdf5": "hopper",
        "halfcheetah-random-v2": "halfcheetah",
        "Ant_maze_umaze_noisy_multistart_False.hdf5": "antmaze",
        "antmaze-large-play-v0": "antmaze",
        "ant-expert-v2": "ant",
        "mini_kitchen_microwave_kettle_light_slider-v0.hdf5": "kitchen",
        "pen-v0_demos_clipped.hdf5": "pen",
    }.items():
        assert formats.d4rl_reference(name) == formats.D4RL_REFERENCES[task], name
    for name in ("hoppers-medium-v2", "my-hopper-v2", "", "Pendulum-v1"):
        assert formats.d4rl_reference(name) is None
    arrays = walk(discrete=False)
    with h5py.File(tmp_path / "hopper_medium-v2.hdf5", "w") as file:
        for name, x in arrays.items():
            file[formats.D4RL[name]] = x
    data = dataset.load(tmp_path / "hopper_medium-v2.hdf5")
    assert dataset.normalized_score(data, 1000.0) == pytest.approx(31.3489, abs=1e-4)
    # written again, it keeps them; files of our own are not taken for D4RL's
    dataset.save(data, tmp_path / "a.npz")
    assert dataset.load(tmp_path / "a.npz").reference == data.reference
    dataset.save(from_arrays(arrays, source="mine"), tmp_path / "hopper-mine.hdf5")
    np.savez(tmp_path / "hopper-other.npz", **arrays)
    capsys.readouterr()
    for mine in ("hopper-mine.hdf5", "hopper-other.npz"):
        assert dataset.load(tmp_path / mine).reference is None
    assert "D4RL" not in capsys.readouterr().err


def test_minari_by_its_place(tmp_path, monkeypatch, command):  # noqa: F811
    """The file and its folders open like minari:ID, in Python and on the command line."""
    id = write_minari(tmp_path, monkeypatch, walk(discrete=False))
    want, folder = dataset.load(id), tmp_path / "test/walk-v0"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "elsewhere"))
    for place in (folder, folder / "data", folder / "data/main_data.hdf5"):
        same(dataset.load(place), want)
        code, out, err = command("describe", place)
        assert code == 0 and "minari:test/walk-v0" in out, err
    with pytest.raises(Refused, match=r"data: observations are ndarrays, without parts"):
        dataset.load(f"{folder}/data?obs=position")
    (folder / "data/main_data.hdf5").rename(tmp_path / "moved.hdf5")
    with pytest.raises(Refused, match="moved.hdf5 is the main_data.hdf5 of a Minari data set"):
        dataset.load(tmp_path / "moved.hdf5")
    (tmp_path / "moved.hdf5").rename(tmp_path / "main_data.hdf5")
    with pytest.raises(Refused, match=r"main_data.hdf5 cannot be read: No data found"):
        dataset.load(tmp_path / "main_data.hdf5")
    with pytest.raises(Refused, match="data sets are .npz or .hdf5 files, folders with"):
        dataset.load(folder)


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    data = from_arrays(walk())
    dataset.save(data, "~/data.npz")
    assert (tmp_path / "data.npz").exists()
    same(dataset.load("~/data.npz"), data)


@pytest.mark.parametrize("columns", [False, True])
def test_neorl2_by_the_command(tmp_path, command, columns):  # noqa: F811
    """As published, and with the columns that NeoRL-2's own loader gives."""
    path = SHARED / "neorl2/DMSD-high-20000-val.npz"
    if not path.exists():
        pytest.skip(f"{path} is not here: set RLZOO_DATA to the folder that holds offline/")
    arrays = dict(np.load(path))
    if columns:
        arrays |= {name: arrays[name][:, None] for name in ("reward", "done", "truncated")}
    np.savez(tmp_path / "data.npz", **arrays)
    code, out, err = command("describe", tmp_path / "data.npz")
    assert code == 0 and "20,000 in 200 episodes" in out, err
