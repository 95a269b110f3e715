"""Adapters in folders: `load_adapter` reads any format (`formats.py`), and here is our own.

Our own format is one file, adapter.safetensors (adapter.npz in folders made before). It holds the
arrays of `PeftModel.state_dict`, and as JSON each method's class and fields, the model's family and
sizes, and a fingerprint of the base's weights. Files are not trusted: nothing in one is executed or
imported, and what it says is checked before the model changes.
"""
import contextlib
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..common.hints import Array, Seed
from ..files import check_fields, fingerprint, load_arrays, made, naming, save_arrays
from ..models.decoder import Decoder
from .attachment import bare
from .formats import FORMATS
from .method import Method, MethodError
from .model import PeftModel, attach, check_free

__all__ = ["KNOWN", "attach_with", "check", "load", "load_adapter", "save"]


def load_adapter(model: Decoder, folder: str | Path, strict: bool = True,
                 method: type[Method] | None = None, format: str | None = None) -> PeftModel:
    """Attach to `model` what `PeftModel.save`, or Hugging Face's PEFT, wrote to `folder`.

    The files in the folder decide the format; if it holds both, `format` says which to read: one of
    `FORMATS`, as in `PeftModel.save`. Loading is all-or-nothing: it raises MethodError if the
    adapter is for a model of other sizes or cannot be expressed here, KeyError or ValueError for
    tensors that are missing, unknown, misshapen or not finite, FileNotFoundError or ValueError for
    a missing or damaged file. `strict=False` loads what matches, and warns of the rest in PEFT's
    folders. Our own format also warns if the base's weights differ from those in training.
    method: the adapter's class, if it is your own and its module is not imported.
    """
    check_free(model)
    if format is not None and format not in FORMATS:
        raise MethodError(f"load_adapter: unknown format {format!r}; there are "
                          f"{', '.join(FORMATS)}")
    found = {name: path for name, f in FORMATS.items() if format in (None, name)
             and (path := f.find(Path(folder)))}
    if not found:
        files = [f.file for name, f in FORMATS.items() if format in (None, name)]
        raise FileNotFoundError(f"load_adapter: no {' or '.join(files)} in {folder}")
    if len(found) > 1:
        files = " and ".join(path.name for path in found.values())
        raise ValueError(f"load_adapter: {folder} holds {files}, two adapters; say which to read "
                         f"by format={' or '.join(map(repr, found))}, or delete the one that is "
                         "out of date")
    (name, path), = found.items()
    if method is None: return FORMATS[name].functions().load(model, path, strict)
    if name != "tinypeft":
        raise MethodError(f"load_adapter: {path.name} says which method it is; leave method= out")
    return load(model, path, strict, method)


def attach_with(model: Decoder, method: Method | Mapping[str, Method], state: dict[str, Array],
                strict: bool = True, head: int | None = None, head_bias: bool = True,
                rng: Seed = 0, off: Sequence[str] = ()) -> PeftModel:
    """`attach`, load `state`, and switch the parts named in `off` off; the model stays as it was if
    that fails."""
    tuned = attach(model, method, rng=rng, head=head, head_bias=head_bias)
    try:
        tuned.load_state_dict(state, strict)
        for part in tuned.parts.values():
            for wrapper in part.wrappers.values():
                if hasattr(wrapper, "check_parts"): wrapper.check_parts()
        if off: tuned.detach(*off)
        return tuned
    except BaseException:
        tuned.detach()
        raise


# -- our own format ------------------------------------------------------------------------------
def check(tuned: PeftModel) -> None:
    """Our own format holds every method."""


def save(tuned: PeftModel, folder: Path) -> None:
    """Write `tuned`, attached or not, to adapter.safetensors in `folder`."""
    own = FORMATS["tinypeft"]
    head, methods = tuned.head, {name: _entry(part) for name, part in tuned.parts.items()}
    alone = [prefix for prefix, _ in tuned.prefixes()] == [""]
    with bare(tuned.model): base = fingerprint(tuned.model.state_dict())
    save_arrays(folder / own.file, tuned.state_dict(to_train=False), {
        **({"format": 1, **methods.popitem()[1]} if alone else {"format": 2, "parts": methods}),
        "family": type(tuned.model).__name__, "config": asdict(tuned.config), "base": base,
        "head": None if head is None else head.d_out,
        "head_bias": head is not None and head.bias is not None,
        "off": [name for name, part in tuned.parts.items() if not part.on]})
    for name in own.older: (folder / name).unlink(missing_ok=True)       # it is out of date now


def _entry(part):
    """A method in a file. module: only of a class of one's own."""
    method = part.method.fold(part.virtual)[0]
    cls = type(method)
    module = {} if KNOWN.get(cls.__name__) is cls else {"module": cls.__module__}
    return {"method": cls.__qualname__, **module, "fields": asdict(method)}


# Format 1 holds one method, format 2 several in "parts", name → entry.
ENTRY, OWN_CLASS = {"method": str, "fields": dict}, {"module": str}
META = {"format": int, "config": dict, "base": str, "head": (int, None)}
MORE = {"head_bias": bool, "family": str, "off": list}   # older files of GPTs lack the family


def load(model: Decoder, path: Path, strict: bool = True,
         method: type[Method] | None = None) -> PeftModel:
    """Attach what `save` wrote to the file at `path`. method: its class, if it is your own."""
    from .metered import Metered  # not above: numpy.random would load with the package
    arrays, meta = load_arrays(path)
    with _told(path):
        methods = _methods(meta, method, len(arrays))
        _check_sizes(model, meta.get("family", "GPT"), meta["config"])
        n, weight = meta["head"], arrays.get("head.weight")
        rows = None if weight is None else len(np.atleast_1d(weight))
        if strict and rows != n:
            raise ValueError(f"head is {n}, but head.weight has {rows} rows")
        if meta["base"] not in fingerprints(model):
            warnings.warn("load_adapter: the base's weights differ from training's", stacklevel=3)
        off = meta.get("off", [])
        if not all(isinstance(name, str) for name in off):
            raise ValueError(f"off holds {off!r:.80}, expected names of methods")
        rng = Metered(sum(a.size for a in arrays.values()))
        bias = meta.get("head_bias", True)
        tuned = attach_with(model, methods, arrays, strict, n, bias, rng, off)
    rng.left = math.inf                                  # from here on it is like any other
    return tuned


def _methods(meta, given, n_arrays):
    """The method that a file names, or a dict of several. given: a class for `load_adapter`."""
    several = isinstance(meta, dict) and meta.get("format") == 2
    check_fields(meta, META | ({"parts": dict} if several else ENTRY),
                 MORE | ({} if several else OWN_CLASS))
    if meta["format"] not in (1, 2):
        raise ValueError(f"unknown format {meta['format']}; expected 1 or 2")
    if not several: return made(_find(meta["method"], meta.get("module"), given), meta["fields"])
    if not 0 < len(meta["parts"]) <= n_arrays + 1:
        raise ValueError(f"it has {len(meta['parts'])} methods for {n_arrays} arrays; expected "
                         "one or more, and no more than arrays")
    found = {}
    for name, entry in meta["parts"].items():
        with naming(f"parts, {name[:80]!r}"): check_fields(entry, ENTRY, OWN_CLASS)
        theirs = given if given and given.__name__ == entry["method"].rsplit(".", 1)[-1] else None
        found[name] = made(_find(entry["method"], entry.get("module"), theirs), entry["fields"])
    return found


def _check_sizes(model, family, fields):
    """MethodError unless the adapter's model was of the same family and sizes, dropout aside."""
    kind, ours = type(model).__name__, asdict(model.config)
    if family == kind:
        theirs = asdict(made(model.Config, fields))
        if all(theirs[name] == value for name, value in ours.items() if name != "dropout"): return
    raise MethodError(f"load_adapter: the adapter was made for a model of {fields}, a "
                      f"{family[:80]}; this one is a {kind} of {ours}")


@contextlib.contextmanager
def _told(path):
    """An error inside names the file; a method too large for the memory is an error of the file."""
    try:
        yield
    except MethodError as e: raise MethodError(f"{path}: {e}") from e
    except ValueError as e:  raise ValueError(f"{path}: {e}") from e
    except KeyError as e:    raise KeyError(f"{path}: {e.args[0]}") from e
    except MemoryError as e:
        raise ValueError(f"{path}: the method that it names does not fit into memory") from e


def fingerprints(model):
    """Of the model, as it is and cast to float32 or float64: a cast is not another base."""
    own, floats = model.token_embedding.weight.dtype, (np.dtype("f4"), np.dtype("f8"))
    names = [name for name, _ in model.named_parameters()]
    for dtype in dict.fromkeys([own, *floats]):
        yield fingerprint(model.state_dict(), dict.fromkeys(names, dtype))


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
