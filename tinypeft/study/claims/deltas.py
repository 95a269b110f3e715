"""δ of each metric: the difference that matters. They were registered before the runs."""
from dataclasses import dataclass, replace

from ..effects import Effect

__all__ = ["ACCURACY", "AT_LEAST", "CORRELATION", "FINE_TUNING", "LENGTH", "LOGARITHM", "QUANTIZATION",
           "RELATIVE", "SHARE", "SLOPE", "Delta"]


@dataclass(frozen=True)
class Delta:
    """The difference that matters. size: in the metric's own unit. unit: as a reader sees it,
    `times` as large. form: of an effect in this unit."""
    size: float
    unit: str
    form: str = "+.3f"
    times: float = 1

    def __str__(self) -> str: return f"{self.times * self.size:g} {self.unit}"

    def show(self, e: Effect) -> str:
        """"mean ± half of the interval", and the unit unless it is nats/token."""
        return f"{self.times * e:{self.form}}" + f" {self.unit}" * self.unit.startswith("%")


FINE_TUNING = Delta(0.02, "nats/token")                  # losses after training
QUANTIZATION = Delta(0.01, "nats/token")                 # the excess of rounding
ACCURACY = Delta(0.02, "points", "+.1f", 100)
SHARE = Delta(0.10, "% of the gain", "+.0f", 100)
RELATIVE = Delta(0.10, "% of the error", "+.0f", 100)
CORRELATION = Delta(0.3, "of a correlation", "+.2f")
AT_LEAST = replace(SHARE, form=".0f")                 # of "as good as": the share itself
LOGARITHM = Delta(0.3, "of a logarithm to base 10 (a factor of 2)", "+.2f")
LENGTH = Delta(0.01, "% of a length", "+.1f", 100)
SLOPE = Delta(0.1, "of an exponent", "+.2f")
