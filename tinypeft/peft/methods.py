"""The methods, by what they change: a name for the command line → a class."""
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
from .vera import VeRA

__all__ = ["METHODS"]

METHODS: dict[str, type[Method]] = {
    # all weights
    "full": FullFineTuning,
    # activations, by layers that are added
    "adapter": BottleneckAdapter,
    "parallel_adapter": ParallelAdapter,
    # the context, by virtual tokens
    "prefix": PrefixTuning,
    "prompt": PromptTuning,
    "ptuning": PTuning,
    "ptuning_v2": PTuningV2,
    # weights, by a change of low rank
    "lora": LoRA,
    "adalora": AdaLoRA,
    "dylora": DyLoRA,
    "dora": DoRA,
    "vera": VeRA,
    "miss": MiSS,
    # weights, by a change of full rank
    "loha": LoHa,
    "lokr": LoKr,
    "hira": HiRA,
    "randlora": RandLoRA,
    "fourierft": FourierFT,
    "c3a": C3A,
    # weights, by numbers at few places
    "shira": SHiRA,
    # weights, by a rotation
    "oft": OFT,
    # activations, by scales
    "ia3": IA3,
    # nothing inside: a head alone
    "probe": LinearProbe,
}
