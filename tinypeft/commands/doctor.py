"""What a bug report needs: versions, threads, shipped files, the text of this installation."""
import os
import platform
from importlib.metadata import version

import numpy as np

from ..common.heap import keep_freed_memory
from ..common.threads import _openblas
from ..files import cache_directory
from ..pretrained import FOLDER, load_base, training_record
from ..text import base_corpus, domain_corpus

__all__ = ["own_product_error", "report"]

WRONG = ("NumPy multiplies wrongly: A @ A.T in float32 is off by {:.0e} of its largest number. "
         "Install another release of NumPy. Until then, set OPENBLAS_CORETYPE=NEOVERSEN1, if the "
         "processor is an Apple M4, and run doctor again")


def own_product_error() -> float:
    """Compare A @ A.T and A.T @ A in float32 with float64; return the largest error, relative to
    the largest number of the product: about 1e-7 where all is well.

    NumPy has a routine of its own for the product of a matrix with its transpose (BLAS's syrk). In
    the wheels of NumPy for macOS on arm64 that carry an OpenBLAS with the faulty kernel VORTEXM4,
    it returns other numbers for float32, in silence: numpy/numpy#31776, OpenMathLib/OpenBLAS#5873.
    """
    def error(A):
        exact = np.matmul(A.astype(np.float64), A.T.astype(np.float64))      # two buffers: no syrk
        return np.abs(np.matmul(A, A.T) - exact).max() / np.abs(exact).max()
    draw = np.random.default_rng(0).standard_normal
    sizes = (4, 5), (64, 64), (300, 672)
    As = [draw(size).astype(np.float32) for size in sizes]
    return float(np.max([error(B) for A in As for B in (A, A.T)]))           # NaN stays NaN


def cache() -> str:
    """Return the folder of the cache, or say why there is none."""
    try:
        return str(cache_directory())
    except OSError as e:
        return f"none: {e}"


def report() -> dict[str, str]:
    """Facts by name; "verdict" is "all is well", or names what is wrong."""
    record = training_record()
    facts = {"python": f"{platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores",
             **{name: version(name) for name in ("numpy", "scipy", "matplotlib")},
             "BLAS": "OpenBLAS, threads under control" if _openblas() else
                     "another BLAS; set its threads to 1 for best speed",
             "freed memory": "kept for the next step, once training begins" if keep_freed_memory()
                             else "goes back to the system, as this C library decides",
             "package": str(FOLDER.parent), "cache": cache()}
    for name, corpus in (("base", base_corpus), ("domain", domain_corpus)):
        sha256 = corpus().sha256
        facts[f"text: {name}"] = f"{sha256[:12]}, " + (
            "as in the shipped records" if sha256 == record["corpus"][name] else
            "other library versions than in the shipped records, so numbers will differ")
    model, loss = load_base(), record["results"]["domain test"]["loss"]
    facts["base model"] = (f"{model.n_parameters():,} parameters, {loss:.3f} nats/token on domain "
                           "when it was made")
    tokens = model.tokenizer.encode("Return the sum of the array elements.")
    finite = np.isfinite(model(tokens[None]).data).all()
    error = own_product_error()
    facts["A @ A.T"] = f"float32 and float64 differ by {error:.0e} of the largest number"
    facts["verdict"] = ("the base computes values that are not finite" if not finite else
                        "all is well" if error < 1e-5 else WRONG.format(error))
    return facts
