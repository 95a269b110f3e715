"""The methods, by what they change: a name for the command line → a class."""
from .adalora import AdaLoRA
from .adapter import BottleneckAdapter
from .dora import DoRA
from .dylora import DyLoRA
from .full import FullFineTuning, LinearProbe
from .hadamard import HiRA, LoHa, LoKr
from .ia3 import IA3
from .lora import LoRA
from .loreft import LoReFT
from .method import Method
from .parallel import ParallelAdapter
from .prefix import PrefixTuning
from .prompt import PromptTuning
from .ptuning import PTuning
from .ptuning_v2 import PTuningV2
from .trainable_tokens import TrainableTokens

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
    # weights, by a change of full rank
    "loha": LoHa,
    "lokr": LoKr,
    "hira": HiRA,
    # activations, by scales
    "ia3": IA3,
    # activations of a few positions
    "loreft": LoReFT,
    # rows of the embedding
    "trainable_tokens": TrainableTokens,
    # nothing inside: a head alone
    "probe": LinearProbe,
}
