"""LoftQ: a LoRA that starts from what rounding lost, at 4, 3 and 2 bits (its tables 1 to 4)."""
from ...peft import LoRA, attach
from ...quant import NF4, Uniform, loftq, quantize
from ...train import train
from ..experiment import Experiment
from ..tuning import domain, pretrained, test_loss

SCHEMES = {"NF4": NF4(), **{f"{bits} bits": Uniform(bits, False, "group", 32) for bits in (4, 3, 2)}}
CONDITIONS = ("LoRA, 16 bits", *(f"{method}, {name}" for name in SCHEMES for method in ("QLoRA", "LoftQ")))


def measure(condition, seed, settings):
    """Test losses on *domain* before and after training."""
    method, name = condition.split(", ")
    model, lora = pretrained(), LoRA(rank=settings["rank"], targets="all")
    if method == "LoftQ":   tuned = loftq(model, lora, SCHEMES[name], rng=seed)
    elif method == "QLoRA": tuned = attach(quantize(model, SCHEMES[name]), lora, rng=seed)
    else:                   tuned = attach(model, lora, rng=seed)
    before = test_loss(tuned)
    train(tuned, domain(), settings["steps"], batch_size=4, lr=settings["lr"], seed=seed, workers=1, progress=False)
    return {"before": before, "after": test_loss(tuned)}


SETTINGS = {"rank": 8, "steps": 100, "lr": 3e-3}

LOFTQ = Experiment(
    "loftq", "test loss on domain (nats/token) before and after 100 steps of 4 × 128 tokens, a LoRA of rank 8 on all layers "
    "of a rounded base (NF4; integers in groups of 32, asymmetric), started at zero (QLoRA) or by LoftQ; a seed draws the "
    "LoRA and the batches",
    measure, CONDITIONS, SETTINGS, {"steps": 2, "conditions": ("QLoRA, 2 bits", "LoftQ, 2 bits"), "seeds": (0,)})
