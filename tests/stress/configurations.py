"""Random configurations: a small model × a scheme or none × a method, and everything a user may do with them.

    python -m tests.stress.configurations --count 3000 --record
    python -m tests.stress.configurations --only 17                 configuration 17 again

Configuration i is drawn from (seed, i) alone (`drawing.py`). It is quantized, attached, trained for five steps, saved,
loaded, merged, copied, disabled, switched off and on, and its base gets another method, is cast and is quantized beside it. A
refusal is fine if it has a named error and changes nothing. `Broken` says which promise does not hold.
"""
import argparse
import collections
import contextlib
import copy
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np

import tinypeft as tp
from tests.methods import ROWS, rank_of, size_of
from tests.protocol import hold_norm
from tests.stress import record
from tests.stress.drawing import NAMES, Task, drawn, drawn_model
from tinypeft.engine.nn import Linear, Packed, Parameter, replace_modules
from tinypeft.models.generation import prompted
from tinypeft.peft.starts import TAKEN_OFF

__all__ = ["METHODS", "SCHEMES", "Broken", "Configuration", "main", "run"]

METHODS = {**tp.METHODS, "peqa": tp.PEQA}
SCHEMES = tp.SCHEMES
OF_CLASS = {type(row.small): row for row in ROWS.values()}
REFUSALS = ValueError, TypeError, KeyError
LAYERS = {"query": (1, 1), "key": (1, 1), "value": (1, 1), "output": (1, 1), "up": (1, 4), "down": (4, 1)}   # in d


class Broken(AssertionError):
    """A promise that does not hold."""


# -- what must not change ------------------------------------------------------------------------
def walked(model):
    """(objects and modes, name → bytes, flags of the parameters) of a model, in one walk."""
    objects, arrays, flags = {}, {}, {}
    for path, module in model.named_modules():
        objects[path] = id(module), module.training
        for name, value in vars(module).items():
            if isinstance(value, Parameter):
                arrays[f"{path}.{name}"] = value.data.tobytes()
                flags[f"{path}.{name}"] = id(value), value.requires_grad, value.grad is None, value.update_mask is None
            elif isinstance(value, np.ndarray): arrays[f"{path}.{name}"] = value.tobytes()
            elif isinstance(value, Packed):
                arrays |= {f"{path}.{name}.{part}": a.tobytes() for part, a in value.arrays().items()}
    return objects, arrays, flags


def state(model):
    """Everything of a model that a refused or undone call must leave alone."""
    return (*walked(model), model.method if isinstance(model, tp.PeftModel) else model.attached)


def of_bytes(model):
    return walked(model)[1]


class Configuration:
    """One random configuration, and the promises it is held to. `checks` counts them, `refusals` what was refused."""

    def __init__(self, seed, i, methods=METHODS, schemes=SCHEMES):
        self.rng, self.i = np.random.default_rng([seed, i]), i
        self.methods, self.schemes = methods, schemes
        self.checks, self.refusals = collections.Counter(), []
        self.scheme = self.targets = self.method = self.head = None
        self.virtual_length = 0

    def __repr__(self):
        c = self.model.config
        return (f"{self.i}: {c}, {self.model.dtype} | {self.scheme}, {self.targets} | "
                f"{self.method}, head={self.head}")

    @property
    def is_float64(self): return self.model.dtype == np.float64

    # -- tools
    def holds(self, promise, true, detail=""):
        self.checks[promise] += 1
        if not true: raise Broken(f"{promise}{detail and ': '}{detail}")

    def same(self, promise, a, b):
        """Two arrays are equal, bit for bit."""
        off = f"off by {np.abs(a - b).max():.3g}" if a.shape == b.shape else f"shapes {a.shape} and {b.shape}"
        self.holds(promise, np.array_equal(a, b), off)

    def near(self, promise, a, b, digits=0):
        """Two arrays are equal to rounding: that of the model's precision, or to so many digits."""
        eps = 10.0**-digits if digits else 1e-9 if self.is_float64 else 1e-4
        error = np.abs(a - b).max() / (1 + np.abs(b).max())
        self.holds(promise, error <= eps, f"off by {error:.3g}")

    def attempt(self, call, *watched):
        """The result of `call()`, or None if it refuses: by a named error, and with all `watched` as they were."""
        before = [state(m) for m in watched]
        try:
            return call()
        except REFUSALS as error:
            if isinstance(error, np.linalg.LinAlgError) or not str(error): raise
            self.refusals.append(f"{type(error).__name__}: {error}")
            self.holds("a refusal changes nothing", before == [state(m) for m in watched], str(error))

    def refuses(self, promise, call, *watched):
        self.holds(promise, self.attempt(call, *watched) is None, "it was done")

    def several(self, classes):
        """A hundred random values: ten of one class, ever fewer fields at their defaults, then ten of another."""
        for _ in range(10):
            cls = classes[self.rng.choice(list(classes))]
            for k in range(10): yield drawn(cls, self.rng, 0.3 + 0.06 * k)

    # -- the base
    def prepare(self):
        """A model, a scheme on it if one fits, and what is then known of it."""
        rng, model = self.rng, drawn_model(self.rng)
        self.model, self.quantized, self.rounding = model, [], {}
        self.calibration = rng.integers(0, model.config.vocab_size, (3, min(5, model.config.context_length)))
        if rng.random() < 0.25 or not self.schemes: return
        for scheme in self.several(self.schemes):
            targets = NAMES[rng.choice([0, 0, 0, 1, 2, 3, 4])]
            tokens = self.calibration if scheme.calibrated or rng.random() < 0.2 else None
            if self.attempt(lambda: tp.quantize(model, scheme, tokens, targets), model) is None: continue   # noqa: B023
            self.scheme, self.targets = scheme, targets
            self.quantized = [path for path, m in model.named_modules() if path.startswith("blocks.") and "Linear" in
                              type(m).__name__ and type(m) is not Linear and not path.endswith(".base")]
            break
        if self.scheme is None: return
        self.trains = self.scheme.trains and rng.random() < 0.5
        if self.scheme.trains:
            if rng.random() < 0.5:
                tp.train(model, Task(model, rng), 2, batch_size=2, lr=1e-3, workers=1, progress=False)
            if not self.trains:
                before = self.logits(model)
                tp.convert(model)
                if not self.is_float64:
                    self.same("a converted model computes the same", self.logits(model), before)
        self.rounding = {path for path in self.quantized if self.rounds(path)}
        if not self.rounding: self.is_its_dense_weights()

    def rounds(self, path):
        """Does the scheme round the layer's inputs or outputs?"""
        s = self.scheme
        if isinstance(s, (tp.W8A8, tp.LLMInt8, tp.ZeroQuant)): return True
        kv = getattr(s, "kv_bits", None) is not None and path.endswith((".key", ".value"))
        return getattr(s, "activation_bits", None) is not None or kv

    def is_its_dense_weights(self):
        """A layer that rounds nothing but its weight computes x Ŵᵀ + b."""
        model = copy.deepcopy(self.model)
        for path in self.quantized:
            layer = model.get(path)
            dense = Linear(layer.d_in, layer.d_out, bias=layer.bias is not None)
            dense.weight.data = layer.dense_weight().astype(model.dtype)
            if layer.bias is not None: dense.bias.data = layer.bias.data
            replace_modules(model, {path: dense})
        self.near("a quantized layer is its dense weight", self.logits(model), self.logits(self.model), 4)

    def logits(self, model, tokens=None):
        """Of `tokens`, or of as many of the calibration's as fit beside virtual ones."""
        room = self.model.config.context_length - self.virtual_length
        with tp.no_grad(): return model(self.calibration[:, :room] if tokens is None else tokens).data

    # -- the method
    def put_on(self):
        """A method that fits the model, on it; the base as it was before is kept."""
        for method in self.several(self.methods):
            head = int(self.rng.integers(2, 6)) if self.rng.random() < 0.35 else None
            bias, draw = bool(self.rng.random() < 0.7), int(self.rng.integers(1e6))
            fresh, base = copy.deepcopy(self.model), state(self.model)
            attach = lambda: tp.attach(self.model, method, rng=draw, head=head, head_bias=bias)    # noqa: B023
            tuned = self.attempt(attach, self.model)
            if tuned is None: continue
            self.method, self.head, self.virtual_length = method, head and (head, bias), tuned.virtual_length
            return tuned, fresh, base
        raise Broken("no method fits, after a hundred draws")

    def starts_as_the_base(self, tuned, fresh):
        row = OF_CLASS.get(type(self.method))
        drawn = row and row.drawn and getattr(self.method, "std", 1) != 0 and getattr(self.method, "init", "") != "zeros"
        head_alone = isinstance(self.method, tp.LinearProbe)
        if head_alone or row and row.starts == "the base" and not drawn:
            self.same("fresh, it is the base", self.logits(tuned), self.logits(fresh))
        if isinstance(self.method, tp.PEQA):                          # whose scales are float32, as every stored scale is
            self.near("fresh, it is the base", self.logits(tuned), self.logits(fresh), 6 if self.is_float64 else 0)

    def counts(self, tuned, fresh):
        """Parameters trained and stored are as many as the table of methods says, or as a formula for more settings says."""
        m, c, s = self.method, tuned.config, tuned.summary()
        d, L, P = c.d_model, c.n_layers, getattr(m, "length", 0)
        shape = lambda path: [n * d for n in LAYERS[path.rsplit(".", 1)[-1]]]        # d_in, d_out
        paths, hit = list(tuned.wrappers), lambda name, path: f".{name}." in f".{path}."
        stored = None
        if isinstance(m, tp.LoRA):
            row, size = OF_CLASS[type(m)], size_of(tuned)
            trained = row.count(m, size)
            stored = (row.stored or row.count)(m, size) * (1 + (m.init in TAKEN_OFF))           # B₀ and A₀, to take them off
            if m.init == "mica": trained = sum(rank_of(m, p) * shape(p)[0] for p in paths)   # B stays as it is
        elif isinstance(m, tp.LoReFT):
            trained = sum(phi is not None for phi in tuned.virtual.phi) * (2 - m.tied) * (2 * d + 1) * m.rank
        elif isinstance(m, tp.IA3):
            named = lambda p: m.feedforward == "all" or any(hit(name, p) for name in m.feedforward or ())
            trained = sum(shape(p)[0 if named(p) else 1] for p in paths)
        elif isinstance(m, tp.PrefixTuning):
            stored = trained = 2 * P * L * d
            h = m.hidden or max(1, d // 2)
            if m.reparameterize: trained = P * d + (d * h + h) + (2 * L * d * h + 2 * L * d)
        elif isinstance(m, tp.PTuning):
            P = sum(m.counts)
            stored, n = P * d, m.hidden or (max(1, d // 2) if m.encoder == "lstm" else d)
            trained = P * d + {"mlp": (n * d + n) + (n * n + n) + (n * d + d), None: 0, "lstm":
                               8 * (n * d + n * n + 2 * n) + 8 * (3 * n * n + 2 * n) + 4 * n * n + 2 * n + 2 * n * d + d
                               }[m.encoder]
        elif isinstance(m, tp.FullFineTuning):
            trained = sum(p.size for name, p in fresh.named_parameters()
                          if m.targets in (None, "all") or any(hit(t, name) for t in m.targets))
        elif isinstance(m, tp.PEQA):
            trained = sum(-(-shape(p)[0] * shape(p)[1] // (m.group_size or shape(p)[0])) for p in paths)
        elif isinstance(m, tp.LinearProbe): trained = 0
        else:
            row, size = OF_CLASS[type(m)], size_of(tuned)
            trained = row.count(m, size)
            stored = row.stored and row.stored(m, size)
        head = self.head and self.head[0] * (d + self.head[1]) or 0
        stored = trained if stored is None else stored
        for name, got, want in (("trained", s.trained, trained + head), ("stored", s.stored, stored + head)):
            self.holds(f"{name} parameters are the formula's", got == want, f"{got}, not {want}")

    def trains_alone(self, tuned):
        """Five steps move what is trained, deterministically, and give nothing else a gradient."""
        task, seed = Task(tuned, self.rng), int(self.rng.integers(1e6))
        tuned_before = of_bytes(tuned)
        moving = {id(p) for p in tuned.trainable_parameters()}
        frozen = {n: (p, p.data.tobytes()) for n, p in tuned.named_parameters() if id(p) not in moving}
        codes = {n: a.tobytes() for n, packed in tuned._named(Packed) for a in packed.arrays().values()}
        gradients = []
        step = type(tuned).after_step

        class Watched(type(tuned)):
            def after_step(self, *args):
                gradients.extend(n for n, (p, _) in frozen.items() if p.grad is not None)
                step(self, *args)
        kind, parts = type(tuned), [copy.deepcopy(tuned) for _ in range(2)]
        train = lambda t, **options: tp.train(t, task, 5, batch_size=3, seed=seed, workers=1, progress=False, **options)
        tuned.__class__ = Watched
        try:
            history = self.attempt(lambda: train(tuned), tuned)
        finally:
            tuned.__class__ = kind
        if history is None:
            self.holds("a refused run changes nothing", of_bytes(tuned) == tuned_before)
            return task
        self.holds("frozen parameters get no gradient", not gradients, str(gradients[:3]))
        self.holds("frozen parameters do not move", all(p.data.tobytes() == b for p, b in frozen.values()))
        self.holds("codes do not move",
                   codes == {n: a.tobytes() for n, packed in tuned._named(Packed) for a in packed.arrays().values()})
        # with one key, queries and keys have no gradient; a norm of two features gives their order, whatever their size
        is_dead = task.T == 1 or tuned.config.d_model == 2
        self.holds("training moves something", is_dead or of_bytes(tuned) != tuned_before)
        gone = all(p.grad is None and np.all(p.update_mask is None or p.update_mask) for p in tuned.parameters())
        self.holds("gradients and masks are gone", gone)
        self.holds("losses are finite", np.isfinite(history.loss).all())
        file = Path(self.folder) / "checkpoint"
        train(parts[0], checkpoint=file, stop_after=2)
        train(parts[1], checkpoint=file)
        self.holds("a resumed run trains the same", of_bytes(parts[1]) == of_bytes(tuned))
        return task

    def outputs(self, tuned, task):
        """Logits and class logits of one batch."""
        batch = task.batch("test", 3, np.random.default_rng(self.i))
        out = [self.logits(tuned, batch[0])]
        with tp.no_grad():
            if task.head is not None: out.append(tuned.class_logits(*batch[:2]).data)
        return out

    def same_outputs(self, promise, tuned, task, want):
        for a, b in zip(self.outputs(tuned, task), want, strict=True): self.same(promise, a, b)

    def has_its_gradients(self, tuned, task):
        """The gradients of the trained parameters are those of finite differences, DoRA's with the norm held."""
        if not self.is_float64 or self.rounding or self.scheme and self.scheme.trains and self.trains: return
        x, params = task.tokens(2, np.random.default_rng(self.i)), tuned.trainable_parameters()
        if self.head: params = [p for p in params if all(p is not q for q in tuned.head.parameters())]
        if not params: return
        before = of_bytes(tuned)
        if isinstance(self.method, tp.DoRA):
            for layer in tuned.wrappers.values(): hold_norm(layer)             # its gradient takes it as a constant
        self.holds("gradients are those of finite differences",
                   tp.gradcheck(lambda *_: tuned(x), *params, directions=1, step=1e-6, tolerance=1e-4) <= 1e-4)
        for p in params: p.grad = None
        if isinstance(self.method, tp.DoRA):
            for layer in tuned.wrappers.values(): del layer.norm
        self.holds("a gradient check changes nothing", of_bytes(tuned) == before)

    def keeps_rows_apart(self, tuned, fresh, task):
        """A row's result depends on itself alone, beside rows of the base as well; on no padding either."""
        batch = task.batch("test", 3, np.random.default_rng(self.i))
        x, whole, before = batch[0], self.want, state(tuned)
        mixed = tp.mixed_batch(self.model, {"a": tuned}, x, ["a", None, "a"]).data
        self.holds("a mixed batch changes nothing", state(tuned) == before)
        if self.rounding: return                                      # rounding by ranges sees other tokens beside
        self.near("a row is by itself", self.logits(tuned, x[1:2]), whole[0][1:2])
        self.near("rows of a mixed batch are their methods'", mixed,
                  np.stack([whole[0][0], self.logits(fresh, x)[1], whole[0][2]]))
        if task.head is None: return
        padded, lengths = x.copy(), batch[1]
        for row, n in zip(padded, lengths, strict=True): row[n:] = self.rng.integers(0, task.V)
        with tp.no_grad(): self.near("padding does not count", tuned.class_logits(padded, lengths).data, whole[1])

    def is_disabled(self, tuned, fresh, task):
        want, before, plain = self.want, state(tuned), self.logits(fresh)
        with tuned.disabled() as base:
            self.holds("disabled gives the frozen twin", base is tuned.frozen)
            self.same("disabled is the base", self.logits(tuned), plain)
            self.same("disabled is the base", self.logits(base), plain)
            with tuned.disabled(): self.same("disabled twice is the base", self.logits(tuned), plain)
            self.same("disabled is the base", self.logits(tuned), plain)
            self.holds("detach gives the base while disabled", tuned.detach() is self.model)
        self.holds("after disabled all is as before", state(tuned) == before)
        self.same_outputs("after disabled it computes the same", tuned, task, want)
        for inside in (tuned.model, tuned.frozen):
            for call in (lambda m: tp.attach(m, tp.LoRA(rank=1)), lambda m: tp.quantize(m, tp.NF4()), tp.convert,
                         lambda m: tp.save_quantized(m, Path(self.folder) / "inside")):
                self.refuses("a model inside a PeftModel refuses", lambda: call(inside), tuned, tuned.frozen)  # noqa: B023
        self.refuses("quantize refuses a PeftModel", lambda: tp.quantize(tuned, tp.NF4()), tuned)

    def merges(self, tuned, task):
        want, before = self.want, state(tuned)
        possible = tuned.virtual is None and all(w.is_mergeable for w in tuned.wrappers.values())
        rounded = self.rounding and set(tuned.wrappers) & set(self.rounding)
        if not possible or rounded:
            self.refuses("merge refuses what no weights compute", tuned.merge, tuned)
        if rounded and possible:
            merged = tuned.merge(activations="exact")
            self.holds("merged layers round nothing", all(type(merged.get(p)) is Linear for p in tuned.wrappers))
        elif possible:
            merged = tuned.merge()
            self.holds("merged is a plain model", type(merged) is tp.GPT and merged.attached is None)
            rounds = isinstance(self.method, tp.PEQA)                          # its scales may be float16 at rest
            for a, b in zip(self.outputs(merged, task), want, strict=True):
                self.near("merged is wrapped", a, b, 3 * rounds)
        else: return
        for p in merged.parameters(): p.data = p.data + 1
        self.holds("merging leaves the method alone", state(tuned) == before)

    def saves(self, tuned, fresh, task):
        want, before = self.want, state(tuned)
        for fmt in ("tinypeft", "peft"):
            folder, base = Path(self.folder) / fmt, copy.deepcopy(fresh)
            if fmt == "tinypeft": tuned.save(folder)
            elif self.attempt(lambda: tuned.save(folder, format="peft") or True, tuned) is None: continue  # noqa: B023
            loaded = tp.load_adapter(base, folder)
            for a, b in zip(self.outputs(loaded, task), want, strict=True):
                if fmt == "tinypeft": self.same("loaded is saved", a, b)
                else:                 self.near("loaded from PEFT's folder is saved", a, b, digits=4)
            self.holds("loading changes no base", loaded.detach() is base and of_bytes(base) == of_bytes(fresh))
        self.holds("saving changes nothing", state(tuned) == before)

    def saves_base(self, fresh):
        """A quantized model comes back from its file, codes and function."""
        if self.scheme is None: return
        path = Path(self.folder) / "base.safetensors"
        if self.trains:
            unfinished = lambda: tp.save_quantized(fresh, path)
            self.refuses("save_quantized refuses what is to be converted", unfinished, fresh)
            return
        tp.save_quantized(fresh, path)
        back = tp.load_quantized(path)
        self.holds("a quantized file has the same arrays", of_bytes(back) == of_bytes(fresh))
        self.same("a quantized file has the same function", self.logits(back), self.logits(fresh))

    def copies(self, tuned, fresh, task):
        want, base = self.want, of_bytes(fresh)
        twin = copy.deepcopy(tuned)
        self.same_outputs("a copy computes the same", twin, task, want)
        self.holds("a copy detaches to a copy of the base", of_bytes(twin.detach()) == base)
        for p in twin.detach().parameters(): p.assign(p.data + 1)
        self.same_outputs("a copy's base is its user's", twin, task, want)
        self.same_outputs("a copy is by itself", tuned, task, want)

    def generates(self, tuned, task):
        """One token after another with the cache is the whole sequence at once."""
        x, V = task.tokens(2, np.random.default_rng(self.i)), tuned.config.context_length - tuned.virtual_length
        n = min(3, V - x.shape[1])
        if n < 1 or isinstance(tuned.method, tp.PTuning) and task.separator is not None: return
        long = tuned.generate(x, n, rng=0)
        self.holds("generation has its length", long.shape == (2, x.shape[1] + n) and np.array_equal(long[:, :-n], x))
        if self.rounding: return                                      # rounding by ranges sees other tokens beside
        with tp.no_grad(), prompted(np.full(2, x.shape[1])):          # a LoReFT leaves alone what is written
            whole, cache = tuned(long).data, tp.KVCache(tuned.config.n_layers)
            parts = [tuned(long[:, :x.shape[1]], cache=cache).data]
            parts += [tuned(long[:, i:i + 1], cache=cache).data for i in range(x.shape[1], long.shape[1])]
        moves = isinstance(tuned.method, tp.PTuning)                  # its places depend on where the text ends
        if not moves or tuned.virtual.separator is None:
            self.near("with the cache it computes the same", np.concatenate(parts, 1), whole)
        gap = np.sort(whole[:, x.shape[1] - 1:-1], -1)
        if V and (gap.shape[-1] < 2 or (gap[..., -1] - gap[..., -2]).min() > 1e-3):
            self.holds("without the cache it writes the same",
                       np.array_equal(tuned.generate(x, n, rng=0, use_cache=False), long))

    def special(self, tuned, task):
        """fold, ranks and set_rank, where a method has them."""
        m = self.method
        if isinstance(m, tp.DyLoRA):
            b = int(self.rng.choice(m.ranks))
            tuned.set_rank(b)
            self.holds("set_rank sets the rank", set(tuned.ranks().values()) == {b})
            scale = m.alpha / (b if m.rescale else m.rank)
            for w in tuned.wrappers.values():
                delta = scale * w.B.data[:, :b] @ w.A.data[:b]
                self.near("at rank b it is its truncation", w.delta(), delta)
        else: self.refuses("set_rank is DyLoRA's", lambda: tuned.set_rank(1), tuned)
        folds = isinstance(m, tp.PTuning) and m.encoder or getattr(m, "reparameterize", False)
        if not folds:
            self.refuses("fold needs a reparameterization", tuned.fold, tuned)
            return
        twin = copy.deepcopy(tuned)
        self.same_outputs("folded it computes the same", twin.fold(), task, self.want)

    def is_switched(self, tuned, base, fresh, task):
        """All parts off it is the base, and on again as it was; the base has seen nothing of all that was done."""
        learned, held, before = of_bytes(tuned), tuned.model, self.logits(tuned.model)
        self.holds("detach gives the base, objects and bytes", tuned.detach() is self.model and state(self.model) == base)
        tuned.detach(*tuned.parts)
        self.same("with all parts off it is the base", self.logits(tuned), self.logits(fresh))
        self.same("a model that was held stays as it was", self.logits(held), before)
        tuned.reattach()
        self.holds("put back it has what it learned", of_bytes(tuned) == learned)
        self.same_outputs("put back it computes the same", tuned, task, self.want)
        self.holds("switching leaves the base alone", state(self.model) == base)

    def lives_beside(self, tuned, base, task):
        """Another method on the same base learns; it and this one see nothing of each other."""
        before, second = state(tuned), lambda: drawn(METHODS[self.rng.choice(list(METHODS))], self.rng)
        other = self.attempt(lambda: tp.attach(self.model, second(), head=2), self.model, tuned)
        if other is None: return
        with contextlib.suppress(*REFUSALS):
            tp.train(other, Task(other, self.rng), 1, batch_size=2, workers=1, progress=False)
        self.holds("another method leaves the base alone", state(self.model) == base)
        self.holds("another method leaves this one alone", state(tuned) == before)
        self.same_outputs("beside another it computes the same", tuned, task, self.want)

    def keeps_its_base(self, tuned, task):
        """Casting and quantizing the base does not reach the method."""
        before, frozen, base = state(tuned), of_bytes(tuned.frozen), self.model
        scheme = drawn(SCHEMES[self.rng.choice(list(SCHEMES))], self.rng)
        plain = tuple(path for path, m in base.named_modules() if path.startswith("blocks.") and type(m) is Linear)
        targets = plain if plain and self.rng.random() < 0.5 else "all"
        whole = self.attempt(lambda: tp.quantize(base, scheme, self.calibration, targets), base, tuned)
        if self.quantized and targets == "all": self.holds("a quantized layer is not quantized again", whole is None)
        base.to(np.float32 if self.is_float64 else np.float64)
        self.holds("what is done to the base leaves the method alone", state(tuned) == before)
        self.holds("what is done to the base leaves its twin alone", of_bytes(tuned.frozen) == frozen)
        self.same_outputs("beside a changed base it computes the same", tuned, task, self.want)

    def starts_by_loftq(self, fresh):
        """LoftQ leaves no larger an error than rounding alone, and its base and LoRA come back from their files."""
        if type(self.method) is not tp.LoRA or self.scheme: return
        name = self.rng.choice(["uniform", "float", "nf4", "gguf"])
        scheme, rounds = drawn(SCHEMES[name], self.rng), int(self.rng.integers(1, 4))
        model, head = copy.deepcopy(fresh), self.head and self.head[0]
        tuned = self.attempt(lambda: tp.loftq(model, self.method, scheme, rounds, rng=1, head=head), model)
        if tuned is None: return
        for path, w in tuned.wrappers.items():
            W = fresh.get(path).weight.data.astype(np.float32)
            error = np.linalg.norm(W - w.base.dense_weight() - w.delta())
            alone = np.linalg.norm(W - scheme.quantize(W).dequantize())
            fine = error <= alone + 1e-5 * np.linalg.norm(W)
            self.holds("LoftQ's error is not above rounding's", fine, f"{error}, {alone}")
        folder, logits = Path(self.folder) / "loftq", self.logits(tuned)
        tuned.save(folder)
        tp.save_quantized(tuned.detach(), folder / "base.safetensors")
        loaded = tp.load_adapter(tp.load_quantized(folder / "base.safetensors"), folder)
        self.same("LoftQ's LoRA and base come back", self.logits(loaded), logits)

    def is_cast(self, tuned, task):
        """A method is cast with the twin of its base, and the base is not."""
        twin, other = copy.deepcopy(tuned), np.float32 if self.is_float64 else np.float64
        twin.to(other)
        self.holds("casting a method leaves the base alone", of_bytes(twin.detach()) == of_bytes(self.model))
        for a, b in zip(self.outputs(twin, task), self.want, strict=True):
            self.holds("cast, it has the base's precision", a.dtype == other)
            if not self.rounding: self.near("cast, it computes the same", a, b, 3)

    def is_shown(self, tuned):
        for thing in (tuned, self.model, tuned.summary()):
            self.holds("it can be shown", repr(thing) and thing._repr_html_())

    # -- all of it
    def run(self, folder):
        self.folder = folder
        self.prepare()
        tuned, fresh, base = self.put_on()
        separator = getattr(tuned.virtual, "separator", None)
        if separator is not None: self.calibration[:] = separator
        self.starts_as_the_base(tuned, fresh)
        self.counts(tuned, fresh)
        task = self.trains_alone(tuned)
        self.want = self.outputs(tuned, task)
        self.has_its_gradients(tuned, task)
        self.keeps_rows_apart(tuned, fresh, task)
        self.is_disabled(tuned, fresh, task)
        self.is_shown(tuned)
        self.merges(tuned, task)
        self.saves(tuned, fresh, task)
        self.saves_base(fresh)
        self.copies(tuned, fresh, task)
        self.generates(tuned, task)
        self.special(tuned, task)
        self.want = self.outputs(tuned, task)                         # at another rank, perhaps
        self.is_cast(tuned, task)
        self.starts_by_loftq(fresh)
        self.is_switched(tuned, base, fresh, task)
        self.lives_beside(tuned, base, task)
        self.keeps_its_base(tuned, task)


def run(seed, i, **classes):
    """Run configuration i: (it, None or what broke). classes: `methods` and `schemes`, to draw from fewer."""
    configuration = Configuration(seed, i, **classes)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "GPTQ: ")                   # of little or degenerate calibration
        try:
            configuration.run(folder)
        except Exception:                                             # whatever it is, the search goes on
            return configuration, traceback.format_exc()
    return configuration, None


class Found:
    """What a search has found so far."""

    def __init__(self, seed):
        self.seed, self.count, self.start, self.failures = seed, 0, time.perf_counter(), []
        self.checks, self.pairs, self.refusals = (collections.Counter() for _ in range(3))

    def add(self, i, whole=False):
        """Run configuration i, and print what broke: its last line, or the `whole` traceback."""
        c, broken = run(self.seed, i)
        kind = lambda x: "none" if x is None else type(x).__name__
        self.count += 1
        self.checks += c.checks
        self.pairs[f"{kind(c.scheme)} × {kind(c.method)}"] += 1
        self.refusals.update(r.split(":")[0] for r in c.refusals)
        if not broken: return
        self.failures.append({"configuration": repr(c), "broken": broken.strip().splitlines()[-1]})
        print(f"{c!r}\n{broken if whole else self.failures[-1]['broken']}\n", flush=True)

    def figures(self):
        return {"configurations": self.count, "seed": self.seed, "pairs_of_scheme_and_method": len(self.pairs),
                "failures": self.failures,
                "promises_checked": sum(self.checks.values()), "refusals": sum(self.refusals.values()),
                "seconds": round(time.perf_counter() - self.start), "checks": dict(sorted(self.checks.items())),
                "refusals_by_error": dict(sorted(self.refusals.items())),
                "schemes_and_methods": dict(sorted(self.pairs.items()))}


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--count", type=int, default=200)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--only", type=int, help="the number of one configuration")
    p.add_argument("--record", action="store_true", help="write the figures, after every hundred configurations")
    args = p.parse_args(argv)
    found = Found(args.seed)
    for i in range(args.count) if args.only is None else [args.only]:
        found.add(i, args.only is not None)
        if args.record and (found.count % 100 == 0 or found.count == args.count):
            record("configurations", found.figures())
    f = found.figures()
    print(f"{f['configurations']} configurations, {len(found.pairs)} pairs of scheme and method, "
          f"{f['promises_checked']:,} promises checked, {f['refusals']:,} refusals, {len(found.failures)} broken, "
          f"{f['seconds']} s")
    return len(found.failures)


if __name__ == "__main__":
    raise SystemExit(bool(main()))
