"""P-tuning v2 (Liu et al., arXiv 2110.07602): prompts in every layer, for understanding tasks, with a classifier.

A prompt at the input alone reaches the prediction through all frozen layers, and fails on small models and hard
tasks. Deep prompts act on every layer, as P keys and values before its own: the same seam, and the same table
(P, 2 L d), as prefix tuning.

What differs from prefix tuning (`prefix.py`) is how the table is trained and what is read off the model:

    prefix tuning                                   P-tuning v2
    generation, by the language model's head        understanding, by a linear classification head that is
                                                    trained too: attach(model, PTuningV2(), head=n_classes)
    an MLP makes the table of a smaller matrix      the table itself: an MLP helped on some datasets and hurt on
                                                    others (section 3.3; `reparameterize`)
    no dropout by default                           dropout on the prompts, 0.1 in the authors' scripts
    P around 10                                     P per task: under 20 for simple classification, about 100
                                                    for hard sequence labelling (section 3.3)

From prompt tuning and P-tuning (v1) it differs by its depth. Trained parameters: 2 P L d, and C (d + 1) of a head
with C classes. PEFT serves it and prefix tuning by one class; the authors draw the table from N(0, 1)
(`init="random"`), here it starts from real words' activations, as in `prefix.py` and for its reason.
"""
from dataclasses import dataclass
from typing import ClassVar

from .prefix import PrefixTuning

__all__ = ["PTuningV2"]


@dataclass(frozen=True)
class PTuningV2(PrefixTuning):
    """length P, dropout on the prompts; the other options are `PrefixTuning`'s."""
    length: int = 20
    reparameterize: bool = False
    dropout: float = 0.1
    learning_rate: ClassVar[float] = 6e-2
    shown: ClassVar[tuple] = ("length",)
