"""QLoRA: a LoRA on a base of 4 bits learns as well as one on 16 (its tables 3 and 4), and what becomes of it afterwards.

Trained on *domain*, the documentation of a library the base never saw. The adapter then stays apart (exact), or is merged:
into the rounded base in floating point (exact), into the 16-bit weights it was not trained on, or into weights that are
then rounded again.
"""
from ...peft import LoRA
from ...quant import NF4, Uniform, quantize, requantize_error
from ..experiment import Experiment
from ..tuning import fine_tune, pretrained, test_loss

BASES = {"16 bits": None, "NF4": NF4(), "NF4, double": NF4(double_quant=True),
         "int2": Uniform(2, False, "group", 32)}


def measure(condition, seed, settings):
    """Test losses: before and after training, and after merging."""
    scheme, lora, model = BASES[condition], LoRA(rank=settings["rank"], targets="all"), pretrained()
    if scheme is not None: quantize(model, scheme)
    before = test_loss(model)
    tuned, _ = fine_tune(lora, seed, settings, model, lr=settings["lr"])
    merged = tuned.merge()
    found = {"before": before, "after": test_loss(tuned), "merged": test_loss(merged)}
    if scheme is None:
        return found | {"rounded_afterwards": test_loss(quantize(merged, NF4()))}
    exact = pretrained()
    for path, wrapper in tuned.wrappers.items(): exact.get(path).weight.data += wrapper.delta()
    of_change = requantize_error(tuned, scheme)[1]
    return found | {"merged_into_16_bits": test_loss(exact), "merged_and_rounded": test_loss(quantize(merged, scheme)),
                    "rounding_of_change": of_change}


SETTINGS = {"rank": 8, "steps": 150, "batch_size": 4, "lr": 3e-3}

QLORA = Experiment(
    "qlora", "test loss on domain (nats/token) of a LoRA on all layers, rank 8, 150 steps of 4 × 128 tokens: before, after; "
    "merged (into what it was trained on), merged_into_16_bits (the weights before rounding), merged_and_rounded (to the "
    "same format again), rounded_afterwards (to NF4, of the LoRA trained on 16 bits); rounding_of_change: ‖Q(M) − M‖/‖ΔW‖; a "
    "seed draws the LoRA and the batches",
    measure, tuple(BASES), SETTINGS, {"steps": 3, "conditions": ("16 bits", "NF4"), "seeds": (0,)})
