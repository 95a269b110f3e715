"""`finetune probe`: a classifier for a table of one's own, solved on the frozen model's features.

All rows are used: five-fold cross-validation says how well the probe does on rows that it has not
seen, and measures words and letters on the same folds; then the probe learns from all rows. A probe
that is worse than guessing replaces no adapter: it is saved beside it.
"""
from __future__ import annotations

import math
import time
from argparse import Namespace
from typing import TYPE_CHECKING

import numpy as np

from ..common.signals import HeldSignals
from .arguments import chosen_model, model_of, show_json
from .data import data_facts, kind_of, own_task, show_data
from .finetuning import check_folders, describe, save, save_first
from .scores import accuracy_text, class_lines, write_confusions

if TYPE_CHECKING:
    from ..text.tasks.logistic import Validated

__all__ = ["PROBE", "run_probe"]

PROBE = "probe"
UNUSED = {"steps": None, "batch_size": None, "lr": None, "head_lr": None, "rates": [],
          "optimizer": "adamw", "accumulate": 1, "checkpoint_activations": False, "set": [],
          "checkpoint": None, "find_rate": False, "validate_every": None,
          "patience": None}                              # option → not given


def run_probe(args: Namespace) -> int:
    """Solve the probe, save it, and say what it reaches. Return 1 if it was saved elsewhere."""
    from ..peft.probe import fit_probe, learned_rows
    from ..text.tasks.bags import letters, validated_bag, words
    given = [f"--{name.replace('_', '-')}" for name, value in UNUSED.items()
             if vars(args)[name] != value]
    if given:
        raise ValueError(f"finetune probe is solved and not trained; leave out {', '.join(given)}")
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
    worse = tuned.validated.loss >= math.log(n_classes)
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
              "measured": {name: as_record(result) for name, result in measured.items()},
              "confusions": tuned.validated.confusions().tolist()}
    if args.out:
        describe(args, args.out, tuned, task, record)
        write_confusions(args.out, tuned.validated.confusions(), task.classes)
    if args.json:
        show_json(record)
    else:
        show(args, task.classes, measured, seconds)
    return int(args.out != asked)


def pasted(name: str, result: Validated) -> str:
    """Return lines of Python in which scikit-learn makes the classifier that was measured under
    this name. texts and labels are lists of the user's."""
    terms = {"words": r'token_pattern=r"\w+"', "letters": 'analyzer="char_wb", ngram_range=(2, 5)'}
    # Of two classes scikit-learn has one vector, the difference of the two here: half the penalty.
    n_vectors = 2 if result.log_p.shape[1] == 2 else 1
    C = n_vectors / (result.strength * len(result.labels))
    return ("    from sklearn import feature_extraction, linear_model, pipeline\n"
            f"    bag = feature_extraction.text.TfidfVectorizer({terms[name]}, binary=True)\n"
            f"    model = pipeline.make_pipeline(bag, "
            f"linear_model.LogisticRegression(C={C:.3g}, max_iter=1000))\n"
            '    model.fit(texts, labels).predict(["…"])  # two lists: columns of your table')


def as_record(result: Validated) -> dict:
    """Return the numbers of a cross-validation as JSON takes them."""
    return {"accuracy": result.accuracy, "interval": list(result.interval), "loss": result.loss}


def show(args: Namespace, classes: tuple[str, ...], measured: dict, seconds: float) -> None:
    """Print what was measured, each class, and which to use."""
    labels = measured["the probe"].labels
    print(f"\nfive-fold cross-validation on all {len(labels)} rows, seed {args.seed} draws the "
          f"folds; {seconds} s in all:")
    for name, result in measured.items():
        print(f"  {name:<10} accuracy {accuracy_text(result.accuracy, len(labels))}, "
              f"loss {result.loss:.3f}")
    majority = np.bincount(labels).max() / len(labels)
    print(f"  {'guessing':<10} accuracy {accuracy_text(majority, len(labels))}, the most frequent "
          "class")
    print("\nthe probe, class by class:")
    print("\n".join(class_lines(measured["the probe"].confusions(), classes)))
    if args.out:
        base = f" --model {args.model}" if args.model else ""
        print(f'\nsaved in {args.out}, with confusions.svg; next: python -m tinypeft classify "…"'
              f"{base} --adapter {args.out}")
    best = max(measured, key=lambda name: measured[name].accuracy)
    low = measured["the probe"].interval[0]
    others = max(measured[name].accuracy for name in ("words", "letters"))
    if measured["the probe"].loss >= math.log(len(classes)):
        print("the probe is worse than guessing; an adapter that lay in the folder stays there, "
              "unless --keep is given")
    elif best != "the probe":
        print(f"the probe is not better than {best} here: give more rows, or use {best}, which "
              "scikit-learn has and no command here:")
        print(pasted(best, measured[best]))
    elif low > others:
        print("use the probe: it is better than words and letters")
    else:
        print("use the probe; its lead over words and letters may be chance")
