"""A project's record: what was run, which criteria it meets, and the page that reports it.

    project = Project("Which method for my notes?", budget=6 * 2**20)           # bytes
    project.data(task)                                        # the splits and the baselines
    project.frozen(3.21, 4_600_000)                           # the base's test loss, and its bytes
    project.frozen(3.35, 900_000, bits=4.5)                   # the same of the rounded base
    project.arm("LoRA", tp.LoRA(rank=4), bits=4.5)            # a method, on a base of 4.5 bits
    project.tuned("LoRA", {0.003: 2.9, 0.01: 2.8, 0.03: 2.9}, seeds=(100,))      # validation loss
    project.ran("LoRA", {0: 2.81, 1: 2.80, 2: 2.83}, peak=4_100_000)             # test loss by seed
    project.concludes("LoRA", "prompt")                       # LoRA's loss is lower than prompt's
    project                                                   # the criteria, with ✔ and ○
    project.report("report.md")                               # the page

A call replaces what an earlier one said, so a cell may run twice. Two things stay: rates that were
tried with the same seeds, and how often an arm was measured on the test part. The criteria are
those that a program can judge. The rubric's other points are for a reader.
"""
from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..common.show.markup import escape
from ..files import write_atomically
from ..peft import Method
from ..study.experiment import half_width
from ..text.tasks import Task

__all__ = ["Arm", "Project"]

RATES, SEEDS, ARMS = 3, 3, 2                             # at least as many


@dataclass
class Arm:
    """A way to solve the task. bits: per weight of the frozen base. tried: learning rate →
    validation loss. runs: seed → test loss. peak: bytes of the base's weights, of what is trained
    with its two moments, and of a step. reference: it need not keep to the budget."""
    method: Method
    bits: float = 32
    reference: bool = False
    tried: dict[float, float] = field(default_factory=dict)
    tuning_seeds: tuple[int, ...] = ()
    runs: dict[int, float] = field(default_factory=dict)
    peak: float | None = None
    reported: list[dict[int, float]] = field(default_factory=list)   # all that `ran` ever said

    @property
    def rate(self) -> float:
        """The rate with the lowest validation loss."""
        return min(self.tried, key=self.tried.__getitem__)

    @property
    def bracketed(self) -> bool:
        """Whether a lower and a higher rate than the best one were tried."""
        return len(self.tried) >= RATES and min(self.tried) < self.rate < max(self.tried)


class Project:
    """The record of a project. budget: bytes for the weights, the moments and a training step.
    quantized: whether an arm must stand on a base of fewer than 16 bits."""

    def __init__(self, question: str, budget: float, quantized: bool = False) -> None:
        if not question.strip(): raise ValueError("Project: write your question as a sentence")
        self.question, self.budget = question, _number("Project", "budget", budget)
        self.quantized, self.arms = quantized, {}
        self.bases = {}                              # bits → (test loss, bytes of the weights)
        self.task = self.conclusion = None

    # -- what was done ---------------------------------------------------------------------------
    def data(self, task: Task) -> None:
        """The task. Its baselines are measured now, if they were not before."""
        if not isinstance(task, Task):
            raise TypeError(f"data: expected a task, such as tp.tasks.text(…), got {task!r}")
        self.task = task.name, task.describe(), dict(task.baselines)

    def frozen(self, loss: float, weights: float, bits: float = 32) -> None:
        """The test loss of the base with `bits` bits per weight, before anything is trained, and
        the bytes of its weights."""
        self.bases[_number("frozen", "bits", bits)] = (_number("frozen", "loss", loss),
                                                       _number("frozen", "weights", weights))

    def arm(self, name: str, method: Method, bits: float = 32, reference: bool = False) -> None:
        """A method, on a base with `bits` bits per weight. A reference need not fit the budget."""
        if not isinstance(method, Method):
            raise TypeError(f"arm: expected a method, such as tp.LoRA(rank=4), got {method!r}")
        reported = self.arms[name].reported if name in self.arms else []
        self.arms[name] = Arm(method, _number("arm", "bits", bits), reference, reported=reported)

    def tuned(self, name: str, tried: Mapping[float, float], seeds: Sequence[int]) -> float:
        """Learning rate → validation loss, from runs with `seeds`. Returns the best rate.

        Rates of earlier calls with the same seeds stay. `arm` begins anew."""
        arm, losses = self._arm("tuned", name), {}
        for rate, loss in tried.items():
            losses[_number("tuned", "a rate", rate)] = _number("tuned", "a loss", loss)
        earlier = arm.tried if arm.tuning_seeds == tuple(seeds) else {}
        arm.tried, arm.tuning_seeds = dict(sorted({**earlier, **losses}.items())), tuple(seeds)
        return arm.rate

    def ran(self, name: str, runs: Mapping[int, float], peak: float) -> None:
        """Seed → test loss, and the bytes of the weights, of AdamW's moments and of a step.

        Other losses than before count as another look at the test part; the record tells it."""
        arm = self._arm("ran", name)
        arm.runs = {seed: _number("ran", "a loss", x) for seed, x in runs.items()}
        arm.peak = _number("ran", "peak", peak)
        rounded = {seed: round(loss, 6) for seed, loss in arm.runs.items()}
        if rounded not in arm.reported: arm.reported.append(rounded)

    def concludes(self, better: str | None, than: str | None = None) -> None:
        """What the numbers say: the first arm's loss is lower than the second's. With None for
        `better`, they show no difference between the best two arms."""
        for name in filter(None, (better, than)): self._arm("concludes", name)
        if better is not None and than in (None, better):
            raise ValueError("concludes: name two arms, the better one and the other")
        self.conclusion = better, than

    def _arm(self, where, name):
        if name not in self.arms:
            known = ", ".join(self.arms) or "none yet"
            raise KeyError(f"{where}: there is no arm {name!r}; the arms are: {known}")
        return self.arms[name]

    # -- what it is worth ------------------------------------------------------------------------
    def difference(self, a: str, b: str) -> tuple[float, float]:
        """(mean of a − b, half width of its 95 % interval), paired over the seeds of both: (nan,
        inf) if they share none, and an infinite half width if they share one."""
        one, other = self._arm("difference", a).runs, self._arm("difference", b).runs
        d = [one[seed] - other[seed] for seed in self._shared(a, b)]
        return (float(np.mean(d)), float(half_width(d))) if d else (float("nan"), float("inf"))

    def _shared(self, a, b):
        return [seed for seed in self.arms[a].runs if seed in self.arms[b].runs]

    def best(self) -> list[str]:
        """The arms that ran, the lowest mean test loss first."""
        ran = [name for name, arm in self.arms.items() if arm.runs]
        return sorted(ran, key=lambda name: np.mean(list(self.arms[name].runs.values())))

    def baseline(self) -> tuple[str, float] | None:
        """The baseline of the task with the lowest test loss, and the loss; None without any."""
        measured = self.task[2] if self.task else {}
        losses = {name: values["loss"] for name, values in measured.items() if "loss" in values}
        return min(losses.items(), key=lambda item: item[1]) if losses else None

    def criteria(self) -> Iterator[tuple[bool, str]]:
        """(met, sentence) for each criterion; a sentence of one that is not met says what to do."""
        arms, lacks = self.arms, lambda holds: [n for n, arm in self.arms.items() if not holds(arm)]
        all_ = lambda absent: bool(arms) and not absent
        say = lambda absent, met, do: met if all_(absent) else f"{do}{_of(absent)}"
        yield self.task is not None, (f"The data are split, and the baselines are measured"
                                      f"{self._beside_the_baseline()}."
                                      if self.task else "Call data(task) with your task.")
        bits = {f"{arm.bits:g} bits" for arm in arms.values() if arm.bits not in self.bases}
        known = bool(self.bases) and not bits
        yield known, ("The base's test loss is known." if known else
                      f"Call frozen(loss, weights, bits) with the test loss and the bytes of the "
                      f"base{_of(sorted(bits))}")
        yield len(arms) >= ARMS, (f"There are {len(arms)} arms." if len(arms) >= ARMS else
                                  f"Add arms until there are {ARMS}: arm(name, method).")
        if self.quantized:
            few = any(arm.bits < 16 for arm in arms.values())
            yield few, ("An arm stands on a quantized base." if few else
                        "Add an arm on a quantized base, and give its bits per weight.")
        no = lacks(lambda arm: arm.bracketed)
        yield all_(no), say(no, "Each best rate lies between two others that were tried.",
                            f"Try {RATES} rates or more, until the best has others on both sides")
        no = lacks(lambda arm: arm.tuning_seeds and not set(arm.tuning_seeds) & set(arm.runs))
        yield all_(no), say(no, "The rates were chosen with seeds that are not reported.",
                            "Choose the rates with seeds that you do not report")
        first = set(next(iter(arms.values())).runs) if arms else set()
        no = lacks(lambda arm: len(arm.runs) >= SEEDS and set(arm.runs) == first)
        yield all_(no), say(no, f"All arms ran with the same {len(first)} seeds{self._again()}.",
                            f"Run all arms with the same {SEEDS} seeds or more")
        bound = [name for name, arm in arms.items() if not arm.reference]
        small = lacks(lambda arm: arm.peak is None or arm.peak > self._weights(arm))
        no = lacks(lambda arm: arm.peak is not None and (arm.reference or arm.peak <= self.budget))
        which = "All arms" if len(bound) == len(arms) else "All arms but the reference"
        within = bool(bound) and not no and not small
        yield within, (f"{which} stay within the budget." if within else
                       f"A peak contains the base's weights, and has more bytes{_of(small)}"
                       if small else
                       f"Measure the bytes, and stay within {self.budget:,.0f}{_of(no)}")
        yield self._supported()

    def _beside_the_baseline(self):
        if not (best := self.baseline()): return ""
        said = f": the best, {best[0]}, has {best[1]:.3f}"
        if not (order := self.best()): return said
        mean = np.mean(list(self.arms[order[0]].runs.values()))
        worse = ", which is no better" * bool(mean >= best[1])
        return f"{said}, and {order[0]} {mean:.3f}{worse}"

    def _again(self):
        """Name the arms whose test losses were replaced by others."""
        often = ", ".join(f"{name} {len(arm.reported)} times" for name, arm in self.arms.items()
                          if len(arm.reported) > 1)
        if not often: return ""
        return f"; but the test part was measured anew, and you should say why ({often})"

    def _weights(self, arm):
        """The bytes of an arm's base; 0 if `frozen` has not told them."""
        return self.bases.get(arm.bits, (0, 0))[1]

    def _supported(self):
        if self.conclusion is None: return False, "Call concludes(…) with what the numbers say."
        (better, than), order = self.conclusion, self.best()
        none = better is None
        if none:
            if len(order) < 2: return False, "A conclusion needs two arms that ran."
            better, than = order[:2]
        if missing := [name for name in (better, than) if name not in order]:
            return False, f"A conclusion needs two arms that ran{_of(missing, 'missing')}"
        if (n := len(self._shared(better, than))) < SEEDS:
            return False, (f"A conclusion needs {SEEDS} seeds or more that both arms ran with; "
                           f"{better} and {than} share {n}.")
        mean, half = self.difference(better, than)
        if none:
            met = mean + half >= 0
            return met, (f"{better} and {than} differ by no more than chance explains: "
                         f"{mean:+.3f} ± {half:.3f}." if met else
                         f"You say that there is no difference, but {better} is better than "
                         f"{than} by {-mean:.3f} ± {half:.3f}.")
        met = mean + half < 0
        return met, (f"{better} is better than {than}: {mean:+.3f} ± {half:.3f}." if met else
                     f"The runs do not show that {better} is better than {than}: "
                     f"{mean:+.3f} ± {half:.3f}.")

    @property
    def finished(self) -> bool:
        """Whether all criteria are met."""
        return all(met for met, _ in self.criteria())

    # -- as text ---------------------------------------------------------------------------------
    def __repr__(self) -> str:
        lines = [f"  {'✔' if met else '○'} {sentence}" for met, sentence in self.criteria()]
        return "\n".join([self.question, *lines])

    def _repr_html_(self) -> str:
        colour = {True: "#009E73", False: "#8A8A8A"}
        rows = "".join(f"<div><b style='color:{colour[met]}'>{'✔' if met else '○'}</b> "
                       f"{escape(sentence)}</div>" for met, sentence in self.criteria())
        return (f"<div style='border-left:4px solid {colour[self.finished]};padding:2px 10px'>"
                f"<b>{escape(self.question)}</b>{rows}</div>")


    def markdown(self) -> str:
        """The page: question, data, one row an arm, differences to the best arm, and criteria."""
        head = ["arm", "method", "bits of the base", "best rate", "test loss", "bytes at the peak"]
        rows = [[name, f"`{arm.method}`", f"{arm.bits:.4g}", f"{arm.rate:g}" if arm.tried else "–",
                 _pm(list(arm.runs.values())), "–" if arm.peak is None else f"{arm.peak:,.0f}"]
                for name, arm in self.arms.items()]
        frozen = [["the frozen base", "–", f"{bits:.4g}", "–", f"{loss:.3f}", f"{weights:,.0f}"]
                  for bits, (loss, weights) in sorted(self.bases.items(), reverse=True)]
        rows = frozen + rows
        if best := self.baseline(): rows.insert(0, [best[0], "–", "–", "–", f"{best[1]:.3f}", "–"])
        parts = [f"# {self.question}"]
        if self.task:
            name, described, baselines = self.task
            told = "; ".join(f"{kind}: " + ", ".join(f"{k} {v:.3f}" for k, v in values.items())
                             for kind, values in baselines.items())
            parts += ["## Data", f"{name}. {html.unescape(described)}", f"Baselines: {told}."]
        parts += ["## Arms", _table(head, rows)]
        if len(order := self.best()) > 1:
            apart = [[f"{b} − {order[0]}", self._told(b, order[0])] for b in order[1:]]
            parts += ["## Differences, paired over seeds", _table(["arms", "test loss"], apart)]
        met = [f"- {'[x]' if met else '[ ]'} {sentence}" for met, sentence in self.criteria()]
        return "\n\n".join([*parts, "## Criteria", "\n".join(met)]) + "\n"

    def _told(self, a, b):
        """The difference as text; with fewer than two shared seeds there is none."""
        if len(self._shared(a, b)) < 2: return "–"
        return "{:+.3f} ± {:.3f}".format(*self.difference(a, b))

    def report(self, path: str | Path, text: str = "") -> Path:
        """Write the page, followed by `text`, your own sentences in Markdown. Returns the path."""
        path = Path(path)
        write_atomically(path, self.markdown() + (f"\n{text.strip()}\n" if text else ""))
        return path


def _number(where, name, value):
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{where}: {name} must be a number, got {value!r}")
    if not np.isfinite(value):
        raise ValueError(f"{where}: {name} must be finite, got {value!r}; did the run diverge?")
    return float(value)


def _of(names, what="now"):
    return f" ({what}: {', '.join(names)})." if names else "."


def _pm(losses):
    if not losses: return "–"
    return f"{np.mean(losses):.3f}" + (f" ± {half_width(losses):.3f}" if len(losses) > 1 else "")


def _table(head, rows):
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
