"""Random verbs on PeftModels of one base, and on the base itself; and Ctrl-C at every line that a verb runs.

    python -m tests.stress.verbs --count 20000 --record

A walk holds a base, up to three PeftModels of it, and a shadow of each: the base as it was at `attach`, and copies of what each
part learned. Some verbs are the base's own: it is trained, quantized, loaded, cast, and another PeftModel is merged into it.
After each verb the base has the numbers that its own verbs gave it, no number of a part has moved, and each PeftModel computes
what a new one with these parts computes on the base of its shadow, bit for bit. A verb may refuse, by a named error, and then
nothing has changed. The new model is attached and loaded in one go, so the walk finds what attaching, merging and switching in
steps gets wrong, and not a wrong equation. Of parts that exclude each other one is on, what is off is loaded, saved and merged
with the rest, and what cannot hold it refuses it: the table of `tinypeft/peft/part.py`.

An interrupt is a KeyboardInterrupt raised at one line of the package; every line that the verb runs is tried. Afterwards the
state is the one before the verb or the one after it. `disabled`, whose end may be cut off, is ended; `train`, `to` and
`load_state_dict` are run again, and then the state is the one after. `merge(in_place=True)` is left out: it says what an
interrupt leaves.
"""
import argparse
import collections
import copy
import pickle
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import tinypeft as tp
from tests.conftest import make_gpt
from tests.families import make
from tests.protocol import move
from tests.stress import record
from tests.stress.configurations import Broken
from tests.stress.configurations import state as state_of
from tests.toys import Noise, same
from tinypeft.engine.optim import AdamW

METHODS = (
    tp.LoRA(2, targets="all", dropout=0.5), tp.LoRA(3, targets=("query", "up")), tp.LoRA(2, targets=("value",), dropout=0.3),
    tp.AdaLoRA(init_rank=3, target_rank=2), tp.DyLoRA(rank=3, targets=("query", "down")), tp.IA3(), tp.IA3(("query",), None),
    tp.FullFineTuning(("query",)), tp.FullFineTuning(("bias",)), tp.FullFineTuning(("norm1", "final_norm")),
    tp.BottleneckAdapter(4, norms=False), tp.BottleneckAdapter(4, placement="pfeiffer", activation="relu"),
    tp.ParallelAdapter(4, beside="both"), tp.PrefixTuning(2, hidden=5), tp.PTuningV2(2, dropout=0.5), tp.PromptTuning(2),
    tp.PTuning(hidden=4), tp.PEQA(bits=4), tp.TrainableTokens((3, 7, 36)), tp.LoReFT(2, first=2, last=1))
LOW_RANK = [m for m in METHODS if isinstance(m, tp.LoRA | tp.AdaLoRA | tp.DyLoRA)]
WEIGHTS = [tp.LoRA(2, targets=("query",)), tp.IA3(("query",), None), tp.FullFineTuning(("query",))]      # of the same layers
CODED = {"coded gpt": ("GPT", {"d_model": 32}), "coded llama": ("Llama", {"d_model": 32, "d_mlp": 32, "d_head": 8})}
BASES = "gpt", "gpt", "gpt", "nf4", "peqa", "llama", *CODED
REFUSALS = ValueError, TypeError, KeyError
TOKENS = np.random.default_rng(0).integers(0, 37, (2, 5))
CLOSE = 1e-6                     # of what was merged, whose sums have another order


def base_model(kind):
    """A small model in float64: a GPT or Llama, plain, in NF4, in PEQA's four bits, or with a GGUF file's codes everywhere."""
    if kind in CODED:                                    # rows are whole blocks of 32
        family, sizes = CODED[kind]
        return tp.quantize(make(family, **sizes), tp.GGUF("Q4_0", embeddings=True))
    if kind == "llama":
        config = tp.LlamaConfig(37, 24, 16, 2, 4, n_kv_heads=2, d_mlp=24, d_head=4)
        return tp.Llama(config, rng=0).to(np.float64)
    model = make_gpt()
    schemes = {"nf4": tp.NF4(block_size=16), "peqa": tp.PEQA(bits=4).uniform}
    return tp.quantize(model, schemes[kind]) if kind in schemes else model


def logits(model):
    with tp.no_grad(): return model(TOKENS).data


def arrays_of(part):
    return {name: array.copy() for name, array in part.state_dict().items()}


def stored(base, path, scale):
    """A layer's scales as `merge` stores them."""
    return scale.astype(base.get(path.removesuffix(".scale")).weight.scale.dtype)


class Shadow:
    """What a PeftModel should be: a copy of its base as it was, its mode, and name → (method, on, arrays) of its parts."""

    def __init__(self, tuned):
        self.base, self.training, self.want = copy.deepcopy(tuned.frozen), tuned.training, None
        self.base.attached = None
        self.read(tuned)

    def read(self, tuned):
        """Take the parts as they are."""
        self.parts = {name: (part.method, part.on, arrays_of(part)) for name, part in tuned.parts.items()}
        self.want = None

    def expected(self, merged=()):
        """The logits of these parts on a copy of the base. merged: parts whose PEQA has scales in the base's type."""
        if not merged and self.want is not None: return self.want
        on = {name: (method, arrays) for name, (method, is_on, arrays) in self.parts.items() if is_on}
        if not on: return logits(self.base)
        tuned = tp.attach(self.base, {name: method for name, (method, _) in on.items()}).eval()
        for name, (method, arrays) in on.items():
            if name in merged and isinstance(method, tp.PEQA):
                arrays = {path: stored(self.base, path, scale) for path, scale in arrays.items()}
            tuned.parts[name].load_state_dict(arrays)
        want = logits(tuned)
        if not merged: self.want = want
        return want

    def switched(self, names, on):
        for name in names: self.parts[name] = (self.parts[name][0], on, self.parts[name][2])
        self.want = None

    @property
    def off(self): return [name for name, (_, on, _) in self.parts.items() if not on]


class Walk:
    """One base, and what random verbs do to it and to its PeftModels."""

    def __init__(self, seed, bases=BASES):
        self.rng = np.random.default_rng(seed)
        self.model = base_model(self.rng.choice(bases))
        self.tuned, self.shadows = [], []
        self.counts, self.refused, self.verb = collections.Counter(), collections.Counter(), "attach"
        self.written()
        self.start()

    def start(self):
        """Put methods on the base; those that do not fit each other are drawn again."""
        while not self.tuned:
            try: self.attach()
            except REFUSALS: pass

    def written(self):
        """The base is to stay as it is now: its own verb is over."""
        self.base, self.objects, self.logits = state_of(self.model), self.model.state_dict(), logits(self.model)

    # -- the promises
    def promise(self, words, holds):
        if not holds: raise Broken(f"after {self.verb}: {words}")

    def check(self):
        """The base, the parts and the functions are what the shadows say."""
        self.promise("the base is another", state_of(self.model) == self.base and self.model.attached is None)
        now = self.model.state_dict()
        self.promise("the base has other arrays", all(array is self.objects[name] for name, array in now.items()))
        self.promise("the base is another function", np.array_equal(logits(self.model), self.logits))
        for tuned, shadow in zip(self.tuned, self.shadows, strict=True): self.check_one(tuned, shadow)

    def check_one(self, tuned, shadow):
        self.promise("the parts have other names", list(tuned.parts) == list(shadow.parts))
        for name, (_, on, arrays) in shadow.parts.items():
            self.promise(f"{name} is on or off", tuned.parts[name].on == on)
            self.promise(f"{name} has other numbers", same(arrays_of(tuned.parts[name]), arrays))
        alone = [name for part in tuned.used() for name in part.trained]
        alone += [part.virtual.seam for part in tuned.used() if part.virtual]
        self.promise("two that exclude each other are on", len(alone) == len(set(alone)))
        self.promise("the twin has other numbers", same(tuned.frozen.state_dict(), shadow.base.state_dict()))
        self.promise("detach gives another model", tuned.detach() is self.model)
        roots = tuned, tuned.frozen, *(module for part in tuned.parts.values() for _, module in part.modules())
        modes = {module.training for root in roots for _, module in root.named_modules()}
        self.promise("the mode is another", modes == {shadow.training} and not tuned.is_disabled)
        if tuned.training: return                            # dropout draws
        self.promise("the function is another", np.array_equal(logits(tuned), shadow.expected()))

    def near(self, words, model, want):
        self.promise(words, np.abs(logits(model) - want).max() < CLOSE * (1 + np.abs(want).max()))

    # -- what a verb needs
    def any_of(self, values): return values[self.rng.integers(len(values))]

    def subset(self, names):
        chosen = [name for name in names if self.rng.random() < 0.5]
        return chosen or [self.any_of(list(names))]

    def one(self):
        """A PeftModel and its shadow."""
        i = self.rng.integers(len(self.tuned))
        return self.tuned[i], self.shadows[i]

    def methods(self):
        pool = [LOW_RANK, WEIGHTS, METHODS, METHODS][self.rng.integers(4)]
        return [self.any_of(pool) for _ in range(self.rng.integers(1, 4))]

    # -- the verbs: each does one thing to a PeftModel, and the same to its shadow
    def attach(self):
        if len(self.tuned) == 3:                             # one of them is thrown away
            i = self.rng.integers(3)
            del self.tuned[i], self.shadows[i]
        tuned = tp.attach(self.model, *self.methods(), rng=self.rng.integers(99))
        self.promise("a new one has another mode", tuned.training == self.model.training)
        move(tuned, self.rng)
        self.tuned.append(tuned)
        self.shadows.append(Shadow(tuned))

    def add(self):
        tuned, shadow = self.one()
        tuned.add(*self.methods(), rng=self.rng.integers(99))
        shadow.read(tuned)

    def add_another(self):
        tuned, shadow = self.one()
        others = [other for other in self.tuned if self.rng.random() < (0.1 if other is tuned else 0.6)]
        tuned.add(*others)
        gone = [i for i, other in enumerate(self.tuned) if any(other is given for given in others)]
        shadow.read(tuned)
        for i in gone[::-1]: self.emptied(i)

    def emptied(self, i):
        """A PeftModel without parts says so when it is called, and is left alone."""
        self.promise("the giver keeps parts", not self.tuned[i].parts)
        try: self.tuned[i](TOKENS)
        except tp.peft.MethodError as error: self.promise("the error says another thing", "no methods any more" in str(error))
        else: self.promise("it can still be called", False)
        del self.tuned[i], self.shadows[i]

    def learn(self):
        tuned, shadow = self.one()
        for part, (_, _, arrays) in zip(tuned.parts.values(), shadow.parts.values(), strict=True):
            for name in arrays:                          # with probability ½, so that some stay
                if arrays[name].dtype.kind == "f" and self.rng.random() < 0.5:
                    arrays[name] = arrays[name] + 0.1 * self.rng.standard_normal(arrays[name].shape)
            arrays |= {name: array.astype(part.state_dict()[name].dtype) for name, array in arrays.items()}
        tuned.load_state_dict({f"{name}/{path}": array for name, (_, _, arrays) in shadow.parts.items()
                               for path, array in arrays.items()})
        shadow.want = None

    def switch(self, on):
        tuned, shadow = self.one()
        names, held = self.subset(tuned.parts), tuned.model.eval()
        before = logits(held)
        try: (tuned.reattach if on else tuned.detach)(*names)
        finally:
            self.promise("a model that was held is another", np.array_equal(logits(held), before))
            held.train(tuned.training)
        shadow.switched(names, on)

    def part_off(self): self.switch(False)
    def part_on(self): self.switch(True)
    def reattach(self):
        tuned, shadow = self.one()
        shadow.switched(tuned.reattach().parts, True)

    def mode(self):
        tuned, shadow = self.one()
        shadow.training = tuned.train(self.rng.random() < 0.3).training

    def disabled(self, tuned=None):
        tuned = tuned or self.one()[0]
        want = logits(self.shadows[self.tuned.index(tuned)].base)
        with tuned.disabled() as base:
            self.promise("disabled is not the base", np.array_equal(logits(base), want))
            self.promise("disabled it is not the base", np.array_equal(logits(tuned), want))

    def gradients(self):
        """Between backward and step, what switches for a moment keeps the gradients."""
        tuned, shadow = self.one()
        trained = tuned.trainable_parameters()
        if not trained: return
        tuned(TOKENS).sum().backward()
        before = [p.grad for p in trained]
        names = [name for name, part in tuned.parts.items() if part.on]
        if self.rng.random() < 0.3: self.save(tuned, shadow)
        elif self.rng.random() < 0.5: self.disabled(tuned)
        else:
            tuned.detach(*names)
            tuned.reattach(*names)
        self.promise("gradients are lost", all(p.grad is grad for p, grad in zip(trained, before, strict=True)))
        for p in trained: p.grad = None

    def merge(self):
        tuned, shadow = self.one()
        names = self.subset(tuned.parts) if self.rng.random() < 0.8 else []
        rest = tuned.merge(*names)
        self.near("merged is another function", rest.eval(), shadow.expected(names or shadow.parts))
        if isinstance(rest, tp.PeftModel):               # what stays can still be taken off and saved
            with tempfile.TemporaryDirectory() as folder:
                rest.save(folder)
                again = tp.load_adapter(rest.detach(), folder)
            self.promise("merged, saved and loaded differs", np.array_equal(logits(again.eval()), logits(rest)))

    def merge_in_place(self):
        i = self.rng.integers(len(self.tuned))
        tuned, shadow = self.tuned[i], self.shadows[i]
        if self.rng.random() < 0.3: return
        names = self.subset(tuned.parts) if self.rng.random() < 0.7 else []
        want = shadow.expected(names or shadow.parts)
        stay = [name for name in tuned.parts if name not in names] if names else shadow.off
        merged = tuned.merge(*names, in_place=True)
        self.promise("merged in place has other parts", list(tuned.parts) == stay)
        self.promise("merged in place gives another thing", merged is (tuned if stay else self.model))
        self.written()
        self.near("merged in place is another function", merged.eval(), want)
        if stay:
            self.shadows[i] = Shadow(tuned)
            return
        self.emptied(i)
        self.written()
        self.start()

    def combine(self):
        tuned, shadow = self.one()
        w = float(self.rng.choice([1.0, 1.0, 0.5]))
        want = shadow.expected()
        result = tp.combine({tuned: w})
        self.promise("what is off was combined", not shadow.off)
        self.promise("combined is on another base", result.detach() is self.model)
        if w == 1: self.near("combined is another function", result.eval(), want)

    def mixed(self):
        """Rows of every PeftModel and of the base in one call."""
        wants = {None: self.logits} | {i: shadow.expected() for i, shadow in enumerate(self.shadows)}
        tasks, tokens = [task for task in wants for _ in TOKENS], np.tile(TOKENS, (len(wants), 1))
        rows = tp.mixed_batch(self.model, dict(enumerate(self.tuned)), tokens, tasks).data
        if any(tuned.training for tuned in self.tuned): return                       # dropout draws
        self.promise("a row of a mixed batch differs", np.abs(rows - np.concatenate([*wants.values()])).max() < 1e-9)

    def save(self, tuned=None, shadow=None):
        if tuned is None: tuned, shadow = self.one()
        with tempfile.TemporaryDirectory() as folder:
            tuned.save(folder)
            again = tp.load_adapter(shadow.base, folder).eval()
        self.promise("saved and loaded differs", np.array_equal(logits(again), shadow.expected()))
        self.promise("saved and loaded has other parts on", Shadow(again).off == shadow.off)
        self.promise("saved and loaded has other numbers", same(again.state_dict(False), tuned.state_dict(False)))

    def copied(self, copier):
        tuned, shadow = self.one()
        again = copier(tuned)
        self.promise("a copy has other parts on", Shadow(again).off == shadow.off)
        self.promise("a copy differs", np.array_equal(logits(again.eval()), shadow.expected()))
        self.promise("a copy's base differs", same(again.detach().state_dict(), self.model.state_dict()))

    def deepcopy(self): self.copied(copy.deepcopy)
    def pickle(self): self.copied(lambda tuned: pickle.loads(pickle.dumps(tuned)))

    # -- the verbs of the base: each writes it, and no PeftModel sees it
    def base_mode(self):
        self.model.train(self.rng.random() < 0.3)
        self.written()

    def base_learns(self):
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = AdamW(trained, lr=1e-2)
        for _ in range(2):
            optimizer.zero_grad()
            Noise(T=5).loss(self.model, Noise(T=5).batch("train", 2, self.rng)).backward()
            optimizer.step()
        optimizer.zero_grad()
        self.written()

    def base_is_quantized(self):
        tp.quantize(self.model, tp.NF4(block_size=16))
        self.written()

    def base_is_loaded(self):
        state = {name: p.data * self.rng.uniform(0.8, 1.2, p.shape) for name, p in self.model.named_parameters()}
        self.model.load_state_dict(state, strict=False)
        self.written()

    def base_is_cast(self):
        """To float32, and back with what is left of its digits."""
        self.model.to(np.float32)
        for tuned, shadow in zip(self.tuned, self.shadows, strict=True): self.check_one(tuned, shadow)
        self.model.to(np.float64)
        self.written()

    VERBS = (attach, attach, add, add_another, add_another, learn, part_off, part_off, part_on, part_on, reattach, mode, mode,
             disabled, gradients, merge, merge, merge_in_place, combine, combine, mixed, save, deepcopy, pickle) * 2 + (
             base_mode, base_learns, base_is_quantized, base_is_loaded, base_is_cast)    # after these two are rarely alike

    def step(self):
        """One random verb, and every promise after it."""
        verb = self.any_of(self.VERBS)
        self.verb = verb.__name__
        self.counts[self.verb] += 1
        try: verb(self)
        except REFUSALS as error:
            if not str(error): raise
            self.refused[self.verb] += 1
        self.check()


def walk(seed, verbs, bases=BASES):
    """(verbs done, refused) of one walk; Broken names the seed."""
    path = Walk(seed, bases)
    for _ in range(verbs):
        try: path.step()
        except Exception as error: raise Broken(f"seed {seed}: {path.verb}: {type(error).__name__}: {error}") from error
    return path.counts, path.refused


# -- interrupts ------------------------------------------------------------------------------------
PACKAGE = str(Path(tp.__file__).parent)


class LineCounter:
    """A trace function that counts the lines of the package, and raises KeyboardInterrupt at the one numbered `at`."""

    def __init__(self, at=None): self.at, self.count, self.where = at, 0, None

    def __call__(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE): return None
        if event == "line":
            if self.count == self.at:
                self.where = f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno}"
                sys.settrace(None)
                raise KeyboardInterrupt
            self.count += 1
        return self

    def run(self, call):
        before = sys.gettrace()
        sys.settrace(self)
        try: call()
        except KeyboardInterrupt:
            if self.where is None: raise                 # the user's own
        finally: sys.settrace(before)


PARTS = {"full": tp.FullFineTuning(("query",)), "lora": tp.LoRA(2, targets=("query", "up"), dropout=0.5),
         "dylora": tp.DyLoRA(4, targets=("value",)), "prefix": tp.PrefixTuning(2, hidden=5), "ia3": tp.IA3()}


def scene():
    """A PeftModel of five parts with one of them off, and another one of the same base."""
    model = make_gpt(n_layers=1)
    other = tp.attach(model, {"other": tp.LoRA(3, targets=("query", "down"))}, rng=1)
    move(other, np.random.default_rng(1))
    tuned = tp.attach(model, PARTS, rng=0)
    move(tuned, np.random.default_rng(0))
    tuned.detach("ia3")
    return tuned, other


def in_disabled(tuned, other):
    with tuned.disabled(): pass


def saved(tuned, other):
    with tempfile.TemporaryDirectory() as folder:
        tuned.save(folder)
        tp.load_adapter(tuned.base, folder)


INTERRUPTED = {
    "attach": lambda tuned, other: tp.attach(tuned.base, tp.LoRA(2)), "add": lambda tuned, other: tuned.add(tp.PromptTuning(2)),
    "add, with data": lambda tuned, other: tuned.add(tp.LoRA(2, targets=("key",), init="corda"), calibration=TOKENS),
    "add another": lambda tuned, other: tuned.add(other), "detach": lambda tuned, other: tuned.detach(),
    "detach a part": lambda tuned, other: tuned.detach("lora"), "reattach": lambda tuned, other: tuned.reattach(),
    "reattach a part": lambda tuned, other: tuned.reattach("ia3"), "disabled": in_disabled, "save": saved,
    "merge": lambda tuned, other: other.merge(), "merge a part": lambda tuned, other: tuned.merge("full", "lora"),
    "combine": lambda tuned, other: tp.combine({other: 1.0}), "combine, refused": lambda tuned, other: tp.combine({tuned: 1.0}),
    "to low rank": lambda tuned, other: tp.to_low_rank(other, 1), "fold": lambda tuned, other: tuned.fold(),
    "set_rank": lambda tuned, other: tuned.set_rank(2), "train": lambda tuned, other: tuned.train(),
    "to": lambda tuned, other: tuned.to(np.float32),
    "load_state_dict": lambda tuned, other: tuned.load_state_dict({n: a * 0 + 1 for n, a in tuned.state_dict().items()})}
AGAIN = "train", "to", "load_state_dict"                 # half of it may be done; done again, all is


def all_of(tuned):
    """Everything of a PeftModel that a verb may leave half done."""
    found = [tuple(tuned.parts), tuned.off, tuned.training, tuned.is_disabled, tuned.virtual_length]
    if not tuned.parts: return found
    found += [str(tuned.model.attached), {name: (a.dtype, a.tobytes()) for name, a in tuned.state_dict().items()}]
    inside = [module for _, module in tuned.model.named_modules()]
    found.append([(path, any(wrapper is module for module in inside)) for path, wrapper in tuned.wrappers.items()])
    found += [[(name, module.training) for name, module in root.named_modules()] for root in (tuned, tuned.frozen)]
    found.append([(name, p.requires_grad, p.data.tobytes()) for name, p in tuned.model.named_parameters()])
    tuned.eval()
    found.append(logits(tuned).tobytes())
    with tuned.disabled(): return [*found, logits(tuned).tobytes()]


def interrupt(verb, stride=1, first=0, say=print):
    """(interrupts, harm done) at every `stride`-th line that a verb runs."""
    template, call, counter = pickle.dumps(scene()), INTERRUPTED[verb], LineCounter()
    before = [*map(all_of, pickle.loads(template))]
    both = pickle.loads(template)
    try: counter.run(lambda: call(*both))
    except REFUSALS: pass
    after = [*map(all_of, both)]
    done, bad = 0, 0
    for at in range(first, counter.count, stride):
        tuned, other = pickle.loads(template)
        base, trace = state_of(tuned.base), LineCounter(at)
        try: trace.run(lambda: call(tuned, other))       # noqa: B023
        except REFUSALS: pass
        if trace.where is None: continue
        done += 1
        if verb in AGAIN: call(tuned, other)
        tuned.is_disabled = False
        try:
            now = [all_of(tuned), all_of(other)]
            found = "" if now == after or now == before and verb not in AGAIN else "neither the state before nor the one after"
            if state_of(tuned.base) != base or other.base is not tuned.base: found = "the base changed"
        except Exception as error: found = f"{type(error).__name__}: {error}"
        bad += bool(found)
        if found: say(f"{verb}, interrupted at {trace.where}: {found}")
    return done, bad


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--count", type=int, default=20000, help="how many verbs (default 20000)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--bases", choices=BASES, nargs="+", default=BASES, help="walk on these models alone")
    p.add_argument("--only", choices=INTERRUPTED, nargs="*", help="interrupt these verbs alone; no walks")
    p.add_argument("--record", action="store_true", help="write results/verbs.json")
    args = p.parse_args()
    begin, counts, refused, broken = time.perf_counter(), collections.Counter(), collections.Counter(), 0
    for i in range(0 if args.only else args.count // 100):
        try: done, no = walk(args.seed + i, 100, args.bases)
        except Broken as error:
            broken += 1
            print(error)
            continue
        counts += done
        refused += no
    lines, harmed = 0, 0
    for verb in args.only or INTERRUPTED:
        done, bad = interrupt(verb)
        print(f"{verb}: {done} interrupts, {bad} did harm", flush=True)
        lines, harmed = lines + done, harmed + bad
    figures = {"seed": args.seed, "verbs": sum(counts.values()), "refused": sum(refused.values()), "walks broken": broken,
               "interrupts": lines, "did harm": harmed, "by verb": dict(sorted(counts.items())),
               "seconds": round(time.perf_counter() - begin)}
    print(figures)
    if args.record: print(record("verbs", figures))
    if broken or harmed: raise SystemExit("verbs: see above")


if __name__ == "__main__":
    main()
