"""The commands about adapters, and what a new thing lacks.

    data.py        what a task is made of: --task, or --text, --csv and --pairs of one's own
    training.py    finetune, export-training
    finetuning.py  one run of finetune: train, save, test
    kept.py        what a training that is stopped leaves behind
    using.py       evaluate, classify, generate
    missing.py     what a new method, scheme, exercise or experiment still lacks
"""
from collections.abc import Callable

from . import training, using

__all__ = ["add_commands"]


def add_commands(command: Callable) -> None:
    """Add the commands to the command line. command: (name, run, about, takes, options) → a parser
    for its options."""
    training.add_commands(command)
    using.add_commands(command)
