"""`PICTURES`: name → function of the folder figures/ that draws it from stored numbers and returns the file's path."""
import json

from ..pretrained import training_record
from . import compare, pretraining

__all__ = ["PICTURES"]

PICTURES = {
    "pretraining": lambda folder: pretraining.draw(training_record(), folder / "pretraining.svg"),
    "compare": lambda folder: compare.draw(json.loads((folder / "results" / "compare.json").read_text(encoding="utf-8")),
                                           folder / "compare.svg"),
}
