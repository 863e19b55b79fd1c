"""The point maze of MBRCSL: a ball with inertia is pushed through a corridor.

Paper: Zhou et al. 2023 (arXiv 2310.19308). Physics as in gymnasium-robotics 1.2.2 (PointMaze, dense
reward): away from walls a step is MuJoCo's to rounding. Walls are hard here: the ball is put back
onto the wall's surface and loses its speed into it, where MuJoCo's contact is soft.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

Array = jax.Array
MOVES = ((0, 1), (0, -1), (-1, 0), (1, 0))
"""(row, column) steps; of equally short ways the one that comes first here is taken"""
LEGS = 3
"""sub-goals that a route has at most"""


@struct.dataclass
class State(environment.EnvState):
    time: Array
    """steps made"""
    position: Array
    """float32 [2], in cells; (0, 0) is the middle of the map, y points up"""
    velocity: Array
    """float32 [2], per second"""
    goal: Array
    """float32 [2]; it is not observed"""


@struct.dataclass
class Params(environment.EnvParams):
    max_steps_in_episode: int = 200
    jitter: float = 0.25
    """start and goal are uniform within this distance of their cells' centers, along each axis"""
    dt: float = 0.01
    """seconds"""
    gear: float = 100.0
    """force of an action of 1"""
    damping: float = 1.0
    mass: float = 4.0 / 3.0 * np.pi
    """of a ball of radius 0.1 and density 1000"""
    radius: float = 0.1
    max_speed: float = 5.0
    """speeds are clipped to it, along each axis, before a step"""


class Route(NamedTuple):
    """What a scripted driver does in an episode."""

    cells: tuple[tuple[int, int], ...]
    """(row, column) of the sub-goals, in their order"""
    wander: bool = False
    """act at random once the last one is reached; else hold it"""
    to_goal: bool = False
    """the last sub-goal is the goal itself, and not a point of its own in that cell"""


ROUTES = (
    Route(((2, 2),)),
    Route(((2, 2),)),
    Route(((1, 1), (2, 1), (2, 4))),
    Route(((1, 1), (2, 1), (2, 4)), wander=True),
)
"""of the paper's data: two go down and stop, two reach the goal by a detour; none does both well"""
EXPERT = Route(((2, 4),), to_goal=True)
"""straight to the goal"""


class Plan(NamedTuple):
    """A route as arrays."""

    cells: Any
    """int [LEGS, 2]; the last one is repeated"""
    last: Any
    """the leg that ends at the last sub-goal"""
    wander: Any
    """bool"""
    to_goal: Any
    """bool"""


class Driver(NamedTuple):
    """The memory of a scripted driver."""

    leg: Array
    over: Array
    """bool: the last sub-goal was reached"""
    cell: Array
    """int32: where the next waypoint is"""
    waypoint: Array
    """float32 [2]"""


class PointMaze(environment.Environment):
    """A ball, an action in [-1, 1]^2 that pushes it, and a reward of exp(-distance to the goal).

    It observes position and velocity [4] but not the goal, which is drawn anew in each episode.
    Episodes never terminate.

    Args:
      walls: rows of the map from the top, joined by slashes; 1 is a wall, 0 is free. The border
        must be walls.
      start, goal: (row, column) of free cells.
    """

    def __init__(
        self,
        walls: str = "111111/100111/100001/111111",
        start: tuple[int, int] = (1, 2),
        goal: tuple[int, int] = (2, 4),
    ):
        rows = walls.split("/")
        if {*walls} - {*"01/"} or len({len(row) for row in rows}) > 1:
            raise ValueError(
                f"walls={walls!r}: must be rows of 0 and 1 of one length, as 111/101/111"
            )
        self.grid = np.array([[mark == "1" for mark in row] for row in rows])
        top_and_bottom = self.grid[[0, -1]]
        sides = self.grid[:, [0, -1]]
        if not (top_and_bottom.all() and sides.all()):
            raise ValueError(f"walls={walls!r}: the border must be walls (1)")
        free = {tuple(cell) for cell in np.argwhere(~self.grid).tolist()}
        for name, cell in (("start", start), ("goal", goal)):
            if tuple(cell) not in free:
                raise ValueError(
                    f"{name}={cell}: must be the (row, column) of a free cell of {walls}"
                )
        self.walls = walls
        self.start = start
        self.goal = goal
        self.centers = self.center(np.argwhere(self.grid))
        """float [walls, 2] of the boxes"""
        self.next_cells = ways(self.grid)
        """int32 [cells, cells]"""

    @property
    def name(self) -> str:
        return "point-maze"

    @property
    def default_params(self) -> Params:
        return Params()

    def action_space(self, params: Any = None) -> spaces.Box:
        return spaces.Box(-1.0, 1.0, (2,))

    def observation_space(self, params: Any = None) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, (4,))

    # ---- cells -----------------------------------------------------------------------------------

    def center(self, cell: Any) -> Any:
        """The middle of cells: (row, column) [..., 2] -> (x, y) [..., 2]."""
        rows, columns = self.grid.shape
        x = cell[..., 1] - (columns - 1) / 2
        y = (rows - 1) / 2 - cell[..., 0]
        xp = np if isinstance(cell, np.ndarray) else jnp
        return xp.stack([x, y], axis=-1)

    def cell(self, position: Array) -> Array:
        """(row, column) of the cell that a position [..., 2] is in: int32 [..., 2]."""
        rows, columns = self.grid.shape
        row = jnp.floor(rows / 2 - position[..., 1])
        column = jnp.floor(position[..., 0] + columns / 2)
        return jnp.stack([row, column], axis=-1).astype(jnp.int32)

    # ---- the environment -------------------------------------------------------------------------

    def reset_env(self, key: Array, params: Params) -> tuple:
        cells = self.center(np.array([self.start, self.goal]))
        jitter = params.jitter
        noise = jax.random.uniform(key, (2, 2), minval=-jitter, maxval=jitter)
        position, goal = jnp.float32(cells) + noise
        state = State(
            time=jnp.int32(0),
            position=position,
            velocity=jnp.zeros(2),
            goal=goal,
        )
        return self.get_obs(state), state

    def step_env(self, key: Array, state: State, action: Array, params: Params) -> tuple:
        position, velocity = self.move(state.position, state.velocity, action, params)
        state = State(
            time=state.time + 1,
            position=position,
            velocity=velocity,
            goal=state.goal,
        )
        distance = jnp.linalg.norm(position - state.goal)
        reward = jnp.exp(-distance)
        return self.get_obs(state), state, reward, jnp.bool_(False), {}

    def move(self, position: Any, velocity: Any, action: Any, params: Params) -> tuple:
        """Position and velocity [2] after a step: implicit in the damping, then walls."""
        action = jnp.clip(action, -1.0, 1.0)
        velocity = jnp.clip(velocity, -params.max_speed, params.max_speed)
        momentum = params.mass * velocity + params.dt * params.gear * action
        velocity = momentum / (params.mass + params.dt * params.damping)
        position = position + params.dt * velocity
        # In a corner two walls touch.
        for _ in range(2):
            position, velocity = self.collide(position, velocity, params.radius)
        return position, velocity

    def collide(self, position: Any, velocity: Any, radius: Any) -> tuple:
        """The ball put back out of the wall that it is deepest in."""
        # --- the nearest point of each wall, and the nearest of all ---
        points = jnp.clip(position, self.centers - 0.5, self.centers + 0.5)
        distances = jnp.linalg.norm(position - points, axis=-1)
        wall = jnp.argmin(distances)
        point = points[wall]
        distance = distances[wall]
        normal = (position - point) / jnp.maximum(distance, 1e-6)
        # --- onto its surface, without the speed into it ---
        inward = jnp.minimum(velocity @ normal, 0.0)
        touches = distance < radius
        position = jnp.where(touches, point + radius * normal, position)
        velocity = jnp.where(touches, velocity - inward * normal, velocity)
        return position, velocity

    def get_obs(self, state: State, params: Any = None, key: Any = None) -> Array:
        return jnp.concatenate([state.position, state.velocity])

    def is_terminated(self, state: State, params: Params) -> Array:
        return jnp.bool_(False)

    def is_truncated(self, state: State, params: Params) -> Array:
        return state.time >= params.max_steps_in_episode

    def render(self, state: State, params: Params) -> Any:
        """A function that draws walls, ball and goal on a matplotlib axis."""

        def draw(ax: Any) -> None:
            from matplotlib.patches import Circle, Rectangle

            for x, y in self.centers:
                wall = Rectangle((x - 0.5, y - 0.5), 1, 1, color="#444444")
                ax.add_patch(wall)
            ax.plot(*np.asarray(state.goal), "*", color="#228833", ms=16)
            position = np.asarray(state.position)
            ball = Circle(position, float(params.radius), color="#4477AA")
            ax.add_patch(ball)
            rows, columns = self.grid.shape
            ax.set(
                xlim=(-columns / 2, columns / 2),
                ylim=(-rows / 2, rows / 2),
                aspect="equal",
            )

        return draw

    # ---- data ------------------------------------------------------------------------------------

    def record(
        self,
        key: Array,
        params: Params,
        episodes: int = 250,
        routes: tuple[Route, ...] = ROUTES,
    ) -> dict[str, Array]:
        """Whole episodes of scripted drivers, `episodes` of each route, one after the other.

        Returns: obs, action, reward, next_obs, terminated, truncated and group (the route's
        number), each [episodes in all, max_steps, ...].
        """
        keys = jax.random.split(key, (len(routes), episodes))
        keys = keys.reshape(len(routes) * episodes)
        group = jnp.repeat(jnp.arange(len(routes)), episodes)
        # --- the route of each episode ---
        plans = [plan_of(route) for route in routes]
        stacked = jax.tree.map(lambda *x: np.stack(x), *plans)
        plan = jax.tree.map(lambda x: jnp.asarray(x)[group], stacked)
        # --- drive ---
        rows = jax.vmap(self._drive, in_axes=(0, None, 0))(keys, params, plan)
        rows["group"] = jnp.broadcast_to(group[:, None], rows["reward"].shape)
        return rows

    def _drive(self, key: Array, params: Params, plan: Plan) -> dict[str, Array]:
        """One episode [max_steps, ...]."""
        reset_key, goals_key, key = jax.random.split(key, 3)
        _, state = self.reset_env(reset_key, params)
        # --- sub-goals: points in the plan's cells ---
        noise = jax.random.uniform(goals_key, (LEGS, 2), minval=-0.25, maxval=0.25)
        goals = self.center(plan.cells) + noise
        is_last = jnp.arange(LEGS)[:, None] == plan.last
        goals = jnp.where(is_last & plan.to_goal, state.goal, goals)

        def step(carry: tuple, t: Array) -> tuple:
            state, driver = carry
            step_key = jax.random.fold_in(key, t)
            way_key, random_key, step_key = jax.random.split(step_key, 3)
            # --- steer to the waypoint, or wander ---
            driver = self._steer(way_key, t, state, driver, goals, plan)
            push = 10.0 * (driver.waypoint - state.position) - state.velocity
            push = jnp.clip(push, -1.0, 1.0)
            random = jax.random.uniform(random_key, (2,), minval=-1.0)
            action = jnp.where(driver.over & plan.wander, random, push)
            # --- a row ---
            stepped = self.step_env(step_key, state, action, params)
            next_obs, after, reward, terminated, _ = stepped
            row = {
                "obs": self.get_obs(state),
                "action": action,
                "reward": reward,
                "next_obs": next_obs,
                "terminated": terminated,
                "truncated": self.is_truncated(after, params),
            }
            return (after, driver), row

        driver = Driver(
            leg=jnp.int32(0),
            over=jnp.bool_(False),
            cell=jnp.int32(0),
            waypoint=jnp.zeros(2),
        )
        steps = jnp.arange(params.max_steps_in_episode)
        _, rows = jax.lax.scan(step, (state, driver), steps)
        return rows

    def _steer(
        self,
        key: Array,
        t: Array,
        state: State,
        driver: Driver,
        goals: Array,
        plan: Plan,
    ) -> Driver:
        """The driver with the waypoint to steer to now; `goals` [LEGS, 2]."""
        columns = self.grid.shape[1]
        next_cells = jnp.asarray(self.next_cells)
        goal_cells = plan.cells[:, 0] * columns + plan.cells[:, 1]

        def center(cell: Array) -> Array:
            row_and_column = jnp.stack(jnp.divmod(cell, columns))
            return self.center(row_and_column)

        # --- is the sub-goal reached? ---
        near = jnp.linalg.norm(state.position - goals[driver.leg]) <= 0.5
        slow = (jnp.abs(state.velocity) <= 0.5).all()
        final = driver.leg == plan.last
        in_time = slow | (final & plan.wander)
        reached = near & in_time & ~driver.over
        leg = jnp.where(reached & ~final, driver.leg + 1, driver.leg)
        goal = goals[leg]
        goal_cell = goal_cells[leg]
        # --- a new sub-goal: first to the center of the next cell on the way ---
        row, column = self.cell(state.position)
        first = next_cells[goal_cell, row * columns + column]
        new = (t == 0) | (leg != driver.leg)
        cell = jnp.where(new, first, driver.cell)
        waypoint = jnp.where(new, center(first), driver.waypoint)
        # --- the waypoint is reached: on to the next ---
        close = jnp.linalg.norm(waypoint - state.position) <= 0.1
        passed = close & (cell != goal_cell)
        following = next_cells[goal_cell, cell]
        beside = center(following) - jax.random.uniform(key, (2,), maxval=0.2)
        ahead = jnp.where(following == goal_cell, goal, beside)
        return Driver(
            leg=leg,
            over=driver.over | (reached & final),
            cell=jnp.where(passed, following, cell),
            waypoint=jnp.where(passed, ahead, waypoint),
        )


def plan_of(route: Route) -> Plan:
    """The plan that follows a route."""
    last = len(route.cells) - 1
    padding = [route.cells[last]] * (LEGS - len(route.cells))
    return Plan(
        cells=np.array([*route.cells, *padding]),
        last=np.array(last),
        wander=np.array(route.wander),
        to_goal=np.array(route.to_goal),
    )


def ways(grid: np.ndarray) -> np.ndarray:
    """The next cell on a shortest way: int32 [goals, cells], cells counted along the rows.

    At the goal itself it is the first free neighbor.
    """
    columns = grid.shape[1]
    free = [(row, column) for row, column in np.argwhere(~grid)]
    table = np.zeros((grid.size, grid.size), np.int32)

    def neighbors(cell: tuple) -> list[tuple]:
        row, column = cell
        return [(row + down, column + right) for down, right in MOVES]

    def number(cell: tuple) -> int:
        row, column = cell
        return row * columns + column

    for goal in free:
        # --- distances to the goal, breadth first ---
        distance = {goal: 0}
        queue = [goal]
        for cell in queue:
            for neighbor in neighbors(cell):
                if not grid[neighbor] and neighbor not in distance:
                    distance[neighbor] = distance[cell] + 1
                    queue.append(neighbor)
        # --- from each cell to the neighbor that is nearest to it ---
        for cell in distance:
            reachable = [neighbor for neighbor in neighbors(cell) if neighbor in distance]
            best = min(reachable, key=distance.__getitem__, default=cell)
            table[number(goal), number(cell)] = number(best)
    return table
