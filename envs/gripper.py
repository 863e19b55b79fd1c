"""A gripper over a table: a kinematic stand-in for three tasks of MBRCSL, not a physics simulation.

Paper: Zhou et al. 2023 (arXiv 2310.19308), whose tasks are of Singh et al. 2020 (arXiv 2010.14500)
in PyBullet. Here the hand lags behind its command by a rule fitted to that simulator, and grasping
and drawers are rules on positions. Scores are comparable with each other, not with the paper's.

    gripper-pick-place       grasp an object and drop it into the tray
    gripper-closed-drawer    open the drawer, then lift the ball that is in it
    gripper-blocked-drawer   the same; the drawer above stands open and must be closed first
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

Array = jax.Array

HORIZONS = {"pick-place": 40, "closed-drawer": 50, "blocked-drawer": 80}
LOW = np.array([0.4, -0.2, -0.34])
HIGH = np.array([0.8, 0.4, -0.1])
"""metres: where the hand can be"""
HOME = np.array([0.600, 0.155, -0.173])
"""where the hand starts, and where `neutral` takes it"""
RESPONSE = np.array([0.16, 0.20, 0.20])
LAG = np.array([0.25, 0.30, 0.30])
"""a step moves by RESPONSE times the commanded way and LAG times the step before"""
HANG = np.array([0.0, -0.008, -0.047])
"""what is held, from the hand"""
TRAY = np.array([0.5, 0.25])
SHUT = 0.470
"""x of a drawer that is closed"""
WIDE = 0.595
"""x of one that is open"""
AJAR = 0.530
"""x of the upper drawer where it blocks"""
DRAWER_Y = 0.2
FLOOR = -0.3554
"""height of the ball's center on the floor of the drawer"""
TABLE = -0.363
"""of the object's on the table"""


@struct.dataclass
class State(environment.EnvState):
    time: Array
    hand: Array
    """float32 [3]"""
    moved: Array
    """float32 [3]: the hand's last step"""
    open: Array
    """bool: the fingers"""
    held: Array
    """bool: the object is between them"""
    thing: Array
    """float32 [3]: the object, or the ball"""
    drawer: Array
    """x of the drawer with the ball"""
    top: Array
    """x of the drawer above it"""


@struct.dataclass
class Params(environment.EnvParams):
    max_steps_in_episode: int = 40
    grasp_chance: float = 0.9
    """that fingers which close around the object hold it"""
    scatter: float = 0.012
    """deviation of where it falls, in metres"""


class Script(NamedTuple):
    """What an episode of a scripted policy draws once."""

    aim: Array
    """float32 [2]: added to the point to grasp"""
    height: Array
    """added to the height to grasp at"""
    clumsy: Array
    """bool: pulls are in the wrong direction half of the time"""


class Gripper(environment.Environment):
    """One of the three tasks; actions [8]: motion in x, y and z, three that do nothing (they turned
    the hand), fingers (above 0.5 opens, below -0.5 closes), and neutral (above 0.5: go home).

    It observes the object's position and orientation, the hand's, both fingers and whether they
    are open [17], and of the drawers both positions too [19]. Orientations are constant. The reward
    is 1 in every step in which the task is solved. Episodes never terminate.
    """

    def __init__(self, task: str):
        if task not in HORIZONS:
            raise ValueError(f"task={task!r}: must be one of {', '.join(HORIZONS)}")
        self.task = task
        self.has_drawers = task != "pick-place"

    @property
    def name(self) -> str:
        return f"gripper-{self.task}"

    @property
    def default_params(self) -> Params:
        chance = 0.8 if self.has_drawers else 0.9
        return Params(max_steps_in_episode=HORIZONS[self.task], grasp_chance=chance)

    def action_space(self, params: Any = None) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (8,))

    def observation_space(self, params: Any = None) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (19 if self.has_drawers else 17,))

    # ---- the environment -------------------------------------------------------------------------

    def reset_env(self, key: Array, params: Params) -> tuple:
        state = self._start(key)
        return self.get_obs(state), state

    def _start(self, key: Array, ready: bool = False) -> State:
        """A start; `ready`: where the first half is done (object held, or drawer open)."""
        thing_key, top_key = jax.random.split(key)
        hand = jnp.float32(HOME)
        held = jnp.bool_(ready and not self.has_drawers)
        # --- drawers ---
        is_open = ready and self.has_drawers
        drawer = jnp.float32(WIDE if is_open else SHUT)
        top = jnp.float32(SHUT)
        if self.task == "blocked-drawer" and not ready:
            top = jax.random.uniform(top_key, (), minval=0.528, maxval=AJAR)
        # --- the ball in the drawer, or the object ---
        if self.has_drawers:
            x = drawer + jax.random.uniform(thing_key, (), minval=-0.015, maxval=0.012)
            thing = _point(x, DRAWER_Y, FLOOR)
        else:
            thing = self._place(thing_key)
        return State(
            time=jnp.int32(0),
            hand=hand,
            moved=jnp.zeros(3),
            open=~held,
            held=held,
            thing=jnp.where(held, hand + HANG, thing),
            drawer=drawer,
            top=top,
        )

    def _place(self, key: Array) -> Array:
        """Where the object lies: uniform in a box, but not at the tray. Of 16 draws the first that
        fits; one in 10**7 has none."""
        low = np.array([0.49, 0.18])
        high = np.array([0.75, 0.27])
        drawn = jax.random.uniform(key, (16, 2), minval=low, maxval=high)
        away = jnp.linalg.norm(drawn - TRAY, axis=-1) > 0.11
        first = jnp.argmax(away)
        return jnp.append(drawn[first], TABLE)

    def step_env(self, key: Array, state: State, action: Array, params: Params) -> tuple:
        grasp_key, drop_key = jax.random.split(key)
        action = jnp.clip(action, -1.0, 1.0)
        opens = (action[6] > 0.5) & ~state.open
        closes = (action[6] < -0.5) & state.open
        # --- the hand ---
        target = jnp.clip(state.hand + 0.2 * action[:3], LOW, HIGH)
        way = target - state.hand
        slow = RESPONSE * way + LAG * state.moved
        # Fingers take their time, in which the hand comes further.
        hand = state.hand + jnp.where(opens | closes, 0.45 * way, slow)
        # Above the upper drawer, where it is out, the hand stays higher.
        covered = self._covered(state)
        in_front = (hand[0] > SHUT) & (hand[0] < 0.64)
        above = in_front & (jnp.abs(hand[1] - DRAWER_Y) < 0.1)
        lowest = jnp.where(covered & above, -0.25, LOW[2])
        hand = hand.at[2].max(lowest)
        moved = hand - state.hand
        # --- drawers ---
        drawer, top = self._slide(state, action, moved, covered)
        carried = jnp.where(state.held, 0.0, drawer - state.drawer)
        thing = state.thing.at[0].add(carried)
        # --- fingers ---
        beside = jnp.linalg.norm(thing[:2] - hand[:2])
        height = hand[2] - thing[2] + HANG[2]
        around = (beside < 0.025) & (height > -0.035) & (height < 0.03)
        reachable = (drawer > 0.5 * (SHUT + WIDE)) | (not self.has_drawers)
        lucky = jax.random.bernoulli(grasp_key, params.grasp_chance)
        held = (state.held & ~opens) | (closes & around & reachable & lucky)
        # --- neutral ---
        home = action[7] > 0.5
        missing = np.array([0.05, 0.13, 0.0]) * (hand - HOME)
        hand = jnp.where(home, HOME + missing, hand)
        moved = jnp.where(home, 0.0, moved)
        # --- what is held, or let go ---
        fallen = self._fall(drop_key, thing, params)
        thing = jnp.where(state.held & opens, fallen, thing)
        thing = jnp.where(held, hand + HANG, thing)
        state = State(
            time=state.time + 1,
            hand=hand,
            moved=moved,
            open=(state.open | opens) & ~closes,
            held=held,
            thing=thing,
            drawer=drawer,
            top=top,
        )
        return self.get_obs(state), state, self._reward(state), jnp.bool_(False), {}

    def _covered(self, state: State) -> Array:
        """Whether the upper drawer is so far out that it hides the lower one's handle."""
        return (state.top - SHUT) / 0.121 > 0.05

    def _slide(self, state: State, action: Array, moved: Array, covered: Array) -> tuple:
        """Both drawers after the hand has moved: the lower one follows it when hooked at its
        handle, the upper one is pushed in."""
        if not self.has_drawers:
            return state.drawer, state.top
        # --- the lower one ---
        hooked = jnp.linalg.norm(state.hand - self.handle(state)) < 0.06
        obeys = moved[0] * action[0] > 0
        strong = jnp.abs(action[0]) > 0.3
        pulls = hooked & obeys & strong & ~covered
        pulled = jnp.where(pulls, moved[0], 0.0)
        drawer = jnp.clip(state.drawer + pulled, SHUT, WIDE)
        # --- the upper one ---
        ahead = state.hand - _point(state.top, DRAWER_Y, -0.285)
        before = (ahead[0] > 0.05) & (ahead[0] < 0.17)
        beside = jnp.abs(ahead[1]) < 0.1
        level = jnp.abs(ahead[2]) < 0.045
        pushes = before & beside & level & (moved[0] < 0)
        pushed = jnp.where(pushes, moved[0], 0.0)
        top = jnp.clip(state.top + pushed, SHUT, AJAR)
        return drawer, top

    def handle(self, state: State) -> Array:
        """The lower drawer's handle: float32 [3]."""
        return _point(state.drawer + 0.110, DRAWER_Y, -0.35)

    def _fall(self, key: Array, thing: Array, params: Params) -> Array:
        """Where the object comes to rest when it is let go."""
        place = thing[:2] + params.scatter * jax.random.normal(key, (2,))
        if self.has_drawers:
            return jnp.append(place, FLOOR)
        in_tray = jnp.linalg.norm(place - TRAY) < 0.07
        return jnp.append(place, jnp.where(in_tray, -0.349, TABLE))

    def _reward(self, state: State) -> Array:
        if self.has_drawers:
            lifted = state.thing[2] > -0.25
            near_hand = jnp.linalg.norm(state.thing - state.hand) < 0.1
            return jnp.float32(lifted & near_hand)
        lying = state.thing[2] < -0.32
        in_tray = jnp.linalg.norm(state.thing[:2] - TRAY) < 0.04
        return jnp.float32(lying & in_tray)

    def get_obs(self, state: State, params: Any = None, key: Any = None) -> Array:
        around_thing = 0.0288 if self.has_drawers else 0.0244
        closed = jnp.where(state.held, around_thing, 0.015)
        finger = jnp.where(state.open, 0.036, closed)
        thing_turn = jnp.array([0.0, 0.0, 1.0, 0.0])
        hand_turn = jnp.array([0.0, 0.7068, 0.7074, 0.0])
        parts = [
            state.thing,
            thing_turn,
            state.hand,
            hand_turn,
            _point(finger, -finger, state.open),
        ]
        if self.has_drawers:
            parts.append(jnp.stack([state.top, state.drawer]))
        return jnp.concatenate(parts)

    def is_terminated(self, state: State, params: Params) -> Array:
        return jnp.bool_(False)

    def is_truncated(self, state: State, params: Params) -> Array:
        return state.time >= params.max_steps_in_episode

    def render(self, state: State, params: Params) -> Any:
        """A function that draws the side view (x to the right, z up) on a matplotlib axis."""

        def draw(ax: Any) -> None:
            # --- the table, and drawers or the tray ---
            ax.axhline(-0.37, color="#444444", lw=3)
            if self.has_drawers:
                for x, z in ((state.drawer, -0.35), (state.top, -0.285)):
                    low = z - 0.02
                    high = z + 0.02
                    handle = float(x) + 0.11
                    ax.plot([SHUT - 0.06, handle], [low, low], color="#BBBBBB", lw=6)
                    ax.plot([handle, handle], [low, high], color="#BBBBBB", lw=6)
            else:
                edges = TRAY[0] + np.array([-0.07, 0.07])
                ax.plot(edges, [-0.365, -0.365], color="#228833", lw=6)
            # --- the hand ---
            x, _, z = np.asarray(state.hand)
            half = 0.025 if state.open else 0.012
            for side in (-half, half):
                finger_x = [x, x + side, x + side]
                finger_z = [z, z - 0.01, z - 0.05]
                ax.plot(finger_x, finger_z, color="#4477AA", lw=4)
            # --- the object ---
            x, _, z = np.asarray(state.thing)
            ax.plot(x, z, "o", color="#EE6677", ms=12)
            ax.set(xlim=(0.38, 0.82), ylim=(-0.4, -0.08), aspect="equal")

        return draw

    # ---- data ------------------------------------------------------------------------------------

    def record(self, key: Array, params: Params, episodes: int = 500) -> tuple[dict, dict]:
        """Scripted episodes: `episodes` of the first half of the task, which earn nothing, and as
        many of the second half, which start where the first ones end. Half of the first are clumsy.

        Returns: twice the arrays of `PointMaze.record`; group is 0 and 1.
        """
        lengths = {
            "pick-place": (25, 20),
            "closed-drawer": (40, 30),
            "blocked-drawer": (50, 30),
        }
        parts = []
        for group, length in enumerate(lengths[self.task]):
            keys = jax.random.split(jax.random.fold_in(key, group), episodes)
            drive = functools.partial(self.drive, params=params, group=group, length=length)
            rows = jax.vmap(drive)(keys)
            rows["group"] = jnp.full(rows["reward"].shape, group)
            parts.append(rows)
        first, second = parts
        return first, second

    def drive(
        self,
        key: Array,
        params: Params,
        group: int,
        length: int,
        clumsy: float = 0.5,
    ) -> dict[str, Array]:
        """One scripted episode [length, ...] of the first half (group 0), the second (1), or, of
        pick-place, of the whole task (2). `clumsy` is the chance that it is not at its best."""
        start_key, script_key, key = jax.random.split(key, 3)
        state = self._start(start_key, ready=(group == 1))
        script = self._script(script_key, state, clumsy if group == 0 else 0.0)

        def step(state: State, t: Array) -> tuple:
            step_key = jax.random.fold_in(key, t)
            noise_key, flip_key, step_key = jax.random.split(step_key, 3)
            # --- the script's action, with noise ---
            action = self._act(flip_key, state, script, group)
            noise = 0.1 * jax.random.normal(noise_key, (8,))
            action = jnp.clip(action + noise, -0.9, 0.9)
            # --- a row ---
            stepped = self.step_env(step_key, state, action, params)
            next_obs, after, reward, terminated, _ = stepped
            row = {
                "obs": self.get_obs(state),
                "action": action,
                "reward": reward,
                "next_obs": next_obs,
                "terminated": terminated,
                "truncated": t == length - 1,
            }
            return after, row

        _, rows = jax.lax.scan(step, state, jnp.arange(length))
        return rows

    def _script(self, key: Array, state: State, clumsy: float) -> Script:
        """What the script of an episode draws."""
        bad_key, height_key, half_key, place_key = jax.random.split(key, 4)
        bad = jax.random.bernoulli(bad_key, clumsy)
        height = 0.01 * jax.random.normal(height_key)
        if self.has_drawers:
            return Script(jnp.zeros(2), height, bad)
        # Half of the clumsy ones grasp at some other point.
        elsewhere = bad & jax.random.bernoulli(half_key)
        place = self._place(place_key)[:2]
        aim = jnp.where(elsewhere, place - state.thing[:2], 0.0)
        return Script(aim, height, bad)

    def _act(self, key: Array, state: State, script: Script, group: int) -> Array:
        """The script's action [8], before noise."""
        if self.has_drawers:
            return self._lift(state, script) if group else self._open(key, state, script)
        grasp = self._grasp(state, script, -0.32)
        # --- grasp, and go home with what is held ---
        if group == 0:
            closed = ~state.open
            neutral = jnp.where(closed & self._away(state), 0.7, 0.0)
            home = _action(jnp.zeros(3), neutral=neutral)
            return jnp.where(closed, home, grasp)
        # --- carry it into the tray ---
        in_tray = jnp.linalg.norm(state.thing[:2] - TRAY) < 0.08
        return jnp.where(state.held | in_tray, self._carry(state), grasp)

    def _away(self, state: State) -> Array:
        """Whether the hand is away from home."""
        return jnp.linalg.norm(state.hand - HOME) > 0.03

    def _grasp(self, state: State, script: Script, height: float) -> Array:
        """Go above the point, down to it, and close the fingers."""
        point = jnp.append(state.thing[:2] + script.aim, height + script.height)
        error = point - state.hand
        beside = jnp.linalg.norm(error[:2]) > 0.03
        motion = 7.0 * error.at[2].multiply(~beside)
        there = (jnp.linalg.norm(error) <= 0.02) & state.open
        return _action(motion, fingers=jnp.where(there, -0.7, 0.0))

    def _carry(self, state: State) -> Array:
        """Take the object above the tray and let it go; then nothing."""
        error = jnp.append(TRAY, -0.2) - state.hand
        there = jnp.linalg.norm(error) <= 0.02
        motion = jnp.where(state.held & ~there, 7.0 * error, 0.0)
        return _action(motion, fingers=jnp.where(state.held & there, 0.7, 0.0))

    def _lift(self, state: State, script: Script) -> Array:
        """Grasp the ball and lift it."""
        lifted = state.thing[2] > -0.23
        up = jnp.where(lifted, 0.0, 7.0 * (HOME - state.hand))
        grasp = self._grasp(state, script, -0.31)
        return jnp.where(state.open, grasp, _action(up))

    def _open(self, key: Array, state: State, script: Script) -> Array:
        """Push the upper drawer in if it is out; hook the handle, pull, rise, and go home."""
        # --- close the upper one ---
        push = _point(state.top + 0.15, DRAWER_Y, -0.27)
        behind = state.hand[0] < push[0] - 0.03
        high = state.hand[2] > -0.245
        pushing = state.moved[0] <= -0.005
        around = jnp.array([0.3, -0.2, -0.15])
        inside = push - jnp.array([0.1, 0.0, 0.0])
        inwards = jnp.array([21.0, 4.2, 7.0]) * (inside - state.hand)
        close = jnp.where((behind | high) & ~pushing, around, inwards)
        # --- hook the handle, and pull ---
        error = self.handle(state) - state.hand
        beside = jnp.linalg.norm(error[:2]) > 0.04
        reach = 7.0 * error.at[2].multiply(~beside)
        wrong = script.clumsy & jax.random.bernoulli(key)
        direction = jnp.where(wrong, -1.0, 1.0)
        pull = direction * jnp.array([1.0, 0.0, 0.0])
        hooked = jnp.linalg.norm(error) < 0.055
        # --- leave ---
        opened = (state.drawer - SHUT) / (WIDE - SHUT)
        done = opened > 0.95
        low = state.hand[2] <= -0.25
        rise = jnp.array([0.0, 0.0, 0.5]) * low
        goes_home = done & ~low & self._away(state)
        # --- the first of them that is not done yet ---
        motion = jnp.where(hooked, pull, reach)
        motion = jnp.where(done, rise, motion)
        motion = jnp.where(self._covered(state), close, motion)
        return _action(motion, neutral=jnp.where(goes_home, 0.7, 0.0))


def _point(*numbers: Any) -> Array:
    """An array of numbers, some of which are traced: float32 [numbers]."""
    return jnp.stack([jnp.float32(x) for x in numbers])


def _action(motion: Array, fingers: Any = 0.0, neutral: Any = 0.0) -> Array:
    """An action [8] without turning."""
    turn = jnp.zeros(3)
    ends = jnp.stack([jnp.float32(fingers), jnp.float32(neutral)])
    return jnp.concatenate([motion, turn, ends])
