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

from ..decoder import Decoder
from ..generate import KVCache, generate
from ..hints import Array, Rng, Seed
from ..nn import Linear, Module, Parameter, check_state, replace_modules
from ..tensor import Tensor
from .attachment import Attachment, Loan, detach
from .method import Method, MethodError
from .summary import Summary

__all__ = ["PeftModel", "attach", "check_free"]


def attach(model: Decoder, method: Method, *, rng: Seed = 0, head: int | None = None,
           head_bias: bool = True) -> PeftModel:
    """Put `method` on `model`, in place, freeze everything else, and return a `PeftModel`.

    rng: seed or Generator. head: a number of classes; adds a linear classifier on the final hidden
    state, trained and saved with the method, with a bias if head_bias (transformers has none).
    Raises MethodError if the method does not fit the model, or another is on it or disabled.
    """
    check_free(model)
    if not isinstance(method, Method):
        hint = f"; call it, {method.__name__}()" if isinstance(method, type) else ""
        raise TypeError(f"attach: expected a method such as LoRA(rank=8), got {method!r}{hint}")
    return PeftModel(model, method, np.random.default_rng(rng), head, head_bias)


def check_free(model: Decoder) -> None:
    """Raise TypeError for anything but a `Decoder`, MethodError if it has a method, on or off."""
    if isinstance(model, PeftModel): model.model.check_free("attach")
    if not isinstance(model, Decoder):
        raise TypeError(f"attach: expected a language model, got {type(model).__name__}")
    model.check_free("attach")


class PeftModel(Module):
    """A model with a method on it, made by `attach`. It is called as the model is.

    wrappers: path → module that took the place of one in the model. virtual: the module of virtual
    tokens, or None. trained: name → Parameter of the base that the method trains.

    `copy.deepcopy` of a PeftModel copies all: model, method, and what the method had learned. A
    copy of `tuned.model` has the method on it, and `peft.detach` takes it off. A copy of a base
    without a method, or inside `disabled`, is a plain model.
    """

    def __init__(self, model: Decoder, method: Method, rng: Rng, head: int | None, head_bias: bool):
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
        self.attachment = Attachment(method, self.wrappers, self.trained, self.head)
        self.loan = None                         # the model's mark while the method is disabled
        self._put_on()

    # -- on and off -----------------------------------------------------------------------------
    def _put_on(self):
        dtype = self.model.token_embedding.weight.dtype
        for p in self._added():
            if p.dtype != dtype: p.assign(p.data.astype(dtype))
        self.attachment.put_on(self.model)

    @property
    def active(self) -> bool:
        """Is the method on the model now?"""
        return self.model.attachment is self.attachment

    @property
    def is_disabled(self) -> bool:
        """Is this inside `with tuned.disabled():`?"""
        return self.loan is not None and self.model.attachment is self.loan

    def _check_active(self):
        if self.is_disabled:
            raise MethodError(f"{self.method} is disabled; leave `with tuned.disabled():`, or "
                              "call reattach()")
        if not self.active: raise MethodError(f"{self.method} is detached; call reattach()")

    def detach(self) -> Decoder:
        """Take the method off; return the base model: the same objects, bit for bit as before."""
        self._check_active()
        return detach(self.model)

    def reattach(self) -> PeftModel:
        """Put a detached method back on its model, with everything it had learned.

        Raises MethodError if the base has changed since `detach`, because the learned numbers fit
        no other base. Only `to` may have cast it. For a base that was quantized, folded or trained
        since, save the method, and `load_adapter` it on the base as it is.
        """
        if self.is_disabled: self.loan = self.model.attachment = None
        self.model.check_free("reattach")
        self.check_base("reattach")
        self._put_on()
        return self

    def check_base(self, verb: str) -> None:
        """Raise MethodError if the base is not what it was when the method was last taken off."""
        if found := self.attachment.changes(self.model):
            more = f", and {len(found) - 3} more" if len(found) > 3 else ""
            raise MethodError(
                f"{verb}: {self.method} learned on a base that was changed (quantized, folded, "
                f"trained or loaded) since it was taken off: {'; '.join(found[:3])}{more}. Undo "
                "the change, or save the method and use load_adapter on the model as it is now")

    @contextlib.contextmanager
    def disabled(self) -> Iterator[Decoder]:
        """Inside `with tuned.disabled():`, model and `tuned` compute what the base computes.

        The base is on loan there: `attach`, `quantize` and other verbs that change a model refuse
        it. If it was changed all the same, MethodError names the change at the end of the block,
        and the method stays off. Blocks may be nested.
        """
        if self.is_disabled:
            yield self.model
            return
        self.detach()
        self.loan = self.model.attachment = Loan(self.method)
        try:
            yield self.model
        finally:
            if self.is_disabled: self.reattach()

    def train(self, training: bool = True) -> PeftModel:
        """As `Module.train`. The end of training also ends a step that was not finished."""
        super().train(training)
        if not training: self.method.end_training(self)
        return self

    # -- what a model does ----------------------------------------------------------------------
    @property
    def config(self) -> Any: return self.model.config
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
        """As `Decoder.generate`."""
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
        off = self.attachment.learned
        state = {name: p.data if self.active else off[name] for name, p in self.trained.items()}
        folded = None if to_train else self.method.fold(self.virtual)[1]
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
        adapter_model.safetensors, for `peft.PeftModel.from_pretrained` on transformers' model with
        the base's weights; MethodError for anything that PEFT cannot hold (see `interop.adapters`).
        Neither stores what only training needs; a checkpoint of `train` does.
        """
        from .folders import formats  # not above: folders.py imports this file
        if format not in (there := formats()):
            raise MethodError(f"save: unknown format {format!r}; there are {', '.join(there)}")
        there[format].save(self, Path(folder))

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

    def merge(self, activations: str = "kept") -> Decoder:
        """A plain model, with its own weights, that computes the same; MethodError if none can.

        A layer that rounds its inputs (`W8A8`, `SmoothQuant`, `ZeroQuant`, `LLMInt8`, `FakeQuant`
        and `LLMQAT` with activation bits) has no such weights: the change ΔW reads the inputs that
        are not rounded. `activations="exact"` merges all the same. The merged layers are then plain
        and round nothing, which is another function. Layers without a change stay as they are.
        """
        self._check_active()
        if activations not in ("kept", "exact"):
            raise MethodError(f"merge: activations must be 'kept' or 'exact', got {activations!r}")
        if self.virtual is not None:
            raise MethodError(f"merge: {self.method} works by virtual tokens; no weights can "
                              "replace that")
        for path, wrapper in self.wrappers.items():
            if not hasattr(wrapper, "merge"):
                raise MethodError(f"merge: {self.method} puts a {type(wrapper).__name__} at {path},"
                                  " which has no `merge`; keep the method attached")
            if activations == "kept" and not getattr(wrapper.base, "is_affine", False):
                raise MethodError(
                    f"merge: {path} is a {type(wrapper.base).__name__}, which does more than "
                    "multiply by a weight: it rounds its inputs or outputs, and no weights do "
                    'that. Keep the method attached, or call merge(activations="exact"), whose '
                    "merged layers round nothing")
        memo = {id(self.attachment): self.attachment}              # of no use to the copy
        plain = copy.deepcopy(self.model, memo)
        replace_modules(plain, {path: plain.get(path).merge() for path in self.wrappers})
        for p in plain.parameters(): p.requires_grad, p.grad = True, None
        plain.attachment = None
        return plain

    def fold(self) -> PeftModel:
        """Replace a reparameterization (prefix tuning's MLP, P-tuning's encoder) by its output.

        The function stays the same, bit for bit. Further training changes the vectors themselves.
        """
        method, virtual = self.method.fold(self.virtual)
        if virtual is self.virtual:
            raise MethodError(f"fold: {self.method} has no reparameterization to drop")
        self.method, self.virtual, self.attachment.method = method, virtual, method
        return self

    def describe(self) -> str: return f"({self.method})"

