"""All exercises by name, loaded when somebody asks for one: `find("lora.forward")`."""
import difflib
import importlib
import runpy

TOPICS = {                                               # topic, which is a file here → its lesson
    "map": "00_map", "autograd": "01_autograd", "transformer": "02_transformer", "full": "03_full_finetuning",
    "adapters": "04_adapters", "prompts": "05_prompt_tuning", "prefix": "06_prefix", "lora": "07_lora", "adalora": "08_adalora",
    "dylora": "09_dylora", "quantization": "10_quantization", "outliers": "11_outliers", "calibrated": "12_gptq_awq",
    "nf4": "13_nf4_qlora", "qat": "14_qat", "choosing": "15_choosing",
}


def of_topic(topic):
    """name → Exercise of one topic; KeyError lists the topics."""
    if topic not in TOPICS:
        raise KeyError(f"no exercises on {topic!r}; there are {', '.join(TOPICS)}")
    return {e.name: e for e in importlib.import_module(f"{__package__}.{topic}").EXERCISES}


def find(name):
    """The exercise of that name; KeyError says which names are near."""
    topic = str(name).partition(".")[0]
    exercises = of_topic(topic) if topic in TOPICS else {}
    if name not in exercises:
        near = difflib.get_close_matches(str(name), exercises or TOPICS, 3, 0.4) or list(exercises or TOPICS)
        raise KeyError(f"no exercise {name!r}; did you mean {', '.join(near)}?")
    return exercises[name]


def check_file(name, path, seed=0):
    """Check the functions that the Python file `path` defines against the exercise `name`, or, for a topic, against all of its
    exercises whose function is there → a list of `CheckResult`. The file is executed. ValueError if it has none of them."""
    from ..check import check
    chosen = of_topic(name) if name in TOPICS else {name: find(name)}
    defined = runpy.run_path(str(path))
    results = [check(e.name, defined[e.function], seed=seed) for e in chosen.values() if e.function in defined]
    if not results:
        raise ValueError(f"{path} defines none of {', '.join(e.function for e in chosen.values())}")
    return results
