"""The memory model against bytes that were traced: one training step of this engine, for methods, sizes and batches."""
from ...gpt import GPTConfig
from ..experiment import Experiment
from ..memory import FLOAT32, Shape, estimate, traced

CONFIGS = {"narrow": GPTConfig(1024, 256, 64, 8, 4), "base": GPTConfig(1024, 256, 128, 5, 4),
           "wide": GPTConfig(1024, 256, 256, 3, 8)}
RUNS = {"full": ("full", {}), "lora": ("lora", {}), "lora, all": ("lora", {"targets": "all"}),
        "qlora, all": ("qlora", {"targets": "all"}), "adapter": ("adapter", {"bottleneck": 16}), "prefix": ("prefix", {}),
        "prompt": ("prompt", {})}


def measure(condition, seed, settings):
    """Traced peak and prediction, bytes, for every batch; and the parts of the prediction."""
    run, size = condition.rsplit(", ", 1)
    (method, options), config = RUNS[run], CONFIGS[size]
    predicted = [estimate(Shape.of(config), method, B, T, FLOAT32, **options) for B, T in settings["batches"]]
    return {"traced": [traced(config, method, B, T, seed, **options) for B, T in settings["batches"]],
            **{part: [p[part] for p in predicted] for part in predicted[0]}}


MEMORY = Experiment(
    "memory", "peak bytes of one training step, traced, and predicted by the memory model (peak, and its parts weights, "
    "optimizer, gradients, activations, working), for batches of 2 × 64, 4 × 64, 8 × 128 and 4 × 224 tokens on three sizes; "
    "a seed draws weights and tokens, which do not matter",
    measure, tuple(f"{run}, {size}" for size in CONFIGS for run in RUNS),
    {"batches": [[2, 64], [4, 64], [8, 128], [4, 224]]},
    {"batches": [[4, 64]], "conditions": ("full, narrow", "lora, narrow")}, (0,))
