"""The shape of an update: its singular values, and how much updates of two ranks share (arXiv 2106.09685, section 7)."""
import numpy as np

from ...peft import FullFineTuning, LoRA
from ..experiment import Experiment
from ..tuning import fine_tune, pretrained

MATRICES = "query", "value"


METHODS_COMPARED = {"full": FullFineTuning(), "lora_8": LoRA(rank=8), "lora_64": LoRA(rank=64), "lora_64_again": LoRA(rank=64)}


def measure(methods: dict, seed: int, settings: dict) -> dict:
    """For query and value, each a list over layers: the 64 largest singular values of ΔW for full fine-tuning and for LoRA
    r = 64; the similarity φ(A_8, A_64, i, j) = ‖U_8ᵢᵀ U_64ⱼ‖²_F / min(i, j) of right singular subspaces for the first
    i = 1 … 8 and j = 1 … 64; and φ between two seeds' A_64, beside that of A_64 and random directions."""
    base, S, V = pretrained(), {}, {}
    for name, method in methods.items():
        tuned, _ = fine_tune(method, seed if name != "lora_64_again" else seed + 100, settings)
        model = tuned.merge()
        for path in (f"blocks.{i}.attention.{m}" for i in range(base.config.n_layers) for m in MATRICES):
            _, s, Vt = np.linalg.svd((model.get(path).weight.data - base.get(path).weight.data).astype(np.float64))
            S[name, path], V[name, path] = s, Vt
    random = np.linalg.qr(np.random.default_rng([seed, 8]).standard_normal((base.config.d_model, 64)))[0].T
    metrics = {}
    for m in MATRICES:
        paths = [f"blocks.{i}.attention.{m}" for i in range(base.config.n_layers)]
        metrics |= {f"values_{name}_{m}": [S[name, p][:64] for p in paths] for name in ("full", "lora_8", "lora_64")}
        metrics[f"phi_{m}"] = [phi(V["lora_8", p], V["lora_64", p], 8, 64) for p in paths]
        metrics[f"phi_seeds_{m}"] = [phi(V["lora_64", p], V["lora_64_again", p], 64, 64).diagonal() for p in paths]
        metrics[f"phi_random_{m}"] = [phi(V["lora_64", p], random, 64, 64).diagonal() for p in paths]
        metrics[f"energy_8_full_{m}"] = [(S["full", p][:8] ** 2).sum() / (S["full", p] ** 2).sum() for p in paths]
    rounded = lambda x: np.round(np.asarray(x), 5).tolist()
    return {name: rounded(x) for name, x in metrics.items()}


def phi(A: np.ndarray, B: np.ndarray, i: int, j: int) -> np.ndarray:
    """φ(A, B, 1 … i, 1 … j), an array (i, j): rows of A and B are orthonormal directions."""
    squares = (A[:i] @ B[:j].T) ** 2
    return squares.cumsum(0).cumsum(1) / np.minimum.outer(np.arange(1, i + 1), np.arange(1, j + 1))


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
