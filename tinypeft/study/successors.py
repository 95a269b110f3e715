"""What came after LoRA, as tables: methods at three budgets, starts of LoRA, DoRA on a rounded base, other optimizers."""
from pathlib import Path

from .experiments.successor_arms import BUDGETS, SUCCESSORS
from .markdown import beside, table
from .stored import load

__all__ = ["successors"]

WITHOUT = {"DoRA, small": "rank 1 takes 17,280", "LoHa, small": "rank 1 takes 23,040",
           "VeRA, large": "its random matrices would outweigh the base"}
# Rows of the second table: what is compared → the arm that it is compared with, and the arms.
PAIRS = {
    "starts, r = 4": ("LoRA, middle", [label for label in SUCCESSORS if label.startswith("LoRA from ") and "60" not in label]),
    "a start, after 60 steps": ("LoRA, 60 steps", ["LoRA from pissa, 60 steps"]),
    "lengths beside rank 1": ("LoRA, small", ["DoRA, r = 1"]),
    "on the base in NF4, r = 4": ("LoRA on NF4", ["DoRA on NF4"]),
    "optimizers, all weights": ("full", ["full by AdamW8bit", "full by GaLore", "full by Muon"])}


def successors(results: Path) -> str:
    """Test losses of every arm, each beside the arm that it is compared with, or how to measure them."""
    if not (results / "successors.json").exists(): return "Not measured yet: `python -m tinypeft figures successors --rerun`."
    r = load(results, "successors")
    names = dict.fromkeys(label.removesuffix(f", {budget}") for budget in BUDGETS for label in SUCCESSORS
                          if label.endswith(f", {budget}"))
    loss = lambda arm: f"{r.mean(arm, 'loss'):.3f}"

    def cell(name: str, budget: str) -> str:
        arm = f"{name}, {budget}"
        if arm in WITHOUT: return WITHOUT[arm]
        return loss(arm) if name == "LoRA" else beside(r, arm, f"LoRA, {budget}")
    heads = [f"about {trained:,} trained" for trained in BUDGETS.values()]
    at_budgets = table(("on all matrices", *heads), [(name, *(cell(name, budget) for budget in BUDGETS)) for name in names])
    others = table(("", "arm", "nats/token"), [
        row for what, (reference, arms) in PAIRS.items()
        for row in ((what, reference, loss(reference)), *(("", arm, beside(r, arm, reference)) for arm in arms))])
    return (f"Test loss in nats/token after {r.record['settings']['steps']} steps, over {len(r.seeds)} seeds, each arm at its "
            "best rate; in brackets the difference to LoRA with as many numbers ± half of its 95 % interval, paired. Below 0 "
            f"the newer method is ahead.\n\n{at_budgets}\n\nIn each group the difference is to its first arm:\n\n{others}")
