"""summary.json: how a run ended, and the score of every member and setting."""

from typing import Any

from rlzoo import machine
from rlzoo.report import statistics

THRESHOLDS = {
    "CartPole-v1": 475.0,
    "Acrobot-v1": -100.0,
    "MountainCar-v0": -110.0,
    "MountainCarContinuous-v0": 90.0,
}
"""Returns at which gymnasium calls a task solved: `steps_to_threshold` in summary.json."""


def summarize(
    status: str, error: Any, description: dict, rows: list[dict], reached: dict[Any, tuple]
) -> dict:
    """The content of summary.json.

    Args:
      status: done, interrupted or failed.
      error: what made it fail.
      description: as in config.json.
      rows: of metrics.csv.
      reached: program -> (position, clock), of the programs that have started.
    """
    threshold = THRESHOLDS.get(description["env"].partition("?")[0])
    score = description["score"]
    members = []
    for program in reached:
        for member in program.members:
            mine = [row for row in rows if int(row["member"]) == member.index]
            members.append(_member(member, mine, score["name"], threshold))
    positions = [position for position, _ in reached.values()]
    clocks = [clock for _, clock in reached.values()]
    train = sum(clock.train for clock in clocks)
    steps = sum(at.steps * len(program.members) for program, (at, _) in reached.items())
    updates = sum(at.updates * len(program.members) for program, (at, _) in reached.items())
    names = dict.fromkeys(("eval/return", score["name"]))
    return {
        "status": status,
        "error": f"{type(error).__name__}: {error}" if error else None,
        "algorithm": description["algorithm"],
        "env": description["env"],
        "score": score,
        "members": members,
        **{name: _settings(members, name) for name in names},
        "steps": max((at.steps for at in positions), default=0),
        "steps_per_second": steps / train if train else None,
        "updates_per_second": updates / train if train else None,
        "compile_seconds": sum(clock.compile for clock in clocks),
        "compiled": {program.name or "all": program.compiled for program in reached},
        "train_seconds": train,
        "eval_seconds": sum(clock.eval for clock in clocks),
        "peak_memory_bytes": next(
            (machine.peak_bytes(program.devices[0]) for program in reached), None
        ),
        "threshold": threshold,
        "steps_to_threshold": None
        if threshold is None
        else [member["steps_to_threshold"] for member in members],
    }


def _member(member: Any, rows: list[dict], score: str, threshold: float | None) -> dict:
    """A member's entry: its last evaluation, and when it was made."""
    found: dict[str, Any] = {"member": member.index, "seed": member.seed, **member.swept}
    for name in dict.fromkeys(("eval/return", score)):
        values = [(float(row[name]), int(row["step"])) for row in rows if row.get(name)]
        found[name] = values[-1][0] if values else None
        if name == score:
            found["score_step"] = values[-1][1] if values else None
        if name == "eval/return" and threshold is not None:
            over = [step for value, step in values if value >= threshold]
            found["steps_to_threshold"] = over[0] if over else None
    found["diverged"] = bool(rows) and rows[-1].get("diverged") == "1"
    return found


def _settings(members: list[dict], name: str) -> list[dict]:
    """Statistics of each swept setting, with the step of the score."""
    plain = [{key: x for key, x in m.items() if key != "score_step"} for m in members]
    settings = statistics.summarize(plain, name)
    for setting in settings:
        swept = [(key, x) for key, x in setting.items() if key in plain[0] and key != "diverged"]
        # As text, since nan is not equal to itself.
        mine = [m for m in members if all(repr(m[key]) == repr(x) for key, x in swept)]
        steps = [m["score_step"] for m in mine if m["score_step"] is not None]
        setting["step"] = max(steps, default=None)
    return settings
