"""A mean beside its paired difference to another. A mean carries no interval: intervals belong to differences."""
from ..effects import difference, read
from ..experiment import Results

__all__ = ["beside"]


def beside(results: Results, condition: str, reference: str, metric: str = "loss", decimals: int = 3, times: float = 1) -> str:
    """"mean (difference ± half width)", the difference to `reference` paired over seeds and documents. Seeds share their
    batches and texts, so that conditions can be compared by differences only."""
    plain = f"{times * results.mean(condition, metric):.{decimals}f}"
    if condition == reference: return plain
    apart = difference(read(results, condition, metric), read(results, reference, metric))
    return f"{plain} ({times * apart:+.{decimals}f})"
