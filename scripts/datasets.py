"""results/datasets: the data sets that the zoo makes from its own runs, and what they cost.

    python scripts/datasets.py                    # all that are not in the table
    python scripts/datasets.py --only pendulum

Each task is made in a process of its own into the cache folder, as `rlzoo data make` makes it
(rlzoo/tools/recipes.py says how). The files are not committed; table.csv is.
"""

import csv
import multiprocessing
import time

from rlzoo import dataset, machine
from rlzoo.study import Study, fill, parser, script, table, write_csv
from rlzoo.tools import recipes

HEADS = ["data set", "transitions", "episodes", "return", "score"]
TASK_HEADS = [
    "task",
    "environment",
    "algorithm",
    "score 0",
    "score 100",
    "seconds",
    "processor seconds",
]


def made(task: str) -> list[dict]:
    """Make the data sets of a task; a row of table.csv for each."""
    began, used = time.perf_counter(), time.process_time()
    names = recipes.names(task)
    recipes.find(names[0], again=True)
    seconds, processor = time.perf_counter() - began, time.process_time() - used
    return [row(task, name) | {"seconds": f"{seconds:.0f}"} | about(processor) for name in names]


def about(processor: float) -> dict:
    """What the making of a task cost, and where."""
    here = machine.describe()
    return {
        "processor_seconds": f"{processor:.0f}",
        "hardware": f"{here['cpu']}, {here['cores']} cores, {here['backend']}",
    }


def row(task: str, name: str) -> dict:
    data = recipes.load(name)
    returns = dataset.episodes(data).returns
    random, expert = data.reference
    return {
        "task": task,
        "name": name,
        "env": data.env,
        "algorithm": recipes.TASKS[task].algorithm,
        "transitions": len(data),
        "episodes": data.num_episodes,
        "mean_return": f"{returns.mean():.5g}",
        "min_return": f"{returns.min():.5g}",
        "max_return": f"{returns.max():.5g}",
        "score": f"{dataset.normalized_score(data, returns).mean():.1f}",
        "random": f"{random:.5g}",
        "expert": f"{expert:.5g}",
    }


def main() -> None:
    asked = parser(__doc__, recipes.TASKS).parse_args()
    study = Study("datasets", asked.dirty)
    path = study.folder / "table.csv"
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    known = {row["task"] for row in rows}
    for task in asked.only:
        if task not in known:
            # Another process, so that programs of the tasks before do not stay in memory.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows += pool.apply(made, (task,))
            write_csv(path, rows)
    tasks = {row["task"]: row for row in rows}
    cells = ("name", "transitions", "episodes", "mean_return", "score")
    costs = ("task", "env", "algorithm", "random", "expert", "seconds", "processor_seconds")
    fill(
        study.folder / "README.md",
        tasks=table(TASK_HEADS, [[task[x] for x in costs] for task in tasks.values()]),
        table=table(HEADS, [[row[x] for x in cells] for row in rows]),
        hardware="; ".join(dict.fromkeys(row["hardware"] for row in rows)),
        missing=", ".join(task for task in recipes.TASKS if task not in tasks) or "none",
    )


if __name__ == "__main__":
    script(main)
