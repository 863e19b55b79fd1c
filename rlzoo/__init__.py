"""rlzoo: reinforcement-learning algorithms in JAX, one readable file per algorithm.

Names are loaded when first used, so that importing the package (and the command line's `list`,
`info` and `--help`) stays quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rlzoo.algorithm import Algorithm as Algorithm
    from rlzoo.algorithm import Refused as Refused
    from rlzoo.algorithm import Stage as Stage
    from rlzoo.algorithm import check as check
    from rlzoo.algorithm import config as config
    from rlzoo.algorithm import static as static
    from rlzoo.algorithm import traced as traced
    from rlzoo.cli import script as main  # noqa: F401
    from rlzoo.env import Env as Env
    from rlzoo.env import Transition as Transition
    from rlzoo.metrics import last as last
    from rlzoo.metrics import most as most
    from rlzoo.metrics import total as total
    from rlzoo.metrics import when as when
    from rlzoo.run.loading import evaluate as evaluate
    from rlzoo.run.loading import load as load
    from rlzoo.run.loop import train as train
    from rlzoo.suites.registry import make as make

_HOME = {  # public name -> (module, name there); None: the module itself
    "Algorithm": ("rlzoo.algorithm", "Algorithm"),
    "Refused": ("rlzoo.algorithm", "Refused"),
    "Stage": ("rlzoo.algorithm", "Stage"),
    "check": ("rlzoo.algorithm", "check"),
    "config": ("rlzoo.algorithm", "config"),
    "static": ("rlzoo.algorithm", "static"),
    "traced": ("rlzoo.algorithm", "traced"),
    "Env": ("rlzoo.env", "Env"),
    "Transition": ("rlzoo.env", "Transition"),
    "make": ("rlzoo.suites.registry", "make"),
    "last": ("rlzoo.metrics", "last"),
    "most": ("rlzoo.metrics", "most"),
    "total": ("rlzoo.metrics", "total"),
    "when": ("rlzoo.metrics", "when"),
    "main": ("rlzoo.cli", "script"),
    "evaluate": ("rlzoo.run.loading", "evaluate"),
    "load": ("rlzoo.run.loading", "load"),
    "train": ("rlzoo.run.loop", "train"),
    "collect": ("rlzoo.tools.collect", None),
    "dataset": ("rlzoo.dataset", None),
    "dynamics": ("rlzoo.dynamics", None),
    "env": ("rlzoo.env", None),
    "normalize": ("rlzoo.normalize", None),
    "recipes": ("rlzoo.tools.recipes", None),
    "replay": ("rlzoo.replay", None),
    "report": ("rlzoo.report", None),
    "wrappers": ("rlzoo.wrappers", None),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rlzoo' has no attribute {name!r}")
    module, attribute = _HOME[name]
    loaded = importlib.import_module(module)
    return loaded if attribute is None else getattr(loaded, attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
