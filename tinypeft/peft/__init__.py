"""Parameter-efficient fine-tuning: one file per method, and `attach`, which puts one on a model.

    the protocol   method.py   model.py (attach, PeftModel)   part.py
                   switching.py   merge.py   summary.py   plain.py : read it before fast code
    in folders     folders.py (save, load_adapter)   formats.py   metered.py
    the methods    methods.py : METHODS, name → class, by what each of them changes; their files
    of weights     changed.py   low_rank.py   starts.py (where A and B begin)   start_data.py
    of others      orthonormal.py (LoReFT)   lstm.py (P-tuning)   virtual.py (virtual tokens)
    several        combine.py   mixed.py (adapters)   rank_search.py (ranks)
                   to_low_rank.py (any change of weights as a LoRA)
    a small table  probe.py (fit_probe): a head is solved, and methods may start there
PEQA is also a scheme, and is in `quant/peqa.py`.
"""
from .combine import combine
from .folders import KNOWN, load_adapter
from .method import Method, MethodError, Wrapper
from .methods import (C3A, IA3, METHODS, OFT, AdaLoRA, BottleneckAdapter, DoRA, DyLoRA, FourierFT,
                      FullFineTuning, HiRA, LinearProbe, LoHa, LoKr, LoRA, LoReFT, MiSS,
                      ParallelAdapter, PrefixTuning, PromptTuning, PTuning, PTuningV2, RandLoRA,
                      SHiRA, TrainableTokens, VeRA)
from .mixed import mixed_batch, mixed_classify
from .model import PeftModel, attach
from .rank_search import search_rank
from .to_low_rank import to_low_rank

KNOWN.update({cls.__name__: cls for cls in METHODS.values()})
