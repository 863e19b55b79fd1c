"""The studies in results/dual_rl: f-DVL and ReCOIL beside what they are judged against.

    python scripts/dual_rl.py                         # all of them; what is done already is skipped
    python scripts/dual_rl.py --only pendulum         # offline: 8 methods on 3 data sets, 5 seeds
    python scripts/dual_rl.py --only mountaincar      # likewise
    python scripts/dual_rl.py --only stability        # XQL and f-DVL over their temperatures
    python scripts/dual_rl.py --only scale            # f-DVL over the scale of rewards
    python scripts/dual_rl.py --only imitation        # ReCOIL and others as the expert gets scarce
    python scripts/dual_rl.py --only recoil           # its released loss and its derived one

Each tests a claim of Sikchi et al. 2024 (arXiv 2302.08560) at a reduced size, on data sets of our
own (`rlzoo data list`). They are made on first use. Scores are normalized: 0 is a random policy's
return, 100 that of the expert whose run gave the data; the last iterate counts.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from programs.arms import Lab, Parts, hardware

from rlzoo import report
from rlzoo.study import (
    carry_out,
    claim,
    members,
    more,
    score,
    script,
    table,
    verdict_list,
)

UPDATES = 10_000
SEEDS = 5
TUNING_SEEDS = 2
SIZES = f"--total-steps {UPDATES} --hidden 64 64 --batch-size 256 --learning-rate 1e-3"
JUDGED = f"--eval-every {UPDATES // 2} --eval-episodes 32"
MARGIN = 10.0
"""points of the normalized score that are as good as none"""


class Method(NamedTuple):
    """An arm of a table: a file, its flags, and the field that is tuned."""

    file: str
    flags: str = ""
    field: str = ""
    values: tuple[str, ...] = ()
    """as many for each method"""

    def line(self, data: str) -> str:
        return f"{SIZES} {JUDGED} {self.flags} --dataset {data}"


OFFLINE = {
    "bc": Method("bc"),
    "bc, best tenth": Method("bc", "--top-fraction 0.1"),
    "td3_bc": Method("td3_bc", "", "alpha", ("0.5", "1", "2.5", "5")),
    "cql": Method("cql", "--actor-learning-rate 3e-4", "cql_alpha", ("0.5", "1", "5", "10")),
    "iql": Method("iql", "", "expectile", ("0.6", "0.7", "0.8", "0.9")),
    "xql": Method("xql", "", "beta", ("1", "2", "5", "10")),
    "f_dvl, total variation": Method("f_dvl", "", "dual_lambda", ("0.6", "0.7", "0.8", "0.9")),
    "f_dvl, chi square": Method(
        "f_dvl", "--divergence chi_square", "dual_lambda", ("0.6", "0.7", "0.8", "0.9")
    ),
}
IMITATION = {
    "iq_learn": Method("iq_learn", "", "alpha", ("0.001", "0.01", "0.1", "1")),
    "smodice": Method("smodice", "", "gradient_penalty", ("0.1", "1", "10", "30")),
    "recoil, released": Method("recoil", "", "temperature", ("1", "2.5", "5", "10")),
}
MIXTURE = Method("recoil", "--loss mixture", "temperature", ("0.25", "1", "2.5", "5"))
TIERS = ("medium", "medium-replay", "medium-expert")
MIXES = ("random+expert", "random+few-expert", "medium+expert", "medium+few-expert")
"""from many of the expert's episodes among the mixed data to few"""
Runs = dict[tuple[str, str], report.Run]
"""by method and data set"""


# ---- records -------------------------------------------------------------------------------------


def last(run: report.Run, metric: str = "eval/score", **swept: float) -> np.ndarray:
    """The last value of a metric for every seed of a setting, [seeds]; NaN where there is none."""
    rows, found = run.metrics["member"], []
    for member in members(run, **swept):
        values = run.metrics[metric][rows == member["member"]]
        values = values[~np.isnan(values)]
        found.append(values[-1] if len(values) else np.nan)
    return np.array(found)


def scores(run: report.Run, **swept: float) -> np.ndarray:
    """Normalized scores of every seed of a setting; that of a diverged one is 0, as of a random
    policy."""
    found = np.nan_to_num(last(run, **swept))
    return np.where(diverged(run, **swept) > 0, 0.0, found)


def diverged(run: report.Run, **swept: float) -> np.ndarray:
    """1 for each seed of a setting that diverged, else 0."""
    return np.array([float(member["diverged"]) for member in members(run, **swept)])


def file_name(*parts: str) -> str:
    return "-".join(parts).replace(", ", "-").replace(" ", "_").replace("+", "_and_")


def tuned(lab: Lab, folder: str, name: str, method: Method, data: str) -> str:
    """The flag with the best value of the method's field, over seeds that nothing else uses."""
    if not method.field:
        return ""
    sweep = f"--sweep {method.field}={','.join(method.values)}"
    seeds = f"--seed 1000 --seeds {TUNING_SEEDS}"
    record = f"{folder}/{file_name('tune', name)}"
    run = lab.arm(record, f"algorithms/{method.file}.py", f"{method.line(data)} {seeds} {sweep}")
    means = [scores(run, **{method.field: float(value)}).mean() for value in method.values]
    return f"--{method.field.replace('_', '-')} {method.values[int(np.argmax(means))]}"


def arms(lab: Lab, folder: str, methods: dict[str, Method], data: dict[str, str], on: str) -> Runs:
    """Every method on all data sets, by name; tuned on the one called `on`, for all of them."""
    runs: Runs = {}
    for name, method in methods.items():
        best = tuned(lab, folder, name, method, data[on])
        for each, given in data.items():
            flags = f"{method.line(given)} {best} --seeds {SEEDS}"
            record = f"{folder}/{file_name(name, each)}"
            runs[name, each] = lab.arm(record, f"algorithms/{method.file}.py", flags)
    return runs


def overall(runs: Runs, method: str) -> np.ndarray:
    """Mean score over all data sets, [seeds]."""
    return np.mean([scores(run) for (name, _), run in runs.items() if name == method], axis=0)


def parts_of(lab: Lab, folder: str, runs: Runs, claims: list) -> Parts:
    """The table of all scores, one row a method, with what a page needs beside it."""
    methods = list(dict.fromkeys(name for name, _ in runs))
    data = list(dict.fromkeys(each for _, each in runs))
    body = []
    for name in methods:
        found = [score(scores(runs[name, each])) if (name, each) in runs else "" for each in data]
        whole = score(overall(runs, name)) if all(found) else ""
        body.append([name, *found, whole])
    commands = [
        f"- {name}, {each}: `{run.config['command']}`" for (name, each), run in runs.items()
    ]
    return {
        "table": table(["method", *data, "mean over data sets"], body),
        "verdicts": verdict_list(claims),
        "commands": "\n".join(commands),
        "hardware": hardware(next(iter(runs.values())).config["hardware"]),
    }


# ---- offline -------------------------------------------------------------------------------------


def offline(lab: Lab, task: str) -> Parts:
    data = {tier: f"{task}-{tier}" for tier in TIERS}
    runs = arms(lab, task, OFFLINE, data, "medium-replay")
    ours = overall(runs, "f_dvl, total variation")
    claims = [
        claim(f"f-DVL (total variation) is about {other}", more, ours, mean, margin=MARGIN)
        for other, mean in ((name, overall(runs, name)) for name in ("iql", "xql"))
    ]
    claims += [
        claim(f"f-DVL (total variation) beats {other}", more, ours, overall(runs, other))
        for other in ("bc", "bc, best tenth", "td3_bc", "cql", "f_dvl, chi square")
    ]
    return parts_of(lab, task, runs, claims)


def pendulum(lab: Lab) -> Parts:
    return offline(lab, "pendulum")


def mountaincar(lab: Lab) -> Parts:
    return offline(lab, "mountaincar")


# ---- stability -----------------------------------------------------------------------------------

BETAS = ("0.03", "0.1", "0.3", "1", "3", "10")
LAMBDAS = ("0.55", "0.6", "0.7", "0.8", "0.9", "0.99")
STABILITY = {
    "xql": Method("xql", "", "beta", BETAS),
    "xql, hardly clipped": Method("xql", "--max-clip 50", "beta", BETAS),
    "f_dvl, total variation": Method("f_dvl", "", "dual_lambda", LAMBDAS),
    "f_dvl, chi square": Method("f_dvl", "--divergence chi_square", "dual_lambda", LAMBDAS),
    "f_dvl, chi square piecewise": Method(
        "f_dvl", "--divergence chi_square_piecewise", "dual_lambda", LAMBDAS
    ),
}
SHOWN = ("train/v_max", "train/far_below", "train/saturated")


def values_of(run: report.Run, setting: dict[str, float]) -> np.ndarray:
    """Largest abs(V) of every seed of a setting, 1e30 where it diverged."""
    found = np.minimum(last(run, "train/v_max", **setting), 1e30)
    return np.where(diverged(run, **setting) > 0, 1e30, found)


def stability(lab: Lab) -> Parts:
    runs, body, lowest, largest = {}, [], {}, {}
    for name, method in STABILITY.items():
        sweep = f"--sweep {method.field}={','.join(method.values)} --seeds {SEEDS}"
        line = f"{method.line('pendulum-medium-replay')} {sweep}"
        run = lab.arm(f"stability/{file_name(name)}", f"algorithms/{method.file}.py", line)
        runs[name] = run
        settings = [{method.field: float(value)} for value in method.values]
        for setting, value in zip(settings, method.values, strict=True):
            shown = [f"{np.nanmean(last(run, metric, **setting)):.3g}" for metric in SHOWN]
            share = f"{diverged(run, **setting).mean():.0%}"
            body.append([name, value, score(scores(run, **setting)), share, *shown])
        lowest[name] = np.min([scores(run, **setting) for setting in settings], axis=0)
        sizes = [values_of(run, setting) for setting in settings]
        largest[name] = np.log10(np.max(sizes, axis=0))
    ours = "f_dvl, total variation"
    claims = []
    for other in ("xql", "xql, hardly clipped"):
        claims += [
            claim(
                "over its temperatures the lowest score of f-DVL (total variation) "
                f"beats {other}'s",
                more,
                lowest[ours],
                lowest[other],
            ),
            claim(
                f"log10 of the largest abs(V) over temperatures: {other} has more than f-DVL",
                more,
                largest[other],
                largest[ours],
            ),
        ]
    heads = ["method", "beta or lambda", "score", "diverged", "largest abs(V)", "Q - V < -4"]
    return {
        "table": table([*heads, "weights at their cap"], body),
        "verdicts": verdict_list(claims),
        "commands": "\n".join(f"- {k}: `{run.config['command']}`" for k, run in runs.items()),
        "hardware": hardware(runs[ours].config["hardware"]),
    }


# ---- scale of the rewards ------------------------------------------------------------------------

SCALES = ("0.1", "1", "10", "100")
DIVERGENCES = ("total_variation", "chi_square", "chi_square_piecewise")


def scale(lab: Lab) -> Parts:
    """Rewards times a factor. What else has a scale goes with it: the advantage in the actor's
    weights, and where the critics' loss becomes linear. So a loss of V without a scale of its own
    gives the same policy."""
    spread, body, lines, run = {}, [], [], None
    for divergence in DIVERGENCES:
        found = {}
        for factor in SCALES:
            adapted = (
                f"--reward-scale {factor} --inverse-temperature {3 / float(factor):g} "
                f"--huber-delta {20 * float(factor):g}"
            )
            method = Method("f_dvl", f"--divergence {divergence} --dual-lambda 0.8 {adapted}")
            line = f"{method.line('pendulum-medium-replay')} --seeds {SEEDS}"
            run = lab.arm(f"scale/{divergence}-{factor}", "algorithms/f_dvl.py", line)
            found[factor] = scores(run)
            value = last(run, "train/v").mean() / float(factor)
            below = last(run, "train/far_below").mean()
            body.append([divergence, factor, score(found[factor]), f"{value:.4g}", f"{below:.1%}"])
            lines.append(f"- {divergence}, {factor}: `{run.config['command']}`")
        spread[divergence] = np.ptp(list(found.values()), axis=0)
    claims = [
        claim(
            f"the score of {name} varies more over scales than that of total variation",
            more,
            spread[name],
            spread["total_variation"],
        )
        for name in DIVERGENCES[1:]
    ]
    return {
        "table": table(["f", "scale", "score", "mean V / scale", "Q - V < -4"], body),
        "verdicts": verdict_list(claims),
        "commands": "\n".join(lines),
        "hardware": hardware(run.config["hardware"]),
    }


# ---- imitation -----------------------------------------------------------------------------------


def imitation_data(task: str = "pendulum") -> dict[str, str]:
    return {mix: f"expert={task}-one-expert mixed={task}-{mix}" for mix in MIXES}


def imitation(lab: Lab) -> Parts:
    data = imitation_data()
    runs = arms(lab, "imitation", IMITATION, data, "random+few-expert")
    mixed = {mix: f"pendulum-{mix}" for mix in MIXES}
    alone = dict.fromkeys(MIXES, "pendulum-one-expert")
    runs |= arms(lab, "imitation", {"bc, mixed data": Method("bc")}, mixed, MIXES[0])
    one = arms(
        lab, "imitation", {"bc, expert": Method("bc")}, {MIXES[0]: alone[MIXES[0]]}, MIXES[0]
    )
    runs |= {("bc, expert", mix): next(iter(one.values())) for mix in MIXES}
    ours = "recoil, released"
    few = MIXES[1::2]

    def scarce(name: str) -> np.ndarray:
        return np.mean([scores(runs[name, mix]) for mix in few], axis=0)

    claims = [
        claim(f"with few of the expert's episodes ReCOIL beats {other}", more, scarce(ours), mean)
        for other, mean in (
            (name, scarce(name)) for name in ("bc, mixed data", "bc, expert", "iq_learn", "smodice")
        )
    ]
    return parts_of(lab, "imitation", runs, claims)


def recoil(lab: Lab) -> Parts:
    name = "recoil, released"
    data = imitation_data()
    runs = arms(lab, "imitation", {name: IMITATION[name]}, data, "random+few-expert")
    runs |= arms(lab, "recoil", {"recoil, derived": MIXTURE}, data, "random+few-expert")
    claims = [
        claim(
            "the derived loss is about the released one",
            more,
            overall(runs, "recoil, derived"),
            overall(runs, name),
            margin=MARGIN,
        )
    ]
    return parts_of(lab, "recoil", runs, claims)


# ---- all of them ---------------------------------------------------------------------------------

STUDIES: dict[str, Callable[[Lab], Parts]] = {
    "pendulum": pendulum,
    "mountaincar": mountaincar,
    "stability": stability,
    "scale": scale,
    "imitation": imitation,
    "recoil": recoil,
}


if __name__ == "__main__":
    script(lambda: carry_out(__doc__, Lab, "dual_rl", STUDIES))
