"""All exercises by name. A topic is a file of this folder, which is imported when it is needed.

    find("lora.forward")        one exercise
    of_topic("lora")            all exercises of a topic, by name
"""
from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..exercise import Exercise

__all__ = ["TOPICS", "find", "of_topic"]

TOPICS = {                                               # topic → the lesson with its exercises
    "map": "00_map", "autograd": "01_autograd", "gradients": "01b_gradients",
    "transformer": "02_transformer", "full": "03_full_finetuning", "adapters": "04_adapters",
    "prompts": "05_prompt_tuning", "prefix": "06_prefix", "lora": "07_lora",
    "adalora": "08_adalora", "dylora": "09_dylora",
    "quantization": "10_quantization", "outliers": "11_outliers", "calibrated": "12_gptq_awq",
    "nf4": "13_nf4_qlora", "loftq": "13b_merging_loftq", "qat": "14_qat",
    "choosing": "15_choosing", "real": "16_real_model", "children": "17_children",
    "k_quants": "18_k_quants",
}


def of_topic(topic: str) -> dict[str, Exercise]:
    """name → Exercise, for one topic. KeyError for an unknown topic."""
    if topic not in TOPICS:
        raise KeyError(f"there is no topic {topic!r}; the topics are {', '.join(TOPICS)}")
    module = importlib.import_module(f"{__package__}.{topic}")
    return {exercise.name: exercise for exercise in module.EXERCISES}


def find(name: str) -> Exercise:
    """The exercise `name`. KeyError, with similar names, if there is none."""
    topic = str(name).partition(".")[0]
    exercises = of_topic(topic) if topic in TOPICS else {}
    if name not in exercises:
        known = exercises or TOPICS
        near = difflib.get_close_matches(str(name), known, 3, 0.4) or list(known)
        raise KeyError(f"there is no exercise {name!r}; did you mean {', '.join(near)}?")
    return exercises[name]
