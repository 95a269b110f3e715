"""DyLoRA: one training for every rank, against LoRA cut to a smaller rank after training, and LoRA trained at each."""
from ...peft import DyLoRA, LoRA
from ..experiment import Experiment
from ..tuning import fine_tune, test_loss

RANKS = 1, 2, 4, 8, 16
METHODS = {"DyLoRA": DyLoRA(rank=16), "DyLoRA, frozen rows": DyLoRA(rank=16, frozen=True), "LoRA r=16, cut": LoRA(rank=16)}


def measure(condition, seed, settings):
    """Test loss at every rank of RANKS. A LoRA is cut to its first b rows of A and columns of B, or, by SVD, to the b largest
    singular values of ΔW; its scale stays α/16, or becomes α/b."""
    name, _, longer = condition.partition(" × ")
    steps = settings["steps"] * int(longer or 1)
    tuned, history = fine_tune(METHODS[name], seed, settings | {"steps": steps})
    metrics = {"seconds": history.seconds, "steps": steps}
    if name.startswith("DyLoRA"): return metrics | {"loss": [test_loss(tuned.set_rank(b)) for b in RANKS]}
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
    "dylora", "Query and value, α = 16. Lists over ranks 1, 2, 4, 8, 16: test loss on domain (nats/token) of DyLoRA at R = "
    "16 used at rank b, trained as long as LoRA or × 3; of LoRA r = 16 cut after training to its first b rows and columns "
    "with scale α/16 (loss) or α/b (loss_rescaled), or to its b largest singular values (loss_svd). Steps and seconds in "
    "training; one LoRA for each rank is experiment `rank`.",
    measure, ("DyLoRA", "DyLoRA × 3", "LoRA r=16, cut"),
    {"steps": 150, "batch_size": 4}, {"steps": 5, "seeds": (0, 1), "conditions": ("DyLoRA", "LoRA r=16, cut")})
