"""Playing: the episodes are those of evaluation, the pictures show the state, the files hold the
pictures."""

import base64
import functools
import json
import os
import re
import shutil
import stat
import sys
import zlib
from pathlib import Path

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from gymnax.environments import spaces
from PIL import Image
from probes import Probe
from together import quick_jit

import rlzoo
from rlzoo import cli, report, wrappers
from rlzoo.algorithm import Refused
from rlzoo.env import Env, episodes
from rlzoo.run.loading import Trained
from rlzoo.run.program import EVALUATION
from rlzoo.tools import drawings, offscreen, play

KEYS = jax.random.split(jax.random.key(3), 3)
INK, RED, ORANGE, BLUE, GREEN = ("#333333", "#D55E00", "#E69F00", "#0072B2", "#009E73")


@functools.cache
def start(id):
    """An environment, and the frame that an episode starts with."""
    env = rlzoo.make(id)
    obs, state = quick_jit(env.inner.reset_env)(KEYS[0], env.params)
    return env, drawings.Frame(np.asarray(obs), wrappers.inner_state(env.inner, state), 0, 0.0)


def frames(id, *changes):
    """Frames whose states differ from the start's in the given fields."""
    frame = start(id)[1]
    return [
        frame._replace(step=i, state=frame.state.replace(**fields))
        for i, fields in enumerate(changes)
    ]


def shots(id, *changes):
    return shows(start(id)[0], frames(id, *changes))


def pixels(picture, color):
    """(x, y) of the pixels of a color, y upwards, from the lower left corner."""
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    y, x = np.nonzero((picture[drawings.TITLE :] == rgb).all(-1))
    return x, len(picture) - drawings.TITLE - 1 - y


def shows(env, frames):
    canvas = drawings.Canvas(env, frames)
    return [canvas(frame) for frame in frames]


# ---- episodes ------------------------------------------------------------------------------------


def balance(memory, obs, reward, keys):
    """Remembers how often it was asked, and stumbles at random."""
    lean = obs[:, 2] + 0.3 * obs[:, 3] > 0
    return (lean ^ jax.vmap(lambda key: jax.random.bernoulli(key, 0.3))(keys)).astype(
        jnp.int32
    ), memory + 1


def test_rolls_what_evaluation_rolls():
    env = rlzoo.make("CartPole-v1?sticky=0.2&limit=60")
    returns, lengths = jax.jit(lambda keys: episodes(env, balance, jnp.zeros(3, jnp.int32), keys))(
        KEYS
    )
    rolled = list(play.roll(env, balance, jnp.zeros(1, jnp.int32), KEYS))
    assert (
        [len(frames) - 1 for frames in rolled]
        == lengths.tolist()
        == [frames[-1].step for frames in rolled]
    )
    assert [float(frames[-1].episode_return) for frames in rolled] == returns.tolist()
    assert len(set(lengths.tolist())) > 1
    assert all([frame.step for frame in frames] == list(range(len(frames))) for frames in rolled)
    np.testing.assert_array_equal(
        [f.state.x for f in rolled[0]], [f.obs[0] for f in rolled[0]]
    )  # state of that step
    (cut,) = play.roll(env, balance, jnp.zeros(1, jnp.int32), KEYS[:1], steps=4)
    assert [f.step for f in cut] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(cut[4].obs, rolled[0][4].obs)


def test_compiles_once_for_all_steps_and_episodes():
    """Also where the dtype of a state is weaker at its start, as in MetaMaze."""
    traced = []

    def act(memory, obs, reward, keys):
        traced.append(1)
        return jnp.zeros(1, jnp.int32), memory

    assert [
        len(frames)
        for frames in play.roll(rlzoo.make("MetaMaze-misc"), act, None, KEYS[:2], steps=3)
    ] == [4, 4]
    assert len(traced) == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the toy: two settings, two seeds."""
    out = tmp_path_factory.mktemp("runs") / "toy"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_curve", lambda *_: None)
        rlzoo.train(
            toy.make,
            toy.Config(total_steps=20),
            sweep={"goal": [1.0, -1.0]},
            out=str(out),
            seeds=2,
            eval_episodes=3,
            eval_every=0,
            quiet=True,
            cache=False,
        )
    return out


@pytest.mark.slow
def test_a_run_scores_as_its_summary_says(run):
    """Right member, right configuration: with the keys of the last evaluation, the same mean
    return."""
    members = json.loads((run / "summary.json").read_text())["members"]
    scores = []
    for member in (0, 3):
        env, act, memory = play._player(run, None, member, None)
        key = jax.random.fold_in(
            jax.random.fold_in(jax.random.key(members[member]["seed"]), EVALUATION), 20
        )
        rolled = play.roll(env, act, memory, jax.random.split(key, 3))
        scores.append(np.mean([frames[-1].episode_return for frames in rolled]))
        assert scores[-1] == pytest.approx(members[member]["eval/return"])
    assert scores[0] != scores[1]


def test_a_policy_that_remembers(monkeypatch):
    """The toy's takes turns between the actions, if memory and reward (1 a step) reach it."""
    env = rlzoo.make("CartPole-v1")
    algorithm = toy.make(toy.Config(mode="memory"), env)
    state = quick_jit(algorithm.init)(KEYS[0])
    monkeypatch.setattr(play, "trained", lambda *_, **__: Trained(env, algorithm, state))
    (frames,) = play.roll(*play._player("run", None, 0, None), KEYS[:1])
    sides = [frame.state.x_dot for frame in frames]
    assert (
        len(sides) > 5 and (np.diff(np.sign(np.diff(sides))) != 0).all()
    )  # the cart is pushed left, right, left, ...


def test_command(run, tmp_path, monkeypatch, capsys):
    def go(*argv):
        monkeypatch.setattr(sys, "argv", ["rlzoo", "play", *map(str, argv), "--no-cache"])
        cli.main()
        return capsys.readouterr().out.splitlines()

    out = go(run, "--episodes", "2", "--member", "1", "--fps", "10")
    lengths = [
        int(length) for length in re.findall(r"return \d+\.00, length (\d+)", "\n".join(out))
    ]
    assert len(lengths) == 2 and out[-1] == f"wrote {run / 'play.gif'}"
    with Image.open(run / "play.gif") as gif:
        shown = 0
        for i in range(gif.n_frames):
            gif.seek(i)
            shown += gif.info["duration"]
    assert shown == 100 * sum(
        length + 1 + 10 for length in lengths
    )  # every step, and a second at the end
    monkeypatch.chdir(tmp_path)
    assert (
        go("--random", "CartPole-v1?limit=4", "--steps", "2")[0]
        == "episode 1: return 2.00, length 2"
    )
    assert (tmp_path / "CartPole-v1-limit-4.gif").exists()
    assert (
        go("--random", "Pendulum-v1", "--steps", "1", "--gif", "new/a.gif")[-1] == "wrote new/a.gif"
    )


@pytest.mark.parametrize(
    "kwargs, expected",
    [
        ({}, "a run directory, or --random"),
        ({"run": "none", "random": "CartPole-v1"}, "a run directory, or --random"),
        ({"run": "none"}, "is not a run"),
        ({"random": "CartPol-v1"}, "nearest: CartPole-v1"),
        ({"random": "CartPole-v1", "episodes": 0}, "--episodes is 0"),
        ({"random": "CartPole-v1", "steps": 0}, "--steps is 0"),
        ({"random": "CartPole-v1", "fps": 51.0}, "--fps is 51"),
        ({"random": "CartPole-v1", "fps": 0.0}, "--fps is 0"),
        (
            {"random": "CartPole-v1", "out": "a.html"},
            "a.html: CartPole-v1 is drawn into .gif or .mp4",
        ),
        ({"random": "CartPole-v1", "out": "a.mp4"}, "needs ffmpeg"),
        ({"random": "CartPole-v1", "out": "/proc/none/a.gif"}, "cannot write /proc/none/a.gif"),
    ],
)
def test_refusals(kwargs, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Refused, match=expected):
        play.play(**kwargs)
    assert not any(tmp_path.iterdir())


def test_no_such_member_and_no_source(run, tmp_path):
    for member in (4, -1):
        with pytest.raises(Refused, match=f"no member {member}"):
            play.play(run, member=member)
    shutil.copy(run / "config.json", tmp_path)
    with pytest.raises(Refused, match=r"has lost toy\.py"):
        play.play(tmp_path)


# ---- pictures ------------------------------------------------------------------------------------


GYMNAX = [
    id
    for id, factory in gymnax.registration._registry.items()
    if getattr(factory, "func", factory).__module__.startswith("gymnax.")
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "id",
    [
        pytest.param(id, marks=[pytest.mark.slow] * ("MinAtar" in id))
        for id in GYMNAX
        if "MNIST" not in id
    ],
)
def test_every_environment_of_gymnax_has_a_picture(id):
    (picture,) = shots(id, {})
    height, width, _ = picture.shape
    assert (
        picture.dtype == np.uint8
        and 240 <= width <= drawings.WIDTH
        and 100 <= height <= drawings.HEIGHT + drawings.TITLE
    )
    assert len(np.unique(picture[drawings.TITLE :].reshape(-1, 3), axis=0)) > (
        id != "SimpleBandit-bsuite"
    )


def test_cart_pole():
    cases = (-1.0, -0.2), (1.5, 0.2)
    scale = drawings.WIDTH / 5.8  # pixels for a unit of length
    for picture, (x, theta) in zip(
        shots("CartPole-v1", *({"x": x, "theta": t} for x, t in cases)), cases, strict=True
    ):
        cart, pole = pixels(picture, INK), pixels(picture, ORANGE)
        above = cart[1] > np.median(cart[1])  # without the track
        assert cart[0][above].mean() == pytest.approx(drawings.WIDTH / 2 + scale * x, abs=2)
        tip = pole[0][pole[1] > pole[1].max() - 5].mean()
        assert tip == pytest.approx(drawings.WIDTH / 2 + scale * (x + np.sin(theta)), abs=4)


def test_pendulum():
    up, left = shots(
        "Pendulum-v1", {"theta": 0.0, "last_u": 2.0}, {"theta": np.pi / 2, "last_u": -1.0}
    )
    for picture, x, y in ((up, 0, 1), (left, -1, 0)):
        rod, scale = pixels(picture, RED), 200 / 1.3
        assert rod[0].mean() == pytest.approx(200 + scale * x / 2, abs=4)
        assert rod[1].mean() == pytest.approx(200 + scale * y / 2, abs=4)
    assert (
        pixels(up, BLUE)[0].mean() < 200 < pixels(left, BLUE)[0].mean()
    )  # a positive torque turns to the left


def test_acrobot():
    hanging, folded = shots(
        "Acrobot-v1",
        {"joint_angle1": 0.0, "joint_angle2": 0.0},
        {"joint_angle1": np.pi / 2, "joint_angle2": np.pi / 2},
    )
    (right, up), scale = pixels(hanging, BLUE), 400 / 4.4
    assert right.mean() == pytest.approx(200, abs=2) and up.min() == pytest.approx(
        200 - 2 * scale, abs=7
    )
    right, up = pixels(folded, BLUE)  # the first link goes to the right, the second up from its end
    assert right.max() == pytest.approx(200 + scale, abs=7) and up.max() == pytest.approx(
        200 + scale, abs=7
    )


@pytest.mark.parametrize("id", ["MountainCar-v0", "MountainCarContinuous-v0"])
def test_mountain_car(id):
    places, scale = (-1.0, -0.5, 0.3), drawings.WIDTH / 1.9
    for picture, x in zip(shots(id, *({"position": x} for x in places)), places, strict=True):
        right, up = pixels(picture, RED)
        slope, lift = np.arctan(1.35 * np.cos(3 * x)), 0.045  # the car stands on the hill
        assert right.mean() == pytest.approx(scale * (x + 1.25 - lift * np.sin(slope)), abs=4)
        assert up.mean() == pytest.approx(
            scale * (0.45 * np.sin(3 * x) + 0.57 + lift * np.cos(slope)), abs=4
        )


@pytest.mark.parametrize("options", ["", "?stack=3&sticky=0.2&limit=50&clip=1"])
def test_minatar_by_channel_and_through_wrappers(options):
    (frame,) = frames("Breakout-MinAtar" + options, {"pos": 7, "ball_x": 2, "ball_y": 5})
    assert frame.obs.shape[-1] == (
        12 if options else 4
    )  # what the policy sees is not what is drawn
    (picture,) = shots("Breakout-MinAtar" + options, {"pos": 7, "ball_x": 2, "ball_y": 5})
    cells = picture[drawings.TITLE :][20::40, 20::40]
    expected = np.zeros((10, 10), int)
    expected[9, 7], expected[5, 2], expected[3, int(frame.state.last_x)], expected[1:4] = 1, 2, 3, 4
    colors = [{tuple(cell) for cell in cells[expected == kind]} for kind in np.unique(expected)]
    assert all(len(color) == 1 for color in colors)
    assert colors[0] == {(0, 0, 0)} and len(set.union(*colors)) == len(colors) == 4


def test_maze_and_plane():
    (picture,) = shots("FourRooms-misc", {"pos": np.array([3, 10]), "goal": np.array([8, 1])})
    cell = (picture.shape[0] - drawings.TITLE) / 13
    agent, goal = pixels(picture, BLUE), pixels(picture, GREEN)
    assert agent[0].mean() == pytest.approx(10.5 * cell, abs=1) and agent[
        1
    ].mean() == pytest.approx(9.5 * cell, abs=1)
    assert goal[0].mean() == pytest.approx(1.5 * cell, abs=1) and goal[1].mean() == pytest.approx(
        4.5 * cell, abs=1
    )
    (picture,) = shots(
        "PointRobot-misc", {"pos": np.array([1.0, 0.0]), "goal": np.array([0.0, -1.0])}
    )
    agent, goal = pixels(picture, BLUE), pixels(picture, GREEN)
    assert agent[0].mean() > 350 and abs(agent[1].mean() - 200) < 3
    assert abs(goal[0].mean() - 200) < 3 and goal[1].mean() < 50


class Plain(Probe):
    """Seen as it is: a vector, an image, or an image of channels."""

    shape = (4,)

    def see(self, state):
        return jnp.zeros(self.shape)

    def observation_space(self, params):
        return spaces.Box(0.0, 1.0, self.shape)


def plain(kind=Plain, **fields):
    env = type("Made", (kind,), fields)()
    return Env("made", env, env.default_params)


def seen(*observations):
    return [
        drawings.Frame(np.asarray(obs, np.float32), None, i, 0.0)
        for i, obs in enumerate(observations)
    ]


def test_observations_as_bars_and_images():
    one, two = shows(plain(), seen([0, 1, 0.5, 0], [-1, 0, 0, 0]))
    (right, up), step = pixels(one, BLUE), 0.88 * drawings.WIDTH / 4.2  # the axis is 4.2 bars wide
    heights = [len(up[abs(right - 0.1 * drawings.WIDTH - step * (i + 0.6)) < 1]) for i in range(4)]
    assert (
        heights[1] == pytest.approx(2 * heights[2], abs=4)
        and heights[2] > 100
        and heights[0] == heights[3] == 0
    )
    assert pixels(two, BLUE)[1].max() <= up.min() + 1  # one scale for all frames: below zero here
    dark, light = shows(plain(shape=(2, 4)), seen(np.zeros((2, 4)), np.eye(2, 4)))
    assert not dark[drawings.TITLE :].any() and dark.shape[:2] == (240 + drawings.TITLE, 480)
    assert (light[drawings.TITLE :][60::120, 60::120, 0] == 255 * np.eye(2, 4)).all()
    (channels,) = shows(plain(shape=(2, 2, 2)), seen([[[1, 0], [0, 1]], [[0, 0], [1, 1]]]))
    cells = channels[drawings.TITLE :][100::200, 100::200].reshape(4, 3).tolist()
    assert cells[1] == cells[3] and len({tuple(cell) for cell in cells}) == 3


def test_an_environment_says_how_it_looks():
    three = [frame._replace(state=i) for i, frame in enumerate(seen(0, 0, 0))]
    picture = lambda self, state, params: np.full((30, 60, 3), 100 * state, np.uint8)
    shown = shows(plain(render=picture), three)
    assert [shot[drawings.TITLE :].max() for shot in shown] == [0, 100, 200]
    assert shown[0].shape == (240 + drawings.TITLE, 480, 3)
    line = lambda self, state, params: lambda ax: ax.plot([0, 1 + state], [0, 1], color=RED, lw=5)
    shown = shows(plain(render=line), three)
    assert all(
        len(pixels(shot, RED)[0]) > 1000 for shot in shown
    )  # one line in each, none left from the last
    for wrong in (np.zeros((3, 4), np.uint8), np.zeros((3, 4, 3)), np.zeros((3, 4, 4), np.uint8)):
        with pytest.raises(Refused, match=r"should give uint8 \[height, width, 3\]"):
            shows(plain(render=lambda self, state, params, wrong=wrong: wrong), three)


def test_the_nearest_class_draws():
    """A subclass of gymnax's CartPole looks like CartPole, unless it says otherwise."""
    kind = type(start("CartPole-v1")[0].inner)
    assert drawings._drawing(type("Mine", (kind,), {})()) is drawings._cart_pole
    assert drawings._drawing(type("Mine", (kind,), {"render": None})()) is drawings._own
    assert drawings._drawing(plain().inner) is drawings._observation


# ---- files ---------------------------------------------------------------------------------------


def test_gif_holds_the_pictures(tmp_path):
    moving = frames("CartPole-v1", *({"x": x, "theta": x / 5} for x in np.linspace(-1, 1, 40)))
    pictures = shows(start("CartPole-v1")[0], moving)
    play.write(start("CartPole-v1")[0], [moving], tmp_path / "a.gif", fps=20)
    assert (tmp_path / "a.gif").stat().st_size < 2000 * len(moving)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == len(moving) and gif.info["loop"] == 0
        for i in range(gif.n_frames):
            gif.seek(i)
            assert gif.info["duration"] == (50 if i < len(moving) - 1 else 50 * 21)
            off = [
                np.abs(np.asarray(gif.convert("RGB")).astype(int) - picture).mean()
                for picture in pictures
            ]
            assert off[i] < 2 and np.argmin(off) == i


def test_mp4_goes_through_ffmpeg(tmp_path, monkeypatch):
    def encoder(code):
        text = f"#!{sys.executable}\nimport sys\nopen('argv', 'w').write(' '.join(sys.argv))\n"
        text += f"open(sys.argv[-1], 'wb').write(sys.stdin.buffer.read())\nsys.exit({code})\n"
        (tmp_path / "ffmpeg").write_text(text)
        (tmp_path / "ffmpeg").chmod(stat.S_IRWXU)

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    env, two = start("CartPole-v1")[0], frames("CartPole-v1", {"x": 0.0}, {"x": 1.0})
    encoder(0)
    play.write(env, [two], Path("b.mp4"), fps=10)
    pictures = shows(env, two)
    height, width, _ = pictures[0].shape
    assert f"-s {width}x{height} -r 10" in Path("argv").read_text()
    written = np.frombuffer(Path("b.mp4").read_bytes(), np.uint8).reshape(-1, height, width, 3)
    np.testing.assert_array_equal(written, [*pictures, *pictures[1:] * 10])
    encoder(1)
    with pytest.raises(Refused, match=r"ffmpeg could not write b\.mp4"):
        play.write(env, [two], Path("b.mp4"), fps=10)


# ---- MuJoCo --------------------------------------------------------------------------------------

BALL = """<mujoco><worldbody>
<light pos="0 0 3"/>
<camera name="track" pos="0 -3 0" xyaxes="1 0 0 0 0 1"/>
<body><joint type="slide" axis="1 0 0"/><geom size="0.3" rgba="1 0 0 1"/></body>
</worldbody></mujoco>"""


def test_mujoco_draws_in_another_process():
    import mujoco

    try:
        renderer = offscreen.start(mujoco.MjModel.from_xml_string(BALL), 64, 48)
    except offscreen.NoOpenGL as error:
        pytest.skip(f"no OpenGL on this machine: {error}")
    for x in (0.5, -0.5):
        picture = renderer([x], [0.0])
        assert picture.shape == (48, 64, 3)
        red = np.nonzero(picture[..., 0].astype(int) - picture[..., 1] > 50)[1]
        assert len(red) and (red.mean() > 32) == (x > 0)
    renderer.close()
    assert renderer.worker.returncode == 0 and not os.path.exists(renderer.folder.name)


@pytest.mark.parametrize("backend, why", [("off", "GLContext"), ("nonsense", "invalid value")])
def test_mujoco_without_opengl(backend, why, monkeypatch):
    import mujoco

    monkeypatch.setenv("MUJOCO_GL", backend)
    with pytest.raises(offscreen.NoOpenGL, match=why):
        offscreen.start(mujoco.MjModel.from_xml_string(BALL), 64, 48)


@pytest.mark.slow
def test_brax_without_opengl_becomes_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MUJOCO_GL", "off")
    env = rlzoo.make("brax/inverted_pendulum:spring?sticky=0.1")
    assert drawings._drawing(wrappers.innermost(env.inner)) is drawings._MuJoCo
    starts = [env.inner.reset_env(key, env.params) for key in KEYS]
    shown = [
        drawings.Frame(obs, wrappers.inner_state(env.inner, state), 0, 0.0) for obs, state in starts
    ]
    capsys.readouterr()  # what brax says when it is first imported
    assert play.write(env, [shown], tmp_path / "a.gif", fps=10) == tmp_path / "a.html"
    out = capsys.readouterr().out
    assert "no OpenGL" in out and out.count("\n") == 1 and not (tmp_path / "a.gif").exists()
    page = (tmp_path / "a.html").read_text()
    system = json.loads(
        zlib.decompress(base64.b64decode(re.search('var system = "(.+?)"', page)[1]))
    )
    for x, frame in zip(system["states"]["x"], shown, strict=True):
        np.testing.assert_allclose(x["pos"], frame.state.physics.pipeline_state.x.pos, rtol=1e-6)
    assert system["opt"]["timestep"] == pytest.approx(env.inner.env.env.dt)
