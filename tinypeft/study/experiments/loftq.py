"""LoftQ: a LoRA that starts from what rounding lost, at 4, 3 and 2 bits (its tables 1 to 4)."""
from ...peft import LoRA, attach
from ...quant import NF4, Uniform, loftq, quantize
from ...text import tasks
from ...train import evaluate, train
from ..experiment import Experiment
from ..quantized import base, fresh

SCHEMES = {"NF4": NF4(), **{f"{bits} bits": Uniform(bits, False, "group", 32) for bits in (4, 3, 2)}}
CONDITIONS = ("LoRA, 16 bits", *(f"{method}, {name}" for name in SCHEMES for method in ("QLoRA", "LoftQ")))


def measure(condition, seed, settings):
    """Test losses on *domain* before and after training."""
    task = tasks.domain(base(), context=128, held_out=settings["held_out"])
    method, name = condition.split(", ")
    lora = LoRA(rank=settings["rank"], targets="all")
    if method == "LoRA":    tuned = attach(fresh(), lora, rng=seed)
    elif method == "QLoRA": tuned = attach(quantize(fresh(), SCHEMES[name]), lora, rng=seed)
    else:                   tuned = loftq(fresh(), lora, SCHEMES[name], rng=seed)
    before = evaluate(tuned, task, workers=1)["loss"]
    train(tuned, task, settings["steps"], batch_size=4, lr=settings["lr"], seed=seed, workers=1, progress=False)
    return {"before": before, "after": evaluate(tuned, task, workers=1)["loss"]}


SETTINGS = {"rank": 8, "steps": 100, "lr": 3e-3, "held_out": 16384}

loftq_start = Experiment(
    "loftq", "test loss on domain (nats/token) before and after 100 steps of 4 × 128 tokens, a LoRA of rank 8 on all layers of a "
    "rounded base (NF4; integers in groups of 32, asymmetric), started at zero (QLoRA) or by LoftQ; a seed draws the LoRA and "
    "the batches", measure, CONDITIONS, SETTINGS, SETTINGS | {"steps": 3, "held_out": 1024})
