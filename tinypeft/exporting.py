"""The command `export-training`: what `finetune` would do, as a folder that goes on elsewhere."""
from argparse import Namespace

from .arguments import build, known, model_of, show_json

__all__ = ["run_export"]


def run_export(args: Namespace) -> None:
    """Write the folder, and say how to run it."""
    from .interop.export import export_training
    from .peft import METHODS, attach
    from .text import tasks
    model, classify = model_of(args), args.task == "classify"
    method = build("method", METHODS, args.method, args.set)
    known([args.task], ("domain", "classify", "summarize"), "task")
    task = getattr(tasks, args.task)(model)
    tuned = attach(model, method, rng=args.seed, head=len(task.classes) if classify else None,
                   head_bias=False)
    steps = args.steps if args.steps is not None else 12 if args.quick else 300
    export_training(tuned, task, args.out, steps, seed=args.seed, lr=args.lr,
                    batch_size=args.batch_size or (16 if classify else 8),
                    checkpoint=args.checkpoint, accumulate=args.accumulate)
    if args.json: return show_json({"method": str(method), "task": args.task, "steps": steps,
                                    "saved": str(args.out)})
    print(f"saved in {args.out}; `accelerate launch {args.out / 'train.py'}` runs it where torch, "
          "transformers, peft and accelerate are installed")
