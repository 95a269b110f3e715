"""The course: lessons as percent files, exercises that check themselves, and tools for instructors.

    A lesson       percent.py (lessons/src/NN_name.py → notebooks)   build.py (writes and runs them)
                   study_numbers.py ({study …} in its text)   show.py (source and pictures)
                   schematics/ (drawings)   slider.py, sliders.py, png.py (pictures with a handle)
                   beside.py (texts side by side)   guess.py (a guess before a measurement)
                   use.py (a student's function at work inside the package)
    An exercise    exercise.py (what it is)   exercises/ (one file a topic)   worth.py (its points)
                   slips.py (mistakes in the right answer, drawn arguments)
                   check.py (is a function right?)   judge.py (the stages of a check)
                   diagnose.py, causes.py (its likely cause)   result.py (what is shown)
                   calls.py (calls a function for a limited time)   wire.py, worker.py (elsewhere)
                   borrowed.py (what an answer takes from the package)
    A project      project.py (its record and criteria)   projects.py (skeleton and worked example)
    An assignment  assign.py (what is handed out)   handout.py (the course without solutions)
                   whose.py (whose submission it is)   grade.py (points as CSV or JSON)

lessons/src/README.md says how to write a lesson.
"""
from .beside import beside
from .check import check
from .guess import guess
from .project import Project
from .show import show
from .use import use

__all__ = ["Project", "beside", "check", "guess", "show", "use"]
