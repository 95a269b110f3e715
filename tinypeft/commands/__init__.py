"""The command line, `python -m tinypeft`: one function for each command.

    cli.py           the parser, what an error says, and the commands of the base and the course
    arguments.py     what several commands take: --model, --set, --seed, --json
    study.py         compare (the main job), figures, memory
    finetuning.py    finetune
    training.py      what a training is made of: its method, its steps and its rates
    sizes.py         how much a run of finetune reads: steps, rows, passes
    one_run.py       one run of finetune: train, save, test
    saving.py        where finetune saves an adapter, and what protects one that is there
    probing.py       finetune probe: a classifier that is solved and not trained
    scores.py        how well a model does: intervals, classes, exact answers
    evaluating.py    evaluate
    classifying.py   classify
    writing.py       generate, chat
    combining.py     combine: one adapter of several
    exporting.py     merge, and export: for transformers and PEFT here
    for_llamacpp.py  export --to gguf and gguf-lora
    for_pytorch.py   export --to training: a run that goes on in PyTorch
    quantizing.py    quantize: measured on one's own data, and saved
    finished.py      what these commands make: a model or an adapter, with task, card and run.json
    results.py       folders that are new and whole, with run.json; what a stop leaves
    data.py          what a task is made of: --task, or --text, --csv and --pairs of one's own
    doctor.py        what is installed, and whether all is well
"""
