"""Adapters in folders: `load_adapter` reads any format (`formats.py`), and here is our own.

Our own format is one file, adapter.safetensors. It holds the arrays of `PeftModel.state_dict`, and
as JSON each method's class and fields, the model's family and sizes, and a fingerprint of the
base's weights. Files are not trusted: nothing in one is executed or imported, and what it says is
checked before the model changes.
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
from ..common.wording import brief, shortened
from ..files import check_fields, fingerprint, load_arrays, made, naming, save_arrays
from ..models.decoder import SHIPPED, Decoder, require_free
from ..text.tasks.saved import load_task
from .formats import FORMATS, format_called
from .method import Method, MethodError
from .model import PeftModel, attach_parts
from .part import named

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
    A task.json in the folder becomes the result's `task`, if it is whole.
    """
    require_free(model, "load_adapter")
    formats = FORMATS if format is None else {format: format_called(format, "load_adapter")}
    paths = {name: known.find(Path(folder)) for name, known in formats.items()}
    paths = {name: path for name, path in paths.items() if path is not None}
    if not paths:
        files = " or ".join(known.file for known in formats.values())
        raise FileNotFoundError(f"load_adapter: no {files} in {folder}")
    if len(paths) > 1:
        files = " and ".join(path.name for path in paths.values())
        raise ValueError(f"load_adapter: {folder} holds {files}, two adapters; say which to read "
                         f"by the format, {' or '.join(map(repr, paths))}, or delete the one that "
                         "is out of date")
    (name, path), = paths.items()
    if method is None:
        tuned = FORMATS[name].functions().load(model, path, strict)
    elif name != "tinypeft":
        raise MethodError(f"load_adapter: {path.name} says which method it is; leave method= out")
    else:
        tuned = load(model, path, strict, method)
    with contextlib.suppress(OSError, ValueError):       # `load_task` says what is wrong with it
        tuned.task = load_task(folder, model)
    return tuned


def attach_with(model: Decoder | PeftModel, methods: Mapping[str, Method],
                state: Mapping[str, Array], strict: bool = True, head: int | None = None,
                head_bias: bool = True, rng: Seed = 0, off: Sequence[str] = ()) -> PeftModel:
    """Attach methods, of which the parts named in `off` are off, and load `state`."""
    tuned = attach_parts(model, named([methods]), rng, head, head_bias, off)
    return tuned.load_state_dict(state, strict)


# -- our own format: writing -----------------------------------------------------------------------
def check(tuned: PeftModel) -> None:
    """Do nothing: our own format holds every method."""


def save(tuned: PeftModel, folder: Path) -> None:
    """Write `tuned`, on or off, to adapter.safetensors in `folder`."""
    base = fingerprint(tuned.frozen.state_dict())
    head = tuned.head
    description = {
        "format": 1,
        "parts": {name: entry_of(part.method.fold(part.virtual)[0])
                  for name, part in tuned.parts.items()},
        "off": tuned.off,
        "family": type(tuned.frozen).__name__,
        "config": asdict(tuned.config),
        "base": base,
        "base_name": tuned.frozen.source,
        "head": head and head.d_out,
        "head_bias": head is not None and head.bias is not None}
    path = folder / FORMATS["tinypeft"].file
    save_arrays(path, tuned.state_dict(to_train=False), description)


def entry_of(method):
    """Describe a method in a file. Only a class of one's own needs its module."""
    cls = type(method)
    entry = {"method": cls.__qualname__, "fields": asdict(method)}
    if KNOWN.get(cls.__name__) is not cls:
        entry["module"] = cls.__module__
    return entry


# -- our own format: reading -----------------------------------------------------------------------
DESCRIPTION = {"format": int, "parts": dict, "off": list, "family": str, "config": dict,
               "base": str, "head": (int, None), "head_bias": bool}
SHOWN_SIZES = 4                                          # of a base that does not fit
NAMED = {"base_name": (str, None)}
ENTRY = {"method": str, "fields": dict}
OWN_CLASS = {"module": str}


def load(model: Decoder, path: Path, strict: bool = True,
         method: type[Method] | None = None) -> PeftModel:
    """Attach what `save` wrote to the file at `path`. method: its class, if it is your own."""
    from .metered import Metered  # not above: numpy.random would load with the package
    arrays, meta = load_arrays(path)
    with errors_about(path):
        check_description(meta, len(arrays))
        methods = {name: method_in(name, entry, method) for name, entry in meta["parts"].items()}
        if method is not None and method not in map(type, methods.values()):
            raise ValueError(f"load_adapter: the file holds no {method!r}, it holds "
                             f"{', '.join(map(str, methods.values()))}")
        name = meta.get("base_name")
        check_sizes(model, meta["family"], meta["config"], name)
        if strict:
            check_head(meta["head"], arrays.get("head.weight"))
        if meta["base"] not in fingerprints(model):
            origin = f"; its base came from {wanted_base(name)}" if name else ""
            warnings.warn(f"load_adapter: the base's weights differ from training's{origin}",
                          stacklevel=3)
        rng = Metered(sum(array.size for array in arrays.values()))
        tuned = attach_with(model, methods, arrays, strict, meta["head"], meta["head_bias"], rng,
                            meta["off"])
    rng.left = math.inf                                  # from here on it is like any other
    return tuned


def check_description(meta, n_arrays):
    """Raise ValueError unless a file's description has the form that `save` writes."""
    check_fields(meta, DESCRIPTION, NAMED)
    if meta["format"] != 1:
        raise ValueError(f"unknown format {brief(meta['format'])}; expected 1")
    if not 0 < len(meta["parts"]) <= n_arrays + 1:
        raise ValueError(f"it has {len(meta['parts'])} methods for {n_arrays} arrays; expected "
                         "one or more, and no more than arrays")
    if not all(isinstance(name, str) for name in meta["off"]):
        raise ValueError(f"off holds {brief(meta['off'])}, expected names of methods")


def check_head(n_classes, weight):
    """Raise ValueError unless the head's weight has a row for each class."""
    rows = None if weight is None else len(np.atleast_1d(weight))
    if rows != n_classes:
        raise ValueError(f"head is {brief(n_classes)}, but head.weight has {rows} rows")


def check_sizes(model, family, fields, name):
    """Raise MethodError unless the adapter's model was of the same family and sizes, dropout aside.
    name: of the model that it was trained on, or None."""
    kind, ours, any_dropout = type(model).__name__, asdict(model.config), {"dropout": 0}
    if family == kind:
        theirs = asdict(made(model.Config, fields))
        if theirs | any_dropout == ours | any_dropout:
            return
    wanted = wanted_base(name) if name else "the model that it was trained on"
    differing = [field for field in ours if fields.get(field) != ours[field]]
    theirs, ours = ({field: sizes.get(field) for field in differing[:SHOWN_SIZES]}
                    for sizes in (fields, ours))
    raise MethodError("load_adapter: the adapter was made for a model of "
                      f"{shortened(str(theirs), 240)}, a {shortened(family, 80)}; this one is a "
                      f"{kind} of {ours}. It wants {wanted}")


def wanted_base(name):
    """Return words for the base of this name."""
    if name == SHIPPED:
        return "the shipped base"
    return f"the model {shortened(repr(name), 240)}"                       # a path to be copied


@contextlib.contextmanager
def errors_about(path):
    """Let an error inside name the file; a method that memory cannot hold is an error of it, too.
    """
    try:
        yield
    except ValueError as e:
        kind = MethodError if isinstance(e, MethodError) else ValueError
        raise kind(f"{path}: {shortened(str(e))}") from e
    except KeyError as e:
        raise KeyError(f"{path}: {shortened(str(e.args[0]))}") from e
    except MemoryError as e:
        raise ValueError(f"{path}: the method that it names does not fit into memory") from e


def fingerprints(model):
    """Yield the model's fingerprint, and those cast to float32 or float64: a cast is no change."""
    dtype = model.dtype
    names = [name for name, _ in model.named_parameters()]
    for cast in dict.fromkeys([dtype, np.dtype("f4"), np.dtype("f8")]):
        yield fingerprint(model.state_dict(), dict.fromkeys(names, cast))


KNOWN: dict[str, type[Method]] = {}    # our methods; `peft/__init__`, `quant/peqa` fill it


def method_in(part, entry, user_class):
    """Make the method that a file's entry describes. user_class: `load_adapter`'s, or None."""
    with naming(f"parts, {brief(part)}"):
        check_fields(entry, ENTRY, OWN_CLASS)
    cls = class_in(entry["method"], entry.get("module"), user_class)
    return made(cls, entry["fields"])


def class_in(name, module, user_class):
    """Find the class that a file names: the user's, one of `KNOWN`, or one of a module that was
    imported before."""
    last = name.rpartition(".")[2]
    if isinstance(user_class, type) and user_class.__name__ == last:
        cls = user_class
    elif module is None:
        cls = KNOWN.get(name)
    else:
        cls = sys.modules.get(module)
        for part in name.split("."):
            cls = getattr(cls, "__dict__", {}).get(part)         # runs no code, as getattr may
    if isinstance(cls, type) and issubclass(cls, Method) and cls.__name__ == last:
        return cls
    where = f" of {shortened(module, 80)}" if module else ""
    hint = f", got method={user_class!r}" if user_class else ""
    raise ValueError(f"load_adapter: unknown method {brief(name)}{where}{hint}; known: "
                     f"{', '.join(KNOWN)}. For a class of your own, import its module, or pass "
                     f"method={shortened(last, 80)}")
