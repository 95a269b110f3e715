"""What every part uses and no reader needs first.

    hyper.py     a method's fields: each with its default, its limits and the words of an error
    hints.py     names for the types that signatures repeat
    lazy.py      a package whose names are imported when they are first used
    threads.py   cores: a thread for each part of a batch, one BLAS thread in each
    heap.py      freed memory is kept for the next step
    signals.py   Ctrl-C acts between the steps of a job
    progress.py  how far a job is: a line that is redrawn, or lines in a pipe
    show/        tables and pictures for notebooks
    wording.py   values and numbers in messages
"""
