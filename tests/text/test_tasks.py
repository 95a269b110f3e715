"""The tasks: batches that cover a split once, losses that do not depend on how it is cut, parts that share nothing,
text that does not name its class, and baselines that are what they are called."""
import itertools
import math
import re

import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import make_gpt
from tinypeft import tasks
from tinypeft.engine import functional as F
from tinypeft.text import BPETokenizer, Document, base_corpus, domain_corpus
from tinypeft.text.tasks import bags, classification
from tinypeft.text.tasks import task as common
from tinypeft.text.tasks.sentences import first_sentences
from tinypeft.text.tasks.summarization import words_of
from tinypeft.training.backward import backward

SPLITS = "train", "validation", "test"
NAMES = "domain", "classify", "summarize", "planted"
MAKE = {"domain": lambda model: tasks.domain(model, context=32, held_out=3000),
        "classify": lambda model: tasks.classify(model, held_out=5),
        "summarize": lambda model: tasks.summarize(model, context=80)}


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train(domain_corpus().text("test")[:60_000], 320)


@pytest.fixture(scope="module")
def model(tokenizer):
    """A tiny random GPT in float64 that carries a tokenizer. Nobody may change it."""
    model = make_gpt(vocab_size=320, context_length=256, n_layers=1)
    model.tokenizer = tokenizer
    return model


@pytest.fixture(scope="module")
def built(model):
    """name → each of the four tasks, made for `model`, with little held out."""
    planted = {"blocks.0.attention.query": 1, "blocks.0.mlp.up": 3}
    made = {name: make(model) for name, make in MAKE.items()}
    return made | {"planted": tasks.planted(model, planted, context=32, held_out=3000)}


@pytest.fixture(params=NAMES)
def task(request, built):
    return built[request.param]


def with_head(model, task):
    """What `task` can be evaluated on: the model itself, or one with a head for its classes."""
    if task.name != "classify":
        return model
    tuned = tp.attach(make_copy(model), tp.FullFineTuning(), head=len(task.classes))
    tuned.head.weight.data[:] = np.random.default_rng(5).standard_normal(tuned.head.weight.shape)
    return tuned


def make_copy(model):
    copied = tp.GPT(model.config).to(np.float64).load_state_dict(model.state_dict())
    copied.tokenizer = model.tokenizer
    return copied


def words(text):
    return re.findall(r"\w+", text.lower())


# ---- the protocol ----------------------------------------------------------------------------------------------------

def examples(task, batch):
    """A batch's rows without their filling, as lists."""
    if task.name == "classify":
        return [(tokens[:n].tolist(), label) for tokens, n, label in zip(*batch, strict=True)]
    tokens, targets = batch
    return [[(t, y) for t, y in zip(row, aims, strict=True) if y != -100] for row, aims in zip(tokens, targets, strict=True)]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_batches_go_through_a_split_once_and_in_order(task, size):
    if task.name == "classify":
        expected = [(ids.tolist(), label) for ids, label in task.data("test")]
        got = [row for batch in task.batches("test", size) for row in examples(task, batch)]
    elif task.name == "summarize":
        expected = [y for _, wanted in task.data("test") for y in wanted]
        got = [y for batch in task.batches("test", size) for row in examples(task, batch) for _, y in row]
    else:
        ids = task.data("test").tolist()
        expected = list(itertools.pairwise(ids))
        got = [pair for batch in task.batches("test", size) for row in examples(task, batch) for pair in row]
    assert got == expected


def test_a_batch_is_drawn_from_its_split_by_the_generator(task):
    draw = lambda seed: examples(task, task.batch("validation", 5, np.random.default_rng(seed)))
    assert len(draw(0)) == 5 and draw(0) == draw(0) != draw(1)
    if task.name in ("classify", "summarize"):
        whole = [row for batch in task.batches("validation", 1) for row in examples(task, batch)]
        assert all(row in whole for row in draw(0))
    else:
        pairs = set(itertools.pairwise(task.data("validation").tolist()))
        assert all(pair in pairs for row in draw(0) for pair in row)


def test_a_window_has_as_many_tokens_as_the_context_and_starts_anywhere():
    task = tasks.LanguageModelling("count", {"train": np.arange(9)}, {"train": 9}, context=4)
    tokens, following = task.batch("train", 200, np.random.default_rng(0))
    assert tokens.shape == (200, 4) and np.array_equal(following, tokens + 1) and {*tokens[:, 0].tolist()} == {0, 1, 2, 3, 4}


def test_a_batch_is_as_wide_as_its_longest_row(built):
    tokens, lengths, _ = built["classify"].batch("train", 6, np.random.default_rng(0))
    assert tokens.shape == (6, max(lengths)) and min(lengths) < max(lengths)
    tokens, targets = built["summarize"].batch("train", 6, np.random.default_rng(0))
    assert tokens.shape == targets.shape and (targets[:, -1] != -100).any() and (targets[:, -1] == -100).any()


def test_the_mean_does_not_depend_on_the_size_of_batches(task, model):
    """So filling is harmless, and `count` is what each batch weighs."""
    model = with_head(model, task)
    one, other = (tp.evaluate(model, task, "validation", batch_size=size) for size in (5, 64))
    assert one.keys() == other.keys() and "loss" in one
    for name in one:
        assert one[name] == pytest.approx(other[name], rel=1e-10)


@pytest.mark.parametrize("name", ["classify", "summarize"])
def test_evaluation_pads_little_and_measures_the_same_rows(built, model, monkeypatch, name):
    """Rows of similar length make a batch: less than a third of the padding is left."""
    task = built[name]
    rows = lambda batches: sorted(str(row) for batch in batches for row in examples(task, batch))
    for most in (None, 3):
        in_order = [*itertools.islice(task.batches("test", 8), most)]
        together = task.batches_by_length("test", 8, most)
        assert rows(together) == rows(in_order) and {len(batch[0]) for batch in together[:-1]} <= {8}
    in_order, together = [*task.batches("test", 8)], task.batches_by_length("test", 8)
    size = lambda batches: sum(batch[0].size for batch in batches)
    filled = size(task.batches("test", 1))               # one row at a time has no padding
    assert size(together) - filled < (size(in_order) - filled) / 3
    asked, metrics = [], task.metrics
    monkeypatch.setattr(task, "metrics", lambda model, batch: asked.append(batch[0].shape) or metrics(model, batch))
    tp.evaluate(with_head(model, task), task, batch_size=8, workers=1)
    assert asked == [batch[0].shape for batch in together]


def test_answers_come_back_in_the_order_of_the_texts(built, model, monkeypatch):
    """They are those of one text at a time, and the longest texts went through the model together."""
    task, tuned = built["classify"], with_head(model, built["classify"])
    texts = [text for text, _ in task.rows["test"][:40]]
    widths, collate = [], task.collate
    monkeypatch.setattr(task, "collate", lambda rows: widths.append(collate(rows)[0].shape[1]) or collate(rows))
    labels, p = task.predict(tuned, texts, probabilities=True, batch_size=7)
    assert widths == sorted(widths, reverse=True) and len(set(widths)) > 3
    alone, p_alone = task.predict(tuned, texts, probabilities=True, batch_size=1)
    assert labels == alone
    np.testing.assert_allclose(p, p_alone, rtol=1e-10)


def test_workers_share_a_batch_without_changing_its_gradient(task, model):
    batch = task.batch("train", 7, np.random.default_rng(2))
    found = []
    for workers in (1, 3):
        tuned = tp.attach(make_copy(model), tp.FullFineTuning(), head=12 if task.name == "classify" else None, rng=0)
        found.append((backward(tuned, task, batch, workers), [p.grad for p in tuned.trainable_parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert a is b is None or np.abs(a - b).max() <= 1e-12 * max(1, np.abs(a).max())


@pytest.mark.parametrize("name", MAKE)
def test_the_same_call_gives_the_same_task(name, built, model):
    again = MAKE[name](model)
    for split in SPLITS:
        for a, b in zip(built[name].batches(split, 300), again.batches(split, 300), strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_it_says_what_it_was_made_from(task):
    assert task.sha256["domain"] == domain_corpus().sha256 and set(task.sha256) <= {"base", "domain"}
    assert ("base" in task.sha256) == (task.name == "classify")


def test_it_says_what_it_is(built, model):
    fresh = tasks.classify(model, classes=("scipy.signal", "matplotlib.axes"), per_class=20, held_out=10)
    assert repr(fresh).startswith("classify: 2 packages, 40 / 20 / 20 sentences") and "see .baselines" in repr(fresh)
    assert fresh.baselines is fresh.baselines
    assert "majority class: accuracy 0.500; bag of words: loss" in repr(fresh)
    assert f"{len(built['domain'].data('train')):,}" in repr(built["domain"]) and "windows of 32" in repr(built["domain"])
    assert "rank 4 hidden in 2 of 6 matrices" in repr(built["planted"])


@pytest.mark.parametrize("call", [lambda t: t.batch("dev", 2, np.random.default_rng(0)), lambda t: list(t.batches("dev", 2))])
def test_an_unknown_split_is_named(task, call):
    with pytest.raises(ValueError, match=rf"{task.name}: there is no split 'dev'; there are train, validation, test"):
        call(task)


def test_what_a_task_needs_of_a_model(model, tokenizer, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="GPT carries no tokenizer"):
        tasks.classify(make_gpt())
    small = make_gpt(vocab_size=100)
    small.tokenizer = tokenizer
    with pytest.raises(ValueError, match="tokenizer has 320 tokens, the model only 100"):
        tasks.domain(small)
    for context in (1, 257):
        with pytest.raises(ValueError, match=r"context must lie in \[2, 256\]"):
            tasks.summarize(model, context=context)
    assert tasks.domain(tokenizer).context == tasks.domain(model).context == 128
    assert common.context_of(make_gpt(), None, 128) == 12                         # half of 24: room for virtual tokens
    monkeypatch.setattr(common, "SHIPPED", tmp_path / "tokenizer.json")
    tokenizer.save(common.SHIPPED)
    assert np.array_equal(tasks.domain().data("test"), tasks.domain(model).data("test"))
    with pytest.raises(ValueError, match="test has 5 tokens, fewer than a window of 5"):
        tasks.LanguageModelling("x", {"test": np.arange(5)}, {"test": 5}, context=5)


# ---- domain ----------------------------------------------------------------------------------------------------------

def test_a_name_is_short_and_in_one_line():
    assert common.Task("a\x1b[2J \n.csv", {}).name == r"a\x1b[2J .csv" and len(common.Task("x" * 9999, {}).name) == 500


def test_domain_is_matplotlib_and_held_out_thins_documents(built, tokenizer):
    whole, thin = tasks.domain(tokenizer, context=32), built["domain"]
    for split in SPLITS:
        assert tokenizer.decode(whole.data(split)) == "<|endoftext|>" + "".join(
            f"{d}<|endoftext|>" for d in getattr(domain_corpus(), split))
        assert whole.n_bytes[split] == domain_corpus().n_bytes(split)
    assert np.array_equal(thin.data("train"), whole.data("train"))
    for split in ("validation", "test"):
        kept = tokenizer.decode(thin.data(split)).split("<|endoftext|>")[1:-1]
        k = next(i for i, d in enumerate(map(str, getattr(domain_corpus(), split))) if d == kept[1])
        assert kept == [str(d) for d in getattr(domain_corpus(), split)[::k]] and k > 1
        assert 1500 < len(thin.data(split)) < 6000 and thin.n_bytes[split] == sum(len(d.encode()) for d in kept)


def test_domain_baselines_see_train_only_and_are_in_the_same_units(built):
    task = built["domain"]
    unigram, five = task.baselines["unigram"], task.baselines["Kneser–Ney 5-gram"]
    assert unigram["loss"] > 1.3 * five["loss"]
    train, test = task.data("train"), task.data("test")
    p = (np.bincount(train, minlength=320) + 0.5) / (len(train) + 160)
    assert unigram["loss"] == pytest.approx(-np.log(p[test[1:]]).mean(), rel=5e-3)
    for metrics in (unigram, five):
        assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
        bits = metrics["loss"] * (len(test) - 1) / math.log(2)
        assert metrics["bits_per_byte"] == pytest.approx(bits / task.n_bytes["test"])


# ---- first sentences -------------------------------------------------------------------------------------------------

def document(text, name="numpy.ma.f", signature="(x)"):
    return Document("numpy", name, signature, text)


def test_first_sentences():
    read = lambda text: [d.text for d in first_sentences([document(text)])[0]]
    assert read("Return the\nmean. It is what\nyou think.\n\nMore.") == ["Return the mean."]
    assert read("Use e.g. NumPy or i.e. SciPy here. Then stop.") == ["Use e.g. NumPy or i.e. SciPy here."]
    assert read("Version 1.5 of the file, see mod.f for more") == ["Version 1.5 of the file, see mod.f for more"]
    for nothing in ("Parameters\n----------\nx : int", ".. deprecated:: 1.0 do not use it", "Two words."):
        assert read(nothing) == []
    first, second = first_sentences([document("Return the mean.", "a"), document("Return the mean.", "b")],
                                    [document("return the MEAN.", "c"), document("Return the median.", "d")])
    assert [d.name for d in first] == ["a"] and [d.name for d in second] == ["d"]


# ---- classify --------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def classify(tokenizer):
    return tasks.classify(tokenizer)


def test_no_sentence_names_its_package(classify):
    forbidden = {part for name in classify.classes for part in name.split(".")} | {"np", "plt"}
    for rows in classify.rows.values():
        for sentence, _ in rows:
            assert forbidden.isdisjoint(words(sentence)), sentence
            assert not re.search("numpy|scipy|matplotlib", sentence, re.IGNORECASE), sentence
    assert sum("_" in words(s) for s, _ in classify.rows["train"]) > 100          # there was something to mask


@pytest.mark.parametrize("text, masked", [
    ("A `scipy.stats.norm` object.", "A `_` object."),
    ("The NumPy Axes of np.mean", "The _ _ of _"),
    ("Filter two signals, or a Signal-like sparse one.", "Filter two _, or a _-like _ one."),
    ("The axis of a maximum statistic, maps, inputs, linalg", "The axis of a maximum statistic, maps, inputs, linalg"),
])
def test_what_is_masked(text, masked):
    assert classification.package_words(classification.CLASSES).sub("_", text) == masked


def test_classify_parts_share_no_entry_and_no_sentence(classify):
    sentences = {split: [s.lower() for s, _ in rows] for split, rows in classify.rows.items()}
    everything = sum(sentences.values(), [])
    assert len(everything) == len(set(everything))
    mask = lambda sentence: classification.package_words(classification.CLASSES).sub("_", sentence)
    known = {d.text.lower() for d in first_sentences(base_corpus().train + domain_corpus().train, edit=mask)[0]}
    assert known.isdisjoint(sentences["test"])                                    # so pretraining saw no test row
    assert known.issuperset(sentences["train"] + sentences["validation"])


def test_classify_takes_every_class_and_not_too_much_of_any(classify):
    assert len(classify.classes) == 12
    for split, cap in ("train", 160), ("validation", 40), ("test", 40):
        n = np.bincount([label for _, label in classify.rows[split]], minlength=12)
        assert n.min() >= 10 and n.max() <= cap, (split, n)
    few = tasks.classify(BPETokenizer([]), classes=("scipy.io", "scipy.stats"), per_class=9, held_out=4)
    assert [len(few.data(s)) for s in SPLITS] == [18, 8, 8]
    with pytest.raises(ValueError, match="no sentence for train in numpy.nothing"):
        tasks.classify(BPETokenizer([]), classes=("scipy.io", "numpy.nothing"))


def test_a_long_sentence_is_cut_and_still_ends():
    t = BPETokenizer([])
    rows = {split: [("a" * 100, 0), ("bc", 1)] for split in SPLITS}
    task = tasks.Classification(rows, ("x", "y"), t, context=10)
    tokens, lengths, labels = next(task.batches("test", 2))
    end = t.end_of_text
    assert lengths.tolist() == [10, 5] and labels.tolist() == [0, 1]
    assert tokens[0].tolist() == [end, *[97] * 8, end] and tokens[1].tolist() == [end, 98, 99, 10, *[end] * 6]


def test_classification_metrics_by_hand(built, model):
    task = built["classify"]
    tuned = with_head(model, task)
    batch = tokens, lengths, labels = task.batch("test", 6, np.random.default_rng(0))
    z = np.array([tuned.class_logits(row[None, :n], [n]).data[0] for row, n in zip(tokens, lengths, strict=True)])
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    assert task.metrics(tuned, batch)["loss"] == pytest.approx(-log_p[np.arange(6), labels].mean(), rel=1e-10)
    assert task.metrics(tuned, batch)["accuracy"] == (z.argmax(1) == labels).mean()


def test_a_model_learns_to_classify():
    rng, t = np.random.default_rng(0), BPETokenizer([])
    sentence = lambda label: "".join(rng.permutation([*"abcd"[: 3], "xy"[label]]))
    rows = {split: [(sentence(i % 2), i % 2) for i in range(40)] for split in SPLITS}
    task = tasks.Classification(rows, ("x", "y"), t, context=8)
    tuned = tp.attach(tp.GPT(tp.GPTConfig(257, 8, 16, 2, 4)), tp.FullFineTuning(), head=2)
    before = tp.evaluate(tuned, task)
    tp.train(tuned, task, 60, batch_size=16, lr=1e-2, progress=False)
    after = tp.evaluate(tuned, task)
    assert after["loss"] < 0.1 < before["loss"] and after["accuracy"] == 1


def test_classify_baselines(classify):
    majority, bag = classify.baselines["majority class"], classify.baselines["bag of words"]
    train, test = ([label for _, label in classify.rows[s]] for s in ("train", "test"))
    assert majority["accuracy"] == np.mean(np.array(test) == np.bincount(train).argmax()) < 0.2
    assert bag["accuracy"] > 0.6 and bag["loss"] < 0.6 * math.log(12)


def test_bag_of_words_finds_what_there_is_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    sentence = lambda *more: " ".join(rng.permutation([*more, *rng.choice([*"abcdefgh"], 4)]))
    telling = {s: [(sentence("xyz"[i % 3]), i % 3) for i in range(90)] for s in SPLITS}
    found = bags.bag_of_words(telling, 3)
    assert found["accuracy"] == 1 and found["loss"] < 0.05
    noise = {s: [(sentence(), int(rng.integers(3))) for i in range(90)] for s in SPLITS}
    assert bags.bag_of_words(noise, 3)["loss"] < math.log(3) + 0.05     # regularized, because it was tuned
    unseen = telling | {"test": [("new words only", 0)]}
    assert np.isfinite(bags.bag_of_words(unseen, 3)["loss"])


def test_bag_of_words_is_the_minimum_that_torch_finds(torch, monkeypatch):
    """On tf–idf vectors made here, densely, from their definition."""
    rng = np.random.default_rng(1)
    topics = [rng.dirichlet(np.full(40, 0.3)) for _ in range(4)]
    rows = {s: [(" ".join(f"w{j}" for j in rng.choice(40, 6, p=topics[i % 4])), i % 4) for i in range(120)] for s in SPLITS}
    present = {s: np.array([[f"w{j}" in words(text) for j in range(40)] for text, _ in rows[s]]) for s in SPLITS}
    n = present["train"].sum(0)
    vectors = {s: np.where(x & (n > 0), 1 + np.log(121 / (1 + n)), 0) for s, x in present.items()}
    X = {s: torch.tensor(v / np.linalg.norm(v, axis=1, keepdims=True)) for s, v in vectors.items()}
    y = torch.arange(120) % 4
    W, b = (torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in ((40, 4), (4,)))
    nll = lambda split: torch.nn.functional.cross_entropy(X[split] @ W + b, y)
    optimizer = torch.optim.LBFGS([W, b], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = nll("train") + 5e-4 * (W ** 2).sum()
        loss.backward()
        return loss
    optimizer.step(closure)
    monkeypatch.setattr(bags, "STRENGTHS", (1e-3,))
    assert bags.bag_of_words(rows, 4)["loss"] == pytest.approx(nll("test").item(), rel=2e-3)


# ---- summarize -------------------------------------------------------------------------------------------------------

def test_summarize_parts_are_the_domains_and_share_no_entry_and_no_sentence(built):
    task = built["summarize"]
    for split in SPLITS:
        there = {d.header: d.text for d in getattr(domain_corpus(), split)}
        for d in task.documents[split]:
            assert d.signature and " ".join(there[d.header].split()).startswith(d.text)
    for attribute in (lambda d: d.header, lambda d: d.text.lower()):
        parts = [[attribute(d) for d in task.documents[split]] for split in SPLITS]
        assert len(set(parts[1]) & set(parts[2])) == len(set(parts[0]) & set(parts[1] + parts[2])) == 0


def test_only_the_sentence_counts(built, model, tokenizer):
    task = built["summarize"]
    (tokens, targets), d = next(task.batches("test", 1)), task.documents["test"][0]
    end, given, wanted = tokenizer.end_of_text, tokenizer.encode(f"{d.header}\n").tolist(), tokenizer.encode(d.text).tolist()
    assert tokens[0].tolist() == [end, *given, *wanted]
    assert targets[0].tolist() == [-100] * len(given) + [*wanted, end]
    z = model(tokens).data[0, len(given):]
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    aimed = log_p[np.arange(len(z)), [*wanted, end]]
    assert task.loss(model, (tokens, targets)).item() == pytest.approx(-aimed.mean(), rel=1e-10)
    assert task.count((tokens, targets)) == len(wanted) + 1
    assert all(len(a) + len(b) <= 80 for split in SPLITS for a, b in task.data(split))


class Writer:
    """Stands for a model: continues each prompt with what `answers` has for it, then the end of text."""

    def __init__(self, tokenizer, answers):
        self.tokenizer, self.answers = tokenizer, answers

    def generate(self, tokens, max_new_tokens, stop):
        new = [self.tokenizer.encode(self.answers[self.tokenizer.decode(t[1:])]).tolist() for t in tokens]
        return [np.array([*t, *(n + [stop])[:max_new_tokens]]) for t, n in zip(tokens, new, strict=True)]


def test_writing_keeps_the_order_and_rouge_is_one_for_the_truth(built, tokenizer):
    task = built["summarize"]
    answers = {f"{d.header}\n": d.text for d in task.documents["test"]}
    assert task.write(Writer(tokenizer, answers), limit=30, max_new_tokens=80) == [d.text for d in task.documents["test"][:30]]
    assert task.rouge(Writer(tokenizer, answers), limit=30, max_new_tokens=80) == 1
    lines = {header: f"\n {text}\n\nMore of it." for header, text in answers.items()}
    assert task.write(Writer(tokenizer, lines), limit=3, max_new_tokens=90) == [d.text for d in task.documents["test"][:3]]
    assert task.rouge(Writer(tokenizer, dict.fromkeys(answers, "")), limit=30) == 0


def test_a_model_writes(built, model):
    written = built["summarize"].write(model, limit=4, max_new_tokens=6)
    assert len(written) == 4 and all(isinstance(w, str) and "\n" not in w for w in written)


@pytest.mark.parametrize("candidate, reference, f1", [
    ("the cat sat", "The cat sat.", 1), ("a b c d", "a x c y", 1 / 2), ("b a", "a b", 1 / 2), ("", "a", 0), ("a", "", 0),
    ("police killed the gunman", "police kill the gunman", 3 / 4), ("x", "a b", 0), ("a a a", "a", 1 / 2),
])
def test_rouge_l(candidate, reference, f1):
    assert tasks.rouge_l(candidate, reference) == pytest.approx(f1)


def test_rouge_l_is_the_longest_common_subsequence():
    def longest(a, b):
        if not a or not b: return 0
        return 1 + longest(a[1:], b[1:]) if a[0] == b[0] else max(longest(a[1:], b), longest(a, b[1:]))
    rng = np.random.default_rng(0)
    for _ in range(40):
        a, b = ([*rng.choice([*"abc"], rng.integers(1, 8))] for _ in range(2))
        assert tasks.rouge_l(" ".join(a), " ".join(b)) == pytest.approx(2 * longest(a, b) / (len(a) + len(b)))


def test_summarize_baselines(built):
    task = built["summarize"]
    found = task.baselines
    assert 0 < found["Kneser–Ney 5-gram"]["loss"] < 0.8 * found["unigram"]["loss"] < 0.8 * math.log(320)
    test, train = ([y for _, wanted in task.data(s) for y in wanted] for s in ("test", "train"))
    p = (np.bincount(train, minlength=320) + 0.5) / (len(train) + 160)
    assert found["unigram"]["loss"] == pytest.approx(-np.log(p[test]).mean(), rel=5e-3)
    n_bytes = sum(len(d.text.encode()) for d in task.documents["test"])
    assert found["unigram"]["bits_per_byte"] == pytest.approx(found["unigram"]["loss"] * len(test) / math.log(2) / n_bytes)
    assert 0.1 < found["words of the name"]["rouge_l"] < 0.5
    assert words_of("matplotlib.axes.Axes.set_xlabel") == ["Axes", "set", "xlabel"]
    assert words_of("m.FontManager.get_2d") == ["Font", "Manager", "get", "2", "d"]


# ---- planted ---------------------------------------------------------------------------------------------------------

def test_the_change_has_the_ranks_it_says_and_touches_nothing_else(built, model):
    task = built["planted"]
    assert task.ranks == dict.fromkeys(task.ranks, 0) | {"blocks.0.attention.query": 1, "blocks.0.mlp.up": 3}
    assert len(task.ranks) == 6
    before, after = model.state_dict(), task.teacher.state_dict()
    for name, W in before.items():
        assert np.linalg.matrix_rank(after[name] - W) == task.ranks.get(name.removesuffix(".weight"), 0) if W.ndim == 2 \
            else np.array_equal(after[name], W)
    assert not any(p.requires_grad for p in task.teacher.parameters())


def test_planting_leaves_the_model_alone(model):
    copied = make_copy(model)
    before = {name: a.copy() for name, a in copied.state_dict().items()}
    task = tasks.planted(copied, 2, context=16, held_out=500)
    assert all(np.array_equal(before[name], a) for name, a in copied.state_dict().items())
    assert all(p.requires_grad for p in copied.parameters()) and before.keys() == copied.state_dict().keys()
    assert set(task.ranks.values()) == {2}
    baseline = tp.evaluate(copied, task)
    tuned = tp.attach(copied, tp.LoRA(rank=2, targets="all"))
    tp.train(tuned, task, 3, batch_size=2, lr=0.1, progress=False)
    assert task.baselines["unchanged model"] == pytest.approx(baseline, rel=1e-12)    # also now
    assert tp.evaluate(tuned, task) != pytest.approx(baseline, rel=1e-3)


def test_the_teacher_reaches_zero_and_the_loss_is_the_divergence(built, model):
    task = built["planted"]
    own = tp.evaluate(task.teacher, task)
    assert own["loss"] == pytest.approx(0, abs=1e-12) and own["agreement"] == 1
    batch = task.batch("train", 3, np.random.default_rng(0))
    p, q = (np.exp(F.log_softmax(m(batch[0])).data) for m in (task.teacher, model))
    assert task.loss(model, batch).item() == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-10)
    assert 0 < tp.evaluate(model, task)["loss"]


def test_every_planted_direction_is_worth_the_same(model):
    """What each matrix' change alone costs, on text that it was not scaled on."""
    task = tasks.planted(model, {"blocks.0.attention.value": 1, "blocks.0.mlp.up": 2, "blocks.0.mlp.down": 4}, effect=0.02,
                         context=32, held_out=3000)
    layers = {path: task.teacher.get(path) for path in task.unchanged}
    for path, layer in layers.items():
        tp.engine.nn.replace_modules(task.teacher, {**task.unchanged, path: layer})          # only this one is changed
        cost = tp.evaluate(model, task)["loss"]
        assert cost == pytest.approx(0.02 * task.ranks[path], rel=0.35), path
    tp.engine.nn.replace_modules(task.teacher, layers)


def test_planted_draws_from_its_generator_only(model):
    make = lambda rng: tasks.planted(model, context=16, held_out=500, rng=rng)
    one, same, other = make(0), make(0), make(1)
    assert one.ranks == same.ranks and sorted(one.ranks.values()) == [0, 0, 0, 0, 1, 2]
    for name, W in one.teacher.state_dict().items():
        assert np.array_equal(W, same.teacher.state_dict()[name])
    assert any(not np.array_equal(W, other.teacher.state_dict()[name]) for name, W in one.teacher.state_dict().items())


def test_planted_refuses(model):
    tuned = tp.attach(make_copy(model), tp.LoRA(rank=1))
    with pytest.raises(ValueError, match=r"planted: .* inside a PeftModel, with LoRA\(rank=1\) attached"):
        tasks.planted(tuned.model)
    with pytest.raises(TypeError, match="expected a language model, got PeftModel"):
        tasks.planted(tuned)
    with pytest.raises(ValueError, match="no linear layer 'query'; there are blocks.0.attention.query"):
        tasks.planted(model, {"query": 1})
    with pytest.raises(ValueError, match=r"the rank at blocks.0.mlp.up must lie in \[0, 16\], got 17"):
        tasks.planted(model, {"blocks.0.mlp.up": 17})


def test_a_method_finds_what_was_planted(model):
    ranks = {"blocks.0.attention.value": 1, "blocks.0.mlp.down": 2}
    task = tasks.planted(model, ranks, effect=0.05, context=32, held_out=1500)
    tuned = tp.attach(make_copy(model), tp.LoRA(rank=2, alpha=4, targets=tuple(ranks)))
    tp.train(tuned, task, 80, batch_size=4, lr=3e-2, progress=False)
    assert tp.evaluate(tuned, task)["loss"] < 0.5 * task.baselines["unchanged model"]["loss"]
