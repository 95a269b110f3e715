"""DyLoRA: one training for every rank, against LoRA cut to a smaller rank after training, and LoRA trained at each rank."""
from collections.abc import Callable
from dataclasses import dataclass

from ..experiment import Experiment
from ..tuning import SEEDS, Arm, tested
from .arms import tuned

RANKS = 1, 2, 4, 8, 16


@dataclass(frozen=True)
class AtRanks:
    """An arm that is used at every rank of RANKS. cut: it learns at one rank, and is cut to the others after training."""
    arm: Arm
    cut: bool = False


def measure(at: AtRanks, seed: int, settings: dict) -> dict:
    """A LoRA is cut to its first b rows of A and columns of B, or, by SVD, to the b largest singular values of ΔW; its scale
    stays α/16, or becomes α/b."""
    model, history = at.arm.train(seed, settings)
    metrics = {"seconds": history.seconds, "steps": len(history.loss)}
    if not at.cut: return metrics | over_ranks(lambda b: tested(model.set_rank(b)))
    layers, R = list(model.wrappers.values()), model.method.rank
    learned = [(layer.A.data, layer.B.data, layer.scale, layer.svd()) for layer in layers]

    def cut(b, rescale=1.0, svd=False):
        for layer, (A, B, scale, (U, S, Vt)) in zip(layers, learned, strict=True):
            if svd: layer.B.data, layer.A.data, layer.scale = U[:, :b] * S[:b], Vt[:b], 1.0
            else:   layer.B.data, layer.A.data, layer.scale = B[:, :b], A[:b], scale * rescale
        return model
    return (metrics | over_ranks(lambda b: tested(cut(b))) | over_ranks(lambda b: tested(cut(b, svd=True), "loss_svd"))
            | over_ranks(lambda b: tested(cut(b, R / b), "loss_rescaled")))


def over_ranks(tested_at: Callable[[int], dict]) -> dict:
    """The metrics at every rank, as lists."""
    found = [tested_at(b) for b in RANKS]
    return {name: [metrics[name] for metrics in found] for name in found[0]}


DYLORA = Experiment(
    "dylora", "One training used at ranks 1, 2, 4, 8 and 16 of query and value, α = 16: DyLoRA of rank 16, trained as long as "
    "LoRA or three times as long, and LoRA of rank 16 cut after training, each at its best learning rate (experiment `rates`); "
    "one LoRA for each rank is experiment `rank`.",
    {"loss": "nats/token, domain test, one per rank; LoRA cut to its first b rows and columns, scale α/16",
     "loss_documents": "nats, one sum per rank and document of the test text",
     "loss_rescaled": "loss with scale α/b", "loss_svd": "loss, cut to the b largest singular values",
     "loss_svd_documents": "the same by document", "loss_rescaled_documents": "the same",
     "steps": "training steps", "seconds": "seconds in training steps"},
    measure, {label: AtRanks(arm, cut=label.endswith("cut")) for label, arm in tuned("dylora").items()},
    {"steps": 150, "batch_size": 4}, {"steps": 5, "seeds": (0,), "conditions": ("DyLoRA", "LoRA r=16, cut")},
    seeds=SEEDS)
