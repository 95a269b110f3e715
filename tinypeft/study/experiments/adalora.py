"""AdaLoRA: is a rank allocated in training better than the same rank everywhere, and does it find where a change is needed?"""
import numpy as np

from ...peft import AdaLoRA
from ...text import tasks
from ...train import evaluate
from ..experiment import Experiment
from ..tuning import fine_tune, pretrained, test_loss
from .rates import TRIED


def measure(condition, seed, settings):
    """The matrices have an order, layer by layer: query, key, value, output, up, down."""
    tuned, history = fine_tune(TRIED[condition][0], seed, settings, lr=settings["lr"][condition])
    metrics = {"loss": test_loss(tuned), "trained": tuned.summary().trained, "ranks": list(tuned.ranks().values()),
               "seconds": history.seconds}
    if "AdaLoRA" in condition:
        n, steps = len(tuned.wrappers), settings["steps"]
        metrics["budget"] = [tuned.method.budget(t, steps, n) for t in range(1, steps + 1)]
    return metrics


ADALORA = Experiment(
    "adalora", "AdaLoRA and LoRA on all six matrices of a block with the same number of singular values in the end, 2 or 8 "
    "per matrix on average, each at the best of three learning rates (experiment `rates`): test loss on domain (nats/token), "
    "trained parameters, final rank per matrix (ranks, layer by layer: query, key, value, output, up, down), budget after "
    "every step.",
    measure, ("all six r=2", "AdaLoRA 3 → 2", "all six r=8", "AdaLoRA 12 → 8"),
    {"steps": 200, "batch_size": 4,
     "lr": {"all six r=2": 0.0033, "AdaLoRA 3 → 2": 0.02, "all six r=8": 0.01, "AdaLoRA 12 → 8": 0.02}},
    {"steps": 20, "seeds": (0, 1), "conditions": ("all six r=2", "AdaLoRA 3 → 2")})


def measure_planted(condition, seed, settings):
    """Ranks are dealt to the matrices of the attention, anew for every seed; the rank to be found is the budget's mean."""
    from scipy.stats import spearmanr
    model = pretrained()
    paths = [p for p, m in model.named_modules() if p.startswith("blocks.") and hasattr(m, "d_in") and ".attention." in p]
    dealt = np.random.default_rng([seed, 7]).permutation(np.resize(settings["dealt"], len(paths))).tolist()
    task = tasks.planted(model, dict(zip(paths, dealt, strict=True)), effect=settings["effect"], context=128, held_out=4096,
                         rng=seed)
    target = round(np.mean(dealt))
    method = AdaLoRA(init_rank=settings["init_rank"], target_rank=target, targets=("query", "key", "value", "output"))
    tuned, history = fine_tune(method, seed, settings, model=model, task=task)
    found = [tuned.ranks()[p] for p in paths]
    with tuned.disabled(): before = evaluate(model, task, workers=1)["loss"]
    kinds = np.array([p.rsplit(".", 1)[-1] for p in paths])
    by_kind = {k: np.where(kinds == k)[0] for k in ("query", "key", "value", "output")}
    return {"spearman": spearmanr(dealt, found).statistic, "planted": dealt, "found": found, "kl": test_loss(tuned, task),
            "kl_before": before, "seconds": history.seconds,
            "of_planted": sum(f for f, d in zip(found, dealt, strict=True) if d) / max(sum(found), 1),
            "share_planted": sum(d > 0 for d in dealt) / len(dealt),
            "mean_by_kind": [float(np.mean([found[i] for i in at])) for at in by_kind.values()]}


ADALORA_PLANTED = Experiment(
    "adalora_planted", "Ranks 0, 0, 1, 2, 4, 8 … planted in the attention's 20 matrices, every direction worth the same, "
    "found by AdaLoRA with as many singular values in the end as were planted (rounded per matrix): Spearman's correlation "
    "between planted and found ranks, both lists (layer by layer: query, key, value, output), share of the found rank that "
    "lies where rank was planted (of_planted) and share of matrices where it was (share_planted: what chance would give), KL "
    "to the teacher on test text before and after (nats/token), mean found rank of query, key, value, output.",
    measure_planted, ("attention",),
    {"steps": 300, "batch_size": 4, "dealt": [0, 0, 0, 1, 2, 4, 8], "effect": 0.02, "init_rank": 8},
    {"steps": 30, "seeds": (0, 1)})
