"""Every experiment of the study, one file per question; `EXPERIMENTS` maps names to them."""
from . import rank

EXPERIMENTS = {e.name: e for e in (
    rank.RANK,
)}

__all__ = ["EXPERIMENTS"]
