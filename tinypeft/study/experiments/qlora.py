"""QLoRA: a LoRA on a base of 4 bits learns as well as one on 16 (its tables 3 and 4); what becomes of it afterwards?

It is trained on *domain*, the documentation of a library the base never saw. Then the adapter stays apart (exact), or is
merged: into the rounded base in floating point (exact), into the 16-bit weights it was not trained on, or into weights that
are then rounded again.
"""
import copy

from ...quant import NF4, quantize, requantize_error
from ..experiment import Experiment
from ..tuning import SEEDS, Arm, pretrained, test_loss, tested
from .arms import GRID_3_BITS, OnRounded, tuned


def measure(arm: Arm, seed: int, settings: dict) -> dict:
    before = tested(arm.start(seed), "before")
    model, _ = arm.train(seed, settings)
    merged = model.merge()
    found = before | tested(model, "after") | {"merged": test_loss(merged)}
    if not isinstance(arm, OnRounded):
        to_NF4, to_int3 = (quantize(copy.deepcopy(merged), scheme) for scheme in (NF4(), GRID_3_BITS))
        return found | tested(to_NF4, "to_NF4") | tested(to_int3, "to_int3")
    exact = pretrained()
    for path, wrapper in model.wrappers.items(): exact.get(path).weight.data += wrapper.delta()
    of_change = requantize_error(model, arm.scheme)[1]
    return found | tested(exact, "merged_into_16_bits") | tested(quantize(merged, arm.scheme), "merged_and_rounded") | {
        "rounding_of_change": of_change}


QLORA = Experiment(
    "qlora", "A LoRA on all layers, rank 8, trained for 150 steps of 4 × 128 tokens on bases of 16, 4, 3 and 2 bits, each at "
    "its best learning rate (experiment `rates`), and merged; a seed draws the LoRA and the batches.",
    {"before": "nats/token, domain test, before training", "before_documents": "nats, one sum per document of the test text",
     "after": "nats/token, domain test, after training", "after_documents": "the same, by document",
     "merged": "nats/token, merged into the weights it was trained on",
     "merged_into_16_bits": "nats/token, merged into the weights before rounding",
     "merged_into_16_bits_documents": "the same, by document",
     "merged_and_rounded": "nats/token, merged and rounded to the same format again",
     "merged_and_rounded_documents": "the same, by document",
     **{f"to_{name}": f"nats/token, trained on 16 bits, merged and rounded to {name}" for name in ("NF4", "int3")},
     **{f"to_{name}_documents": "the same, by document" for name in ("NF4", "int3")},
     "rounding_of_change": "‖Q(M) − M‖/‖ΔW‖, M the merged weights"},
    measure, tuned("qlora"), {"steps": 150, "batch_size": 4},
    {"steps": 3, "conditions": ("16 bits", "NF4"), "seeds": (0,)}, seeds=SEEDS)
