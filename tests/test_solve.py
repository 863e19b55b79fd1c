"""`--solve`: a network from a run or shipped, states from files and scrambles, what is written and
what is refused."""

import csv

import jax
import numpy as np
import pytest
from PIL import Image
from rlzoo.algorithms import qstar

import rlzoo
from rlzoo import cli, machine, search
from rlzoo.tools import solve

HEAD = ["index", "status", "cost", "lower_bound", "generated", "network_calls", "seconds", "moves"]
SMALL = ["--env", "tile8", "--batch", "8", "--node-limit", "20_000"]
TILE8 = rlzoo.make("tile8").inner
CONFIG = qstar.Config(
    env="tile8", total_steps=16, batch_size=8, scramble=5, hidden=(4, 4), num_blocks=1, eval_moves=2
)


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_search):
    out = tmp_path_factory.mktemp("run") / "tile8"
    rlzoo.train(qstar.make, CONFIG, out=str(out), quiet=True, cache=False, eval_every=0)
    return out


@pytest.fixture(scope="module", autouse=True)
def one_search():
    """The same searches are compiled once, and not kept on disk."""
    built = {}
    with pytest.MonkeyPatch.context() as patch:
        build, from_run = solve.build, solve.from_run
        usual = machine.compiler_options
        patch.setattr(
            machine,
            "compiler_options",
            lambda backend: usual(backend) | {"xla_backend_optimization_level": 0},
        )
        patch.setattr(machine, "keep_compiled", lambda: None)
        patch.setattr(
            solve,
            "build",
            lambda solver, config, puzzle, options, own: built.setdefault(
                (options.node_limit, options.batch, options.memory),
                build(solver, config, puzzle, options, own),
            ),
        )
        patch.setattr(
            solve,
            "from_run",
            lambda *args: (  # each loading of a run's file makes another Policy
                found := from_run(*args)
            )._replace(policy=qstar.Policy(*found.policy)),
        )
        yield built


@pytest.fixture
def call(capsys):
    """Run the file with `--solve` and more; gives (exit code, stdout, stderr)."""

    def call(*argv):
        code = 0
        try:
            cli.script(qstar.make, qstar.Config, qstar.solver, ["--solve", *map(str, argv)])
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call


def rows(out):
    with (out / "solutions.csv").open(newline="") as file:
        return list(csv.reader(file))


def follow(state, moves):
    for name in moves.split():
        state = np.asarray(TILE8.apply(state, np.int32(TILE8.action_names.index(name))))
    return state


# ---- what is written -----------------------------------------------------------------------------


@pytest.mark.slow
def test_scrambles(run, call, tmp_path):
    out = tmp_path / "out"
    code, shown, _ = call("scramble:5", "--count", 3, "--run", run, "--out", out, "--gif", *SMALL)
    assert code == 0
    head, *solved = rows(out)
    assert head == HEAD and [row[0] for row in solved] == ["0", "1", "2"]
    states = np.asarray(TILE8.scramble(jax.random.key(0), np.full(3, 5), 5))
    for row, state in zip(solved, states, strict=True):
        index, status, cost, bound, generated, calls, seconds, moves = row
        assert status == "solved" and TILE8.is_goal(follow(state, moves))
        assert int(cost) == len(moves.split()) >= TILE8.distance(state)
        assert (
            float(bound) >= 0.6 * int(cost) - 1e-6
            and int(generated) > 0
            and int(calls) >= 0
            and float(seconds) > 0
        )
        picture = out / f"{index}.gif"
        assert picture.is_file() == (int(cost) > 0)
        if int(cost):
            with Image.open(picture) as film:
                assert film.n_frames == int(cost) + 1
    assert any(int(row[2]) for row in solved)
    assert "solved 3 of 3" in shown and str(out / "solutions.csv") in shown and str(run) in shown


@pytest.mark.slow
def test_states_of_a_file(run, call, tmp_path):
    states = np.asarray(TILE8.scramble(jax.random.key(1), np.full(5, 4), 4)).astype(int)
    best = np.asarray(TILE8.distance(states.astype(np.uint8)))
    np.savez(tmp_path / "states.npz", states=states, opt_len=best)
    code, shown, _ = call(
        tmp_path / "states.npz",
        "--first",
        1,
        "--count",
        3,
        "--run",
        run,
        "--out",
        tmp_path / "out",
        "--weight",
        1,
        *SMALL,
    )
    assert code == 0 and "best possible" in shown
    _, *solved = rows(tmp_path / "out")
    assert [row[0] for row in solved] == ["1", "2", "3"]
    assert all(
        TILE8.is_goal(follow(states[int(row[0])].astype(np.uint8), row[-1])) for row in solved
    )


def test_what_was_not_solved_has_no_cost(run, call, tmp_path):
    code, shown, _ = call(
        "scramble:40", "--max-generated", 1, "--run", run, "--out", tmp_path / "out", *SMALL
    )
    ((_, status, cost, *_, moves),) = rows(tmp_path / "out")[1:]
    assert (code, status, cost, moves) == (0, "node limit", "", "") and "solved 0 of 1" in shown


# ---- weights -------------------------------------------------------------------------------------


def test_weights_are_saved_and_shipped(run, call, tmp_path, monkeypatch):
    monkeypatch.setattr(solve, "WEIGHTS", tmp_path)
    trained = rlzoo.load(run)
    solve.save(solve.weights_file("qstar", "tile8"), CONFIG, trained.policy)
    found = solve.load(tmp_path / "qstar-tile8.npz", qstar.make, qstar.Config, rlzoo.make("tile8"))
    assert found.config == CONFIG
    for a, b in zip(jax.tree.leaves(found.policy), jax.tree.leaves(trained.policy), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    code, shown, _ = call("scramble:2", "--out", tmp_path / "out", *SMALL)
    assert code == 0 and "qstar-tile8.npz" in shown and len(rows(tmp_path / "out")) == 2
    code, _, error = call("scramble:2", "--env", "tile15", "--out", tmp_path / "out15")
    assert code == 2 and "no weights for qstar on tile15 (it has qstar-tile8); train" in error


@pytest.mark.parametrize("side", [6, 7])
def test_shipped_networks_of_lights_out_are_exact(side):
    """The smallest q leads from any state to the goal with the fewest presses."""
    env = rlzoo.make(f"lights-out{side}")
    puzzle = env.inner
    found = solve.load(
        solve.weights_file("qstar", f"lights-out{side}"), qstar.make, qstar.Config, env
    )
    act = qstar.make(found.config, env).act
    states = jax.random.bernoulli(jax.random.key(0), 0.5, (1_000, puzzle.size)).astype(np.uint8)
    press = jax.jit(
        lambda states: puzzle.apply(states, act(found.policy, puzzle.inputs(states), None))
    )
    for left in range(int(puzzle.distance(states).max()), 0, -1):
        states = np.where((puzzle.distance(states) == left)[:, None], press(states), states)
    assert puzzle.is_goal(states).all()


# ---- refused -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    goal = TILE8.goal.astype(int)
    bad = np.stack([goal, goal, np.r_[goal[1], goal[0], goal[2:]]])
    np.savez(folder / "bad.npz", states=bad)
    np.savez(folder / "good.npz", states=bad[:2])
    np.savez(folder / "boards.npz", boards=bad)
    np.savez(folder / "colors.npz", states=np.arange(6).repeat(9)[None])
    (folder / "text.npz").write_text("states")
    (folder / "taken").mkdir()
    (folder / "taken" / "solutions.csv").write_text("")
    return folder


@pytest.mark.parametrize(
    "argv, message",
    [
        ("{files}/bad.npz", "bad.npz holds no states of tile8: state 2: it cannot be solved"),
        ("{files}/boards.npz", "there is no array 'states', only boards"),
        ("{files}/text.npz", "text.npz holds no states of tile8"),
        (
            "{files}/colors.npz --env cube3",
            "state 0: these are colors, 0..5; stickers are numbered",
        ),
        ("nonsense", "--solve 'nonsense' is neither a file nor scramble:MOVES"),
        ("scramble:far", "--solve 'scramble:far' should read scramble:MOVES"),
        ("scramble:5 --count 0", "--count is 0; it must be at least 1"),
        ("{files}/good.npz --first 2", "good.npz holds 2 states; --first 2"),
        ("{files}/good.npz --first 1 --count 2", "holds 2 states; --first 1 --count 2"),
        ("{files}/good.npz --first -1", "holds 2 states; --first -1"),
        ("scramble:5 --weight 2", "--weight is 2.0; it must be between 0 and 1"),
        ("scramble:5 --weight nan", "--weight is nan"),
        ("scramble:5 --batch 0", "--batch is 0; it must be at least 1"),
        (
            "scramble:5 --node-limit 1_000_000 --memory 0.01",
            "--node-limit 1_000_000 takes .* GiB, and --memory allows 0.01",
        ),
        (
            "scramble:5 --out {files}/taken",
            "taken holds solutions.csv already; choose another --out",
        ),
        ("scramble:5 --env CartPole-v1", "CartPole-v1 is not a puzzle"),
        ("scramble:5 --env tile9", "unknown environment 'tile9'; nearest: tile"),
        ("scramble:5 --env cube3", "holds a network of qstar for tile8, which is none for cube3"),
        ("scramble:5 --run {files}/nothing", "nothing is not a run"),
    ],
)
def test_refusals(argv, message, files, run, call, tmp_path):
    given = argv.format(files=files).split()
    rest = [
        *([] if "--run" in given else ["--run", run]),
        *([] if "--out" in given else ["--out", tmp_path / "out"]),
    ]
    code, _, error = call(*given[:1], *SMALL, *given[1:], *rest)
    assert code == 2, error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert pytest.raises(ValueError, match=message).matches(ValueError(error)), error
    assert not (tmp_path / "out").exists()


def test_help_describes_the_search_too(call):
    code, shown, _ = call("--help")
    assert code == 0
    assert shown.index("--edge-block") < shown.index("--weight")
    for flag in ("--weight", "--node-limit", "--memory", "--gif", "--edge-block", "--child-cost"):
        assert flag in shown
    assert "edges of a node that enter the open list at once" in " ".join(shown.split())
    assert search.STATUSES[0] == "solved"
