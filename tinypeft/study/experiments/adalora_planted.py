"""AdaLoRA: does it put rank where a change is needed? It is planted in some matrices."""
import numpy as np

from ...peft import AdaLoRA
from ...text.tasks import planted
from ...training.evaluation import evaluate
from ..experiment import Experiment
from ..tuning import EIGHT, fine_tune, pretrained, test_loss


def measure(targets: tuple[str, ...], seed: int, settings: dict) -> dict:
    """Ranks are dealt to the matrices of the attention, anew for every seed; the rank to find is the mean of the budget."""
    from scipy.stats import spearmanr
    model = pretrained()
    paths = [p for p, m in model.named_modules() if p.startswith("blocks.") and hasattr(m, "d_in") and ".attention." in p]
    dealt = np.random.default_rng([seed, 7]).permutation(np.resize(settings["dealt"], len(paths))).tolist()
    task = planted(model, dict(zip(paths, dealt, strict=True)), effect=settings["effect"], context=128, held_out=4096,
                         rng=seed)
    target = round(np.mean(dealt))
    method = AdaLoRA(init_rank=settings["init_rank"], target_rank=target, targets=targets)
    tuned_model, history = fine_tune(method, seed, settings, model=model, task=task)
    found = [tuned_model.ranks()[p] for p in paths]
    before = evaluate(model, task, workers=1)["loss"]
    kinds = np.array([p.rsplit(".", 1)[-1] for p in paths])
    by_kind = {k: np.where(kinds == k)[0] for k in targets}
    return {"spearman": spearmanr(dealt, found).statistic, "planted": dealt, "found": found, "kl": test_loss(tuned_model, task),
            "kl_before": before, "seconds": history.seconds,
            "of_planted": sum(f for f, d in zip(found, dealt, strict=True) if d) / max(sum(found), 1),
            "share_planted": sum(d > 0 for d in dealt) / len(dealt),
            "mean_by_kind": [float(np.mean([found[i] for i in at])) for at in by_kind.values()]}


ADALORA_PLANTED = Experiment(
    "adalora_planted", "Ranks 0, 0, 0, 1, 2, 4 and 8 are planted in the 20 matrices of the attention, every direction worth "
    "the same, and AdaLoRA looks for them, with as many singular values in the end as were planted (rounded per matrix).",
    {"spearman": "Spearman's correlation of planted and found ranks",
     "planted": "planted ranks, layer by layer: query, key, value, output", "found": "ranks found, in the same order",
     "of_planted": "share of the found rank that lies where rank was planted",
     "share_planted": "share of matrices where rank was planted, which is what chance would give",
     "kl_before": "nats/token, KL to the teacher on test text before training", "kl": "nats/token, the same after training",
     "mean_by_kind": "mean rank found in query, key, value, output", "seconds": "seconds in training steps"},
    measure, {"attention": ("query", "key", "value", "output")},
    {"steps": 300, "batch_size": 4, "dealt": [0, 0, 0, 1, 2, 4, 8], "effect": 0.02, "init_rank": 8},
    {"steps": 30, "seeds": (0, 1)}, seeds=EIGHT)
