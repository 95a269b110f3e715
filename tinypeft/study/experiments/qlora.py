"""QLoRA: a LoRA on a base of 4 bits learns as well as one on 16 (its tables 3 and 4), and what becomes of it afterwards.

Trained on *domain*, the documentation of a library the base never saw. The adapter then stays apart (exact), or is merged:
into the rounded base in floating point (exact), into the 16-bit weights it was not trained on, or into weights that are
then rounded again.
"""
import copy

from ...nn import replace_modules
from ...peft import LoRA, attach
from ...quant import NF4, Uniform, quantize, requantize_error
from ...text import tasks
from ...train import evaluate, train
from ..experiment import Experiment
from ..quantized import base, fresh

BASES = {"16 bits": None, "NF4": NF4(), "NF4, double": NF4(double_quant=True),
         "int3": Uniform(3, False, "group", 32), "int2": Uniform(2, False, "group", 32)}


def measure(condition, seed, settings):
    """Test losses: before and after training; and after merging in three ways."""
    task = tasks.domain(base(), context=128, held_out=settings["held_out"])
    loss = lambda model: evaluate(model, task, workers=1)["loss"]
    scheme, lora = BASES[condition], LoRA(rank=settings["rank"], targets="all")
    tuned = attach(fresh() if scheme is None else quantize(fresh(), scheme), lora, rng=seed)
    found = {"before": loss(tuned)}
    train(tuned, task, settings["steps"], batch_size=4, lr=settings["lr"], seed=seed, workers=1, progress=False)
    merged = tuned.merge()
    found |= {"after": loss(tuned), "merged": loss(merged)}
    if scheme is None:
        return found | {"rounded_afterwards": loss(quantize(merged, NF4()))}
    onto = copy.deepcopy(base())
    for path, wrapper in tuned.wrappers.items(): onto.get(path).weight.data = base().get(path).weight.data + wrapper.delta()
    replace_modules(onto, {})
    relative, of_change = requantize_error(tuned, scheme)
    return found | {"merged_into_16_bits": loss(onto), "merged_and_rounded": loss(quantize(merged, scheme)),
                    "rounding_of_change": of_change}


SETTINGS = {"rank": 8, "steps": 150, "lr": 3e-3, "held_out": 16384}

qlora = Experiment(
    "qlora", "test loss on domain (nats/token) of a LoRA on all layers, rank 8, 150 steps of 4 × 128 tokens: before, after; merged "
    "(into what it was trained on), merged_into_16_bits (the weights before rounding), merged_and_rounded (to the same format "
    "again), rounded_afterwards (to NF4, of the LoRA trained on 16 bits); rounding_of_change: ‖Q(M) − M‖/‖ΔW‖; a seed draws the "
    "LoRA and the batches", measure, tuple(BASES), SETTINGS, SETTINGS | {"steps": 5, "held_out": 1024})
