"""What a method costs: how many numbers it trains, and how many it stores."""
from dataclasses import dataclass, field

from ..common.show.markup import facts
from .switching import Switched

__all__ = ["Summary", "summary_of"]


@dataclass(frozen=True)
class Summary:
    """Numbers trained, stored (by `save`) and in all (base and methods); nbytes: bytes stored.

    parts: name → numbers that this method trains; empty for a single method. A part that is off is
    stored, and trains nothing."""
    method: str
    trained: int
    stored: int
    total: int
    nbytes: int
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        return self.trained / self.total

    def _rows(self):
        rows = [("trained", f"{self.trained:,} ({100 * self.share:.2f} % of all)")]
        rows += [(f"  by {name}", f"{n:,}") for name, n in self.parts.items()]
        return [*rows, ("stored", f"{self.stored:,}"), ("all", f"{self.total:,}"),
                ("size", f"{self.nbytes / 1024:,.1f} KiB as stored")]

    def __repr__(self):
        rows = self._rows()
        width = max(11, *(len(name) for name, _ in rows)) + 2
        return "\n".join([self.method, *(f"  {name:<{width}}{value}" for name, value in rows)])

    def _repr_html_(self):
        return facts(self._rows(), self.method)


def summary_of(tuned: Switched) -> Summary:
    """Count the numbers and bytes of a PeftModel."""
    arrays = tuned.state_dict(to_train=False).values()
    parts = {name: count(part.parameters()) for name, part in tuned.parts.items() if part.on}
    added = [tuned.parts[name].added() for name in tuned.off]
    added += [part.shared.values() for part in tuned.parts.values()]
    if tuned.virtual:
        added.append(tuned.virtual.parameters())
    return Summary(
        str(tuned.method), trained=count(tuned.trainable_parameters()),
        stored=count(array for array in arrays if array.dtype.kind == "f"),
        total=tuned.model.n_parameters() + sum(map(count, added)),
        nbytes=sum(array.nbytes for array in arrays),
        parts=parts if len(tuned.parts) > 1 else {})


def count(arrays):
    """Add up the sizes of arrays or Parameters."""
    return sum(array.size for array in arrays)
