"""How environments look.

An environment says itself how it looks by `render(state, params)`, which gives a picture, uint8
[H, W, 3], or a function that draws on the matplotlib axis it is handed. gymnax's are drawn here,
brax's by MuJoCo (where there is no OpenGL: by brax's player, a page), all others by their
observation. Wrappers are looked through.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Patch, Polygon, Rectangle, Wedge
from PIL import Image, ImageDraw, ImageFont

from rlzoo import env as environments
from rlzoo.algorithm import Refused
from rlzoo.report.curves import COLORS
from rlzoo.suites.brax import Brax
from rlzoo.tools import offscreen
from rlzoo.wrappers import innermost

WIDTH, HEIGHT, TITLE = 480, 400, 24  # the most that a picture has, in pixels, and the line above it


BLUE, RED, GREEN, _, ORANGE, _, INK = COLORS


P = TypeVar("P", bound=Patch)


class Frame(NamedTuple):
    obs: Any
    """what the policy sees"""
    state: Any
    """of the environment inside all wrappers"""
    step: int
    episode_return: float


Paint = Callable[[Frame], Any]
"""Changes what is on the axis to show a frame."""


class Canvas:
    """One figure that shows frame after frame: `canvas(frame)` is uint8 [height, width, 3]."""

    def __init__(self, env: environments.Env, frames: list[Frame]):
        figure = Figure(dpi=100)
        self.canvas = FigureCanvasAgg(figure)
        ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        ax.set_axis_off()
        inner = innermost(env.inner)
        self.paint = _drawing(inner)(ax, inner, env.one_params(), frames)
        width, height = self._fit(ax)
        figure.set_size_inches(width / 100, height / 100)
        self.font = ImageFont.load_default(13)

    def _fit(self, ax: Axes) -> tuple[int, int]:
        """Pixels for the axis: as large as may be, in the shape of its data where its aspect is
        fixed."""
        if ax.get_aspect() == "auto":
            return WIDTH, HEIGHT
        (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        size = abs(right - left), abs(top - bottom)
        scale = min(WIDTH / size[0], HEIGHT / size[1])
        scale = int(scale) if ax.images and scale >= 1 else scale  # pixels of one size
        return max(round(size[0] * scale), WIDTH // 2), round(size[1] * scale)

    def __call__(self, frame: Frame) -> np.ndarray:
        self.paint(frame)
        self.canvas.draw()
        picture = np.asarray(self.canvas.buffer_rgba())[..., :3]
        title = Image.new("RGB", (picture.shape[1], TITLE), "white")
        text = f"step {frame.step}    return {frame.episode_return:.2f}"
        ImageDraw.Draw(title).text(
            (8, 4), text, INK, self.font
        )  # twice as fast as matplotlib's text
        return np.concatenate([np.asarray(title), picture])

    def close(self) -> None:
        getattr(self.paint, "close", lambda: None)()


def _drawing(env: Any) -> Callable[..., Paint]:
    """What draws `env`: the nearest of its classes that is known here, or that says so itself."""
    for kind in type(env).__mro__:
        if kind.__module__.startswith("gymnax.") and kind.__name__ in DRAWINGS:
            return DRAWINGS[kind.__name__]
        if "render" in vars(kind) and not kind.__module__.startswith(
            "gymnax."
        ):  # gymnax's open windows
            return _own
    return _MuJoCo if isinstance(env, Brax) else _observation


def _own(ax: Axes, env: Any, params: Any, frames: list[Frame]) -> Paint:
    """By the environment's own `render`."""

    def picture(frame: Frame) -> np.ndarray | Callable:
        given = env.render(frame.state, params)
        given = given if callable(given) else np.asarray(given)
        if not callable(given) and (
            given.ndim != 3 or given.shape[2] != 3 or given.dtype != np.uint8
        ):
            raise Refused(
                f"render of {env.name} gave {given.dtype} {list(given.shape)}; it should give "
                "uint8 "
                "[height, width, 3], or a function that draws on a matplotlib axis"
            )
        return given

    first = picture(frames[0])
    if not callable(first):
        return _image(ax, picture, first)  # type: ignore[arg-type]

    def paint(frame: Frame) -> None:
        ax.clear()
        ax.set_axis_off()
        picture(frame)(ax)  # type: ignore[operator]

    paint(frames[0])
    return paint


def _image(ax: Axes, of: Callable[[Frame], np.ndarray], first: np.ndarray, **style: Any) -> Paint:
    shown = ax.imshow(first, **style)
    return lambda frame: shown.set_data(of(frame))


def _observation(ax: Axes, env: Any, params: Any, frames: list[Frame]) -> Paint:
    """Whatever the policy sees: an image where it has the shape of one, else a bar for each
    number."""
    obs = np.asarray(frames[0].obs)
    if obs.ndim == 3 and obs.shape[2] != 3:
        return _channels(ax, lambda frame: frame.obs, obs)
    of = lambda frame: np.asarray(frame.obs, np.float32)
    everything = np.stack([of(frame) for frame in frames])
    low, high = min(0.0, float(everything.min())), max(float(everything.max()), 1e-6)
    if obs.ndim in (2, 3):
        return _image(
            ax,
            lambda frame: (of(frame) - low) / (high - low),
            of(frames[0]),
            cmap="gray",
            vmin=0,
            vmax=1,
        )
    bars = ax.stairs(
        np.zeros(obs.size),
        np.arange(obs.size + 1) - 0.5,
        baseline=0,
        fill=True,
        fc=BLUE,
        ec="white",
    )
    ax.set_axis_on()
    ax.set_position((0.1, 0.12, 0.88, 0.86))
    ax.set_xlabel("observation", size=8)
    ax.set(
        xlim=(-0.6, obs.size - 0.4), ylim=(low - 0.05 * (high - low), high + 0.05 * (high - low))
    )
    ax.axhline(0, color=INK, lw=0.8)
    ax.set_xticks(range(0, obs.size, -(-obs.size // 20)))
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return lambda frame: bars.set_data(of(frame).ravel())


def _channels(ax: Axes, of: Callable[[Frame], Any], first: Any) -> Paint:
    """Each channel of an image [H, W, channels] in a colour of its own, later ones on top, as
    MinAtar shows them."""
    import matplotlib

    count = first.shape[-1]
    colours = matplotlib.colormaps["cubehelix"](np.linspace(0, 1, count + 2)[1:-1])
    top = lambda obs: ((np.asarray(obs) > 0) * np.arange(1, count + 1)).max(-1)
    return _image(
        ax,
        lambda frame: top(of(frame)),
        top(first),
        vmin=0,
        vmax=count,
        cmap=ListedColormap(np.concatenate([[[0, 0, 0, 1]], colours])),
    )


# ---- gymnax --------------------------------------------------------------------------------------


def _view(ax: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    ax.set(xlim=x, ylim=y, aspect="equal")


def _add(ax: Axes, patch: P) -> P:
    ax.add_patch(patch)
    return patch


def _cart_pole(ax: Axes, env: Any, params: Any, frames: list[Frame]) -> Paint:
    wide, pole = float(params.x_threshold), 2 * float(params.length)
    _view(ax, (-wide - 0.5, wide + 0.5), (-0.4, max(pole, 0.5) + 0.4))
    ax.axhline(0, color=INK, lw=1)
    ax.vlines([-wide, wide], -0.1, 0.1, color=RED, lw=2)
    cart = _add(ax, Rectangle((0, 0), 0.6, 0.3, color=INK))
    (rod,) = ax.plot([], [], color=ORANGE, lw=8, solid_capstyle="round")

    def paint(frame: Frame) -> None:
        x, angle = float(frame.state.x), float(frame.state.theta)
        cart.set_xy((x - 0.3, -0.15))
        rod.set_data([x, x + pole * np.sin(angle)], [0.1, 0.1 + pole * np.cos(angle)])

    return paint


def _pendulum(ax: Axes, env: Any, params: Any, frames: list[Frame]) -> Paint:
    length, strongest = float(params.l), float(params.max_torque)
    _view(ax, (-1.3 * length, 1.3 * length), (-1.3 * length, 1.3 * length))
    torque = _add(ax, Wedge((0, 0), 0.45 * length, 90, 90, width=0.06 * length, color=BLUE))
    (rod,) = ax.plot([], [], color=RED, lw=14, solid_capstyle="round")
    ax.plot([0], [0], "o", color=INK, ms=6)

    def paint(frame: Frame) -> None:
        angle = float(frame.state.theta)  # from upright, anticlockwise, as is the torque
        rod.set_data([0, -length * np.sin(angle)], [0, length * np.cos(angle)])
        turn = 90 + 120 * float(np.squeeze(frame.state.last_u)) / strongest
        torque.set_theta1(min(90, turn))
        torque.set_theta2(max(90, turn))

    return paint


def _acrobot(ax: Axes, env: Any, params: Any, frames: list[Frame]) -> Paint:
    first, second = float(params.link_length_1), float(params.link_length_2)
    _view(
        ax,
        (-1.1 * (first + second), 1.1 * (first + second)),
        (-1.1 * (first + second), 1.1 * (first + second)),
    )
    ax.axhline(1, color=GREEN, lw=1.5, ls="--")
    (rod,) = ax.plot(
        [],
        [],
        "o-",
        color=BLUE,
        lw=8,
        ms=8,
        mfc=INK,
        mec=INK,
        solid_capstyle="round",
        markevery=[0, 1],
    )

    def paint(frame: Frame) -> None:
        angles = (
            float(frame.state.joint_angle1),
            float(frame.state.joint_angle1 + frame.state.joint_angle2),
        )
        x, y = first * np.sin(angles[0]), -first * np.cos(angles[0])
        rod.set_data([0, x, x + second * np.sin(angles[1])], [0, y, y - second * np.cos(angles[1])])

    return paint


def _mountain_car(ax: Axes, env: Any, params: Any, frames: list[Frame]) -> Paint:
    left, right, goal = (
        float(x) for x in (params.min_position, params.max_position, params.goal_position)
    )
    height = lambda x: 0.45 * np.sin(3 * x) + 0.55
    _view(ax, (left - 0.05, right + 0.05), (-0.02, 1.25))
    x = np.linspace(left, right, 100)
    ax.fill_between(x, height(x), color="#DDDDDD")
    ax.plot(x, height(x), color=INK, lw=1.5)
    ax.plot([goal, goal], [height(goal), height(goal) + 0.15], color=INK, lw=1.5)
    ax.add_patch(
        Polygon(
            [[goal, height(goal) + y] for y in (0.15, 0.09)] + [[goal + 0.07, height(goal) + 0.12]],
            color=GREEN,
        )
    )
    body = _add(ax, Polygon(np.zeros((4, 2)), color=RED))
    wheels = [_add(ax, Circle((0, 0), 0.018, color=INK)) for _ in range(2)]
    corners = np.array([[-0.07, 0.02], [0.07, 0.02], [0.055, 0.07], [-0.055, 0.07]])

    def paint(frame: Frame) -> None:
        at = float(frame.state.position)
        slope = np.arctan(1.35 * np.cos(3 * at))
        turn = np.array([[np.cos(slope), np.sin(slope)], [-np.sin(slope), np.cos(slope)]])
        place = lambda points: points @ turn + [at, height(at)]
        body.set_xy(place(corners))
        for wheel, x in zip(wheels, (-0.045, 0.045), strict=True):
            wheel.set_center(place(np.array([x, 0.018])))

    return paint


def _minatar(ax: Axes, env: Any, params: Any, frames: list[Frame]) -> Paint:
    see = jax.jit(env.get_obs)
    return _channels(ax, lambda frame: see(frame.state), see(frames[0].state))


def _maze(ax: Axes, env: Any, params: Any, frames: list[Frame]) -> Paint:
    """Walls (of FrozenLake: holes) dark, the goal green, the agent a disc."""
    lake = hasattr(env, "desc")
    floor = np.isin(np.asarray(env.desc), (0, 1, 3)) if lake else np.asarray(env.env_map)
    goal = np.argwhere(np.asarray(env.desc) == 3)[0] if lake else np.zeros(2)
    ax.imshow(floor, cmap="gray", vmin=-0.3, vmax=1)
    target = _add(ax, Rectangle((0, 0), 1, 1, color=GREEN))
    agent = _add(ax, Circle((0, 0), 0.35, color=BLUE))

    def paint(frame: Frame) -> None:
        where = (
            np.divmod(int(frame.state.position), env.ncol) if lake else np.asarray(frame.state.pos)
        )
        row, column = goal if lake else np.asarray(frame.state.goal)
        target.set_xy((column - 0.5, row - 0.5))
        agent.set_center((where[1], where[0]))

    return paint


def _plane(ax: Axes, env: Any, params: Any, frames: list[Frame]) -> Paint:
    """Points in the plane: the agent (an arm for Reacher), its goal, and what to keep away from."""
    (arm,) = ax.plot([], [], "o-", color=BLUE, lw=4, ms=10, zorder=3)
    (goal,) = ax.plot([], [], "*", color=GREEN, ms=20)
    (urchins,) = ax.plot([], [], "X", color=RED, ms=12)

    def points(frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        state = frame.state
        if hasattr(state, "angles"):
            links = np.stack([np.cos(state.angles), np.sin(state.angles)], -1)
            return np.cumsum([np.zeros(2), *links], 0), state.goal_xy[None], np.zeros((0, 2))
        if hasattr(state, "urchin_xys"):
            return state.xy[None], state.goal_xy[None], state.urchin_xys
        return state.pos[None], state.goal[None], np.zeros((0, 2))

    reach = 1.1 * max(float(np.abs(np.concatenate(points(frame))).max()) for frame in frames)
    _view(ax, (-reach, reach), (-reach, reach))

    def paint(frame: Frame) -> None:
        for artist, xy in zip((arm, goal, urchins), points(frame), strict=True):
            artist.set_data(*np.asarray(xy).T)

    return paint


DRAWINGS: dict[str, Callable[..., Paint]] = {
    "CartPole": _cart_pole,
    "Pendulum": _pendulum,
    "Acrobot": _acrobot,
    "MountainCar": _mountain_car,
    "ContinuousMountainCar": _mountain_car,
    **dict.fromkeys(
        ("MinAsterix", "MinBreakout", "MinFreeway", "MinSeaquest", "MinSpaceInvaders"), _minatar
    ),
    **dict.fromkeys(("FourRooms", "MetaMaze", "FrozenLake"), _maze),
    **dict.fromkeys(("PointRobot", "Reacher", "Swimmer"), _plane),
}
"""Classes of gymnax -> what draws them: `(ax, env, params, frames) -> Paint`."""


# ---- brax ----------------------------------------------------------------------------------------


class _MuJoCo:
    """By MuJoCo. Raises `NoOpenGL` where it cannot draw."""

    def __init__(self, ax: Axes, env: Brax, params: Any, frames: list[Frame]):
        self.renderer = offscreen.start(env.env.sys.mj_model, WIDTH, WIDTH * 3 // 4)
        self.shown = ax.imshow(np.zeros(self.renderer.shape, np.uint8))

    def __call__(self, frame: Frame) -> None:
        physics = frame.state.physics.pipeline_state
        self.shown.set_data(self.renderer(physics.q, physics.qd))

    def close(self) -> None:
        self.renderer.close()


def brax_player(env: Brax, frames: Iterable[Frame]) -> str:
    """brax's own player, a page that loads its viewer from the network."""
    from brax.io import html

    system = env.env.sys.tree_replace(
        {"opt.timestep": env.env.dt}
    )  # the player's time between states
    return html.render(system, [frame.state.physics.pipeline_state for frame in frames])
