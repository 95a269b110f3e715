"""Faults that no test can notice: (module, function, before, after) → the reason.

`EQUIVALENT` faults change no result: they are not counted. `EXPLAINED` ones change a result that is not promised (a message,
the speed, the memory, the edge of a threshold); they count as survivors.
"""

__all__ = ["EQUIVALENT", "EXPLAINED"]

EQUIVALENT = {}
EXPLAINED = {}
