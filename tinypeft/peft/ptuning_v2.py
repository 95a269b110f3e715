"""P-tuning v2 (Liu et al., arXiv 2110.07602): prompts in every layer, for understanding tasks.

A prompt at the input alone reaches the prediction through all frozen layers, and fails on small
models and hard tasks. Deep prompts act on every layer, as P keys and values before its own:

    K ← [P_K; K],   V ← [P_V; V]        in every layer (section 3.2)

    paper               here        shape
    deep prompts        P           (P, 2 L w), the table of prefix tuning (`prefix.py`); P = length

It differs from prefix tuning in how the table is trained and what is read off (section 3.3):

    prefix tuning                                P-tuning v2
    generation, by the language model's head     understanding, by a linear classification head that
                                                 is trained too: attach(…, PTuningV2(), head=C)
    an MLP computes the table                    the table itself is trained: an MLP helped on some
                                                 datasets and hurt on others (`reparameterize`)
    no dropout by default                        dropout on the prompts, 0.1 in the authors' scripts
    P around 10                                  under 20 for simple tasks, about 100 for hard ones

Trained parameters: 2 P L w, w the width of a layer's keys (d in GPT-2), and C (d + 1) of a head
with C classes. Where implementations differ:
PEFT has one class for both. The authors draw the table from N(0, 1), `init="random"`; here it
starts from real words' activations, as in `prefix.py`.
"""
from dataclasses import dataclass

from ..common.hyper import flag, real, whole
from .prefix import PrefixTuning

__all__ = ["PTuningV2"]


@dataclass(frozen=True)
class PTuningV2(PrefixTuning):
    """Train `length` keys and values per layer, with dropout; more options in `PrefixTuning`."""
    length: int = whole(20, least=1, also=("num_virtual_tokens", "P"))
    reparameterize: bool = flag(False, also=("prefix_projection",))
    dropout: float = real(0.1, least=0, below=1)
    shown = ("length",)
