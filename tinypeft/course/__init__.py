"""The course: lessons written as percent files, exercises that check themselves, and what an instructor needs.

    percent.py     lessons/src/NN_name.py → lessons/NN_name.ipynb and lessons/assignments/NN_name.ipynb
    exercise.py    what an exercise is
    exercises/     the exercises, one file per topic
    check.py       tinypeft.check: is a student's function right, and if not, what is the likely cause?
    diagnose.py    from numbers to the likely cause
    calls.py       calling a student's function safely: copies, errors told by the student's own line, a time limit
    wire.py        the same in another process, worker.py
    grade.py       submissions → points, CSV and JSON
    assign.py      what is handed out
    build.py       notebooks and the table of lessons from the sources
    show.py        package source and pictures as a cell's output, these in few bytes: png.py

How to write a lesson stands in lessons/src/README.md.
"""
from .check import check
from .show import show

__all__ = ["check", "show"]
