"""Numbers in words. A mean carries no interval: intervals belong to differences, and stand beside them."""
from collections.abc import Iterable

import numpy as np

from ..effects import Effect, difference, read
from ..experiment import Results

__all__ = ["beside", "listed", "mean", "percent", "pm", "slashed"]


def mean(results: Results, condition: str, metric: str = "loss") -> str:
    """The mean over seeds, in three decimals."""
    return f"{results.mean(condition, metric):.3f}"


def listed(results: Results, conditions: Iterable[str], metric: str = "loss") -> str:
    """"condition mean" for each condition."""
    return ", ".join(f"{c} {mean(results, c, metric)}" for c in conditions)


def beside(results: Results, condition: str, reference: str, metric: str = "loss", decimals: int = 3, times: float = 1) -> str:
    """"mean (difference ± half width)", the difference to `reference` paired over seeds and documents. Seeds share their
    batches and texts, so that conditions can be compared by differences only."""
    plain = f"{times * results.mean(condition, metric):.{decimals}f}"
    if condition == reference: return plain
    apart = difference(read(results, condition, metric), read(results, reference, metric))
    return f"{plain} ({pm(apart, f'{{:+.{decimals}f}}', times)})"


def slashed(values: np.ndarray) -> str:
    """Means over seeds of (seeds, n) numbers: "1.000 / 2.000 / …"."""
    return " / ".join(f"{x:.3f}" for x in values.mean(0))


def percent(values: np.ndarray, digits: int = 0) -> str:
    """The mean, in per cent."""
    return f"{100 * np.mean(values):.{digits}f} %"


def pm(e: Effect, form: str = "{:+.3f}", times: float = 1) -> str:
    """"mean ± half of the 95 % interval"."""
    return f"{form.format(times * e.mean)} ± {form.format(times * e.half).lstrip('+')}"
