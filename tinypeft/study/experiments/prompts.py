"""Prompts: is the gap to full fine-tuning smaller in a larger model, and does depth close it in a small one?

Prompt tuning equals full fine-tuning in models of ten billion parameters and falls short in small ones (arXiv 2104.08691);
prompts in every layer work in small ones too (2110.07602).
"""
from ...peft import FullFineTuning, Method, PrefixTuning, PromptTuning, PTuningV2
from ..bases import SIZES, small_base
from ..experiment import Experiment
from ..tuning import Arm, fine_tune, test_loss

COMPARED = {"full": FullFineTuning(), "prompt": PromptTuning(length=20), "ptuning_v2": PTuningV2(length=20, dropout=0.0)}
RATES = {"full small": 0.003, "full medium": 0.003, "prompt base": 0.09}         # where it is not the method's own


def measure(arm: Arm, seed: int, settings: dict) -> dict:
    model = small_base(arm.base)
    before, parameters = test_loss(model), model.n_parameters()
    tuned, history = fine_tune(arm.method, seed, settings, model=model, lr=arm.lr)
    loss = test_loss(tuned)
    return {"loss": loss, "gain": before - loss, "before": before, "parameters": parameters, "trained": tuned.summary().trained,
            "seconds": history.seconds}


PROMPTS = Experiment(
    "prompts", "Full fine-tuning, prompt tuning and P-tuning v2 (both P = 20) of three bases that were trained on the same "
    "text (`study/bases.py`), full and prompt at the best of three learning rates (experiment `rates`).",
    {"before": "nats/token, domain test, before training", "loss": "nats/token, domain test, after training",
     "gain": "nats/token, the difference", "parameters": "parameters of the base", "trained": "trained parameters",
     "seconds": "seconds in training steps"},
    measure, {f"{name} {base}": Arm(method, RATES.get(f"{name} {base}"), base)
              for base in SIZES for name, method in COMPARED.items()},
    {"steps": 150, "batch_size": 4},
    {"steps": 5, "seeds": (0, 1), "conditions": ("full base", "prompt base", "ptuning_v2 base")})


def measure_rate(method: PrefixTuning, seed: int, settings: dict) -> dict:
    """Lists over learning rates."""
    runs = [fine_tune(method, seed, settings, lr=lr) for lr in settings["rates"]]
    return {"loss": [test_loss(tuned) for tuned, _ in runs], "roughness": [roughness(h.loss) for _, h in runs],
            "seconds": sum(h.seconds for _, h in runs)}


def roughness(losses: list[float]) -> float:
    """Mean absolute change of the training loss from step to step in the second half, nats."""
    late = losses[len(losses) // 2:]
    return sum(abs(b - a) for a, b in zip(late, late[1:], strict=False)) / (len(late) - 1)


PREFIX_RATES = Experiment(
    "prefix_rates", "Prefix tuning, P = 10, of the MLP that makes the prefix (reparameterized) or of the prefix itself "
    "(direct), over learning rates.",
    {"loss": "nats/token, domain test, one per learning rate",
     "roughness": "nats, mean absolute change of the training loss from step to step in the second half, one per rate",
     "seconds": "seconds in training steps"},
    measure_rate, {"reparameterized": PrefixTuning(length=10, reparameterize=True),
                   "direct": PrefixTuning(length=10, reparameterize=False)},
    {"steps": 100, "batch_size": 4, "rates": [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]},
    {"steps": 4, "rates": [1e-3, 1e-2], "seeds": (0, 1)})


def measure_length(method: Method, seed: int, settings: dict) -> dict:
    tuned, history = fine_tune(method, seed, settings)
    return {"loss": test_loss(tuned), "stored": tuned.summary().stored, "seconds": history.seconds}


PREFIX_LENGTH = Experiment(
    "prefix_length", "Prompt tuning (embedding only) and prefix tuning (direct: keys and values in every layer) at length P, "
    "each at its own learning rate.",
    {"loss": "nats/token, domain test", "stored": "stored parameters", "seconds": "seconds in training steps"},
    measure_length, {f"{kind} {P}": method for P in (1, 10, 40) for kind, method in
                     (("prompt", PromptTuning(length=P)), ("prefix", PrefixTuning(length=P, reparameterize=False)))},
    {"steps": 80, "batch_size": 4}, {"steps": 4, "seeds": (0, 1), "conditions": ("prompt 1", "prefix 10")})
