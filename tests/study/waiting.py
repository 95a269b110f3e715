"""Experiments whose claims were fixed and that were not measured since, or not wholly: nothing is judged by them until then."""

WAITING = ()
