"""The learning rate for everything that is compared at one budget: the best of three, on validation, with one seed.

`TRIED` lists the compared arms, label → `Arm`. The file of results has the loss at each rate. An experiment states the rate
it takes in its conditions, and a test holds that it is the best of the three.
"""
from ...peft import IA3, AdaLoRA, BottleneckAdapter, FullFineTuning, LoRA, ParallelAdapter, PromptTuning
from ..bases import small_base
from ..experiment import Experiment
from ..tuning import Arm, fine_tune, test_loss

TRIED = {label: Arm(method) for label, method in {
    **{f"LoRA r={r}": LoRA(rank=r) for r in (1, 8, 64)},
    "Wq r=36": LoRA(rank=36, targets=("query",)), "Wv r=36": LoRA(rank=36, targets=("value",)), "Wq, Wv r=18": LoRA(rank=18),
    "all four r=9": LoRA(rank=9, targets=("query", "key", "value", "output")),
    **{f"all six r={r}": LoRA(rank=r, targets="all") for r in (2, 4, 8)},
    "AdaLoRA 3 → 2": AdaLoRA(init_rank=3, target_rank=2), "AdaLoRA 12 → 8": AdaLoRA(),
    "(IA)³": IA3(),
    **{f"sequential m={m}": BottleneckAdapter(bottleneck=m, norms=False) for m in (8, 64)},
    **{f"parallel m={m}": ParallelAdapter(bottleneck=m, beside="both") for m in (8, 64)},
}.items()}
TRIED |= {f"{name} {base}": Arm(method, base=base) for base in ("small", "medium", "base")
          for name, method in (("full", FullFineTuning()), ("prompt", PromptTuning()))}
FACTORS = 1 / 3, 1, 3


def measure(arm: Arm, seed: int, settings: dict) -> dict:
    """Three rates, and the loss at each."""
    rates = [float(f"{factor * arm.method.learning_rate:.2g}") for factor in FACTORS]
    tuned = (fine_tune(arm.method, seed, settings, model=small_base(arm.base), lr=lr)[0] for lr in rates)
    return {"rate": rates, "loss": [test_loss(t, split="validation") for t in tuned]}


RATES = Experiment(
    "rates", "Every method that is compared at one budget, at a third, once and three times its own learning rate.",
    {"rate": "the three learning rates", "loss": "nats/token, domain validation, one per rate"},
    measure, TRIED, {"steps": 150, "batch_size": 4},
    {"steps": 3, "conditions": ("LoRA r=1", "full base", "prompt base")}, seeds=(0,))
