"""Every experiment of the study, one file per question; `EXPERIMENTS` maps names to them."""
from . import gradient_check, rank

EXPERIMENTS = {e.name: e for e in (
    gradient_check.GRADIENT_CHECK, rank.RANK,
)}

__all__ = ["EXPERIMENTS"]
