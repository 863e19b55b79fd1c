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
from matplotlib import colormaps
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

WIDTH = 480
HEIGHT = 400
"""the most that a picture has, in pixels"""
TITLE = 24
"""height of the line above it"""
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
        left, right = ax.get_xlim()
        bottom, top = ax.get_ylim()
        width = abs(right - left)
        height = abs(top - bottom)
        scale = min(WIDTH / width, HEIGHT / height)
        # All pixels of an image get one size.
        if ax.images and scale >= 1:
            scale = int(scale)
        return max(round(width * scale), WIDTH // 2), round(height * scale)

    def __call__(self, frame: Frame) -> np.ndarray:
        self.paint(frame)
        self.canvas.draw()
        picture = np.asarray(self.canvas.buffer_rgba())[..., :3]
        title = Image.new("RGB", (picture.shape[1], TITLE), "white")
        # PIL writes twice as fast as matplotlib.
        text = f"step {frame.step}    return {frame.episode_return:.2f}"
        ImageDraw.Draw(title).text((8, 4), text, INK, self.font)
        return np.concatenate([np.asarray(title), picture])

    def close(self) -> None:
        getattr(self.paint, "close", lambda: None)()


def _drawing(env: Any) -> Callable[..., Paint]:
    """What draws `env`: the nearest of its classes that is known here, or that says so itself."""
    for kind in type(env).__mro__:
        from_gymnax = kind.__module__.startswith("gymnax.")
        if from_gymnax and kind.__name__ in DRAWINGS:
            return DRAWINGS[kind.__name__]
        # gymnax's own `render` opens windows.
        if "render" in vars(kind) and not from_gymnax:
            return _own
    return _MuJoCo if isinstance(env, Brax) else _observation


def _own(ax: Axes, env: Any, params: Any, frames: list[Frame]) -> Paint:
    """By the environment's own `render`."""

    def picture(frame: Frame) -> np.ndarray | Callable:
        given = env.render(frame.state, params)
        if callable(given):
            return given
        given = np.asarray(given)
        if given.ndim != 3 or given.shape[2] != 3 or given.dtype != np.uint8:
            raise Refused(
                f"render of {env.name} gave {given.dtype} {list(given.shape)}; it should give "
                "uint8 [height, width, 3], or a function that draws on a matplotlib axis"
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

    def numbers(frame: Frame) -> np.ndarray:
        return np.asarray(frame.obs, np.float32)

    everything = np.stack([numbers(frame) for frame in frames])
    low = min(0.0, float(everything.min()))
    high = max(float(everything.max()), 1e-6)

    # --- an image ---
    if obs.ndim in (2, 3):

        def picture(frame: Frame) -> np.ndarray:
            return (numbers(frame) - low) / (high - low)

        return _image(ax, picture, numbers(frames[0]), cmap="gray", vmin=0, vmax=1)

    # --- a bar for each number ---
    edges = np.arange(obs.size + 1) - 0.5
    bars = ax.stairs(np.zeros(obs.size), edges, baseline=0, fill=True, fc=BLUE, ec="white")
    margin = 0.05 * (high - low)
    ax.set_axis_on()
    ax.set_position((0.1, 0.12, 0.88, 0.86))
    ax.set_xlabel("observation", size=8)
    ax.set(xlim=(-0.6, obs.size - 0.4), ylim=(low - margin, high + margin))
    ax.axhline(0, color=INK, lw=0.8)
    ax.set_xticks(range(0, obs.size, -(-obs.size // 20)))
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return lambda frame: bars.set_data(numbers(frame).ravel())


def _channels(ax: Axes, of: Callable[[Frame], Any], first: Any) -> Paint:
    """Each channel of an image [H, W, channels] in a color of its own, later ones on top, as
    MinAtar shows them."""
    count = first.shape[-1]
    places = np.linspace(0, 1, count + 2)[1:-1]
    black = [[0, 0, 0, 1]]
    colors = np.concatenate([black, colormaps["cubehelix"](places)])

    def top(obs: Any) -> np.ndarray:
        numbered = (np.asarray(obs) > 0) * np.arange(1, count + 1)
        return numbered.max(-1)

    def picture(frame: Frame) -> np.ndarray:
        return top(of(frame))

    return _image(ax, picture, top(first), vmin=0, vmax=count, cmap=ListedColormap(colors))


# ---- gymnax --------------------------------------------------------------------------------------


def _view(ax: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    ax.set(xlim=x, ylim=y, aspect="equal")


def _add(ax: Axes, patch: P) -> P:
    ax.add_patch(patch)
    return patch


def _cart_pole(ax: Axes, env: Any, params: Any, frames: list[Frame]) -> Paint:
    wide = float(params.x_threshold)
    pole = 2 * float(params.length)
    _view(ax, (-wide - 0.5, wide + 0.5), (-0.4, max(pole, 0.5) + 0.4))
    ax.axhline(0, color=INK, lw=1)
    ax.vlines([-wide, wide], -0.1, 0.1, color=RED, lw=2)
    cart = _add(ax, Rectangle((0, 0), 0.6, 0.3, color=INK))
    (rod,) = ax.plot([], [], color=ORANGE, lw=8, solid_capstyle="round")

    def paint(frame: Frame) -> None:
        x = float(frame.state.x)
        angle = float(frame.state.theta)
        right = x + pole * np.sin(angle)
        up = 0.1 + pole * np.cos(angle)
        cart.set_xy((x - 0.3, -0.15))
        rod.set_data([x, right], [0.1, up])

    return paint


def _pendulum(ax: Axes, env: Any, params: Any, frames: list[Frame]) -> Paint:
    length = float(params.l)
    strongest = float(params.max_torque)
    reach = 1.3 * length
    _view(ax, (-reach, reach), (-reach, reach))
    torque = _add(ax, Wedge((0, 0), 0.45 * length, 90, 90, width=0.06 * length, color=BLUE))
    (rod,) = ax.plot([], [], color=RED, lw=14, solid_capstyle="round")
    ax.plot([0], [0], "o", color=INK, ms=6)

    def paint(frame: Frame) -> None:
        # The angle is from upright; it and the torque are counterclockwise.
        angle = float(frame.state.theta)
        rod.set_data([0, -length * np.sin(angle)], [0, length * np.cos(angle)])
        turn = 90 + 120 * float(np.squeeze(frame.state.last_u)) / strongest
        torque.set_theta1(min(90, turn))
        torque.set_theta2(max(90, turn))

    return paint


def _acrobot(ax: Axes, env: Any, params: Any, frames: list[Frame]) -> Paint:
    first = float(params.link_length_1)
    second = float(params.link_length_2)
    reach = 1.1 * (first + second)
    _view(ax, (-reach, reach), (-reach, reach))
    ax.axhline(1, color=GREEN, lw=1.5, ls="--")
    joints: dict[str, Any] = {"ms": 8, "mfc": INK, "mec": INK, "markevery": [0, 1]}
    (rod,) = ax.plot([], [], "o-", color=BLUE, lw=8, solid_capstyle="round", **joints)

    def paint(frame: Frame) -> None:
        angle1 = float(frame.state.joint_angle1)
        angle2 = float(frame.state.joint_angle1 + frame.state.joint_angle2)
        x1 = first * np.sin(angle1)
        y1 = -first * np.cos(angle1)
        x2 = x1 + second * np.sin(angle2)
        y2 = y1 - second * np.cos(angle2)
        rod.set_data([0, x1, x2], [0, y1, y2])

    return paint


def _mountain_car(ax: Axes, env: Any, params: Any, frames: list[Frame]) -> Paint:
    left = float(params.min_position)
    right = float(params.max_position)
    goal = float(params.goal_position)

    def height(x: Any) -> Any:
        return 0.45 * np.sin(3 * x) + 0.55

    # --- the hill and the flag ---
    _view(ax, (left - 0.05, right + 0.05), (-0.02, 1.25))
    x = np.linspace(left, right, 100)
    ax.fill_between(x, height(x), color="#DDDDDD")
    ax.plot(x, height(x), color=INK, lw=1.5)
    foot = height(goal)
    flag = [[goal, foot + 0.15], [goal, foot + 0.09], [goal + 0.07, foot + 0.12]]
    ax.plot([goal, goal], [foot, foot + 0.15], color=INK, lw=1.5)
    ax.add_patch(Polygon(flag, color=GREEN))

    # --- the car ---
    body = _add(ax, Polygon(np.zeros((4, 2)), color=RED))
    wheels = [_add(ax, Circle((0, 0), 0.018, color=INK)) for _ in range(2)]
    corners = np.array([[-0.07, 0.02], [0.07, 0.02], [0.055, 0.07], [-0.055, 0.07]])

    def paint(frame: Frame) -> None:
        at = float(frame.state.position)
        slope = np.arctan(1.35 * np.cos(3 * at))
        along = [np.cos(slope), np.sin(slope)]
        across = [-np.sin(slope), np.cos(slope)]
        turn = np.array([along, across])
        place = [at, height(at)]
        body.set_xy(corners @ turn + place)
        for wheel, x in zip(wheels, (-0.045, 0.045), strict=True):
            wheel.set_center(np.array([x, 0.018]) @ turn + place)

    return paint


def _minatar(ax: Axes, env: Any, params: Any, frames: list[Frame]) -> Paint:
    observe = jax.jit(env.get_obs)
    return _channels(ax, lambda frame: observe(frame.state), observe(frames[0].state))


def _maze(ax: Axes, env: Any, params: Any, frames: list[Frame]) -> Paint:
    """Walls dark, the goal green, the agent a disc."""
    ax.imshow(np.asarray(env.env_map), cmap="gray", vmin=-0.3, vmax=1)
    target = _add(ax, Rectangle((0, 0), 1, 1, color=GREEN))
    agent = _add(ax, Circle((0, 0), 0.35, color=BLUE))

    def paint(frame: Frame) -> None:
        row, column = np.asarray(frame.state.goal)
        target.set_xy((column - 0.5, row - 0.5))
        row, column = np.asarray(frame.state.pos)
        agent.set_center((column, row))

    return paint


def _frozen_lake(ax: Axes, env: Any, params: Any, frames: list[Frame]) -> Paint:
    """Holes dark, the goal green, the agent a disc."""
    cells = np.asarray(env.desc)
    ax.imshow(np.isin(cells, (0, 1, 3)), cmap="gray", vmin=-0.3, vmax=1)
    row, column = np.argwhere(cells == 3)[0]
    _add(ax, Rectangle((column - 0.5, row - 0.5), 1, 1, color=GREEN))
    agent = _add(ax, Circle((0, 0), 0.35, color=BLUE))

    def paint(frame: Frame) -> None:
        row, column = np.divmod(int(frame.state.position), env.ncol)
        agent.set_center((column, row))

    return paint


def _plane(ax: Axes, env: Any, params: Any, frames: list[Frame]) -> Paint:
    """Points in the plane: the agent (an arm for Reacher), its goal, and what to keep away from."""
    (arm,) = ax.plot([], [], "o-", color=BLUE, lw=4, ms=10, zorder=3)
    (goal,) = ax.plot([], [], "*", color=GREEN, ms=20)
    (urchins,) = ax.plot([], [], "X", color=RED, ms=12)

    def points(frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        state = frame.state
        nothing = np.zeros((0, 2))
        if hasattr(state, "angles"):
            links = np.stack([np.cos(state.angles), np.sin(state.angles)], -1)
            joints = np.cumsum([np.zeros(2), *links], 0)
            return joints, state.goal_xy[None], nothing
        if hasattr(state, "urchin_xys"):
            return state.xy[None], state.goal_xy[None], state.urchin_xys
        return state.pos[None], state.goal[None], nothing

    every = np.concatenate([place for frame in frames for place in points(frame)])
    reach = 1.1 * float(np.abs(every).max())
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
    "MinAsterix": _minatar,
    "MinBreakout": _minatar,
    "MinFreeway": _minatar,
    "MinSeaquest": _minatar,
    "MinSpaceInvaders": _minatar,
    "FourRooms": _maze,
    "MetaMaze": _maze,
    "FrozenLake": _frozen_lake,
    "PointRobot": _plane,
    "Reacher": _plane,
    "Swimmer": _plane,
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

    # The player takes the system's time step for the time between states.
    system = env.env.sys.tree_replace({"opt.timestep": env.env.dt})
    states = [frame.state.physics.pipeline_state for frame in frames]
    return html.render(system, states)
