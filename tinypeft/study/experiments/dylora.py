"""DyLoRA: one training for every rank, against LoRA cut to a smaller rank after training, and LoRA trained at each rank."""
from dataclasses import dataclass

from ...peft import DyLoRA, LoRA, Method
from ..experiment import Experiment
from ..tuning import fine_tune, test_loss

RANKS = 1, 2, 4, 8, 16


@dataclass(frozen=True)
class AtRanks:
    """A method that is used at every rank of RANKS. times: how much longer than settings["steps"] it is trained. cut: it
    learns at one rank, and is cut to the others after training."""
    method: Method
    times: int = 1
    cut: bool = False


def measure(arm: AtRanks, seed: int, settings: dict) -> dict:
    """A LoRA is cut to its first b rows of A and columns of B, or, by SVD, to the b largest singular values of ΔW; its scale
    stays α/16, or becomes α/b."""
    steps = settings["steps"] * arm.times
    tuned, history = fine_tune(arm.method, seed, settings | {"steps": steps})
    metrics = {"seconds": history.seconds, "steps": steps}
    if not arm.cut: return metrics | {"loss": [test_loss(tuned.set_rank(b)) for b in RANKS]}
    layers, R = list(tuned.wrappers.values()), tuned.method.rank
    learned = [(layer.A.data, layer.B.data, layer.scale, layer.svd()) for layer in layers]

    def loss(b, rescale=1.0, svd=False):
        for layer, (A, B, scale, (U, S, Vt)) in zip(layers, learned, strict=True):
            if svd: layer.B.data, layer.A.data, layer.scale = U[:, :b] * S[:b], Vt[:b], 1.0
            else:   layer.B.data, layer.A.data, layer.scale = B[:, :b], A[:b], scale * rescale
        return test_loss(tuned)
    return metrics | {"loss": [loss(b) for b in RANKS], "loss_rescaled": [loss(b, R / b) for b in RANKS],
                      "loss_svd": [loss(b, svd=True) for b in RANKS]}


DYLORA = Experiment(
    "dylora", "One training used at ranks 1, 2, 4, 8 and 16 of query and value, α = 16: DyLoRA of rank 16, trained as long as "
    "LoRA or three times as long, and LoRA of rank 16 cut after training; one LoRA for each rank is experiment `rank`.",
    {"loss": "nats/token, domain test, one per rank; LoRA cut to its first b rows and columns, scale α/16",
     "loss_rescaled": "the same with scale α/b", "loss_svd": "the same, cut to the b largest singular values",
     "steps": "training steps", "seconds": "seconds in training steps"},
    measure, {"DyLoRA": AtRanks(DyLoRA(rank=16)), "DyLoRA × 3": AtRanks(DyLoRA(rank=16), times=3),
              "LoRA r=16, cut": AtRanks(LoRA(rank=16), cut=True)},
    {"steps": 150, "batch_size": 4}, {"steps": 5, "seeds": (0, 1), "conditions": ("DyLoRA", "LoRA r=16, cut")})
