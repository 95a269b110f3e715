"""The learning rate for everything that is compared at one budget: the best of three, on validation, one seed.

What is compared, label → (method, base), stands in `TRIED`; the file of results says what each rate gave. An experiment
names the rate it takes in its settings ("lr"), and a test holds that it is the best of the three.
"""
from ...peft import AdaLoRA, BottleneckAdapter, FullFineTuning, LoRA, ParallelAdapter, PromptTuning
from ..bases import small_base
from ..experiment import Experiment
from ..tuning import fine_tune, test_loss

TRIED = {
    **{f"LoRA r={r}": (LoRA(rank=r), "base") for r in (1, 8, 64)},
    "Wq r=36": (LoRA(rank=36, targets=("query",)), "base"), "Wv r=36": (LoRA(rank=36, targets=("value",)), "base"),
    "Wq, Wv r=18": (LoRA(rank=18), "base"),
    "all four r=9": (LoRA(rank=9, targets=("query", "key", "value", "output")), "base"),
    **{f"all six r={r}": (LoRA(rank=r, targets="all"), "base") for r in (2, 4, 8)},
    "AdaLoRA 3 → 2": (AdaLoRA(init_rank=3, target_rank=2), "base"), "AdaLoRA 12 → 8": (AdaLoRA(), "base"),
    **{f"sequential m={m}": (BottleneckAdapter(bottleneck=m, norms=False), "base") for m in (8, 64)},
    **{f"parallel m={m}": (ParallelAdapter(bottleneck=m, beside="both"), "base") for m in (8, 64)},
    **{f"{name} {base}": (method, base) for base in ("small", "medium", "base")
       for name, method in (("full", FullFineTuning()), ("prompt", PromptTuning()))},
}
FACTORS = 1 / 3, 1, 3


def measure(condition, seed, settings):
    """Three rates, and what each gives."""
    method, base = TRIED[condition]
    rates = [float(f"{factor * method.learning_rate:.2g}") for factor in FACTORS]
    tuned = (fine_tune(method, seed, settings, model=small_base(base), lr=lr)[0] for lr in rates)
    return {"rate": rates, "loss": [test_loss(t, split="validation") for t in tuned]}


RATES = Experiment(
    "rates", "Validation loss on domain (nats/token) at a third, once and three times a method's own learning rate.", measure,
    tuple(TRIED), {"steps": 150, "batch_size": 4}, {"steps": 3, "conditions": ("LoRA r=1",)}, seeds=(0,))
