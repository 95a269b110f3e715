"""Random verbs on one model with several methods, and Ctrl-C at every line that a verb runs.

    python -m tests.stress.verbs --count 20000 --record

A walk holds a model, one or two PeftModels on it, and a shadow: copies of the base's arrays and of what each part learned.
After each verb the base is the shadow's bit for bit, no number of a part has moved, and the model computes what a new model
with these parts computes. A verb may refuse, by a named error, and then nothing has changed. The new model is attached and
loaded in one go, so the walk finds what attaching, merging and switching in steps gets wrong, and not a wrong equation.
Of parts that exclude each other one is on, what is off is loaded, saved and merged with the rest, and what cannot hold it
refuses it: the table of `tinypeft/peft/part.py`.

An interrupt is a KeyboardInterrupt raised at one line of the package; every line that the verb runs is tried. Afterwards the
methods are put back if they are off, and all of the above holds. `merge(in_place=True)` is left out: it says what an interrupt
leaves.
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
from tests.toys import same
from tinypeft.peft.attachment import bare

METHODS = (
    tp.LoRA(2, targets="all", dropout=0.5), tp.LoRA(3, targets=("query", "up")), tp.LoRA(2, targets=("value",), dropout=0.3),
    tp.AdaLoRA(init_rank=3, target_rank=2), tp.DyLoRA(rank=3, targets=("query", "down")), tp.IA3(), tp.IA3(("query",), None),
    tp.FullFineTuning(("query",)), tp.FullFineTuning(("bias",)), tp.FullFineTuning(("norm1", "final_norm")),
    tp.BottleneckAdapter(4, norms=False), tp.BottleneckAdapter(4, placement="pfeiffer", activation="relu"),
    tp.ParallelAdapter(4, beside="both"), tp.PrefixTuning(2, hidden=5), tp.PTuningV2(2, dropout=0.5), tp.PromptTuning(2),
    tp.PTuning(hidden=4), tp.PEQA(bits=4), tp.TrainableTokens((3, 7, 36)), tp.LoReFT(2, first=2, last=1))
LOW_RANK = [m for m in METHODS if isinstance(m, tp.LoRA | tp.AdaLoRA | tp.DyLoRA)]
CODED = {"coded gpt": ("GPT", {"d_model": 32}), "coded llama": ("Llama", {"d_model": 32, "d_mlp": 32, "d_head": 8})}
BASES = "gpt", "gpt", "nf4", "peqa", "llama", *CODED
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
    """What the parts of one PeftModel should be: name → (method, on, arrays)."""

    def __init__(self, tuned):
        self.parts = {name: (part.method, part.on, arrays_of(part)) for name, part in tuned.parts.items()}

    def expected(self, base, merged=()):
        """The logits of these parts on a new copy of the base. merged: parts whose PEQA has scales in the base's type."""
        on = {name: (method, arrays) for name, (method, is_on, arrays) in self.parts.items() if is_on}
        model = copy.deepcopy(base)
        if not on: return logits(model)
        tuned = tp.attach(model, {name: method for name, (method, _) in on.items()})
        for name, (method, arrays) in on.items():
            if name in merged and isinstance(method, tp.PEQA):
                arrays = {path: stored(base, path, scale) for path, scale in arrays.items()}
            tuned.parts[name].load_state_dict(arrays)
        return logits(tuned)

    def switched(self, names, on):
        for name in names: self.parts[name] = (self.parts[name][0], on, self.parts[name][2])

    @property
    def off(self): return [name for name, (_, on, _) in self.parts.items() if not on]


class Walk:
    """One model, and what random verbs do to it."""

    def __init__(self, seed, bases=BASES):
        self.rng = np.random.default_rng(seed)
        self.model = base_model(self.rng.choice(bases))
        self.base, self.tuned, self.shadows = copy.deepcopy(self.model), [], []
        self.counts, self.refused, self.verb = collections.Counter(), collections.Counter(), "attach"
        self.start()

    def start(self):
        """Put methods on the model; those that do not fit each other are drawn again."""
        while not self.tuned:
            try: self.attach()
            except REFUSALS: pass

    # -- the promises
    def promise(self, words, holds):
        if not holds: raise Broken(f"after {self.verb}: {words}")

    def check(self):
        """The base, the parts and the function are what the shadow says."""
        for tuned, shadow in zip(self.tuned, self.shadows, strict=True):
            self.promise("the parts have other names", list(tuned.parts) == list(shadow.parts))
            for name, (_, on, arrays) in shadow.parts.items():
                self.promise(f"{name} is on or off", tuned.parts[name].on == on)
                self.promise(f"{name} has other numbers", same(arrays_of(tuned.parts[name]), arrays))
            alone = [name for part in tuned.used() for name in part.trained]
            alone += [part.virtual.seam for part in tuned.used() if part.virtual]
            self.promise("two that exclude each other are on", len(alone) == len(set(alone)))
        with bare(self.model): self.promise("the base has other numbers", same(self.model.state_dict(), self.base.state_dict()))
        active = [i for i, tuned in enumerate(self.tuned) if tuned.active]
        self.promise("two are active", len(active) < 2)
        model = self.tuned[active[0]] if active else self.model
        if model.training or self.model.training: return         # dropout draws
        want = self.shadows[active[0]].expected(self.base) if active else logits(self.base)
        self.promise("the function is another", np.array_equal(logits(model), want))

    def near(self, words, model, want):
        self.promise(words, np.abs(logits(model) - want).max() < CLOSE * (1 + np.abs(want).max()))

    # -- what a verb needs
    def any_of(self, values): return values[self.rng.integers(len(values))]

    def subset(self, names):
        chosen = [name for name in names if self.rng.random() < 0.5]
        return chosen or [self.any_of(list(names))]

    def one(self):
        """A PeftModel and its shadow; usually the one that is on the model."""
        i = self.rng.integers(len(self.tuned))
        on = [k for k, tuned in enumerate(self.tuned) if tuned.active]
        if on and self.rng.random() < 0.7: i = on[0]
        return self.tuned[i], self.shadows[i]

    def methods(self):
        pool = LOW_RANK if self.rng.random() < 0.3 else METHODS
        return [self.any_of(pool) for _ in range(self.rng.integers(1, 4))]

    # -- the verbs: each does one thing to the model, and the same to the shadow
    def attach(self):
        if len(self.tuned) == 2: return
        tuned = tp.attach(self.model, *self.methods(), rng=self.rng.integers(99))
        move(tuned, self.rng)
        self.tuned.append(tuned)
        self.shadows.append(Shadow(tuned))

    def add(self):
        tuned, shadow = self.one()
        tuned.add(*self.methods(), rng=self.rng.integers(99))
        shadow.parts = Shadow(tuned).parts

    def add_another(self):
        tuned, shadow = self.one()
        others = [self.any_of(self.tuned) for _ in range(self.rng.integers(1, 3))]
        tuned.add(*others)
        gone = [i for i, other in enumerate(self.tuned) if any(other is given for given in others)]
        shadow.parts = Shadow(tuned).parts
        for i in gone[::-1]:
            self.promise("the giver keeps parts", not self.tuned[i].parts)
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

    def switch(self, on):
        tuned, shadow = self.one()
        names = self.subset(tuned.parts)
        (tuned.reattach if on else tuned.detach)(*names)
        shadow.switched(names, on)

    def part_off(self): self.switch(False)
    def part_on(self): self.switch(True)
    def detach(self): self.one()[0].detach()
    def reattach(self): self.one()[0].reattach()
    def activate(self): self.any_of(self.tuned).activate()
    def training(self): self.one()[0].train()
    def eval(self): self.one()[0].eval()
    def eval_base(self): self.model.eval()

    def disabled(self, tuned=None):
        tuned = tuned or self.one()[0]
        with tuned.disabled() as base:
            if self.rng.random() < 0.5: tuned.eval()
            if not base.training: self.promise("disabled is not the base", np.array_equal(logits(base), logits(self.base)))

    def gradients(self):
        """Between backward and step, what takes the parts off for a moment keeps the gradients."""
        tuned, _ = self.one()
        trained = tuned.trainable_parameters()
        if not tuned.active or not trained: return
        tuned(TOKENS).sum().backward()
        before = [p.grad for p in trained]
        if self.rng.random() < 0.5: self.save(tuned, self.shadows[self.tuned.index(tuned)])
        else: self.disabled(tuned)
        self.promise("gradients are lost", all(p.grad is grad for p, grad in zip(trained, before, strict=True)))
        for p in trained: p.grad = None

    def merge(self):
        tuned, shadow = self.one()
        names = self.subset(tuned.parts) if self.rng.random() < 0.8 else []
        rest = tuned.merge(*names)
        self.near("merged is another function", rest.eval(), shadow.expected(self.base, names or shadow.parts))
        if isinstance(rest, tp.PeftModel):               # what stays can still be taken off and saved
            with tempfile.TemporaryDirectory() as folder:
                rest.save(folder)
                again = tp.load_adapter(copy.deepcopy(rest).detach(), folder)
            self.promise("merged, saved and loaded differs", np.array_equal(logits(again.eval()), logits(rest)))

    def merge_in_place(self):
        tuned, shadow = self.one()
        if len(self.tuned) > 1 or self.rng.random() < 0.5: return
        names = self.subset(tuned.parts) if self.rng.random() < 0.7 else []
        want = shadow.expected(self.base, names or shadow.parts)
        stay = [name for name in tuned.parts if name not in names] if names else shadow.off
        tuned.merge(*names, in_place=True)
        self.promise("merged in place has other parts", list(tuned.parts) == stay)
        if not tuned.parts:
            self.tuned, self.shadows = [], []
            self.near("merged in place is another function", self.model.eval(), want)
            self.base = copy.deepcopy(self.model)
            self.start()
            return
        self.near("merged in place is another function", tuned.eval(), want)
        with bare(self.model): self.base = copy.deepcopy(self.model)
        shadow.parts = Shadow(tuned).parts

    def combine(self):
        tuned, shadow = self.one()
        w = float(self.rng.choice([1.0, 1.0, 0.5]))
        want = shadow.expected(self.base)
        was_active = tuned.active
        result = tp.combine({tuned: w})
        self.promise("what is off was combined", not shadow.off)
        if w == 1: self.near("combined is another function", result.eval(), want)
        result.detach()
        if was_active: tuned.reattach()

    def mixed(self):
        """Rows of every PeftModel and of the base in one call."""
        wants = {None: logits(self.base)} | {i: shadow.expected(self.base) for i, shadow in enumerate(self.shadows)}
        tasks, tokens = [task for task in wants for _ in TOKENS], np.tile(TOKENS, (len(wants), 1))
        rows = tp.mixed_batch(self.model, dict(enumerate(self.tuned)), tokens, tasks).data
        if self.model.training: return                       # dropout draws
        self.promise("a row of a mixed batch differs", np.abs(rows - np.concatenate([*wants.values()])).max() < 1e-9)

    def save(self, tuned=None, shadow=None):
        if tuned is None: tuned, shadow = self.one()
        with tempfile.TemporaryDirectory() as folder:
            tuned.save(folder)
            again = tp.load_adapter(copy.deepcopy(self.base), folder).eval()
        self.promise("saved and loaded differs", np.array_equal(logits(again), shadow.expected(self.base)))
        self.promise("saved and loaded has other parts on", Shadow(again).off == shadow.off)
        self.promise("saved and loaded has other numbers", same(again.state_dict(False), tuned.state_dict(False)))

    def copied(self, copier):
        tuned, shadow = self.one()
        again = copier(tuned)
        self.promise("a copy has other parts on", Shadow(again).off == shadow.off)
        if not again.active:
            if again.model.attached is not None: return
            again.reattach()
        self.promise("a copy differs", np.array_equal(logits(again.eval()), shadow.expected(self.base)))
        self.promise("a copy's base differs", same(again.detach().state_dict(), self.base.state_dict()))

    def deepcopy(self): self.copied(copy.deepcopy)
    def pickle(self): self.copied(lambda tuned: pickle.loads(pickle.dumps(tuned)))

    VERBS = (attach, add, add_another, learn, part_off, part_off, part_on, part_on, detach, reattach, reattach, activate,
             activate, training, eval, eval, eval_base, disabled, gradients, merge, merge, merge_in_place, combine, combine,
             mixed, save, deepcopy, pickle)

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
         "prefix": tp.PrefixTuning(2, hidden=5), "ia3": tp.IA3()}


def scene():
    """A PeftModel of four parts with one of them off, and another one of the same model, which is detached."""
    model = make_gpt()
    other = tp.attach(model, {"adapter": tp.BottleneckAdapter(4, norms=False)}, rng=1)
    move(other, np.random.default_rng(1))
    other.detach()
    tuned = tp.attach(model, PARTS, rng=0)
    move(tuned, np.random.default_rng(0))
    return tuned.detach("ia3") and tuned, other


def in_disabled(tuned, other):
    with tuned.disabled(): pass


def combined(tuned, other):
    """Another LoRA on the same model, alone: the methods of `tuned` come off for it."""
    lora = tp.attach(tuned.detach(), tp.LoRA(2))
    tp.combine({lora: 1.0})


def saved(tuned, other):
    with tempfile.TemporaryDirectory() as folder: tuned.save(folder)


INTERRUPTED = {
    "add": lambda tuned, other: tuned.add(tp.PromptTuning(2)), "add another": lambda tuned, other: tuned.add(other),
    "detach": lambda tuned, other: tuned.detach(), "detach a part": lambda tuned, other: tuned.detach("lora"),
    "reattach": lambda tuned, other: tuned.detach() and tuned.reattach(),
    "reattach a part": lambda tuned, other: tuned.reattach("ia3"), "activate": lambda tuned, other: other.activate(),
    "disabled": in_disabled, "merge": lambda tuned, other: tuned.merge("full", "lora"), "save": saved,
    "eval": lambda tuned, other: tuned.eval(), "combine, refused": lambda tuned, other: tp.combine({tuned: 1.0}),
    "combine": combined, "fold": lambda tuned, other: tuned.fold()}


def harm(tuned, other, before, base):
    """What an interrupt broke, in words, or None. before: Shadow of both, and `base` as it was."""
    if tuned.is_disabled or not tuned.active: tuned.activate()
    for name, (_, _, arrays) in before[0].parts.items():
        if name not in tuned.parts: return f"{name} is gone"
        now = arrays_of(tuned.parts[name])
        if not same({n: a for n, a in now.items() if n in arrays}, {n: a for n, a in arrays.items() if n in now}):
            return f"{name} has other numbers"
    if not np.array_equal(logits(tuned.eval()), Shadow(tuned).expected(base)): return "the function is another"
    model = tuned.detach()
    if not same(model.state_dict(), base.state_dict()): return "detach does not give the base back"
    if [p for p in model.parameters() if not p.requires_grad]: return "a parameter stays frozen"
    if other.parts:
        if not np.array_equal(logits(other.reattach().eval()), before[1].expected(base)): return "the other one is another"
        other.detach()
    if not np.array_equal(logits(model), logits(base)): return "the base is another function"
    return None


def interrupt(verb, stride=1, first=0, say=print):
    """(interrupts, harm done) at every `stride`-th line that a verb runs."""
    template = pickle.dumps(scene())
    call = INTERRUPTED[verb]
    counter = LineCounter()
    both = pickle.loads(template)
    try: counter.run(lambda: call(*both))
    except REFUSALS: pass
    done, bad = 0, 0
    for at in range(first, counter.count, stride):
        tuned, other = pickle.loads(template)
        before = Shadow(tuned), Shadow(other)
        with bare(tuned.model): base = copy.deepcopy(tuned.model)
        trace = LineCounter(at)
        try: trace.run(lambda: call(tuned, other))       # noqa: B023
        except REFUSALS: pass
        done += trace.where is not None
        try: found = harm(tuned, other, before, base)
        except Exception as error: found = f"{type(error).__name__}: {error}"
        bad += found is not None
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
