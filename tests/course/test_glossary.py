"""The glossary: one sentence an entry, in order, and every notebook finds it."""
import re

from tinypeft.course import percent
from tinypeft.course.handout import glossary

TEXT = (percent.LESSONS / "GLOSSARY.md").read_text(encoding="utf-8")
WORDS = TEXT.partition("## Words\n")[2].partition("\n## ")[0].strip().split("\n")
LETTERS = TEXT.partition("## Letters that all lessons share\n")[2].partition("\n## ")[0]


def test_each_entry_is_one_sentence_in_the_order_of_the_alphabet():
    names = []
    for entry in WORDS:
        match = re.fullmatch(r"\* \*\*([A-Z][^*]+)\.\*\* (.+)\.", entry)
        assert match, entry
        names.append(match[1].lower())
        assert not re.search(r"[.!?] [A-Z]", match[2]) and 5 <= len(match[2].split()) <= 30, entry
    assert names == sorted(names) and len(names) == len(set(names)) > 50


def test_the_words_and_letters_that_lessons_rely_on_are_there():
    for word in ("seam", "residual stream", "logits", "nats", "perplexity", "calibration", "rank", "seed", "moments", "latency",
                 "orthonormal", "frobenius norm", "dropout", "ablation", "lagrange multiplier", "bag of words"):
        assert f"* **{word.capitalize()}.**" in TEXT, word
    for letter in ("B", "T", "d", "L", "H", "V", "r", r"\alpha", "W_0", r"\Delta W", "s", "z", "b", r"\eta"):
        assert f"${letter}$" in LETTERS, letter


def test_no_line_of_a_table_is_broken():
    for table in re.findall(r"(?:^\|.*\n)+", TEXT, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_links(tmp_path):
    """A lesson stands beside the glossary, its assignment one folder below it."""
    for link in re.findall(r"\]\(([^)#:]+)\)", TEXT): assert (percent.LESSONS / link).exists(), link
    assert "(GLOSSARY.md)" in (percent.LESSONS / "README.md").read_text(encoding="utf-8")
    cells = percent.parse("# %% [markdown]\n# See the [glossary](GLOSSARY.md#words).\n")
    assert percent.lesson(cells).cells[0].source == "See the [glossary](GLOSSARY.md#words)."
    assert percent.assignment(cells).cells[0].source == "See the [glossary](../GLOSSARY.md#words)."
    assert "](lessons/07_lora.ipynb)" in glossary(r"[\1](lessons/\2)") and ".ipynb" not in glossary()
