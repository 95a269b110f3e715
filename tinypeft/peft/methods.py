"""The methods, by what they change. METHODS gives each the name that the command line takes."""
from .adalora import AdaLoRA
from .adapter import BottleneckAdapter
from .c3a import C3A
from .dora import DoRA
from .dylora import DyLoRA
from .fourierft import FourierFT
from .full import FullFineTuning, LinearProbe
from .hadamard import HiRA, LoHa, LoKr
from .ia3 import IA3
from .lora import LoRA
from .loreft import LoReFT
from .method import Method
from .miss import MiSS
from .oft import OFT
from .parallel import ParallelAdapter
from .prefix import PrefixTuning
from .prompt import PromptTuning
from .ptuning import PTuning
from .ptuning_v2 import PTuningV2
from .randlora import RandLoRA
from .shira import SHiRA
from .trainable_tokens import TrainableTokens
from .vera import VeRA

__all__ = ["FAMILIES", "METHODS"]

FAMILIES: dict[str, dict[str, type[Method]]] = {         # what is changed → name → class
    "all weights": {"full": FullFineTuning},
    "rank: the change of a weight is thin": {
        "lora": LoRA, "adalora": AdaLoRA, "dylora": DyLoRA, "miss": MiSS},
    "length and direction": {"dora": DoRA},
    "basis: few numbers between fixed or random matrices": {
        "vera": VeRA, "randlora": RandLoRA, "fourierft": FourierFT},
    "pattern: few numbers make a change of a larger rank": {
        "loha": LoHa, "lokr": LoKr, "hira": HiRA, "c3a": C3A},
    "sparsity: few places of a weight": {"shira": SHiRA},
    "rotation: lengths and angles of a weight stay": {"oft": OFT},
    "states: between or beside frozen layers": {
        "adapter": BottleneckAdapter, "parallel_adapter": ParallelAdapter, "ia3": IA3,
        "loreft": LoReFT},
    "rows of the embedding": {"trainable_tokens": TrainableTokens},
    "the context: virtual tokens": {
        "prefix": PrefixTuning, "prompt": PromptTuning, "ptuning": PTuning,
        "ptuning_v2": PTuningV2},
    "a head alone": {"probe": LinearProbe},
}
METHODS: dict[str, type[Method]] = {}                    # name → class
for methods in FAMILIES.values():
    METHODS.update(methods)
