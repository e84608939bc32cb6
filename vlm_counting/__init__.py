"""Does a vision-language model fail to see the count, or fail to say it?

    import vlm_counting as vc
    vlm = vc.load_model("tiny-qwen2-vl")
    samples = vc.load_dataset("balanced", limit=90)
    vc.evaluate(vlm, samples).scores()

The names below are loaded when they are first used: importing the package loads neither torch nor pandas.
"""

from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec

__version__ = "0.6.0"

_FRONT_DOOR = {  # name -> module that defines it, in the order in which an experiment uses them
    "scene": "stimuli",
    "Scene": "stimuli",
    "generate": "stimuli",
    "FAMILIES": "stimuli",
    "load_dataset": "datasets",
    "DATASETS": "datasets",
    "Sample": "core",
    "Answer": "core",
    "Prediction": "core",
    "load_model": "models",
    "MODELS": "models",
    "ModelSpec": "models",
    "evaluate": "evaluation",
    "PARSERS": "parsing",
    "score": "statistics",
    "compare": "statistics",
    "extract": "extraction",
    "open_states": "extraction",
    "probe": "probing",
    "PROBES": "probing",
    "train_head": "training",
    "count_pairs": "patching",
    "patch": "patching",
    "diagnose": "diagnosis",
    "report": "paper.pages",
    "run": "runs",
}
__all__ = list(_FRONT_DOOR)


def __getattr__(name):
    "A name of the front door, or a module of the package."
    if name in _FRONT_DOOR:
        value = getattr(_import_module(f"{__name__}.{_FRONT_DOOR[name]}"), name)
    elif not name.startswith("_") and _find_spec(f"{__name__}.{name}"):
        value = _import_module(f"{__name__}.{name}")
    else:
        from difflib import get_close_matches

        near = get_close_matches(name, __all__, n=1)
        guess = f" Did you mean '{near[0]}'?" if near else ""
        raise AttributeError(f"vlm_counting has no '{name}'.{guess} It has: {', '.join(__all__)}.")
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *__all__])
