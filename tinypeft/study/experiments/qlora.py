"""QLoRA: a LoRA on a base of 4 bits learns as well as one on 16 (its tables 3 and 4); what becomes of it afterwards?

It is trained on *domain*, the documentation of a library the base never saw. Then the adapter stays apart (exact), or is
merged: into the rounded base in floating point (exact), into the 16-bit weights it was not trained on, or into weights that
are then rounded again.
"""
from ...peft import LoRA
from ...quant import NF4, Scheme, Uniform, quantize, requantize_error
from ..experiment import Experiment
from ..tuning import fine_tune, pretrained, test_loss


def measure(scheme: Scheme | None, seed: int, settings: dict) -> dict:
    lora, model = LoRA(rank=settings["rank"], targets="all"), pretrained()
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


QLORA = Experiment(
    "qlora", "A LoRA on all layers, rank 8, trained for 150 steps of 4 × 128 tokens on bases of 16, 4 and 2 bits, and merged; "
    "a seed draws the LoRA and the batches.",
    {"before": "nats/token, domain test, before training", "after": "nats/token, domain test, after training",
     "merged": "nats/token, merged into the weights it was trained on",
     "merged_into_16_bits": "nats/token, merged into the weights before rounding",
     "merged_and_rounded": "nats/token, merged and rounded to the same format again",
     "rounded_afterwards": "nats/token, trained on 16 bits, merged and rounded to NF4",
     "rounding_of_change": "‖Q(M) − M‖/‖ΔW‖, M the merged weights"},
    measure, {"16 bits": None, "NF4": NF4(), "NF4, double": NF4(double_quant=True), "int2": Uniform(2, False, "group", 32)},
    {"rank": 8, "steps": 150, "batch_size": 4, "lr": 3e-3},
    {"steps": 3, "conditions": ("16 bits", "NF4"), "seeds": (0,)})
