"""show: a function's source, an excerpt of it, and of a method or scheme the paper first."""
import inspect
import sys
from dataclasses import dataclass

import pytest

import tinypeft as tp
from tinypeft.course import show
from tinypeft.course.show import FIGURES, _figures_are_pictures, _present, source
from tinypeft.engine import functional as F
from tinypeft.peft.lora import LoRALinear


@pytest.mark.parametrize("cls", [*tp.METHODS.values(), *tp.SCHEMES.values()], ids=lambda cls: cls.__name__)
def test_of_a_method_or_scheme_the_paper_comes_first(cls):
    text, paper = source(cls), sys.modules[cls.__module__].__doc__
    where, _, rest = text.partition("\n")
    assert where == "# " + cls.__module__.replace(".", "/") + ".py"
    assert rest.startswith(f'"""{paper.rstrip()}\n"""') and text.count(paper.strip().split("\n")[0]) == 1
    assert rest.endswith(inspect.getsource(cls).rstrip())


def test_of_anything_else_the_source_alone():
    assert source(LoRALinear) == f"# tinypeft/peft/lora.py\n{inspect.getsource(LoRALinear).rstrip()}"
    assert source(F.linear).startswith("# tinypeft/engine/functional.py\n@accepts_arrays\ndef linear(")
    assert source(tp.LoRA.scale).split("\n")[1].startswith("def scale")


def test_an_excerpt_has_neighbours_and_says_what_is_left_out():
    lines = inspect.getsource(source).split("\n")
    at = next(i for i, line in enumerate(lines) if "issubclass" in line)
    assert source(source, "issubclass").split("\n")[1:] == [lines[0], "    …", *lines[at - 1:at + 2]]
    assert source(tp.NF4, "block_size: ").count('"""') < 4                       # no paper in an excerpt
    with pytest.raises(KeyError, match="'no such text' does not occur in the source of linear"):
        show(F.linear, "no such text")


def test_a_picture_is_shown_with_its_sentence(monkeypatch):
    shown, made = [], pytest.importorskip("IPython.display")
    monkeypatch.setattr(made, "display", lambda what, **options: shown.append(what))
    monkeypatch.setitem(_present.__globals__, "_png", lambda figure: f"png of {figure}".encode())
    picture = type("Drawing", (), {"figure": 1, "alt": "dots", "sentence": "It falls.", "detail": "8 seeds."})
    _present(picture)
    assert (shown[0].data, shown[0].alt, shown[1].data) == (b"png of 1", "dots", "**It falls.** 8 seeds.")
    picture.figure = "<svg/>"
    _present(picture)
    assert shown[2]["image/svg+xml"] == "<svg/>" and shown[2]["text/plain"] == "dots"


def test_a_figure_is_displayed_with_its_label_as_its_description(monkeypatch):
    interactive = pytest.importorskip("IPython.core.interactiveshell")
    shell, plot = interactive.InteractiveShell(), pytest.importorskip("tinypeft.study.plot")
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: shell)
    monkeypatch.setitem(_present.__globals__, "_png", lambda figure: b"png")
    _figures_are_pictures()
    (fig, _), (other, _) = plot.figure(), plot.figure()
    fig.set_label("a line that falls")
    data, about = shell.display_formatter.format(fig)
    assert (data["text/plain"], about["image/png"]) == ("a line that falls", {"alt": "a line that falls"})
    assert shell.display_formatter.format(other)[0]["text/plain"] == "a figure"


def test_what_a_name_stands_for_is_shown(monkeypatch):
    shown, pictures = [], pytest.importorskip("tinypeft.study.pictures")
    monkeypatch.setitem(show.__globals__, "_present", shown.append)
    monkeypatch.setattr("tinypeft.course.schematics.SCHEMATICS", {"a box": lambda: "drawn"})
    monkeypatch.setattr(pictures, "drawing", lambda folder, name: (folder.name, name))
    name = next(name for name in pictures.PICTURES if not pictures.missing(FIGURES, name))
    show("schematic: a box")
    show(name)
    assert shown == ["drawn", ("figures", name)]


def test_a_class_of_the_readers_own():
    @dataclass(frozen=True)
    class Mine(tp.LoRA):
        """My own LoRA."""
    assert source(Mine).startswith("# tests/course/test_show.py\n@dataclass(frozen=True)\nclass Mine(tp.LoRA):")


def test_a_picture_that_does_not_exist_is_told(capsys):
    show("no such picture")
    assert "there is no picture 'no such picture'; the pictures are" in capsys.readouterr().out
