"""Does LoRA need its rank? The loss over r, and what the scale does at the extremes (arXiv 2106.09685, table 6; 2312.03732)."""
from ...peft import LoRA
from ..experiment import Experiment
from ..tuning import fine_tune, test_loss


def measure(method: LoRA, seed: int, settings: dict) -> dict:
    tuned, history = fine_tune(method, seed, settings)
    return {"loss": test_loss(tuned), "trained": tuned.summary().trained, "seconds": history.seconds}


RANK = Experiment(
    "rank", "LoRA on query and value at rank r, scale α/r (α = 16) or, with /sqrt, α/√r (α = 16/√8, equal at r = 8).",
    {"loss": "nats/token, domain test", "trained": "trained parameters", "seconds": "seconds in training steps"},
    measure, {**{str(r): LoRA(rank=r) for r in (1, 2, 4, 8, 16, 32, 64)},
              **{f"{r}/sqrt": LoRA(rank=r, alpha=16 * 8 ** -0.5, rank_stabilized=True) for r in (1, 64)}},
    {"steps": 150, "batch_size": 4}, {"steps": 5, "seeds": (0, 1), "conditions": ("1", "8")})
