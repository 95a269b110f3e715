"""Experiments whose claims were fixed and that were not measured since, or not wholly: nothing is judged by them until then."""

WAITING = ("rates", "successors", "batches", "capacity", "rounding_rank", "best_rates", "frontier", "smollm2")
