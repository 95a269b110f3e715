"""The study: the cost and the quality of methods and schemes, the claims of the papers, the pictures.

    about.py         the one table of what is known of each method and scheme: title, equation, papers, lesson, colour, marker
    compare.py       the main job: methods and schemes side by side, measured anew
    compared.py      the schemes by label, and the memory of a step: what the main job and the experiments share
    prediction.py    does a new run agree with what the study stored?
    glance.py        the main job's record as tables and a picture
    cost.py          what quantizing a model costs, for the command `quantize`

    experiment.py    an experiment: conditions, seeds, settings; `Results` are what a file stores
    conditions.py    a condition in full, with every field, and in what a stored one is not today's
    measuring.py     `run` measures what is missing in a file, and the file says with what
    checking.py      do the stored results hold? some are measured again (`--check`)
    stored.py        reading what a file stores, for pictures, pages and verdicts
    effects.py       rows that pair themselves by seed and document; an effect and its error, one for every interval and p
    experiments/     the experiments, one file per question
    whole.py         the study by one command: the rates first, then what uses them
    tuning.py        one fine-tuning run, as the experiments make it
    quantized.py     the model and the text on which the experiments judge quantization
    bases.py         two smaller bases beside the shipped one

    claims/          what the papers claim, each claim an expression over measured rows, and a rule that judges it
    pictures/        every picture, drawn from stored results alone
    plot.py          the style that all pictures share
    gallery.py       figures/README.md: claims and pictures on one page
    pages.py         the sections of the other pages that hold measured numbers
    pretraining.py   the picture of how the base was trained
    k_quants.py      the picture and the tables of tinypeft/quant/K_QUANTS.md
    successors.py    the tables of what came after LoRA, on tinypeft/peft/README.md
    memory.py        the memory of fine-tuning, by formula
    markdown.py      what the makers of pages share
    speed.py         the tables of tests/benchmarks/README.md

`python -m tinypeft figures` draws everything from `figures/results`; `--rerun` measures what is missing, and `--check` measures
some of it again.
"""
