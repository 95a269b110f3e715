"""LoftQ: a LoRA that starts from what rounding lost, at 4, 3 and 2 bits (its tables 1 to 4)."""
from dataclasses import dataclass

from ...peft import LoRA, attach
from ...quant import NF4, Scheme, Uniform, loftq, quantize
from ...train import train
from ..experiment import Experiment
from ..tuning import domain, pretrained, test_loss


@dataclass(frozen=True)
class Start:
    """What a LoRA is trained on, and from where. scheme: of the base (None: 16 bits). by_loftq: it starts from what
    rounding lost; otherwise at zero."""
    scheme: Scheme | None = None
    by_loftq: bool = False


SCHEMES_4_TO_2_BITS = {"NF4": NF4(), **{f"{bits} bits": Uniform(bits, False, "group", 32) for bits in (4, 3, 2)}}


def measure(start: Start, seed: int, settings: dict) -> dict:
    model, lora = pretrained(), LoRA(rank=settings["rank"], targets="all")
    if start.by_loftq: tuned = loftq(model, lora, start.scheme, rng=seed)
    elif start.scheme: tuned = attach(quantize(model, start.scheme), lora, rng=seed)
    else:              tuned = attach(model, lora, rng=seed)
    before = test_loss(tuned)
    train(tuned, domain(), settings["steps"], batch_size=4, lr=settings["lr"], seed=seed, workers=1, progress=False)
    return {"before": before, "after": test_loss(tuned)}


LOFTQ = Experiment(
    "loftq", "A LoRA of rank 8 on all layers of a rounded base (NF4; integers in groups of 32, asymmetric), started at zero "
    "(QLoRA) or by LoftQ, and trained for 100 steps of 4 × 128 tokens; a seed draws the LoRA and the batches.",
    {"before": "nats/token, domain test, before training", "after": "nats/token, domain test, after training"},
    measure, {"LoRA, 16 bits": Start(),
              **{f"{method}, {name}": Start(scheme, by_loftq=method == "LoftQ") for name, scheme in SCHEMES_4_TO_2_BITS.items()
                 for method in ("QLoRA", "LoftQ")}},
    {"rank": 8, "steps": 100, "lr": 3e-3},
    {"steps": 2, "conditions": ("QLoRA, 2 bits", "LoftQ, 2 bits"), "seeds": (0,)})
