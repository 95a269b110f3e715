"""Adapters in folders: saving them, loading them, and the formats they can have.

Our own format is one file, adapter.npz. It holds the arrays of `PeftModel.state_dict`, and as JSON
the method's class and fields, the model's sizes, and a fingerprint of the base's weights. `interop`
adds PEFT's format. Files are not trusted: nothing in one is executed or imported.
"""
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..files import fingerprint, load_arrays, save_arrays
from ..gpt import GPT
from ..hints import Array
from .attachment import bare
from .method import Method, MethodError
from .model import PeftModel, attach, check_free

__all__ = ["FORMATS", "KNOWN", "Format", "attach_with", "load_adapter"]


@dataclass(frozen=True)
class Format:
    """A format, recognised by its `file`: save(tuned, folder), load(model, folder, strict), and
    check(tuned), which raises MethodError, before any training, if `save` would refuse."""
    file: str
    save: Callable
    load: Callable
    check: Callable = lambda tuned: None


def load_adapter(model: GPT, folder: str | Path, strict: bool = True,
                 method: type[Method] | None = None) -> PeftModel:
    """Attach to `model` what `PeftModel.save`, or Hugging Face's PEFT, wrote to `folder`.

    The files in the folder decide the format. Loading is all-or-nothing: it raises MethodError if
    the adapter is for a model of other sizes or cannot be expressed here, KeyError or ValueError
    for tensors that are missing, unknown, misshapen or not finite, FileNotFoundError or ValueError
    for a missing or damaged file. `strict=False` loads what matches, and warns of the rest in
    PEFT's folders. Our own format also warns if the base's weights differ from those in training.
    method: the adapter's class, if it is your own and its module is not imported.
    """
    check_free(model)
    found = [f for f in FORMATS.values() if (Path(folder) / f.file).exists()]
    files = [f.file for f in found or FORMATS.values()]
    if not found: raise FileNotFoundError(f"load_adapter: no {' or '.join(files)} in {folder}")
    if len(found) > 1:
        raise ValueError(f"load_adapter: {folder} holds {' and '.join(files)}, two adapters; "
                         "delete the one that is out of date")
    if method is None: return found[0].load(model, Path(folder), strict)
    if found[0] is not FORMATS["tinypeft"]:
        raise MethodError(f"load_adapter: {files[0]} says which method it is; leave method= out")
    return _load(model, Path(folder), strict, method)


def attach_with(model: GPT, method: Method, state: dict[str, Array], strict: bool = True,
                head: int | None = None, head_bias: bool = True) -> PeftModel:
    """`attach`, then load `state`; the model stays as it was if that fails."""
    tuned = attach(model, method, head=head, head_bias=head_bias)
    try:
        return tuned.load_state_dict(state, strict)
    except Exception:
        tuned.detach()
        raise


# -- our own format ------------------------------------------------------------------------------
def _save(tuned, folder):
    method, head = tuned.method.fold(tuned.virtual)[0], tuned.head
    cls = type(method)
    module = {} if KNOWN.get(cls.__name__) is cls else {"module": cls.__module__}
    with bare(tuned.model): base = fingerprint(tuned.model.state_dict())
    save_arrays(folder / "adapter.npz", tuned.state_dict(to_train=False), {
        "format": 1, "method": cls.__qualname__, **module, "fields": asdict(method),
        "config": asdict(tuned.config), "base": base, "head": None if head is None else head.d_out,
        "head_bias": head is not None and head.bias is not None})


def _load(model, folder, strict, method=None):
    arrays, meta = load_arrays(folder / "adapter.npz")
    cls = _find(str(meta.get("method")), meta.get("module"), method)
    sizes = lambda config: {name: n for name, n in config.items() if name != "dropout"}
    if sizes(meta["config"]) != sizes(asdict(model.config)):
        raise MethodError(f"load_adapter: the adapter was made for a model of {meta['config']}, "
                          f"this one has {asdict(model.config)}")
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["fields"].items()}
    if meta["base"] not in fingerprints(model):
        warnings.warn("load_adapter: the base's weights differ from training's", stacklevel=3)
    return attach_with(model, cls(**fields), arrays, strict, meta["head"],
                       meta.get("head_bias", True))


def fingerprints(model):
    """Of the model, as it is and cast to float32 or float64: a cast is not another base."""
    state, numbers = model.state_dict(), dict(model.named_parameters())
    for dtype in (model.token_embedding.weight.dtype, np.float32, np.float64):
        yield fingerprint(state | {n: p.data.astype(dtype) for n, p in numbers.items()})


KNOWN: dict[str, type[Method]] = {}    # our methods; `peft/__init__`, `quant/peqa` fill it


def _find(name, module, given):
    """The class that a file names: `given`, one of `KNOWN`, or one of a module imported before."""
    cls, last = given or KNOWN.get(name), name.rsplit(".", 1)[-1]
    if module and not given:
        cls = sys.modules.get(str(module))
        for part in name.split("."): cls = getattr(cls, "__dict__", {}).get(part)    # runs no code
    if isinstance(cls, type) and issubclass(cls, Method) and cls.__name__ == last: return cls
    of, got = f" of {module}" if module else "", f", got method={given!r}" if given else ""
    raise ValueError(f"load_adapter: unknown method {name!r}{of}{got}; known: {', '.join(KNOWN)}. "
                     f"For a class of your own, import its module, or pass method={last}")


FORMATS = {"tinypeft": Format("adapter.npz", _save, _load)}      # `interop` adds "peft"
