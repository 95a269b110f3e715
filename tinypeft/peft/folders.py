"""Adapters in folders: saving them, loading them, and the formats they can have.

Our own format is one file, adapter.npz. It holds the arrays of `PeftModel.state_dict`, and as JSON the
class of the method and its fields, the sizes of the model, and a fingerprint of the base's weights.
`interop` adds PEFT's format. Files are not trusted: nothing in one is executed, and a class that it
names is used only if its module was imported before.
"""
import contextlib
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..files import fingerprint, load_arrays, save_arrays
from ..gpt import GPT
from ..hints import Array
from .method import Method, MethodError
from .model import PeftModel, attach, check_free

__all__ = ["FORMATS", "KNOWN", "Format", "attach_with", "load_adapter", "save"]


@dataclass(frozen=True)
class Format:
    """A way to keep an adapter in a folder. file: the name that identifies the format.

    save(tuned, folder) and load(model, folder, strict) do the work. check(tuned) raises MethodError
    for a method that `save` would refuse, so that one learns of it before training.
    """
    file: str
    save: Callable
    load: Callable
    check: Callable = lambda tuned: None


def save(tuned: PeftModel, folder: str | Path, format: str = "tinypeft") -> None:
    """Write what `tuned` learned to `folder` in one of `FORMATS`; see `PeftModel.save`."""
    if format not in FORMATS:
        raise MethodError(f"save: unknown format {format!r}; there are {', '.join(FORMATS)}")
    FORMATS[format].save(tuned, Path(folder))


def load_adapter(model: GPT, folder: str | Path, strict: bool = True,
                 method: type[Method] | None = None) -> PeftModel:
    """Attach to `model` what `PeftModel.save`, or Hugging Face's PEFT, wrote to `folder`.

    The files in the folder decide the format. Loading is all-or-nothing, and every mismatch is
    reported: MethodError when the adapter was made for a model of other sizes or cannot be expressed
    here, KeyError or ValueError when tensors are missing, unknown, misshapen or not finite,
    FileNotFoundError or ValueError for a missing or damaged file. `strict=False` loads what matches;
    for PEFT's folders a warning reports the rest. A warning also tells when the base's weights differ
    from those that one of our own adapters was trained on (PEFT does not record them).
    method: the class of the method, needed when it is your own and its module is not imported.
    """
    check_free(model)
    found = {name: f for name, f in FORMATS.items() if (Path(folder) / f.file).exists()}
    if not found:
        files = " or ".join(f.file for f in FORMATS.values())
        raise FileNotFoundError(f"load_adapter: no {files} in {folder}")
    if len(found) > 1:
        files = " and ".join(f.file for f in found.values())
        raise ValueError(f"load_adapter: {folder} holds {files}, two adapters of which one may be out of "
                         "date; delete one")
    ((name, form),) = found.items()
    if method is None:
        return form.load(model, Path(folder), strict)
    if name != "tinypeft":
        raise MethodError(f"load_adapter: {form.file} names its method itself; call it without method=")
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
KNOWN: dict[str, type[Method]] = {}      # classes that a file names by their name alone: this package's


def _save(tuned, folder):
    method, head = tuned.method.fold(tuned.virtual)[0], tuned.head
    with tuned.disabled() if tuned.active else contextlib.nullcontext():
        base = fingerprint(tuned.model.state_dict())
    save_arrays(folder / "adapter.npz", tuned.state_dict(to_train=False), {
        "format": 1, **_name(type(method)), "fields": asdict(method), "config": asdict(tuned.config),
        "base": base, "head": None if head is None else head.d_out,
        "head_bias": head is not None and head.bias is not None})


def _load(model, folder, strict, method=None):
    arrays, meta = load_arrays(folder / "adapter.npz")
    cls = _find(str(meta.get("method")), meta.get("module"), method)
    if meta["config"] != asdict(model.config):
        raise MethodError(f"load_adapter: the adapter was made for a model of {meta['config']}, "
                          f"this one has {asdict(model.config)}")
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["fields"].items()}
    if meta["base"] != fingerprint(model.state_dict()):
        warnings.warn("load_adapter: the base's weights differ from those this adapter was trained on",
                      stacklevel=3)
    return attach_with(model, cls(**fields), arrays, strict, meta["head"], meta.get("head_bias", True))


def _name(cls):
    """What a file says of a method's class; the module too, unless the class is one of `KNOWN`."""
    if KNOWN.get(cls.__name__) is cls:
        return {"method": cls.__name__}
    return {"method": cls.__qualname__, "module": cls.__module__}


def _find(name, module, given):
    """The class that a file names, or `given` if it has that name. Nothing is imported."""
    last = name.rsplit(".", 1)[-1]
    if given is not None:
        if not (isinstance(given, type) and issubclass(given, Method)):
            raise TypeError(f"load_adapter: method is the class of a method, got {given!r}")
        if given.__name__ != last:
            raise MethodError(f"load_adapter: the adapter's method is {last}, got {given.__name__}")
        return given
    if module is None:
        if name not in KNOWN:
            raise ValueError(f"load_adapter: unknown method {name!r}; known: {', '.join(KNOWN)}. "
                             f"If you wrote the class yourself, pass method={last}")
        return KNOWN[name]
    cls = sys.modules.get(str(module))
    for part in name.split("."):
        cls = getattr(cls, "__dict__", {}).get(part)      # not getattr, which may run a module's code
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise ValueError(f"load_adapter: the adapter's method is {name} of {module}, and no module "
                         f"imported so far has it; import it first, or pass method={last}")
    return cls


FORMATS = {"tinypeft": Format("adapter.npz", _save, _load)}      # `interop` adds "peft"
