"""What a method costs: how many numbers it trains, and how many it stores."""
from dataclasses import dataclass

from ..markup import facts

__all__ = ["Summary"]


@dataclass(frozen=True)
class Summary:
    """Numbers trained, stored (by `save`) and in all (base and method); nbytes: bytes stored."""
    method: str
    trained: int
    stored: int
    total: int
    nbytes: int

    @property
    def share(self) -> float: return self.trained / self.total

    def _rows(self):
        return [("trained", f"{self.trained:,} ({100 * self.share:.2f} % of all)"),
                ("stored", f"{self.stored:,}"), ("all", f"{self.total:,}"),
                ("size", f"{self.nbytes / 1024:,.1f} KiB as stored")]

    def __repr__(self):
        return "\n".join([self.method, *(f"  {name:<13}{value}" for name, value in self._rows())])

    def _repr_html_(self): return facts(self._rows(), self.method)
