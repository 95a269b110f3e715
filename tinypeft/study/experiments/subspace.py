"""The shape of an update: its singular values, and how much updates of two ranks share (arXiv 2106.09685, section 7)."""
import numpy as np

from ...models.gpt import GPT
from ...peft import FullFineTuning, LoRA
from ..experiment import Experiment
from ..tuning import fine_tune, pretrained

MATRICES = "query", "value"


METHODS_COMPARED = {"full": FullFineTuning(), "lora_8": LoRA(rank=8), "lora_64": LoRA(rank=64), "lora_64_again": LoRA(rank=64)}


def measure(methods: dict, seed: int, settings: dict) -> dict:
    """For query and value, each a list over layers: the 64 largest singular values of ΔW for full fine-tuning and for LoRA
    r = 64; the similarity φ(A_8, A_64, i, j) = ‖U_8ᵢᵀ U_64ⱼ‖²_F / min(i, j) of right singular subspaces for the first
    i = 1 … 8 and j = 1 … 64; and φ between two seeds' A_64, beside that of A_64 and random directions."""
    base, models, metrics = pretrained(), {}, {}
    for name, method in methods.items():
        tuned, _ = fine_tune(method, seed if name != "lora_64_again" else seed + 100, settings)
        models[name] = tuned.merge()
    random = np.linalg.qr(np.random.default_rng([seed, 8]).standard_normal((base.config.d_model, 64)))[0].T
    for m in MATRICES:
        S, V = {}, {}
        for name, model in models.items():
            _, S[name], V[name] = np.linalg.svd(weights(model, m) - weights(base, m))
        metrics |= {f"values_{name}_{m}": S[name][:, :64] for name in ("full", "lora_8", "lora_64")}
        metrics[f"phi_{m}"] = phi(V["lora_8"], V["lora_64"], 8, 64)
        for name, other in (("phi_seeds", V["lora_64_again"]), ("phi_random", random)):
            metrics[f"{name}_{m}"] = phi(V["lora_64"], other, 64, 64).diagonal(axis1=1, axis2=2)
        metrics[f"energy_8_full_{m}"] = (S["full"][:, :8] ** 2).sum(1) / (S["full"] ** 2).sum(1)
    return {name: np.round(x, 5) for name, x in metrics.items()}


def weights(model: GPT, matrix: str) -> np.ndarray:
    """A matrix of every layer, in float64."""
    return np.array([getattr(block.attention, matrix).weight.data for block in model.blocks], float)


def phi(A: np.ndarray, B: np.ndarray, i: int, j: int) -> np.ndarray:
    """φ(A, B, 1 … i, 1 … j) of every layer, (layers, i, j): rows of A and B are orthonormal directions, (layers, d, d)."""
    squares = (A[..., :i, :] @ B[..., :j, :].swapaxes(-1, -2)) ** 2
    return squares.cumsum(-2).cumsum(-1) / np.minimum.outer(np.arange(1, i + 1), np.arange(1, j + 1))


SUBSPACE = Experiment(
    "subspace", "The change of query and value by full fine-tuning and by LoRA: singular values and subspace similarity.",
    {f"{name}_{m}": meaning for m in MATRICES for name, meaning in {
        **{f"values_{method}": f"64 largest singular values of ΔW by {method}, a list over layers"
           for method in ("full", "lora_8", "lora_64")},
        "energy_8_full": "share of ‖ΔW‖² in the 8 largest singular values, full fine-tuning, one per layer",
        "phi": "similarity φ of LoRA r = 8 and r = 64 for i = 1 … 8 and j = 1 … 64, a list over layers",
        "phi_seeds": "φ of two seeds' r = 64 for i = j = 1 … 64, a list over layers",
        "phi_random": "φ of r = 64 and random directions for i = j = 1 … 64, a list over layers"}.items()},
    measure, {"domain": METHODS_COMPARED}, {"steps": 150, "batch_size": 4},
    {"steps": 5, "seeds": (0, 1)}, seeds=(0, 1, 2))
