"""attach: put a method on a model. PeftModel: a model with a method on it.

There are two ways to attach. A *wrapper* is a module that holds the module it adapts as `base` and
takes its place in the model. A *virtual* module emits vectors for the model's seams `prompt=` and
`prefix=`. A method may also train some of the base's own parameters. Everything else is frozen.
"""
from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..generate import KVCache, generate
from ..gpt import GPT, GPTConfig
from ..hints import Array, Rng, Seed
from ..nn import Linear, Module, Parameter, check_state, replace_modules
from ..tensor import Tensor
from .method import Method, MethodError
from .summary import Summary

__all__ = ["PeftModel", "attach", "check_free"]


def attach(model: GPT, method: Method, *, rng: Seed = 0, head: int | None = None,
           head_bias: bool = True) -> PeftModel:
    """Put `method` on `model`, in place, freeze everything else, and return a `PeftModel`.

    rng: seed or Generator. head: a number of classes; adds a linear classifier on the final hidden
    state, trained and saved with the method, with a bias if head_bias (transformers has none).
    Raises MethodError if the method does not fit the model, or another is on it.
    """
    check_free(model)
    if not isinstance(method, Method):
        hint = f"; call it, {method.__name__}()" if isinstance(method, type) else ""
        raise TypeError(f"attach: expected a method such as LoRA(rank=8), got {method!r}{hint}")
    return PeftModel(model, method, np.random.default_rng(rng), head, head_bias)


def check_free(model: GPT) -> None:
    """Raise TypeError unless `model` is a GPT, and MethodError if a method is on it."""
    method = getattr(model, "method" if isinstance(model, PeftModel) else "attached", None)
    if method is not None:
        raise MethodError(f"attach: {method} is attached to this model already; call .detach() or "
                          ".merge() on the PeftModel that attach returned")
    if not isinstance(model, GPT):
        raise TypeError(f"attach: expected a GPT, got {type(model).__name__}")


class PeftModel(Module):
    """A model with a method on it, made by `attach`. It is called as the model is.

    wrappers: path → module that took the place of one in the model. virtual: the module of virtual
    tokens, or None. trained: name → Parameter of the base that the method trains.
    """
    is_disabled = False

    def __init__(self, model: GPT, method: Method, rng: Rng, head: int | None, head_bias: bool):
        self.model, self.method, self.rng = model, method, rng
        base = dict(model.named_parameters())
        self.wrappers, self.virtual = method.wrap(model, rng), method.virtual(model, rng)
        self.head = None
        if head is not None:
            if not isinstance(head, (int, np.integer)) or head < 2:
                raise MethodError(f"attach: head is a number of classes, at least 2, got {head!r}")
            self.head = Linear(model.config.d_model, int(head), bias=head_bias, rng=rng)
        self.trained = {name: base[name] for name in method.trained(model)}
        if not (self.wrappers or self.virtual or self.trained or self.head):
            raise MethodError(f"attach: {method} would train nothing; give head=n_classes")
        for p in self._added():
            p.data = p.data.astype(model.token_embedding.weight.dtype, copy=False)
        # the arrays of `trained` not in use: the base's while the method is on, or the learned ones
        self._aside = {name: p.data.copy() for name, p in self.trained.items()}
        self._undo: list[tuple] = []             # calls (function, *arguments) that take it off
        self._put_on()

    # -- on and off -----------------------------------------------------------------------------
    def _put_on(self):
        """Change the model. Every change puts the call that undoes it on the stack `_undo`."""
        def assign(owner, name, value):
            self._undo.append((setattr, owner, name, getattr(owner, name)))
            setattr(owner, name, value)
        for p in self.model.parameters():
            self._undo.append((setattr, p, "grad", None))
            assign(p, "requires_grad", False)
        _exchange(self.trained, self._aside)
        self._undo.append((_exchange, self.trained, self._aside))
        for p in self.trained.values(): p.requires_grad = True
        base = replace_modules(self.model, self.wrappers)
        self._undo.append((replace_modules, self.model, base))
        assign(self.model, "head", self.head or self.model.head)
        assign(self.model, "attached", self.method)

    @property
    def active(self) -> bool:
        """Is the method on the model now?"""
        return bool(self._undo)

    def _check_active(self):
        if not self.active:
            raise MethodError(f"{self.method} is detached or disabled; call reattach()")

    def detach(self) -> GPT:
        """Take the method off; return the base model: the same objects, bit for bit as before."""
        self._check_active()
        while self._undo:
            undo, *arguments = self._undo.pop()
            undo(*arguments)
        return self.model

    def reattach(self) -> PeftModel:
        """Put a detached method back on its model, with everything it had learned."""
        check_free(self.model)
        for path, wrapper in self.wrappers.items():
            if self.model.get(path) is not wrapper.base:
                raise MethodError(f"reattach: {path} was replaced, perhaps quantized since; use "
                                  "attach or load_adapter on the model as it is now")
        self._put_on()
        return self

    @contextlib.contextmanager
    def disabled(self) -> Iterator[GPT]:
        """Inside `with tuned.disabled():`, model and `tuned` compute what the base computes."""
        self.detach()
        self.is_disabled = True
        try:
            yield self.model
        finally:
            self.is_disabled = False
            self._put_on()

    # -- what a model does ----------------------------------------------------------------------
    @property
    def config(self) -> GPTConfig: return self.model.config
    @property
    def tokenizer(self) -> Any: return self.model.tokenizer
    @property
    def learning_rate(self) -> float: return self.method.learning_rate
    @property
    def virtual_length(self) -> int:
        return self.virtual.length if self.virtual and self.active else 0

    def _seams(self, tokens, cache=None, lengths=None):
        """The virtual module's input to the model's seams; none if the cache holds it already."""
        if self.is_disabled: return {}
        self._check_active()
        if self.virtual is None or (cache is not None and cache.length): return {}
        return self.virtual.seams(np.asarray(tokens), lengths)

    def forward(self, tokens: Array, cache: KVCache | None = None, last: bool = False) -> Tensor:
        """tokens (B, T) → logits (B, T, V); with `last`, those of the last position, (B, 1, V)."""
        return self.model(tokens, cache=cache, last=last, **self._seams(tokens, cache))

    def classify(self, tokens: Array, lengths: Array) -> Tensor:
        """tokens (B, T), of which the first lengths[b] count in row b → class logits (B, C)."""
        return self.model.classify(tokens, lengths, **self._seams(tokens, lengths=lengths))

    def generate(self, tokens: Array, max_new_tokens: int, **options: Any) -> Array:
        """As `GPT.generate`."""
        return generate(self, tokens, max_new_tokens, **options)

    def before_step(self, step: int, total: int) -> None: self.method.before_step(self, step, total)
    def penalty(self) -> Tensor | None: return self.method.penalty(self)
    def after_step(self, step: int, total: int) -> None: self.method.after_step(self, step, total)

    # -- what was added -------------------------------------------------------------------------
    def _parts(self):
        """(path, module) of everything added to the base. A wrapper contains its `base`, too."""
        yield from self.wrappers.items()
        if self.virtual is not None: yield "virtual", self.virtual
        if self.head is not None:    yield "head", self.head

    def _added(self):
        """Every Parameter that was added to the base."""
        return [p for _, module in self._parts() for n, p in module.named_parameters()
                if not n.startswith("base.")]

    def trainable_parameters(self) -> list[Parameter]:
        """The parameters that training changes."""
        return [p for p in [*self._added(), *self.trained.values()] if p.requires_grad]

    def state_dict(self, to_train: bool = True) -> dict[str, Array]:
        """name → array of everything that belongs to the method, and nothing of the base.

        `to_train=False` omits what only further training needs: the buffers that a wrapper lists in
        `only_to_train`, and a reparameterization, whose output takes its place (see `fold`).
        """
        data = {name: p.data for name, p in self.trained.items()} if self.active else self._aside
        state, folded = dict(data), None if to_train else self.method.fold(self.virtual)[1]
        for path, module in self._parts():
            if path == "virtual" and not to_train: module = folded
            skipped = () if to_train else getattr(module, "only_to_train", ())
            state |= {f"{path}.{n}": a for n, a in module.state_dict().items()
                      if not n.startswith("base.") and n not in skipped}
        return state

    def load_state_dict(self, state: Mapping[str, Array], strict: bool = True) -> PeftModel:
        """Load what `state_dict` gave, or raise KeyError (names) or ValueError (shapes)."""
        self._check_active()
        optional = {f"{at}.{n}" for at, m in self._parts() for n in getattr(m, "only_to_train", ())}
        check_state(self.state_dict(), state, strict, optional)
        for name, p in self.trained.items():
            if name in state: p.assign(np.array(state[name], dtype=p.dtype))
        for path, module in self._parts():
            start = f"{path}."
            own = {n.removeprefix(start): a for n, a in state.items() if n.startswith(start)}
            module.load_state_dict(own, strict=False)
        return self

    def save(self, folder: str | Path, format: str = "tinypeft") -> None:
        """Write the method and what it learned to `folder`; `load_adapter` reads either format.

        "tinypeft": adapter.safetensors, exact for every method. "peft": adapter_config.json and
        adapter_model.safetensors, for `peft.PeftModel.from_pretrained` on transformers' GPT-2 with
        the base's weights; MethodError for anything that PEFT cannot hold (see `interop.adapters`).
        Neither stores what only training needs; a checkpoint of `train` does.
        """
        from .folders import FORMATS  # not above: folders.py imports this file
        if format not in FORMATS:
            raise MethodError(f"save: unknown format {format!r}; there are {', '.join(FORMATS)}")
        FORMATS[format].save(self, Path(folder))

    # -- after training -------------------------------------------------------------------------
    def summary(self) -> Summary:
        """Counts of trained, stored and all parameters, and bytes; a table in a notebook."""
        self._check_active()
        arrays = self.state_dict(to_train=False).values()
        return Summary(
            str(self.method), trained=sum(p.size for p in self.trainable_parameters()),
            stored=sum(a.size for a in arrays if a.dtype.kind == "f"),
            total=self.model.n_parameters() + (self.virtual.n_parameters() if self.virtual else 0),
            nbytes=sum(a.nbytes for a in arrays))

    def ranks(self) -> dict[str, int]:
        """path → rank of the change ΔW there; MethodError if the changes are not low-rank."""
        if not self.wrappers or not all(hasattr(w, "rank") for w in self.wrappers.values()):
            raise MethodError(f"ranks: {self.method} does not give weights a low-rank change")
        return {path: w.rank for path, w in self.wrappers.items()}

    def set_rank(self, rank: int) -> PeftModel:
        """Use `rank` from now on, without more training; MethodError for all methods but DyLoRA."""
        if not hasattr(self.method, "set_rank"):
            raise MethodError(f"set_rank: {self.method} has no other rank to use; "
                              "DyLoRA learns all ranks at once")
        self.method.set_rank(self, rank)
        return self

    def merge(self) -> GPT:
        """A plain GPT, with its own weights, that computes the same; MethodError if none can."""
        self._check_active()
        obstacles = [f"puts a nonlinear {type(wrapper).__name__} at {path}"
                     for path, wrapper in self.wrappers.items() if not hasattr(wrapper, "merge")]
        if self.virtual is not None: obstacles.append("works by virtual tokens")
        if obstacles:
            raise MethodError(f"merge: {self.method} {obstacles[0]}; no weights can replace that")
        plain = copy.deepcopy(self.model)
        replace_modules(plain, {path: plain.get(path).merge() for path in self.wrappers})
        for p in plain.parameters(): p.requires_grad, p.grad = True, None
        plain.attached = None
        return plain

    def fold(self) -> PeftModel:
        """Replace a reparameterization (prefix tuning's MLP, P-tuning's encoder) by its output.

        The function stays the same, bit for bit. Further training changes the vectors themselves.
        """
        method, virtual = self.method.fold(self.virtual)
        if virtual is self.virtual:
            raise MethodError(f"fold: {self.method} has no reparameterization to drop")
        self.method, self.virtual = method, virtual
        if self.active: self.model.attached = method
        return self

    def describe(self) -> str: return f"({self.method})"


def _exchange(parameters, arrays):
    """Swap each parameter's data with the array of its name. Calling it twice changes nothing."""
    for name, p in parameters.items():
        array, arrays[name] = arrays[name], p.data
        p.assign(array)
