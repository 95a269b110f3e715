"""The figures on tests/README.md: the last recorded run of each long search, in the last column of its tables.

    python -m tests.stress.page                  write them again, from results/*.json

A figure stands between `<!-- name -->` and `<!-- /name -->`, name being the search's. One that was not recorded yet says so.
"""
import json
import re
from importlib import import_module
from pathlib import Path

from tests.stress import RESULTS
from tinypeft.files import write_atomically
from tinypeft.study.pages import filled

__all__ = ["PAGE", "generated"]

PAGE = Path(__file__).parents[1] / "README.md"


# -- what is said of each search -------------------------------------------------------------------
def graphs(r):
    failed = sum(r["failures"].values())
    return f"{r['graphs']:,} graphs, {r['operations']:,} operations of {len(r['by operation'])} kinds: {failed} differ"


def configurations(r):
    return (f"{r['configurations']:,} configurations, {r['pairs_of_scheme_and_method']} pairs of scheme and method, "
            f"{r['promises_checked']:,} promises checked: {len(r['failures'])} broken")


def leaks(r):
    return f"{r['steps']:,} steps: " + ", ".join(f"{name} {grown['MiB']:+.2f} MiB" for name, grown in r["growth"].items())


def kills(r):
    return (f"{r['kills']} kills, {r['kills that cut a write']} of them during a write: {r['differ']} of "
            f"{r['runs that ended']} runs differ, {r['files left']} files left behind")


def interrupts(r):
    return f"{r['interrupts']} interrupts of {r['methods']} methods, at {r['lines']} different lines: {r['faults']} did harm"


def verbs(r):
    return (f"{r['verbs']:,} verbs, {r['refused']:,} of them refused: {r['walks broken']} walks broken; "
            f"{r['interrupts']:,} interrupts: {r['did harm']} did harm")


def commands(r):
    return (f"{r['wrong command lines']} wrong command lines: {r['not answered well']} answered badly; "
            f"{r['abuses']} abuses: {r['not survived']} not survived")


def files(r):
    bad = r["bad"] if isinstance(r["bad"], int) else len(r["bad"])
    return f"{r['files']:,} damaged files of {len(r['by kind'])} kinds and {r['attacks']} attacks: {bad} end badly"


def notebooks(r):
    c, rows = r["a class"], "/".join(map(str, r["a class"]["rows in --json, --csv and the table"]))
    return (f"{c['hostile notebooks']} hostile notebooks and {c['other files']} hostile files beside honest ones: rows in "
            f"JSON, CSV and table {rows} of {c['submissions']}, {c['peak memory of the grader, MiB']} MiB in the grader; "
            f"{r['damaged messages']['tried']:,} damaged messages and {r['damaged notebooks']['tried']:,} notebooks refused "
            "or read")


def awq(r):
    return "loss above float32, here and the authors': " + ", ".join(
        f"{name} {row['tinypeft']:.4f} and {row['authors']:.4f}" for name, row in r["means"].items())


def repeats(r):
    outside = [f"{name}: {contrast}" for name, of in r.items() if isinstance(of, dict)
               for contrast, found in of.items() if not found["inside"]]
    return f"{r['inside']} of {r['contrasts']} lie inside" + f"; outside: {', '.join(outside)}" * bool(outside)


def mutants(r):
    real, at_once = r["drawn"] - r["equivalent"], r["own"] + r["wider"] + r["timeout"]
    return (f"{r['drawn']} faults, {r['equivalent']} of them equivalent; of the other {real}, {at_once} caught, "
            f"{r['new']} more by tests written for them since, {len(r['survivors'])} not")


def tables(r):
    def said(name, table):
        accuracy = {way: sum(values) / len(values) for way, values in table["accuracy"].items()}
        low, high = table["interval"]["probe, SmolLM2"]
        bags = max(accuracy[way] for way in accuracy if way.startswith(("words", "letters")))
        return f"{name} {accuracy['probe, SmolLM2']:.3f} ({low:.3f} to {high:.3f}) and {bags:.3f}"
    each = list(r["tables"].values())
    seconds = max(table["CPU seconds of the first draw"]["probe, SmolLM2"] for table in each)
    return (f"accuracy of the probe and of the best bag of words or letters, means of {r['draws']} draws: "
            + ", ".join(said(*item) for item in r["tables"].items())
            + f"; at most {seconds:.0f} CPU s for a table, {max(table['peak of the process, MB'] for table in each):,} MB")


def llamacpp(r):
    files, n = r["files"], r["greedy tokens"]
    exact = [row for row in files.values() if "rounding alone" not in row]
    coded = {name: row for name, row in files.items() if "rounding alone" in row}
    models = [max(row) for rows in r["families"].values() for row in rows]
    return (f"{r['package']}, llama.cpp {r['release']}: {r['ids']['texts']} texts, {len(r['ids']['cut otherwise'])} cut "
            f"otherwise; conversation: {r['ids']['conversation']}; in float32, LoRA beside it and codes decoded among them, "
            f"logits within {max(row['relative'] for row in exact):.0e}, {min(row['same greedy tokens'] for row in exact)} of "
            f"{n} greedy tokens the same; "
            + ", ".join(f"{name} {row['relative']:.2g} (rounding inputs alone {row['rounding alone']:.2g}; the same rounding "
                        f"on both sides {row['relative to ours with rounded inputs']:.1g}), {row['same greedy tokens']} of {n} "
                        f"tokens, perplexity of a text here and there {' and '.join(map(str, row['perplexity']))}"
                        for name, row in coded.items())
            + f"; {len(models)} small models of {len(r['families'])} architectures, alone and with an adapter's file, within "
            f"{max(models):.0e}: {len(r['faults'])} faults")


def numbers(r):
    """Any other search: its numbers, by their names."""
    return ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in r.items()
                     if isinstance(value, (int, float)) and name not in ("seed", "seconds", "minutes")) or "recorded"


def answers():
    """Not a search: the answers that the exercises' tests give."""
    folder = PAGE.parent / "course/solutions"
    topics = [import_module(f"tests.course.solutions.{path.stem}") for path in folder.glob("[!_]*.py")]
    count = lambda kind: sum(len(given) for topic in topics for given in getattr(topic, kind).values())
    return f"{count('WRONG'):,} wrong and {count('RIGHT'):,} right answers"


SAYS = {f.__name__: f for f in (graphs, configurations, leaks, kills, interrupts, verbs, commands, files, notebooks,
                                awq, repeats, mutants, tables, llamacpp)}


# -- the page --------------------------------------------------------------------------------------
def figure(results, name):
    """One search in one line: its figures, and the day."""
    path = results / f"{name}.json"
    if not path.exists(): return "not recorded yet"
    r = json.loads(path.read_text("utf-8"))
    try:
        return f"{SAYS.get(name, numbers)(r)} ({r['date']})"
    except (KeyError, TypeError, AttributeError):        # recorded by another version of the search
        return f"{numbers(r)} ({r['date']})"


def sections(text):
    """{name: function} for the marks on the page."""
    names = dict.fromkeys(re.findall(r"<!-- ([\w-]+) -->", text))
    return {name: lambda results, name=name: figure(results, name) for name in names} | {"answers": lambda results: answers()}


def generated(text: str, results: Path = RESULTS) -> str:
    """The page's text with the figures that `results` holds."""
    return filled(text, sections(text), results)


if __name__ == "__main__":
    write_atomically(PAGE, generated(PAGE.read_text("utf-8")))
    print(PAGE)
