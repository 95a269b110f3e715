"""The command evaluate: measure an adapter, or a model alone, on a task."""
from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

from .arguments import adapter_option, folder_of_task, learned_task, loaded, show_json
from .data import OWN, built_in, data_facts, data_options, kind_of, own_task, show_data
from .scores import compared, exact_answers, exact_lines, interval_of, n_measured
from .sizes import rows_in_test

if TYPE_CHECKING:
    from ..models.decoder import Decoder
    from ..text.tasks import Task

__all__ = ["add_commands"]

SAME = 0.01                  # nats: a smaller change of a loss is not worth a word


def add_commands(command: Callable) -> None:
    """Add the command; see `cli.parser`."""
    p = command("evaluate", run_evaluate, "measure an adapter, or the model alone, on a task",
                takes=("model", "json", "quick"))
    adapter_option(p)
    data_options(p, "the adapter's own, or domain")
    p.add_argument("--exact", action="store_true", help="of prompts with answers: also write the "
                   "answers, the likeliest ones, and count those that are exactly right")


def run_evaluate(args: Namespace) -> None:
    from ..training.evaluation import evaluate
    own = kind_of(args)
    if own == "labelled" and not folder_of_task(args):
        raise ValueError("--csv needs --adapter: the model alone has no classes")
    model, tuned = loaded(args)
    saved = learned_task(args, model, needed=own == "labelled")
    task, rows = measured_on(args, model, own, saved)
    if args.exact and not hasattr(task, "chat"):
        raise ValueError("--exact needs prompts with answers: --pairs FILE")
    show_data(args, task)
    most = 2 if args.quick else None
    measured = lambda label: evaluate(tuned, task, "test", rows_in_test(tuned, task), most,
                                      label=label)
    before, after = None, measured("testing the adapter" if args.adapter else "testing")
    if args.adapter and not hasattr(task, "classes"):
        with tuned.disabled(): before = measured("testing the base alone")
    n = n_measured(task, args.quick)
    if not args.json:
        quick = f"two batches (--quick) of {rows.removeprefix('all of ')}"
        sides = ", the base alone → with the adapter" if before else ""
        lines = [f"on {quick if args.quick else rows}{sides}:", compared(before, after, n=n)]
        lines += [what_changed(before["loss"], after["loss"])] if before else []
        print("\n".join(lines), flush=True)              # before --exact, which takes longer
    exact = exact_answers(tuned, task, args.quick) if args.exact else None
    record = {"task": task.name, "data": data_facts(task), "on": rows, "rows": n,
              "interval": interval_of(after, n), "before": before, "after": after, "exact": exact,
              "adapter": args.adapter and str(args.adapter)}
    if args.json: return show_json(record)
    if exact:
        print(exact_lines(exact))
    elif hasattr(task, "chat"):
        print("--exact counts the answers that are exactly right")


def what_changed(before: float, after: float) -> str:
    """Say what an adapter did to the loss of some rows, in a sentence."""
    change = after - before
    if abs(change) < SAME:
        return f"the adapter changes the loss here by less than {SAME}"
    if change < 0:
        return f"the adapter lowers the loss here by {-change:.2f} nats a token"
    return (f"the adapter raises the loss here by {change:.2f} nats a token: the model forgot some "
            "of this, or learned another form for it; `generate` with the beginning of a line of "
            "it, with and without --adapter, shows which")


def measured_on(args: Namespace, model: Decoder, own: str | None,
                saved: Task | None) -> tuple[Task, str]:
    """Return the task that `evaluate` measures, and which of its rows, in words. saved: the
    adapter's.

    Of a file that the adapter was trained on, which its SHA-256 tells, the test split is measured;
    any other file is measured whole. An adapter for pairs is measured on text, too, and one for
    text on pairs: that says what it forgot."""
    form, split = saved.form if saved else {}, "the test split"
    was_own = "held_out" in form
    if own and was_own and own != form["kind"]:
        if "labelled" not in (own, form["kind"]):
            return own_task(args, model, own, held_out=(0, 1)), "all of it"
        raise ValueError(f"the adapter was trained on {OWN[form['kind']]}, not on {OWN[own]}")
    if not own and was_own and not args.task:
        raise ValueError(f"the adapter was trained on {saved.name}, a file of your own; give it, "
                         f"or another, by {OWN[form['kind']]}")
    if not own:
        name = args.task or (saved.name if saved else "domain")
        return built_in(name, model), split
    if not was_own: return own_task(args, model, own, form), split
    shorter = {"context": None} if own == "text" else {}     # windows, where a text is short
    task = own_task(args, model, own, form | shorter, held_out=(0, 1))
    if set(task.sha256.values()) <= set(saved.sha256.values()):
        made = {"held_out": form["held_out"], "seed": form["seed"]}
        if form["held_out"][1] == 0:
            raise ValueError(f"the adapter learned from all rows of {task.name}, so none is left "
                             "to measure it on; give other rows by "
                             f"{OWN[own]} (finetune probe said what cross-validation measured)")
        return own_task(args, model, own, form, **made), split
    changed = ", though it has changed since training, which may have read some of it"
    same_name = not task.sha256.keys().isdisjoint(saved.sha256)
    return task, "all of it" + changed * same_name
