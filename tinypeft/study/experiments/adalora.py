"""AdaLoRA: is a rank that training allocates better than the same rank everywhere, and is it put where a change is needed?"""
from dataclasses import replace

import numpy as np

from ...peft import AdaLoRA
from ...text import tasks
from ...train import evaluate
from ..experiment import Experiment
from ..tuning import Arm, fine_tune, pretrained, test_loss
from .rates import TRIED


def measure(arm: Arm, seed: int, settings: dict) -> dict:
    """The matrices have an order, layer by layer: query, key, value, output, up, down."""
    tuned, history = fine_tune(arm.method, seed, settings, lr=arm.lr)
    metrics = {"loss": test_loss(tuned), "trained": tuned.summary().trained, "ranks": list(tuned.ranks().values()),
               "seconds": history.seconds}
    if hasattr(tuned.method, "budget"):
        n, steps = len(tuned.wrappers), settings["steps"]
        metrics["budget"] = [tuned.method.budget(t, steps, n) for t in range(1, steps + 1)]
    return metrics


ADALORA = Experiment(
    "adalora", "AdaLoRA and LoRA on all six matrices of a block with the same number of singular values in the end, 2 or 8 "
    "per matrix on average, each at the best of three learning rates (experiment `rates`).",
    {"loss": "nats/token, domain test", "trained": "trained parameters", "seconds": "seconds in training steps",
     "ranks": "final rank of every matrix, layer by layer: query, key, value, output, up, down",
     "budget": "singular values in all, after every step (AdaLoRA)"},
    measure, {label: replace(TRIED[label], lr=lr) for label, lr in
              {"all six r=2": 0.0033, "AdaLoRA 3 → 2": 0.02, "all six r=8": 0.01, "AdaLoRA 12 → 8": 0.02}.items()},
    {"steps": 200, "batch_size": 4},
    {"steps": 20, "seeds": (0, 1), "conditions": ("all six r=2", "AdaLoRA 3 → 2")})


def measure_planted(targets: tuple[str, ...], seed: int, settings: dict) -> dict:
    """Ranks are dealt to the matrices of the attention, anew for every seed; the rank to find is the mean of the budget."""
    from scipy.stats import spearmanr
    model = pretrained()
    paths = [p for p, m in model.named_modules() if p.startswith("blocks.") and hasattr(m, "d_in") and ".attention." in p]
    dealt = np.random.default_rng([seed, 7]).permutation(np.resize(settings["dealt"], len(paths))).tolist()
    task = tasks.planted(model, dict(zip(paths, dealt, strict=True)), effect=settings["effect"], context=128, held_out=4096,
                         rng=seed)
    target = round(np.mean(dealt))
    method = AdaLoRA(init_rank=settings["init_rank"], target_rank=target, targets=targets)
    tuned, history = fine_tune(method, seed, settings, model=model, task=task)
    found = [tuned.ranks()[p] for p in paths]
    with tuned.disabled(): before = evaluate(model, task, workers=1)["loss"]
    kinds = np.array([p.rsplit(".", 1)[-1] for p in paths])
    by_kind = {k: np.where(kinds == k)[0] for k in targets}
    return {"spearman": spearmanr(dealt, found).statistic, "planted": dealt, "found": found, "kl": test_loss(tuned, task),
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
    measure_planted, {"attention": ("query", "key", "value", "output")},
    {"steps": 300, "batch_size": 4, "dealt": [0, 0, 0, 1, 2, 4, 8], "effect": 0.02, "init_rank": 8},
    {"steps": 30, "seeds": (0, 1)})
