"""What a bug report needs: versions, threads, shipped files, the text of this installation."""
import os
import platform
from importlib.metadata import version

import numpy as np

from .files import cache_directory
from .pretrained import FOLDER, load_pretrained, training_record
from .text import base_corpus, domain_corpus
from .threads import _openblas

__all__ = ["report"]


def report() -> dict[str, str]:
    """Facts by name; "verdict" is "all is well", or names what is wrong."""
    record = training_record()
    facts = {"python": f"{platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores",
             **{name: version(name) for name in ("numpy", "scipy", "matplotlib")},
             "BLAS": "OpenBLAS, threads under control" if _openblas() else
                     "another BLAS; set its threads to 1 for best speed",
             "package": str(FOLDER.parent), "cache": str(cache_directory())}
    for name, corpus in (("base", base_corpus), ("domain", domain_corpus)):
        sha256 = corpus().sha256
        facts[f"text: {name}"] = f"{sha256[:12]}, " + (
            "as in the shipped records" if sha256 == record["corpus"][name] else
            "other library versions than in the shipped records, so numbers will differ")
    model, loss = load_pretrained(), record["results"]["domain test"]["loss"]
    facts["base model"] = (f"{model.n_parameters():,} parameters, {loss:.3f} nats/token on domain "
                           "when it was made")
    tokens = model.tokenizer.encode("Return the sum of the array elements.")
    finite = np.isfinite(model(tokens[None]).data).all()
    facts["verdict"] = "all is well" if finite else "the base computes values that are not finite"
    return facts
