"""What a built lesson shows of the study, its captions and its map, is what the stored results say now."""
import functools
import json
import re

import pytest

from tinypeft.course import percent
from tinypeft.study import pictures
from tinypeft.study.about import lesson_map
from tinypeft.study.pages import ROOT

FIGURES = ROOT / "figures"
SHOWN = {path.stem: [name for name in dict.fromkeys(re.findall(r'show\("(\w+)"\)', path.read_text("utf-8")))
                     if name in pictures.PICTURES] for path in percent.sources()}


def outputs(stem):
    """The Markdown that the cells of a lesson have put out."""
    cells = json.loads((percent.LESSONS / f"{stem}.ipynb").read_text("utf-8"))["cells"]
    shown = [output.get("data", {}) for cell in cells for output in cell.get("outputs", ())]
    return ["".join(data["text/markdown"]) for data in shown if "text/markdown" in data]


@functools.cache
def caption(name):
    picture = pictures.drawing(FIGURES, name)
    return f"**{picture.sentence}** {picture.detail}"


def outdated(stem, shown):
    """The pictures of a lesson whose captions are not what the stored results say."""
    return [name for name in SHOWN[stem] if not pictures.missing(FIGURES, name) and caption(name) not in shown]


@pytest.mark.parametrize("stem", [stem for stem, names in SHOWN.items() if names])
def test_captions_say_what_the_stored_results_say(stem):
    names = outdated(stem, outputs(stem))
    assert names == [], f"{', '.join(names)} changed; run: python -m tinypeft lessons build {stem[:2]}"


def test_the_map_lists_every_method_and_scheme():
    assert lesson_map() in outputs("00_map"), "run: python -m tinypeft lessons build 00"


def test_an_old_caption_is_found():
    (stem,) = (stem for stem in SHOWN if stem.startswith("07"))
    shown = [text.replace("LoRA", "Lora") for text in outputs(stem)]
    assert "rank" in SHOWN[stem] and set(outdated(stem, shown)) == {name for name in SHOWN[stem] if "LoRA" in caption(name)}
