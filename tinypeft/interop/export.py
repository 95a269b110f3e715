"""A run of `train` as a folder that goes on elsewhere: in PyTorch, on several GPUs or machines.

    model/                 the base, a folder of Hugging Face, with its tokenizer
    adapter/               the method, a folder of PEFT; a run that trains the base itself has none
    start.safetensors      where the trained parameters start (`torch_names`)
    data/SPLIT             the rows of a split (`rows_of`)
    task.json              what `classify` and `generate` must know of the task
    settings.json          steps, rates by group of parameters, schedule, seed
    train.py, README.md    the loop of `train` in PyTorch (`training/train.py.txt`), how to run it

The rows of a step are drawn from default_rng([seed, step]) on both sides, and every process draws
them all and takes its share. So the batches are the same, however many processes there are.
"""
from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..engine.nn import Dropout
from ..files import check_writable, write_atomically
from ..files.safetensors import write_safetensors
from ..peft import AdaLoRA, DyLoRA, MethodError, PrefixTuning, PTuning, TrainableTokens
from ..peft.ia3 import ScaledInput
from ..peft.model import PeftModel
from ..peft.switching import plain_twin
from ..quant.model import coded_layers, dequantize
from ..text.tasks import Classification, Task, save_task
from ..training.options import TrainOptions
from ..training.rates import make_optimizer
from ..training.run import Run
from . import adapters
from .card import line
from .changed_table import row_of
from .huggingface import to_huggingface
from .lowrank import adapted_layers
from .rows import check_batches, check_loss, padding, rows_of
from .torch_names import start_of, training_fields, trains_the_base

__all__ = ["export_training"]

HOOKS = "before_step", "penalty", "after_step"
TEMPLATES = Path(__file__).parent / "training"


def export_training(tuned: PeftModel, task: Task, folder: str | Path, steps: int,
                    **options: Any) -> None:
    """Write to `folder` what goes on with `train(tuned, task, steps, **options)` in PyTorch.

    tuned: what `attach` returned; it stays as it is. task: language modelling, classification, or
    prompts and answers. options: those of `train`; with a `checkpoint` that exists the run goes on
    from there, AdamW's moments included. Options of this machine alone (workers, progress,
    evaluations) change nothing. Dropout draws other masks there.
    Raises MethodError for a method that PEFT lacks or trains in another way, ValueError for a task,
    an option or a checkpoint that the script cannot take, TypeError for a model without a
    method."""
    chosen, folder = TrainOptions(steps=steps, **options), Path(folder)
    for name in "patience", "keep_best", "callbacks":
        if getattr(chosen, name):
            raise ValueError(f"export_training: the script has no {name}, and takes all steps")
    check(tuned, task)
    data = {split: rows_of(task, split) for split in task.splits}
    check_batches(task, data["train"], chosen.batch_size, chosen.seed)
    check_writable(folder)
    with started(tuned, task, chosen) as (optimizer, first_step):
        groups, start = start_of(tuned, optimizer, moments=first_step > 0)
        (folder / "settings.json").unlink(missing_ok=True)       # it must not describe new files
        write_base(tuned, folder / "model")
        if not trains_the_base(tuned): adapters.save(tuned, folder / "adapter", named=False)
        write_safetensors(folder / "start.safetensors", start)
    for split, rows in data.items():
        write_safetensors(folder / "data" / f"{split}.safetensors", rows)
    same = {name: getattr(chosen, name) for name in (
        "seed", "batch_size", "accumulate", "clip", "betas", "lr_floor")}
    settings = {"steps": steps, "first_step": first_step, **same,
                "schedule": chosen.schedule_kind, "warmup": chosen.warmup_steps,
                "nf4": False, "classes": tuned.head and tuned.head.d_out,
                "pad": padding(data.values()) if tuned.head else 0,
                "adapter": None if trains_the_base(tuned) else training_fields(tuned, steps),
                "gamma": tuned.method.gamma if isinstance(tuned.method, AdaLoRA) else None,
                "groups": groups}
    save_task(task, folder)
    template = lambda name: (TEMPLATES / f"{name}.txt").read_text("utf-8")
    write_atomically(folder / "train.py", template("train.py"))
    write_atomically(folder / "README.md", template("README.md").format(
        steps=f"steps {first_step + 1} to {steps}", **said(tuned, task)))
    write_atomically(folder / "settings.json", json.dumps(settings, indent=1) + "\n")


def check(tuned, task):
    """Raise an error unless transformers and PEFT can train this method as `train` does."""
    if not isinstance(tuned, PeftModel):
        raise TypeError("export_training: expected what attach returns, got a "
                        f"{type(tuned).__name__}; attach(model, FullFineTuning()) trains all of it")
    tuned.check_parts_there()
    tuned.check_none_off("export_training")
    check_loss(task)
    if isinstance(task, Classification) != (tuned.head is not None):
        raise ValueError("export_training: a classification and a head belong together; attach with"
                         " head=len(task.classes), or without a head for another task")
    method = tuned.method
    refuse = lambda why: MethodError(f"export_training: {method}: {why}")
    for hook in own_hooks(tuned):
        raise refuse(f"its class has a `{hook}` of its own, which the script does not know; train "
                     "it here")
    if any(not p.requires_grad for part in tuned.parts.values() for p in part.added()):
        raise refuse("PEFT would train all factors of what it starts from, and some are frozen "
                     "here; train it here")
    if isinstance(method, DyLoRA):
        raise refuse("it draws a rank for each step, PEFT's LoRA has one rank; train it here")
    if row_of(method):
        raise refuse("the script does not know its tensors; train it here")
    if any(len(layers) > 1 and isinstance(layer, ScaledInput)
           for _, layers in adapted_layers(tuned) for layer in layers):
        raise refuse("PEFT scales the input of GPT-2's query, key and value by one vector, which "
                     "are three here; give other targets, or train it here")
    if any(isinstance(part.method, TrainableTokens) for part in tuned.parts.values()):
        raise refuse("the script does not train rows of the embedding; train it here")
    if isinstance(method, AdaLoRA):
        if (method.orthogonality, method.importance) != ("norm", "after"):
            raise refuse('PEFT has orthogonality="norm" and importance="after"; set these two')
        if any(len(layers) > 1 for _, layers in adapted_layers(tuned)):
            raise refuse("PEFT prunes GPT-2's query, key and value as one matrix; give other "
                         "targets, or train it here")
    if tuned.head is not None and tuned.head.bias is not None:
        raise refuse("the head has a bias, transformers' has none; attach one without (head_bias)")
    for path, layer in coded_layers(tuned.model).items():
        if not layer.is_affine:
            raise refuse(f"{path} is a {type(layer).__name__}, which rounds its inputs; "
                         "transformers has no such layer")
    if trains_the_base(tuned): return
    if len(tuned.parts) > 1: raise refuse("the script trains one method; attach one")
    adapters.check(tuned)
    if tuned.virtual is not None and tuned.head is not None:
        raise refuse("PEFT's classifiers with virtual tokens read the padding at the end of short "
                     "rows; use a LoRA, or train it here")
    if isinstance(method, PrefixTuning) and method.dropout:
        raise refuse("PEFT has no dropout on a prefix; set dropout=0")
    if isinstance(method, PTuning) and method.encoder is None:
        raise refuse("PEFT trains P-tuning only with an encoder; PromptTuning is the same without")


def own_hooks(tuned):
    """List the hooks of training that a method's class does in another way than ours."""
    for part in tuned.parts.values():
        cls = type(part.method)
        ours = next(base for base in cls.__mro__ if base.__module__.startswith("tinypeft."))
        yield from (name for name in HOOKS if getattr(cls, name) is not getattr(ours, name))


@contextlib.contextmanager
def started(tuned: PeftModel, task: Task, options: TrainOptions) -> Iterator[tuple]:
    """Inside, `tuned` is as at the start of the run, or as the checkpoint has it:
    (optimizer, steps that are done)."""
    before = tuned.state_dict()
    try:
        optimizer = make_optimizer(tuned, options)
        done = len(Run(tuned, task, optimizer, options).history.loss)
        if described := optimizer.described():
            raise ValueError(f"export_training: the script has AdamW, got {described}; train with "
                             "AdamW, or here")
        if done and isinstance(tuned.method, AdaLoRA):
            raise MethodError("export_training: PEFT cannot go on with AdaLoRA's scores; export "
                              "the run from its start, or finish it here")
        if done == options.steps:
            raise ValueError(f"export_training: {options.checkpoint} holds a run whose {done} "
                             "steps are done; save the adapter, or give more steps")
        yield optimizer, done
    finally:
        tuned.load_state_dict(before)


def write_base(tuned: PeftModel, folder: Path) -> None:
    """Return the model without its method, in dense weights; with what it trains of the base
    itself."""
    if trains_the_base(tuned):
        model = tuned.merge()
        model.head = None
        to_huggingface(dequantize(model), folder)
    else:
        to_huggingface(dequantize(plain_twin(tuned.frozen)), folder)


def said(tuned, task):
    """Return what the README says of a run: how its result comes back, and what is special."""
    special, load = [], '`tp.load_adapter(tp.load_model("model"), "result")` reads the result.'
    if trains_the_base(tuned):
        load = '`tp.load_model("result")` reads the result.'
        if tuned.head is not None and tuned.model.lm_head is not None:
            load = ("nothing reads the result: transformers' classifiers lack the output matrix "
                    "that this model has.")
    else:
        special.append("`adapter/` is the method at its start, a folder of PEFT.")
    if coded_layers(tuned.model):
        special.append(
            "The base was quantized, and `model/` has the same numbers in dense weights. With "
            '`"nf4": true` in `settings.json` bitsandbytes holds them in 4 bits. That changes no '
            "number of NF4, and rounds those of other schemes again.")
    if any(isinstance(m, Dropout) and m.p for _, m in tuned.named_modules()):
        special.append("Dropout draws other masks than in tinypeft.")
    return {"title": f"{tuned.method} on {line(task.name)}", "load": load,
            "special": "".join(f"\n* {line}" for line in special)}
