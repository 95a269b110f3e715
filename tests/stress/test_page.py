"""The figures on tests/README.md are the recorded ones."""
import json

import pytest

from tests.stress import RESULTS, as_text
from tests.stress.page import PAGE, generated

TEXT = PAGE.read_text("utf-8")


def test_the_page_says_what_was_recorded():
    assert generated(TEXT) == TEXT, "run `python -m tests.stress.page`"


def test_every_search_has_its_place():
    for path in RESULTS.glob("*.json"): assert f"<!-- {path.stem} -->" in TEXT, path.stem


@pytest.mark.parametrize("name, record, words", [
    ("graphs", {"graphs": 50000, "operations": 123456, "by operation": {"a": 1, "b": 2}, "failures": {}},
     "50,000 graphs, 123,456 operations of 2 kinds: 0 differ (2026-01-02)"),
    ("graphs", {"graphs": 7}, "graphs 7 (2026-01-02)"),
    ("tables", {"draws": 2, "tables": {"mails": {
        "accuracy": {"probe, SmolLM2": [0.9, 0.8], "words": [0.5, 0.7], "letters, scikit-learn": [0.7, 0.9]},
        "interval": {"probe, SmolLM2": [0.7, 0.95]}, "CPU seconds of the first draw": {"probe, SmolLM2": 30.4},
        "peak of the process, MB": 1234}}},
     "accuracy of the probe and of the best bag of words or letters, means of 2 draws: mails 0.850 (0.700 to 0.950) and 0.800; "
     "at most 30 CPU s for a table, 1,234 MB (2026-01-02)"),
    ("awq", {"cases_tried": 12, "seconds": 5}, "cases tried 12 (2026-01-02)")])
def test_a_record_becomes_one_line(name, record, words, tmp_path):
    """By its own words, or by the names of its numbers where those do not fit it."""
    (tmp_path / f"{name}.json").write_text(json.dumps({"date": "2026-01-02"} | record), "utf-8")
    assert f"<!-- {name} -->{words}<!-- /{name} -->" in generated(TEXT, tmp_path)
    assert "<!-- kills -->not recorded yet<!-- /kills -->" in generated(TEXT, tmp_path)


def test_a_record_is_json_with_one_line_for_each_row():
    figures = {"a": {"b": [1, 2]}, "é": "x\ny", "rows": [[1, "["], (2, "]")], "none": []}
    assert json.loads(as_text(figures)) == json.loads(json.dumps(figures))
    assert '\n  [1, "["],\n  [2, "]"]\n' in as_text(figures)
    del figures["rows"]
    assert as_text(figures) == json.dumps(figures, indent=1, ensure_ascii=False) + "\n"
