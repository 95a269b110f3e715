"""How well a model does: intervals of accuracies, each class, exact answers, and comparisons."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..common.hints import Array
from ..common.wording import counted, in_one_line, shortened

if TYPE_CHECKING:
    from ..models.decoder import Decoder
    from ..peft import PeftModel
    from ..text.tasks import Answering, Task
    from ..text.tasks.logistic import Validated

__all__ = ["Paired", "accuracy_text", "class_lines", "compared", "exact_answers", "exact_lines",
           "interval_of", "metric_text", "n_measured", "paired"]

QUICK = 32                                               # rows of a test with --quick
EXAMPLES = 2                                             # wrong answers that are shown
LONGEST = 200                                            # letters of a text that is shown
SHOWN = 24                                               # letters of a class's name
LEVEL = 0.05                                             # two classifiers of a larger p are level


def accuracy_text(accuracy: float, n: int) -> str:
    """Return an accuracy on n rows as "0.917 (300 rows, 95 %: 0.880 to 0.943)"."""
    from ..text.tasks.logistic import interval
    low, high = interval(round(accuracy * n), n)
    return f"{accuracy:.3f} ({counted(n, 'row')}, 95 %: {low:.3f} to {high:.3f})"


@dataclass(frozen=True)
class Paired:
    """Two classifiers on the same rows: how many only the first names rightly, how many only the
    second, and the p of McNemar's exact test (Psychometrika 12, 1947): if a row that one of them
    misses is as likely the one's as the other's, a difference as large or larger has this
    probability."""
    only_first: int
    only_second: int
    p: float

    @property
    def better(self) -> int:
        """1 if the first one is better, -1 if the second one is, 0 if they are level."""
        if self.p >= LEVEL:
            return 0
        return 1 if self.only_first > self.only_second else -1


def paired(first: Validated, second: Validated) -> Paired:
    """Compare two classifiers that were validated on the same rows."""
    from scipy.stats import binomtest
    a, b = (result.log_p.argmax(1) == result.labels for result in (first, second))
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    n = only_first + only_second
    return Paired(only_first, only_second, float(binomtest(only_first, n).pvalue) if n else 1.0)


def n_measured(task: Task, quick: bool) -> int | None:
    """Return how many test rows a classifier is measured on; None for other tasks. quick: on two
    batches, as the commands do."""
    if not hasattr(task, "classes"):
        return None
    n = len(task.data("test"))
    return min(n, QUICK) if quick else n


def interval_of(metrics: dict, n: int | None) -> list[float] | None:
    """Return the 95 % interval of an accuracy on n rows; None where none was measured."""
    from ..text.tasks.logistic import interval
    return list(interval(round(metrics["accuracy"] * n), n)) if n else None


def metric_text(name: str, value: float, n: int | None) -> str:
    """Return a metric in four digits, or an accuracy on n rows with its interval."""
    return accuracy_text(value, n) if name == "accuracy" and n else f"{value:.4f}"


def compared(before: dict | None, after: dict, baselines: dict | None = None,
             n: int | None = None) -> str:
    """Lines of metrics: before and after, and what each baseline reaches. n: the rows that an
    accuracy is of."""
    width = max(15, *(len(name) + 2 for name in baselines or [""]))
    shown = lambda x: "" if x is None else f"{x:.4f} → "
    lines = [f"  {name:<{width}}{shown(before and before[name])}{metric_text(name, value, n)}"
             for name, value in after.items()]
    for name, metrics in (baselines or {}).items():
        listed = (f"{metric} {metric_text(metric, x, n)}" for metric, x in metrics.items())
        lines.append(f"  {name:<{width}}" + ", ".join(listed))
    return "\n".join(lines)


def exact_answers(model: Decoder | PeftModel, task: Answering, quick: bool) -> dict:
    """Let the model answer the test's prompts greedily; return how many answers are exactly the
    expected ones, of how many rows, and the wrong ones. quick: of the first rows."""
    from ..text.tasks.answering import plain
    from ..text.tasks.logistic import interval
    rows = task.rows["test"][:QUICK if quick else None]
    prompts = [prompt for prompt, _ in rows]
    longest = max(len(ids) for _, ids in task.data("test")[:len(rows)])
    answers = task.predict(model, prompts, longest)      # a longer answer is a wrong one
    wrong = [{"asked": plain(prompt), "expected": expected, "answered": answer}
             for (prompt, expected), answer in zip(rows, answers, strict=True)
             if answer != expected.strip()]
    right = len(rows) - len(wrong)
    return {"right": right, "rows": len(rows), "interval": list(interval(right, len(rows))),
            "wrong": wrong, "tokens": longest}


def exact_lines(exact: dict) -> str:
    """Return what `exact_answers` counted in lines, with a few of the wrong answers."""
    low, high = exact["interval"]
    lines = [f"exactly right: {exact['right']} of {counted(exact['rows'], 'answer')} "
             f"(95 %: {low:.3f} to {high:.3f})"]
    if exact["wrong"]:
        lines.append(f"an answer is cut after {counted(exact['tokens'], 'token')}, as many as the "
                     "longest expected one has")
    for row in exact["wrong"][:EXAMPLES]:
        lines.append("a wrong one:")
        lines += [f"  {name:<10}{shortened(in_one_line(text), LONGEST)}"
                  for name, text in row.items()]
    if len(exact["wrong"]) > EXAMPLES:
        lines.append(f"all {len(exact['wrong'])} wrong ones: the same command with --json")
    return "\n".join(lines)


def class_lines(counts: Array, classes: Sequence[str]) -> list[str]:
    """Return precision, recall and F1 of each class. counts (C, C): rows of class i called j."""
    lines = []
    for i, name in enumerate(classes):
        right, there, called = counts[i, i], counts[i].sum(), counts[:, i].sum()
        precision, recall = right / max(called, 1), right / max(there, 1)
        f1 = 2 * right / max(there + called, 1)
        shown = shortened(in_one_line(name), SHOWN)
        lines.append(f"  {shown:<{SHOWN}} {there:4} rows  precision {precision:.2f}  "
                     f"recall {recall:.2f}  F1 {f1:.2f}")
    return lines
