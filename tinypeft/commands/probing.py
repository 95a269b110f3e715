"""`finetune probe`: a classifier for a table of one's own, solved on the frozen model's features.

All rows are used: five-fold cross-validation says how well the probe does on rows that it has not
seen, and measures words and letters on the same folds; then the probe learns from all rows. The
verdict compares it with the better of these two row by row, because both name the same rows: the
intervals of two accuracies overlap for differences that a paired test tells from chance. A probe
that is worse than guessing replaces no adapter: it is saved beside it.
"""
from __future__ import annotations

import math
import time
from argparse import Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from ..common.signals import HeldSignals
from .arguments import base_option, chosen_model, leave_out, model_of, show_json
from .data import data_facts, kind_of, own_task, show_data
from .saving import check_folders, describe, save, save_first
from .scores import Paired, accuracy_text, class_lines, paired

if TYPE_CHECKING:
    from ..text.tasks.logistic import Validated

__all__ = ["PROBE", "run_probe"]

PROBE = "probe"
UNUSED = ("steps", "batch_size", "lr", "optimizer", "less_memory", "set", "checkpoint",
          "find_rate", "validate_every")                 # of the options of finetune


def run_probe(args: Namespace) -> int:
    """Solve the probe, save it, and say what it reaches. Return 1 if it was saved elsewhere."""
    from ..peft.probe import fit_probe, learned_rows
    from ..text.tasks.bags import letters, validated_bag, words
    leave_out(args, UNUSED, "finetune probe is solved and not trained")
    if kind_of(args) != "labelled":
        raise ValueError("finetune probe needs rows with labels: give --csv FILE")
    start = time.perf_counter()
    reason = chosen_model(args)
    if not args.json:
        print(reason)
    model = model_of(args)
    check_folders(args)
    task = own_task(args, model, "labelled", held_out=(0, 0))
    if show_data(args, task):
        return 0
    tuned = fit_probe(model, task, head_bias=args.format != "peft", seed=args.seed,
                      cache=not args.no_cache)
    texts, labels = learned_rows(task)
    n_classes = len(task.classes)
    worse = is_worse_than_guessing(tuned.validated, n_classes)
    asked = args.out
    if args.out:
        with HeldSignals():
            args.out = save_first(args, tuned, task) if worse else save(args, tuned, task, args.out)
    measured = {"the probe": tuned.validated,
                "words": validated_bag(texts, labels, n_classes, words, seed=args.seed),
                "letters": validated_bag(texts, labels, n_classes, letters, seed=args.seed)}
    seconds = round(time.perf_counter() - start, 1)
    record = {"model": reason, "task": task.name, "data": data_facts(task),
              "rows": len(labels), "seconds": seconds, "saved": args.out and str(args.out),
              "measured": {name: {"accuracy": result.accuracy, "interval": list(result.interval),
                                  "loss": result.loss} for name, result in measured.items()},
              "confusions": tuned.validated.confusions().tolist(),
              "paired": {"with": best_bag(measured), **asdict(beside_bag(measured))},
              "verdict": verdict(measured, n_classes)}
    if args.out:
        describe(args, args.out, tuned, task, record)
    if args.json:
        show_json(record)
    else:
        show(args, task.classes, measured, seconds, tuned.n_read)
    return int(args.out != asked)


def pasted(args: Namespace, name: str, result: Validated) -> str:
    """Return lines of Python that read the user's table, and in which scikit-learn makes the
    classifier that was measured under this name."""
    terms = {"words": r'token_pattern=r"\w+"', "letters": 'analyzer="char_wb", ngram_range=(2, 5)'}
    # Of two classes scikit-learn has one vector, the difference of the two here: half the penalty.
    n_vectors = 2 if result.log_p.shape[1] == 2 else 1
    C = n_vectors / (result.strength * len(result.labels))
    text, label = args.text_column or "text", args.label_column or "label"
    skip = f"    table = table.without(table.empty({text, label}))\n" if args.skip_empty else ""
    return ("    from tinypeft.text.tasks.own_files import read_table\n"
            "    from sklearn import feature_extraction, linear_model, pipeline\n"
            f"    table = read_table({str(args.csv)!r}, {args.encoding!r})\n"
            f"{skip}    texts, labels = table.texts({text!r}), table.texts({label!r})\n"
            f"    bag = feature_extraction.text.TfidfVectorizer({terms[name]}, binary=True)\n"
            f"    model = pipeline.make_pipeline(bag, "
            f"linear_model.LogisticRegression(C={C:.3g}, max_iter=1000))\n"
            '    model.fit(texts, labels).predict(["…"])')


def show(args: Namespace, classes: tuple[str, ...], measured: dict, seconds: float,
         n_read: int) -> None:
    """Print what was measured, each class, and which to use. n_read: rows that the model read."""
    labels = measured["the probe"].labels
    print(f"\nfive-fold cross-validation on all {len(labels)} rows, seed {args.seed} draws the "
          f"folds; {seconds} s in all:")
    if n_read < len(labels):
        print(f"  {len(labels) - n_read} rows were read by an earlier run and came from the cache, "
              "which saved time (--no-cache reads all again; `doctor` says where the cache is)")
    for name, result in measured.items():
        print(f"  {name:<10} accuracy {accuracy_text(result.accuracy, len(labels))}, "
              f"loss {result.loss:.3f}")
    majority = np.bincount(labels).max() / len(labels)
    print(f"  {'guessing':<10} accuracy {accuracy_text(majority, len(labels))}, the most frequent "
          "class")
    print("\nthe probe, class by class:")
    print("\n".join(class_lines(measured["the probe"].confusions(), classes)) + "\n")
    print(verdict(measured, len(classes)))
    print(next_step(args, measured, len(classes)))
    if args.out:
        print(f"saved in {args.out}")


def best_bag(measured: dict) -> str:
    """Return the name of the bag with the higher accuracy."""
    return max(("words", "letters"), key=lambda name: measured[name].accuracy)


def is_worse_than_guessing(probe: Validated, n_classes: int) -> bool:
    return probe.loss >= math.log(n_classes)


def beside_bag(measured: dict) -> Paired:
    """Compare the probe with the better bag, row by row."""
    return paired(measured["the probe"], measured[best_bag(measured)])


def verdict(measured: dict, n_classes: int) -> str:
    """Return a sentence that compares the probe with guessing, words and letters."""
    if is_worse_than_guessing(measured["the probe"], n_classes):
        return "the probe is worse than guessing"
    bag, pair = best_bag(measured), beside_bag(measured)
    says = {1: "the probe is better than words and letters", -1: f"{bag} are better than the probe",
            0: f"the probe and {bag} are level"}[pair.better]
    return (f"{says}: of the same rows, {pair.only_first:,} only the probe names rightly and "
            f"{pair.only_second:,} only {bag} (p = {pair.p:.2g}, McNemar's test)")


def next_step(args: Namespace, measured: dict, n_classes: int) -> str:
    """Return what to do after this verdict."""
    if is_worse_than_guessing(measured["the probe"], n_classes):
        return ("next: give more rows; an adapter that lay in the folder stays there, unless "
                "--keep is given")
    if beside_bag(measured).better < 0:
        bag = best_bag(measured)
        return (f"next: give more rows, or use {bag}, which scikit-learn has (`pip install "
                f"scikit-learn`) and no command here:\n{pasted(args, bag, measured[bag])}")
    if args.out:
        return f'next: python -m tinypeft classify "…"{base_option(args)} --adapter {args.out}'
    return "next: the same command with --out FOLDER, which saves the probe"
