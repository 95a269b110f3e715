"""Parameter-efficient fine-tuning: one file per method, and `attach`, which puts one on a model.

    the protocol   method.py   model.py (attach, PeftModel)   part.py   attachment.py
                   switching.py   merge.py   summary.py   plain.py : read it before fast code
    in folders     folders.py (save, load_adapter)   formats.py   metered.py
    weights        full.py   changed.py   lora.py   adalora.py   dylora.py   dora.py   hadamard.py
    activations    adapter.py   parallel.py   ia3.py
    virtual tokens prompt.py   ptuning.py (lstm.py)   prefix.py   ptuning_v2.py   virtual.py
    several        combine.py   fusion.py   mixed.py (adapters)   rank_search.py (ranks)
    a small table  probe.py (fit_probe): a head is solved, and methods may start there
`METHODS` maps names to classes. PEQA is also a scheme, and is in `quant/peqa.py`.
"""
from .adalora import AdaLoRA
from .adapter import BottleneckAdapter
from .attachment import detach
from .combine import combine
from .dora import DoRA
from .dylora import DyLoRA
from .folders import KNOWN, load_adapter
from .full import FullFineTuning, LinearProbe
from .fusion import AdapterFusion, fuse
from .hadamard import HiRA, LoHa, LoKr
from .ia3 import IA3
from .lora import LoRA
from .method import Method, MethodError, Wrapper
from .mixed import mixed_batch, mixed_classify
from .model import PeftModel, attach
from .parallel import ParallelAdapter
from .prefix import PrefixTuning
from .prompt import PromptTuning
from .ptuning import PTuning
from .ptuning_v2 import PTuningV2
from .rank_search import search_rank

METHODS = {"full": FullFineTuning, "adapter": BottleneckAdapter,
           "parallel_adapter": ParallelAdapter, "prefix": PrefixTuning, "prompt": PromptTuning,
           "ptuning": PTuning, "ptuning_v2": PTuningV2, "lora": LoRA, "adalora": AdaLoRA,
           "dylora": DyLoRA, "dora": DoRA, "loha": LoHa, "lokr": LoKr, "hira": HiRA, "ia3": IA3,
           "probe": LinearProbe}
KNOWN.update({cls.__name__: cls for cls in (*METHODS.values(), AdapterFusion)})
