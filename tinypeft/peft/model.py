"""attach: the one verb that puts any method on a model, and the model it gives.

There are only two ways to attach. A *wrapper* is a module that holds the module it adapts as `base`
and takes its place in the model. A *virtual* module emits vectors for the model's seams `prompt=`
and `prefix=`. Besides, a method may train parameters of the base itself. Everything else is frozen.
"""
import contextlib
import copy
import dataclasses
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..files import load_arrays, save_arrays
from ..generate import generate
from ..gpt import GPT
from ..hyper import Hyperparameters
from ..markup import facts
from ..nn import Linear, Module, replace_modules

__all__ = ["FORMATS", "Format", "Method", "MethodError", "PeftModel", "attach", "load_adapter"]


class MethodError(ValueError):
    """A method cannot do what it was asked, and the message says why."""


class Method(Hyperparameters):
    """A fine-tuning method: a frozen dataclass of hyperparameters, and what it does to a model.

    A subclass overrides those of the following that concern it. State that training changes lives in
    modules, as Parameters (trained) or ndarrays (saved, not trained), never in the method.
    """
    error: ClassVar[type[ValueError]] = MethodError
    learning_rate: ClassVar[float] = 1e-3        # a sensible one for AdamW; `train` uses it unless told otherwise

    def wrap(self, model, rng):
        """path → wrapper, for the modules it adapts."""
        return {}

    def virtual(self, model, rng):
        """A module of `length` virtual tokens, or None.

        Its `seams(tokens, lengths=None)` gives what `GPT.hidden` is called with, {"prompt": …, "prompt_at": …} or
        {"prefix": [(K, V), …]}; `lengths` are those of `classify`.
        """

    def fold(self, virtual):
        """(method, virtual module) without a reparameterization that only training needs; unchanged if it has none."""
        return self, virtual

    def trained(self, model):
        """Names of the base's own parameters that it trains."""
        return []

    def before_step(self, tuned, step, total): ...
    def penalty(self, tuned): ...
    def after_step(self, tuned, step, total): ...

    def set_rank(self, tuned, b):
        raise MethodError(f"set_rank: {self} learns at one rank only; DyLoRA learns at all ranks at once")


def attach(model, method, *, rng=0, head=None, head_bias=True):
    """Put `method` on `model`, in place, freeze everything else, and return a `PeftModel`.

    rng: seed or Generator for what the method initialises. head: a number of classes; adds a linear
    classifier on the final hidden state, trained and saved with the method (see `PeftModel.classify`);
    head_bias: with a bias, which transformers' classifiers on GPT-2 have not.
    Raises MethodError when something is attached already or the method does not fit the model.
    """
    _check_free(model)
    if not isinstance(method, Method):
        hint = f"; call it, {method.__name__}()" if isinstance(method, type) else ""
        raise TypeError(f"attach: expected a method such as tinypeft.LoRA(rank=8), got {method!r}{hint}")
    return PeftModel(model, method, np.random.default_rng(rng), head, head_bias)


def _check_free(model):
    """A GPT without a method on it, or MethodError or TypeError."""
    if isinstance(model, PeftModel) or getattr(model, "attached", None) is not None:
        there = model.method if isinstance(model, PeftModel) else model.attached
        raise MethodError(f"attach: {there} is attached to this model already; call .detach() on what attach returned, "
                          "or merge it, first")
    if not isinstance(model, GPT):
        raise TypeError(f"attach: expected a GPT, got {type(model).__name__}")


class PeftModel(Module):
    """A model with a method on it. Called as the model is; virtual tokens never show in the logits."""
    is_disabled = False

    def __init__(self, model, method, rng, head=None, head_bias=True):
        self.model, self.method, self.rng = model, method, rng
        dtype = model.token_embedding.weight.dtype
        base = dict(model.named_parameters())
        self.wrappers = method.wrap(model, rng)
        self.virtual = method.virtual(model, rng)
        self.head = None
        if head is not None:
            if not isinstance(head, (int, np.integer)) or head < 2:
                raise MethodError(f"attach: head is the number of classes, at least 2, got {head!r}")
            self.head = Linear(model.config.d_model, int(head), bias=head_bias, rng=rng)
        self.trained = {name: base[name] for name in method.trained(model)}
        if not (self.wrappers or self.virtual or self.trained or self.head):
            raise MethodError(f"attach: {method} would train nothing"
                              + (" without a classification head; give head=n_classes" if head is None else ""))
        for _, p in self._added():
            p.data = p.data.astype(dtype, copy=False)
        self._tuned = {name: p.data.copy() for name, p in self.trained.items()}
        self._put_on()

    # -- on and off -----------------------------------------------------------------------------
    def _put_on(self):
        model = self.model
        self._flags = [(p, p.requires_grad) for p in model.parameters()]
        for p, _ in self._flags: p.requires_grad = False
        self._base_data = {name: p.data for name, p in self.trained.items()}
        for name, p in self.trained.items():
            p.data, p.requires_grad, p.version = self._tuned[name], True, p.version + 1
        self._replaced = replace_modules(model, self.wrappers)
        self._base_head, model.head = model.head, self.head or model.head
        model.attached, self.active = self.method, True                  # active: on the model now

    def _take_off(self):
        model = self.model
        model.attached, model.head, self.active = None, self._base_head, False
        replace_modules(model, self._replaced)
        for name, p in self.trained.items():
            self._tuned[name], p.data, p.version = p.data, self._base_data[name], p.version + 1
        for p, flag in self._flags: p.requires_grad, p.grad = flag, None

    def _check_active(self):
        if not self.active:
            raise MethodError(f"{self.method} is not on the model now (detached or disabled); call reattach()")

    def detach(self):
        """Take the method off; return the base model: the same objects, bit for bit as before."""
        self._check_active()
        self._take_off()
        return self.model

    def reattach(self):
        """Put a detached method back on its model, with everything it had learned."""
        if self.model.attached is not None:
            raise MethodError(f"reattach: {self.model.attached} is attached to this model; detach it first")
        for path, wrapper in self.wrappers.items():
            if self.model.get(path) is not wrapper.base:
                raise MethodError(f"reattach: {path} is not the layer this was attached to any more, perhaps it was quantized "
                                  "since; attach to the model as it is now, or load_adapter onto it")
        self._put_on()
        return self

    @contextlib.contextmanager
    def disabled(self):
        """`with tuned.disabled():` — the model, and `tuned` itself, compute what the base computes."""
        self._check_active()
        self._take_off()
        self.is_disabled = True
        try:
            yield self.model
        finally:
            self.is_disabled = False
            self._put_on()

    # -- what a model does ----------------------------------------------------------------------
    config = property(lambda self: self.model.config)
    tokenizer = property(lambda self: self.model.tokenizer)
    learning_rate = property(lambda self: self.method.learning_rate)
    virtual_length = property(lambda self: self.virtual.length if self.virtual and self.active else 0)

    def _seams(self, tokens, cache=None, lengths=None):
        """What the virtual module puts into the model's seams; nothing once a cache holds it already."""
        if not self.is_disabled: self._check_active()
        if self.virtual is None or self.is_disabled or (cache is not None and cache.length):
            return {}
        return self.virtual.seams(np.asarray(tokens), lengths)

    def forward(self, tokens, cache=None, last=False):
        """tokens (B, T) → logits (B, T, V), or with `last` those of the last position, (B, 1, V)."""
        return self.model(tokens, cache=cache, last=last, **self._seams(tokens, cache))

    def classify(self, tokens, lengths):
        """tokens (B, T), the first lengths[b] of row b → class logits (B, C), by the head."""
        return self.model.classify(tokens, lengths, **self._seams(tokens, lengths=lengths))

    def generate(self, tokens, max_new_tokens, **options):
        """As `GPT.generate`."""
        return generate(self, tokens, max_new_tokens, **options)

    def before_step(self, step, total): self.method.before_step(self, step, total)
    def penalty(self): return self.method.penalty(self)
    def after_step(self, step, total): self.method.after_step(self, step, total)

    # -- what was added -------------------------------------------------------------------------
    def _added(self):
        """(name, Parameter) of everything the method added: wrappers without their bases, virtual module, head."""
        for path, wrapper in self.wrappers.items():
            yield from ((f"{path}.{n}", p) for n, p in wrapper.named_parameters() if not n.startswith("base."))
        for name, module in (("virtual", self.virtual), ("head", self.head)):
            if module is not None:
                yield from ((f"{name}.{n}", p) for n, p in module.named_parameters())

    def trainable_parameters(self):
        """The parameters that training changes, as a list."""
        return [p for p in [*(p for _, p in self._added()), *self.trained.values()] if p.requires_grad]

    def state_dict(self, to_train=True):
        """name → array of what belongs to the method, and nothing of the base.

        With `to_train=False` without what only further training needs: the wrappers' buffers named in `only_to_train`,
        and a reparameterization, in whose place stand the vectors it computes (see `fold`).
        """
        virtual = self.virtual if to_train else self.method.fold(self.virtual)[1]
        state = {name: self._tuned_data(name) for name in self.trained}
        for path, wrapper in self.wrappers.items():
            skipped = () if to_train else getattr(wrapper, "only_to_train", ())
            state |= {f"{path}.{n}": a for n, a in wrapper.state_dict().items()
                      if not n.startswith("base.") and n not in skipped}
        for name, module in (("virtual", virtual), ("head", self.head)):
            if module is not None:
                state |= {f"{name}.{n}": a for n, a in module.state_dict().items()}
        return state

    def _tuned_data(self, name):
        return self.trained[name].data if self.active else self._tuned[name]

    def load_state_dict(self, state, strict=True):
        """Load what `state_dict` gave. Raises KeyError (missing or unknown names) or ValueError (shapes)."""
        self._check_active()
        own = self.state_dict()
        optional = {f"{path}.{n}" for path, w in self.wrappers.items() for n in getattr(w, "only_to_train", ())}
        missing, unknown = sorted(own.keys() - optional - state.keys()), sorted(state.keys() - own.keys())
        if strict and (missing or unknown):
            raise KeyError(f"load: matched {len(own.keys() & state.keys())} tensors, "
                           f"missing {missing}, unknown {unknown}")
        for name in own.keys() & state.keys():
            if np.shape(state[name]) != own[name].shape:
                raise ValueError(f"load: {name} has shape {np.shape(state[name])}, expected {own[name].shape}")
        for name, p in self.trained.items():
            if name in state:
                p.data, p.version = np.array(state[name], dtype=p.dtype), p.version + 1
        part = lambda prefix: {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        for path, wrapper in self.wrappers.items():
            wrapper.load_state_dict(part(f"{path}."), strict=False)
        for name, module in (("virtual", self.virtual), ("head", self.head)):
            if module is not None: module.load_state_dict(part(f"{name}."), strict=False)
        return self

    def summary(self):
        """Counts of trained, stored and all parameters, and bytes; prints as text, and as a table in a notebook."""
        self._check_active()
        trained = sum(p.size for p in self.trainable_parameters())
        state = self.state_dict(to_train=False)
        stored = sum(a.size for a in state.values() if a.dtype.kind == "f")
        total = self.model.n_parameters() + (self.virtual.n_parameters() if self.virtual else 0)
        nbytes = sum(a.nbytes for a in state.values())
        return Summary(str(self.method), trained, stored, total, nbytes)

    def ranks(self):
        """path → rank of the change ΔW there now, for methods whose change has one; MethodError for others."""
        if not all(hasattr(w, "rank") for w in self.wrappers.values()) or not self.wrappers:
            raise MethodError(f"ranks: {self.method} does not give weights a low-rank change")
        return {path: w.rank for path, w in self.wrappers.items()}

    def set_rank(self, b):
        """Use rank b from now on, without training again; MethodError for all methods but DyLoRA."""
        self.method.set_rank(self, b)
        return self

    def merge(self):
        """A plain GPT, with weights of its own, that computes the same function; MethodError where none can."""
        self._check_active()
        if self.virtual is not None:
            raise MethodError(f"merge: {self.method} works by virtual tokens; "
                              "no weights of the base compute the same function")
        plain = copy.deepcopy(self.model)
        for path in self.wrappers:
            wrapper = plain.get(path)
            if not hasattr(wrapper, "merge"):
                raise MethodError(f"merge: {self.method} puts a nonlinear {type(wrapper).__name__} at {path}; "
                                  "no weights of the base compute the same function")
            replace_modules(plain, {path: wrapper.merge()})
        for p in plain.parameters(): p.requires_grad, p.grad = True, None
        plain.attached = None
        return plain

    def fold(self):
        """Drop a reparameterization (prefix tuning's MLP, P-tuning's encoder) for the vectors it computes; return self.

        The function stays the same, bit for bit; training, if it goes on, changes the vectors themselves.
        """
        method, virtual = self.method.fold(self.virtual)
        if virtual is self.virtual:
            raise MethodError(f"fold: {self.method} has no reparameterization to drop")
        self.method, self.virtual = method, virtual
        if self.active: self.model.attached = method
        return self

    def save(self, folder, format="tinypeft"):
        """Write the method and what it learned to `folder`; `load_adapter` reads it again, of either format.

        "tinypeft": adapter.npz, all methods, exactly. "peft": adapter_config.json and adapter_model.safetensors, which
        `peft.PeftModel.from_pretrained` loads onto transformers' GPT-2 with the base's weights; raises MethodError for what
        has no place there (see `interop.adapters`). What only training needs stays out, a reparameterization too (see
        `fold`); a checkpoint of `train` has it all.
        """
        if format not in FORMATS:
            raise MethodError(f"save: unknown format {format!r}; there are {', '.join(FORMATS)}")
        FORMATS[format].save(self, Path(folder))

    def _base_fingerprint(self):
        with self.disabled() if self.active else contextlib.nullcontext():
            return fingerprint(self.model)

    def describe(self):
        return f"({self.method})"


@dataclasses.dataclass(frozen=True)
class Summary:
    """Parameter counts: trained, stored (what `save` writes), total (base and method); nbytes of what is stored."""
    method: str
    trained: int
    stored: int
    total: int
    nbytes: int

    share = property(lambda self: self.trained / self.total)

    def rows(self):
        return [("trained", f"{self.trained:,} ({100 * self.share:.2f} % of all)"), ("stored", f"{self.stored:,}"),
                ("all", f"{self.total:,}"), ("size", f"{self.nbytes / 1024:,.1f} KiB as stored")]

    def __repr__(self):
        return "\n".join([self.method, *(f"  {name:<13}{value}" for name, value in self.rows())])

    def _repr_html_(self):
        return facts(self.rows(), self.method)


def fingerprint(model):
    """SHA-256 over names and bytes of a model's parameters and buffers."""
    h = hashlib.sha256()
    for name, array in sorted(model.state_dict().items()):
        h.update(f"{name} {array.dtype} {array.shape}".encode())
        h.update(np.ascontiguousarray(array).data)
    return h.hexdigest()


def load_adapter(model, folder, strict=True):
    """Attach to `model` what `PeftModel.save`, or Hugging Face's PEFT, wrote to `folder`; return a `PeftModel`.

    Which of the two it is, the folder's files say. Nothing is loaded in part or in silence: MethodError when the adapter
    was made for a model of other sizes or cannot be expressed here, KeyError or ValueError when tensors are missing,
    unknown, misshapen or not finite, FileNotFoundError or ValueError for a missing or damaged file. With `strict=False`
    what matches is loaded; for PEFT's folders a warning reports the rest. Warns when the base's weights are not those
    an adapter of our own was trained on; PEFT's folders do not say.
    """
    _check_free(model)
    found = {name: f for name, f in FORMATS.items() if (Path(folder) / f.file).exists()}
    if not found:
        raise FileNotFoundError(f"load_adapter: no {' or '.join(f.file for f in FORMATS.values())} in {folder}")
    if len(found) > 1:
        raise ValueError(f"load_adapter: {folder} holds {' and '.join(f.file for f in found.values())}, two adapters of which "
                         "one may be out of date; delete one")
    (form,) = found.values()
    return form.load(model, Path(folder), strict)


# -- our own format ------------------------------------------------------------------------------
def _save(tuned, folder):
    method, head = tuned.method.fold(tuned.virtual)[0], tuned.head
    save_arrays(folder / "adapter.npz", tuned.state_dict(to_train=False), {
        "format": 1, "method": type(method).__name__, "fields": dataclasses.asdict(method),
        "config": dataclasses.asdict(tuned.config), "base": tuned._base_fingerprint(),
        "head": None if head is None else head.d_out, "head_bias": head is not None and head.bias is not None})


def _load(model, folder, strict):
    from . import METHODS
    arrays, meta = load_arrays(folder / "adapter.npz")
    classes = {c.__name__: c for c in (*Method.__subclasses__(), *METHODS.values())}
    if meta.get("method") not in classes:
        raise ValueError(f"load_adapter: unknown method {meta.get('method')!r}; known: {', '.join(classes)}")
    if meta["config"] != dataclasses.asdict(model.config):
        raise MethodError(f"load_adapter: the adapter was made for a model of {meta['config']}, "
                          f"this one has {dataclasses.asdict(model.config)}")
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["fields"].items()}
    if meta["base"] != fingerprint(model):
        warnings.warn("load_adapter: the base's weights differ from those this adapter was trained on", stacklevel=3)
    return attach_with(model, classes[meta["method"]](**fields), arrays, strict, meta["head"], meta.get("head_bias", True))


def attach_with(model, method, state, strict=True, head=None, head_bias=True):
    """`attach`, then load what it learned; the model stays as it was if that fails."""
    tuned = attach(model, method, head=head, head_bias=head_bias)
    try:
        return tuned.load_state_dict(state, strict)
    except Exception:
        tuned.detach()
        raise


@dataclasses.dataclass(frozen=True)
class Format:
    """How an adapter lies in a folder: the `file` by which it is known, save(tuned, folder), load(model, folder, strict).

    check(tuned) raises MethodError, before any training, for what `save` would refuse.
    """
    file: str
    save: Callable
    load: Callable
    check: Callable = lambda tuned: None


FORMATS = {"tinypeft": Format("adapter.npz", _save, _load)}      # `interop` adds "peft"
