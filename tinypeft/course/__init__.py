"""The course: lessons as percent files, exercises that check themselves, and tools for instructors.

A lesson:
    percent.py     lessons/src/NN_name.py → the lesson's notebook and the assignment's notebook
    study_numbers.py   {study …} and {claim …} in their text → what the study measured
    build.py       notebooks, and the table of lessons, from the sources
    show.py        the package's source and the study's pictures as a cell's output
    schematics/    drawings of what goes where, and of which shape
    slider.py      a picture for each value of a parameter, and a handle
    sliders.py     sliders of lessons
    beside.py      texts side by side
    png.py         a picture as a small PNG
    predict.py     tinypeft.predict: a guess before a measurement, and both after it
    use.py         a student's function at work inside the package, for the length of a block

An exercise:
    exercise.py    what an exercise is
    exercises/     the exercises, one file per topic
    worth.py       its points and minutes, read from the lesson's source
    check.py       tinypeft.check: is a student's function right?
    judge.py       the stages of a check, from the signature to the invariants
    diagnose.py    from a wrong result to its likely cause
    causes.py      causes that any exercise may have: what shapes, dtypes and numbers say
    result.py      what the student sees
    calls.py       calls a student's function: on copies, for a limited time, errors with the line
    wire.py        the same in another process, which runs worker.py

A project:
    project.py     the record of a project, and which criteria it meets
    projects.py    lessons/src/projects → the skeleton for students, and the worked example

An assignment:
    assign.py      what an instructor hands out for a lesson, and the open questions' answers
    handout.py     the whole course for students, without solutions
    whose.py       submissions, and whose they are
    grade.py       submissions → points, as CSV or JSON

lessons/src/README.md says how to write a lesson.
"""
from .beside import beside
from .check import check
from .predict import predict
from .project import Project
from .show import show
from .use import use

__all__ = ["Project", "beside", "check", "predict", "show", "use"]
