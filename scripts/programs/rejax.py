"""rejax 0.1.3 on CartPole-v1 at the settings of our own PPO and DQN: one JSON line with its speed.

Run by the peer's interpreter (see peers.py), never by ours:

    .peers/rejax/bin/python scripts/programs/rejax.py ppo|dqn --seeds N --steps T [--repeat K]

Only public knobs of rejax are turned (`create`, `replace`, the evaluation callback) and none of its
code is changed; what its settings cannot express stays as rejax does it, and is listed under
`differences`. Training is compiled ahead of time and timed alone: no evaluation runs inside it.
Afterwards, untimed, the last repeat's agents are evaluated.

Keys: `compile_seconds` is tracing and compiling, never from a cache; `seconds` one number per
repeat (a repeat is a whole training from other keys) until all outputs are ready, `cpu_seconds` the
same in process CPU time; the two rates are totals over all seeds divided by the median repeat.
`env_steps` and `updates` are per seed, read from rejax's own counters at the end; one update is one
minibatch, which for PPO moves both actor and critic.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from importlib import metadata

import jax
import jax.numpy as jnp
from rejax import DQN, PPO
from rejax.evaluate import evaluate
from rejax.networks import DiscreteQNetwork, EpsilonGreedyPolicy

BOTH = [
    "time_limit: gymnax 0.0.9 has one `done` for time limit and failure; rejax stops "
    "bootstrapping at both",
    "environment: gymnax 0.0.9 draws a fresh reset state at every step and selects it "
    "where an episode ended",
    "initialization: flax's default (lecun_normal, zero bias); rejax has no knob for it",
    "adam_eps: optax's default, 1e-8; rejax has no knob for it",
]


def make_ppo(steps):
    """PPO, its count of updates, and what differs from the settings asked for."""
    num_envs, num_steps, num_epochs, num_minibatches = 4, 128, 4, 4
    iterations = -(-steps // (num_envs * num_steps))  # rejax rounds up too

    def annealed(update):  # constant within an iteration, from the full rate to (almost) zero
        return 1e-3 * (1.0 - (update // (num_epochs * num_minibatches)) / iterations)

    algorithm = PPO.create(
        env="CartPole-v1",
        agent_kwargs={"hidden_layer_sizes": (64, 64), "activation": "tanh"},
        num_envs=num_envs,
        num_steps=num_steps,
        num_epochs=num_epochs,
        num_minibatches=num_minibatches,
        learning_rate=annealed,  # handed to optax.adam as it is, which takes schedules
        gamma=0.99,
        gae_lambda=0.95,
        clip_eps=0.2,
        ent_coef=0.01,
        vf_coef=0.5,
        max_grad_norm=0.5,
        normalize_observations=False,
        normalize_rewards=False,
        **timed_alone(steps),
    )
    differences = [
        "max_grad_norm: rejax clips every gradient element to +-0.5 (optax.clip), not the "
        "global norm to 0.5",
        "optimizer: actor and critic have an Adam and a gradient each, one after the "
        "other, not one loss",
        "value_loss: always clipped (by clip_eps around the old value); vf_coef "
        "multiplies half its square",
        "advantages: always normalized per minibatch; rejax has no knob for it",
        "annealing: linear by iteration, a schedule given as learning_rate, which rejax "
        "declares a scalar",
        *BOTH,
    ]
    return algorithm, lambda state: state.actor_ts.step, differences


def make_dqn(steps):
    """DQN, its count of updates, and what differs from the settings asked for."""
    algorithm = DQN.create(
        env="CartPole-v1",
        num_envs=10,
        num_epochs=1,
        batch_size=128,
        buffer_size=10_000,
        fill_buffer=1_000,
        target_update_freq=500,
        polyak=0.0,  # the target becomes a copy of the online network
        eps_start=1.0,
        eps_end=0.05,
        exploration_fraction=0.5,
        learning_rate=2.5e-4,
        gamma=0.99,
        ddqn=False,
        normalize_observations=False,
        normalize_rewards=False,
        **timed_alone(steps),
    )
    # `agent_kwargs` cannot set the layer sizes (0.1.3 passes 64, 64 beside them): give the network
    # whole.
    network = EpsilonGreedyPolicy(DiscreteQNetwork)(
        hidden_layer_sizes=(120, 84), action_dim=algorithm.action_dim, activation=jax.nn.relu
    )
    differences = [
        "replay: rejax draws batches without replacement, by a weighted choice over the "
        "whole buffer",
        "learning_starts: the counter must be past 1000 before a vector step, so the "
        "first update is at 1020",
        "exploration: actions are uniform, whatever epsilon says, until learning starts",
        "loss: half the squared error (the same direction, half the gradient, under Adam)",
        *BOTH,
    ]
    return algorithm.replace(agent=network), lambda state: state.q_ts.step, differences


def timed_alone(steps):
    """Settings that leave one evaluation callback, at the end, which `main` replaces by
    `nothing`."""
    return {"total_timesteps": steps, "eval_freq": steps, "skip_initial_evaluation": True}


def nothing(algorithm, state, key):
    return ()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("algorithm", choices=["ppo", "dqn"])
    parser.add_argument(
        "--seeds", type=positive, required=True, help="agents trained at once, by jax.vmap"
    )
    parser.add_argument("--steps", type=positive, required=True, help="environment steps per agent")
    parser.add_argument("--repeat", type=positive, default=1, help="timed trainings, compiled once")
    parser.add_argument(
        "--seed", type=int, default=0, help="repeat r starts from PRNGKey(seed + r)"
    )
    parser.add_argument(
        "--eval-episodes", type=int, default=16, help="per agent, untimed; 0 for none"
    )
    args = parser.parse_args()

    jax.config.update("jax_enable_compilation_cache", False)  # a compilation time is to be measured
    algorithm, updates, differences = {"ppo": make_ppo, "dqn": make_dqn}[args.algorithm](args.steps)
    algorithm = algorithm.replace(eval_callback=nothing)
    keys = [
        jax.random.split(jax.random.PRNGKey(args.seed + r), args.seeds) for r in range(args.repeat)
    ]
    jax.block_until_ready(keys)

    work = f"{args.seeds} seeds x {args.steps} steps"
    say(f"rejax {args.algorithm}: {work} on {device()}, compiling ...")
    start = time.perf_counter()
    lowered = jax.jit(jax.vmap(algorithm.train)).lower(keys[0])
    trace_seconds = time.perf_counter() - start
    train = lowered.compile()
    compile_seconds = time.perf_counter() - start
    say(f"compiled in {compile_seconds:.2f} s (of which tracing {trace_seconds:.2f} s)")

    seconds, cpu_seconds = [], []
    for repeat, key in enumerate(keys):
        cpu, start = time.process_time(), time.perf_counter()
        state, _ = jax.block_until_ready(train(key))
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu)
        say(f"repeat {repeat + 1} of {args.repeat}: {seconds[-1]:.2f} s")

    env_steps, num_updates = int(state.global_step[0]), int(updates(state)[0])
    result = {
        "project": "rejax",
        "algorithm": args.algorithm,
        "env": "CartPole-v1",
        "seeds": args.seeds,
        "steps": args.steps,
        "env_steps": env_steps,
        "updates": num_updates,
        "trace_seconds": round(trace_seconds, 3),
        "compile_seconds": round(compile_seconds, 3),
        "seconds": [round(s, 4) for s in seconds],
        "cpu_seconds": [round(s, 4) for s in cpu_seconds],
        "env_steps_per_second": round(args.seeds * env_steps / statistics.median(seconds), 1),
        "updates_per_second": round(args.seeds * num_updates / statistics.median(seconds), 1),
    }
    if args.eval_episodes > 0:
        say("evaluating ...")
        result["returns"] = [
            round(float(r), 2) for r in final_returns(algorithm, state, args.eval_episodes)
        ]
        result["return_mean"] = round(statistics.mean(result["returns"]), 2)
    result["differences"] = differences
    result["device"] = device()
    result["xla_flags"] = os.environ.get("XLA_FLAGS", "")
    result["versions"] = {"python": platform.python_version()} | {
        name: metadata.version(name)
        for name in (
            "rejax",
            "gymnax",
            "jax",
            "jaxlib",
            "flax",
            "optax",
            "distrax",
            "chex",
            "numpy",
        )
    }
    print(json.dumps(result), flush=True)


def final_returns(algorithm, state, episodes):
    """Mean return of each agent, as rejax evaluates: PPO samples its actions, DQN has epsilon
    0.005."""

    def one(state, key):
        limit = algorithm.env_params.max_steps_in_episode
        act = algorithm.make_act(state)
        _, returns = evaluate(act, key, algorithm.env, algorithm.env_params, episodes, limit)
        return jnp.mean(returns)

    keys = jax.random.split(jax.random.PRNGKey(1_000_003), state.global_step.shape[0])
    return jax.jit(jax.vmap(one))(state, keys)


def device():
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def positive(text):
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def say(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
