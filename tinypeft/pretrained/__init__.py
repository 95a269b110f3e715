"""The shipped base, a GPT that was trained on documentation, and its tokenizer.

    base.py   loads it: load_base, load_tokenizer, read_weights, training_record
    make.py   trains it again: `python -m tinypeft pretrain`
    README.md says on what it was trained, and how well.
"""
from .base import FOLDER, WEIGHTS, load_base, load_tokenizer, read_weights, training_record

__all__ = ["FOLDER", "WEIGHTS", "load_base", "load_tokenizer", "read_weights", "training_record"]
