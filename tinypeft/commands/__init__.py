"""The command line, `python -m tinypeft`: one function for each command.

    cli.py         the parser, what an error says, and the commands of the base and the course
    arguments.py   what several commands take: --model, --set, --seed, --json
    study.py       compare (the main job), figures, memory
    training.py    finetune
    sizes.py       how much a run of finetune reads: steps, rows, passes
    finetuning.py  one run of finetune: train, save, test
    probing.py     finetune probe: a classifier that is solved and not trained
    kept.py        what a training that is stopped leaves behind
    scores.py      how well a classifier does: intervals, classes, a picture of confusions
    using.py       evaluate, classify
    writing.py     generate, chat
    handing_on.py  merge, and what the next three share with it
    combining.py   combine: one adapter of several
    exporting.py   export: for llama.cpp, transformers and PEFT
    for_pytorch.py  export --to training: a run that goes on in PyTorch
    quantizing.py  quantize: measured on one's own data, and saved
    results.py     folders that are new and whole, and the command in their run.json
    data.py        what a task is made of: --task, or --text, --csv and --pairs of one's own
    doctor.py      what is installed, and whether all is well
"""
