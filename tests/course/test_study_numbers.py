"""Numbers of the study in a lesson's text: what stands for what, and what does not exist."""
import json

import numpy as np
import pytest

from tinypeft.course import percent, study_numbers
from tinypeft.course.assign import answer_page
from tinypeft.course.study_numbers import filled
from tinypeft.study import claims
from tinypeft.study.claims import tables
from tinypeft.study.experiment import half_width

RESULTS = study_numbers.FIGURES / "results"
RUNS = {                                                 # a planted experiment, whose numbers can be computed by hand
    "a": {"0": {"loss": 2.0, "n": 1200, "list": [1.0, 5.0]}, "1": {"loss": 2.2, "n": 1200, "list": [3.0, 5.0]}},
    "b, wide": {"0": {"loss": 1.0, "n": 10, "list": [1, 2]}, "1": {"loss": 1.1, "n": 12, "list": [1, 2]}},
    "a - b": {"0": {"loss": 7.25}}, "late": {"5": {"loss": 3.0}}, "c": {"0": {"loss": 3.0, "n": 0, "list": [0, 0]}}}
METHODS = {"full": {"0": {"loss": 1.0}, "1": {"loss": 1.2}}, "frozen": {"0": {"loss": 3.0}, "1": {"loss": 3.2}}}


@pytest.fixture
def planted(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    for name, runs in (("rank", RUNS), ("methods", METHODS)):
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps({"experiment": name, "runs": runs}), "utf-8")
    monkeypatch.setattr(study_numbers, "FIGURES", tmp_path)
    return tmp_path


def pm(*values, form=".3f"): return f"{np.mean(values):{form}} ± {half_width(values):{form}}"


@pytest.mark.parametrize("text, expected", [
    ("{study rank: a, loss}", pm(2.0, 2.2)), ("{study rank: a, loss, mean}", "2.100"), ("{study rank: a, n}", "1,200"),
    ("{study rank: a, loss, as .1f}", pm(2.0, 2.2, form=".1f")), ("{study rank: a, loss, mean, as .1f}", "2.1"),
    ("{study rank: a, loss, as .1f, mean}", "2.1"), ("{study rank: a, loss, bits, mean}", f"{2.1 / np.log(2):.3f}"),
    ("{study rank: a, loss, as %}", pm(200, 220, form=".0f") + " %"), ("{study rank: a, loss, mean, as .1%}", "210.0 %"),
    ("{study rank: b, wide, n, mean}", "11"), ("{study rank: b, wide, loss}", pm(1.0, 1.1)),
    ("{study rank: a - b, wide, loss}", "+" + pm(1.0, 1.1)), ("{study rank: b, wide - a, loss}", "−1.050 ± 0.635"),
    ("{study rank: b, wide - a, loss, mean, as %}", "−105 points"),
    ("{study rank: a - b, loss}", "7.250"), ("{study rank: a - b - a, loss, mean}", "+5.250"),
    ("{study rank: c - a, loss}", "+1.000"), ("{study rank: a, list[0]}", "2 ± 13"), ("{study rank: a, list[-1], mean}", "5"),
    ("{study rank: a, loss, of full over frozen}", "50 %"), ("{study rank: a, loss, of b, wide over c, as .1%}", "50.0 %"),
    ("{study rank: a, loss, of full over frozen, mean}", "50 %"),
    ("It is {study\nrank: a,\nloss, mean}, $x$.", "It is 2.100, $x$."),
    (r"$\text{study of a}$, \mathrm{claim}, {a: 1}", r"$\text{study of a}$, \mathrm{claim}, {a: 1}")])
def test_what_stands_for_what(planted, text, expected):
    assert filled(text, "x.py") == expected


@pytest.mark.parametrize("text, says", [
    ("{study ranks: a, loss}", "there is no experiment 'ranks'; there are .*rank, placement"),
    ("{study rank: d, loss}", "no condition 'd'; there are a, b, wide, a - b, late, c"),
    ("{study rank: a, los}", "no metric 'los' of 'a'; there are loss, n, list"),
    ("{study rank: a - d, loss}", "no condition 'a - d'"),
    ("{study rank: a, loss, of fill over frozen}", "no condition 'fill'"),
    ("{study rank: a - late, loss}", "no seed was measured for all"),
    ("{study rank: a, list}", r"shape \(2,\); write list\[0\]"),
    ("{study rank: a, list[2]}", r"no entry \[2\]"), ("{study rank: a, loss[0]}", r"no entry \[0\]"),
    ("{study rank: a}", "expected CONDITION, METRIC"),
    ("{study rank a, loss}", "expected {study EXPERIMENT: CONDITION, METRIC}"),
    ("{study rank: a, loss, as y}", "Unknown format code 'y'"), ("{study qlora: NF4, after}", "--rerun` measures it"),
    ("{claim There is no such claim}", "no claims of the study begin so; there are\n  LoRA is as good"),
    ("{claim L}", r"\d+ claims of the study begin so; there are\n  L"),
    ("{picture none}", "there is no picture 'none'; there are forest")])
def test_what_does_not_exist_is_told_with_lesson_and_line(planted, text, says):
    with pytest.raises(ValueError, match=says) as e: filled(f"One.\nTwo: {text}", "07_lora.py", 5)
    assert str(e.value).startswith("07_lora.py, line 6: " + text.replace("\n", " ")[:12])


def test_a_claim_has_its_numbers_and_its_verdict():
    judged = tables.judged(RESULTS, claims.ALL_CLAIMS)[0]
    start = " ".join(judged.claim.text.split()[:6])
    text = filled(f"{{claim {start}}}", "x.py")
    assert text.startswith(f"The study, on the claim *{judged.claim.text}*: **{judged.verdict}**. Effect (plus ")
    assert text.endswith(f"Measured: {judged.means}.")


def test_numbers_follow_the_results(planted):
    assert filled("{study rank: a, loss, mean}", "x.py") == "2.100"
    changed = RUNS | {"a": {"0": {"loss": 5.0}}}
    (planted / "results" / "rank.json").write_text(json.dumps({"experiment": "rank", "runs": changed}, indent=1), "utf-8")
    assert filled("{study rank: a, loss}", "x.py") == "5"


SOURCE = """# %% [markdown]
# # 07 · Title
#
# The loss is {study rank: a, loss, mean}.

# %%
text = "{study rank: a, loss}"

# %% [markdown]
# ### {exercise} · Yours (open, 4 points, 25 minutes)
#
# {study rank: b, wide, loss, mean}

# %% [answer]
# It is {study rank: a - b, wide, loss, mean}.
"""


def test_in_a_lesson(planted, tmp_path):
    """Text has numbers, code does not, answers have them on the instructors' page, and an error names the line of the file."""
    path = tmp_path / "07_lora.py"
    path.write_text(SOURCE, "utf-8")
    sources = [cell.source for cell in percent.read(path)]
    assert sources[0].endswith("The loss is 2.100.") and sources[1] == 'text = "{study rank: a, loss}"'
    assert sources[2].endswith("\n1.050") and "{study" in sources[3]
    assert "1.050" in (page := answer_page(path)) and "It is +1.050." in page
    for line, old, new in ((4, "rank: a, loss, mean}.", "rank: z, loss}."), (12, "# {study rank: b", "# {study rank: z")):
        path.write_text(SOURCE.replace(old, new), "utf-8")
        with pytest.raises(ValueError, match=f"^07_lora.py, line {line}: .*no condition 'z"): percent.read(path)
        assert len(percent.parsed(path)) == 4
    path.write_text(SOURCE.replace("rank: a - b", "rank: z - b"), "utf-8")
    assert len(percent.read(path)) == 4
    with pytest.raises(ValueError, match="^07_lora.py, line 15: .*no condition 'z"): answer_page(path)
