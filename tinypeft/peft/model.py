"""attach: put methods on a model. PeftModel: a base and the methods on it.

There are two ways to attach. A *wrapper* is a module that holds the module it adapts as `base` and
takes its place in a twin of the base. A *virtual* module emits vectors for the model's seams
`prompt=` and `prefix=`. A method may also train a Parameter in the place of one of the base's own.
Everything else is frozen. What one method adds is a *part* (`part.py`); there may be several. They
can be switched off and on (`switching.py`), and made into plain weights (`merge.py`).
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..common.hints import Array, Calibration, Seed
from ..engine.functional import IGNORED
from ..engine.nn import Linear, Parameter, check_state
from ..engine.tensor import Tensor
from ..models.cache import KVCache
from ..models.decoder import Decoder, require_free
from ..models.in_words import InWords
from ..text.tasks.saved import save_task, without_data
from ..text.tasks.task import Task
from . import merge
from .formats import format_called
from .method import Method, MethodError
from .part import Part, below, named, picked
from .summary import Summary, summary_of
from .switching import Switched, frozen_twin

__all__ = ["PeftModel", "attach", "attach_parts"]


def attach(model: Decoder, *methods: Method | Mapping[str, Method], rng: Seed = 0,
           head: int | None = None, head_bias: bool = True,
           calibration: Calibration = None) -> PeftModel:
    """Make a `PeftModel` of a base and methods; the base is never touched.

    Three trees of modules stand around the same arrays: `base`, which is `model` itself; `frozen`,
    the base as it was at `attach`; and `model` of the PeftModel, which has the methods on it and is
    what `tuned(tokens)` calls. `model(tokens)` is the base before and after. What is done to the
    base later (training, `quantize`, `load_state_dict`, `to`) does not reach the PeftModel: a verb
    gives the base other arrays, and a step copies them first (`Parameter.writable`). The old ones
    take memory then, as long as the PeftModel lives: a base that becomes NF4 and its old floats are
    1.35 times the floats. So quantize first, then attach. Only `merge(in_place=True)` changes the
    base, and only who writes by hand into an array (`p.data[...] = 0`) changes all three.

    methods: one, or several, each a part with a name: its class's, or the key in a dict, such as
    {"style": LoRA(8)}. Wrappers nest: the first is innermost. rng: a seed, or a Generator that is
    drawn from here, once; it decides the start. (`train` takes `seed`, a whole number, which draws
    each step anew.) head: a number of classes; adds a linear classifier on the final hidden state,
    trained and saved with the methods, with a bias if head_bias (transformers has none).
    calibration: tokens for methods that start from data, int (B, T) or an iterable of such arrays;
    as in `quantize`, other methods ignore it. Raises MethodError if a method fits neither the model
    nor the other methods, or if calibration is missing; ValueError for the model inside another
    PeftModel, whose `add` takes more methods.
    """
    require_free(model, "attach")
    tuned = attach_parts(model, named(methods), rng, head, head_bias)
    tuned.begin(tuned.parts.values(), calibration, "attach")
    return tuned


def attach_parts(model: Decoder | PeftModel, methods: Mapping[str, Method], rng: Seed = 0,
                 head: int | None = None, head_bias: bool = True,
                 off: Sequence[str] = ()) -> PeftModel:
    """Do what `attach` does, without `Method.begin`; the parts named in `off` are off. model: a
    base, or a PeftModel, for its base as it was."""
    if isinstance(model, PeftModel):
        base, frozen = model.base, frozen_twin(model.frozen)
    else:
        require_free(model, "attach")
        base, frozen = model, frozen_twin(model)
    rng = np.random.default_rng(rng)
    parts = {name: Part(method, frozen, rng) for name, method in methods.items()}
    for part in picked(parts, off).values():
        part.on = False
    classifier = None
    if head is not None:
        if not isinstance(head, (int, np.integer)) or head < 2:
            raise MethodError(f"attach: head is a number of classes, at least 2, got {head!r}")
        classifier = Linear(base.config.d_model, int(head), bias=head_bias, rng=rng)
    tuned = PeftModel(base, frozen, parts, classifier, rng)
    tuned.task = base.task
    return tuned


class PeftModel(InWords, Switched):
    """A base and the methods on it, made by `attach`. It is called as the model is.

    base: the user's model. model: what `tuned(tokens)` calls, the modules of the base once more
    with the methods that are on in their places. Each verb that switches makes it anew around the
    same Parameters, so a `tuned.model` that was held before shows what was on then.
    `copy.deepcopy` and `pickle` of a PeftModel hold each array once: base, methods, and what they
    had learned.

    task: of the last training, or of the folder that it was loaded from, or else the model's,
    without the data. It predicts, and is saved with the adapter. None for a task of one's own
    without a `form`.
    """

    # -- what a model does ----------------------------------------------------------------------
    @property
    def config(self) -> Any:
        return self.frozen.config

    @property
    def tokenizer(self) -> Any:
        return self.frozen.tokenizer

    @property
    def learning_rate(self) -> float:
        """The rate of the first method that is on."""
        self.check_parts_there()
        first = next(iter(self.used() or self.parts.values()))
        return first.method.learning_rate

    @property
    def virtual_length(self) -> int:
        return self.virtual.length if self.virtual and not self.is_disabled else 0

    def called_model(self) -> Decoder:
        """Return the model, or inside `disabled` the base as it was."""
        self.check_parts_there()
        return self.frozen if self.is_disabled else self.model

    def seams(self, tokens: Array, cache: KVCache | None = None,
              lengths: Array | None = None) -> dict[str, Any]:
        """Get the model's seams from the virtual module; none if the cache holds them already."""
        if self.is_disabled or not self.virtual or (cache is not None and cache.length):
            return {}
        return self.virtual.seams(np.asarray(tokens), lengths)

    def forward(self, tokens: Array, cache: KVCache | None = None, last: bool = False) -> Tensor:
        """tokens (B, T) → logits (B, T, V); with `last`, those of the last position, (B, 1, V)."""
        return self.called_model()(tokens, cache=cache, last=last, **self.seams(tokens, cache))

    def loss(self, tokens: Array, targets: Array, ignore_index: int = IGNORED) -> Tensor:
        """Return the mean cross-entropy of `targets` (B, T), in nats, as `Decoder.loss` does."""
        return self.called_model().loss(tokens, targets, ignore_index, **self.seams(tokens))

    def class_logits(self, tokens: Array, lengths: Array) -> Tensor:
        """tokens (B, T), of which the first lengths[b] count in row b → class logits (B, C)."""
        seams = self.seams(tokens, lengths=lengths)
        return self.called_model().class_logits(tokens, lengths, **seams)

    def train(self, training: bool = True) -> PeftModel:
        """Switch as `Module.train`. The end of training also ends a step that did not finish."""
        super().train(training)
        if not training:
            for part in self.used():
                part.method.end_training(part.wrappers)
        return self

    def before_training(self, task: Any) -> None:
        """Remember what prediction needs of the task."""
        self.task = without_data(task) if hasattr(task, "form") else None

    def before_step(self, step: int, total: int) -> None:
        for part in self.used():
            part.method.before_step(part.wrappers, step, total, self.rng)

    def penalty(self) -> Tensor | None:
        total = None
        for part in self.used():
            term = part.method.penalty(part.wrappers)
            if term is not None:
                total = term if total is None else total + term
        return total

    def after_step(self, step: int, total: int) -> None:
        for part in self.used():
            part.method.after_step(part.wrappers, step, total)

    # -- what was added -------------------------------------------------------------------------
    def trainable_parameters(self) -> list[Parameter]:
        """List the parameters that training changes."""
        added = [p for part in self.used() for p in part.added()]
        if self.head:
            added += self.head.parameters()
        return [p for p in [*added, *self.trained.values()] if p.requires_grad]

    def state_dict(self, to_train: bool = True) -> dict[str, Array]:
        """name → array of everything that belongs to the methods, and nothing of the base. A name
        begins with that of the part, "LoRA/blocks.0.attention.query.A", or with "head.".

        `to_train=False` omits what only further training needs: the buffers that a wrapper lists in
        `only_to_train`, and a reparameterization, whose output takes its place (see `fold`).
        """
        state = {f"{name}/{path}": array for name, part in self.parts.items()
                 for path, array in part.state_dict(to_train).items()}
        if self.head:
            state |= {f"head.{name}": array for name, array in self.head.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Array], strict: bool = True) -> PeftModel:
        """Load what `state_dict` gave, or raise KeyError (names) or ValueError (shapes)."""
        self.check_parts_there()
        optional = {f"{name}/{path}" for name, part in self.parts.items()
                    for path in part.optional()}
        check_state(self.state_dict(), state, strict, optional)
        for name, part in self.parts.items():
            part.load_state_dict(below(f"{name}/", state))
        if self.head:
            self.head.load_state_dict(below("head.", state), strict=False)
        return self

    def save(self, folder: str | Path, format: str = "tinypeft", task: Task | None = None) -> None:
        """Write the method and what it learned to `folder`; `load_adapter` reads either format.

        "tinypeft": adapter.safetensors, exact for every method. "peft": adapter_config.json and
        adapter_model.safetensors, for `peft.PeftModel.from_pretrained` on transformers' model with
        the base's weights; MethodError for anything that PEFT cannot hold (see `interop.adapters`).
        task: what prediction needs of it is written beside them, to task.json; by default that of
        `train`. ValueError if it has nothing to predict.
        Neither stores what only training needs; a checkpoint of `train` does. Our own format says
        which parts are off. Raises MethodError if there are no methods any more.
        """
        self.check_parts_there()
        kept = self.task if task is None else without_data(task)
        format_called(format, "save").functions().save(self, Path(folder))
        if kept is not None:
            save_task(kept, folder)

    # -- after training -------------------------------------------------------------------------
    def summary(self) -> Summary:
        """Count trained, stored and all parameters, and bytes; a table in a notebook."""
        self.check_parts_there()
        return summary_of(self)

    def ranks(self) -> dict[str, int]:
        """path → rank of the change ΔW there; MethodError if the changes are not low-rank."""
        return merge.ranks(self)

    def set_rank(self, rank: int) -> PeftModel:
        """Use `rank` from now on, without more training; MethodError for all methods but DyLoRA."""
        merge.set_rank(self, rank)
        return self

    def merge(self, *parts: str, activations: str = "kept",
              in_place: bool = False) -> Decoder | PeftModel:
        """Make a plain model, with its own weights, that computes the same, or raise MethodError.

        parts: names; only these are merged, and a PeftModel with the others is returned. They must
        be innermost, since a change cannot move into a weight past another change. Without names
        all parts that are on are merged.
        in_place: change the base instead of a copy, layer by layer, so that no more than one
        layer's weights exist twice, unless another PeftModel of this base lives. A base that was
        changed since `attach` becomes what it was, and is merged then. Parts that are off stay, and
        then a PeftModel is returned; one without parts refuses calls. A Ctrl-C half way leaves a
        PeftModel that computes the same: some layers are merged, the parts stay on the others, and
        `merge` can go on.

        A layer that rounds its inputs (`W8A8`, `SmoothQuant`, `ZeroQuant`, `LLMInt8`, `FakeQuant`
        and `LLMQAT` with activation bits) has no such weights: the change ΔW reads the inputs that
        are not rounded. `activations="exact"` merges all the same. The merged layers are then plain
        and round nothing, which is another function. Layers without a change stay as they are, so a
        merged quantized model has both kinds; `quantize(…, skip_quantized=True)` rounds the rest.
        """
        merged = merge.merge(self, parts, activations, in_place)
        if isinstance(merged, Decoder):
            merged.source = None                         # it is no longer what was loaded
            merged.task = self.task
        return merged

    def fold(self) -> PeftModel:
        """Replace a reparameterization (prefix tuning's MLP, P-tuning's encoder) by its output.

        The function stays the same, bit for bit. Further training changes the vectors themselves.
        """
        merge.fold(self)
        return self

    def describe(self) -> str:
        return f"({self.method})"
