"""The memory model against bytes that were traced: one training step of this engine, for methods, sizes and batches."""
from dataclasses import dataclass, field

from ...models.gpt import GPTConfig
from ...peft import Method
from ..experiment import Experiment, as_lists
from ..memory import FLOAT32, Shape, attachable, estimate, traced

CONFIGS = {"narrow": GPTConfig(1024, 256, 64, 8, 4), "base": GPTConfig(1024, 256, 128, 5, 4),
           "wide": GPTConfig(1024, 256, 256, 3, 8)}


@dataclass(frozen=True)
class Step:
    """A training step. name, options: as `memory.estimate` takes them. attached: the method that these mean, whose code
    decides the traced bytes; found from them."""
    config: GPTConfig
    name: str
    options: dict = field(default_factory=dict)
    attached: Method | None = None


STEPS = {"full": ("full", {}), "lora": ("lora", {}), "lora, all": ("lora", {"targets": "all"}),
         "qlora, all": ("qlora", {"targets": "all"}), "adapter": ("adapter", {"bottleneck": 16}), "prefix": ("prefix", {}),
         "prompt": ("prompt", {})}


def measure(step: Step, seed: int, settings: dict) -> dict:
    """Lists over the batches."""
    shape = Shape.of(step.config)
    return as_lists({"traced": traced(step.config, step.name, B, T, seed, **step.options),
                     **estimate(shape, step.name, B, T, FLOAT32, **step.options)} for B, T in settings["batches"])


PARTS = "weights", "optimizer", "gradients", "activations", "working"

MEMORY = Experiment(
    "memory", "Peak bytes of one training step, traced, and predicted by the memory model, for batches of 2 × 64, 4 × 64, "
    "8 × 128 and 4 × 224 tokens on three sizes; a seed draws weights and tokens, which do not matter.",
    {"traced": "bytes at the peak, one per batch", "peak": "bytes at the peak, predicted",
     **{part: f"bytes, predicted: {part}" for part in PARTS},
     **{end: f"bytes, predicted, at the end of the {end} pass" for end in ("forward", "backward")}},
    measure, {f"{label}, {size}": Step(config, name, options, attachable(name, options))
              for size, config in CONFIGS.items() for label, (name, options) in STEPS.items()},
    {"batches": [[2, 64], [4, 64], [8, 128], [4, 224]]},
    {"batches": [[4, 64]], "conditions": ("full, narrow", "lora, narrow")}, (0,))
