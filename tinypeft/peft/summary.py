"""What a method costs: how many numbers it trains, and how many it stores."""
from dataclasses import dataclass, field

from ..common.markup import facts

__all__ = ["Summary"]


@dataclass(frozen=True)
class Summary:
    """Numbers trained, stored (by `save`) and in all (base and methods); nbytes: bytes stored.

    parts: name → numbers that this method trains; empty for a single method."""
    method: str
    trained: int
    stored: int
    total: int
    nbytes: int
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float: return self.trained / self.total

    def _rows(self):
        each = [(f"  by {name}", f"{n:,}") for name, n in self.parts.items()]
        return [("trained", f"{self.trained:,} ({100 * self.share:.2f} % of all)"), *each,
                ("stored", f"{self.stored:,}"), ("all", f"{self.total:,}"),
                ("size", f"{self.nbytes / 1024:,.1f} KiB as stored")]

    def __repr__(self):
        rows = self._rows()
        width = max(11, *(len(name) for name, _ in rows)) + 2
        return "\n".join([self.method, *(f"  {name:<{width}}{value}" for name, value in rows)])

    def _repr_html_(self): return facts(self._rows(), self.method)
