"""Prefix tuning over learning rates: is the MLP that makes the prefix steadier to train than the prefix (arXiv 2101.00190)?"""
from dataclasses import dataclass

from ...peft import PrefixTuning
from ..experiment import Experiment
from ..tuning import SEEDS, fine_tune, test_loss, tested


@dataclass(frozen=True)
class OverRates:
    """A method, and the learning rates that are tried."""
    method: PrefixTuning
    rates: tuple[float, ...]


def measure(tried: OverRates, seed: int, settings: dict) -> dict:
    """Lists over learning rates."""
    runs = [fine_tune(tried.method, seed, settings, lr=lr) for lr in tried.rates[:settings.get("tried")]]
    found = [tested(model) for model, _ in runs]
    return {"rate": tried.rates[:settings.get("tried")], "loss": [f["loss"] for f in found],
            "loss_documents": [f["loss_documents"] for f in found],
            "validation": [test_loss(model, split="validation") for model, _ in runs],
            "roughness": [roughness(h.loss) for _, h in runs], "seconds": sum(h.seconds for _, h in runs)}


def roughness(losses: list[float]) -> float:
    """Mean absolute change of the training loss from step to step in the second half, nats."""
    late = losses[len(losses) // 2:]
    return sum(abs(b - a) for a, b in zip(late, late[1:], strict=False)) / (len(late) - 1)


PREFIX_RATES = Experiment(
    "prefix_rates", "Prefix tuning, P = 10, of the MLP that makes the prefix (reparameterized) or of the prefix itself "
    "(direct), over learning rates, each √3 times the one before: two steps are three times a rate.",
    {"rate": "the learning rates, ascending", "loss": "nats/token, domain test, one per rate",
     "loss_documents": "nats, one sum per rate and document of the test text", "validation": "nats/token, domain validation",
     "roughness": "nats, mean absolute change of the training loss from step to step in the second half, one per rate",
     "seconds": "seconds in training steps"},
    measure, {"reparameterized": OverRates(PrefixTuning(length=10), (2.9e-3, 5e-3, 8.7e-3, 0.015, 0.026, 0.045)),
                   "direct": OverRates(PrefixTuning(length=10, reparameterize=False), (0.039, 0.067, 0.116, 0.2, 0.35, 0.6))},
    {"steps": 100, "batch_size": 4}, {"steps": 4, "tried": 2, "seeds": (0, 1)}, seeds=SEEDS)
