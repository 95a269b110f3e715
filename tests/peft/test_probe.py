"""probe.py: the head is the solution of a logistic regression on what the head reads, folded into a head as any other."""
import csv

import numpy as np
import pytest

import tinypeft as tp
from tests.methods import ROWS
from tests.oracles import assert_close
from tests.toys import same
from tinypeft.peft import probe
from tinypeft.peft.probe import hidden_states, learned_rows, solve

WORDS = {"good": "lovely bright quick honest", "bad": "awful dull slow rude", "odd": "purple seven sideways quiet"}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("table") / "a.csv", np.random.default_rng(0)
    with open(path, "w", newline="", encoding="utf-8") as f:
        rows = csv.writer(f)
        rows.writerow(["text", "label"])
        for i in range(90):
            label = list(WORDS)[i % 3]
            a, b = rng.choice(WORDS[label].split() if i % 7 else ["plain", "grey"], 2, replace=False)
            rows.writerow([f"Number {i} is {a} and {b}" + " indeed" * int(rng.integers(0, 9)), label])
    return path


def small_llama():
    model = tp.Llama(tp.LlamaConfig(vocab_size=1024, context_length=128, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2,
                                    d_mlp=64), rng=0)
    model.tokenizer = tp.load_pretrained().tokenizer
    return model


MODELS = {"base": tp.load_pretrained, "NF4": lambda: tp.quantize(tp.load_pretrained(), tp.NF4()), "Llama": small_llama}


@pytest.fixture(params=MODELS)
def model(request): return MODELS[request.param]()


@pytest.mark.parametrize("head_bias", [True, False])
def test_the_head_is_scikit_learns_solution_numerical(model, table, head_bias):
    preprocessing, linear = pytest.importorskip("sklearn.preprocessing"), pytest.importorskip("sklearn.linear_model")
    before = {name: a.copy() for name, a in model.state_dict().items()}
    task = tp.tasks.labelled(table, model, held_out=(0.2, 0.2))
    tuned = tp.fit_probe(model, task, head_bias=head_bias)
    rows = task.data("train") + task.data("validation")
    h, labels = hidden_states(model, task, rows), np.array([label for _, label in rows])
    assert learned_rows(task)[1].tolist() == labels.tolist() == tuned.validated.labels.tolist()
    X = preprocessing.StandardScaler(with_mean=head_bias).fit_transform(h)
    theirs = linear.LogisticRegression(C=1 / (tuned.validated.strength * len(h)), fit_intercept=head_bias, tol=1e-8,
                                       max_iter=10_000).fit(X, labels)
    texts, _ = learned_rows(task)
    _, p = task.predict(tuned, texts, probabilities=True)
    assert_close(p, theirs.predict_proba(X), 2e-2)
    assert (p.argmax(1) == theirs.predict(X)).mean() > 0.98
    assert same(model.state_dict(), before)


# -- where methods start -------------------------------------------------------------------------
def small_gpt():
    model = tp.GPT(tp.GPTConfig(vocab_size=1024, context_length=128, d_model=32, n_layers=2, n_heads=4), rng=0)
    model.tokenizer = tp.load_pretrained().tokenizer
    return model


SMALL = {"GPT": small_gpt, "Llama": small_llama, "NF4": lambda: tp.quantize(small_gpt(), tp.NF4())}


@pytest.fixture(scope="module", params=SMALL)
def solved(request, table):
    """(name of the base, model, task, (h, head) of the probe alone)."""
    model = SMALL[request.param]()
    task = tp.tasks.labelled(table, model, context=32)
    probe = tp.fit_probe(model, task, splits=("train",), n_folds=2)
    h = hidden_states(probe, task, task.data("train"))
    return request.param, model, task, (h, probe.head.state_dict())


@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in ROWS.items()])
def test_a_method_starts_at_the_probe_and_comes_back(solved, row, tmp_path):
    """Bit for bit where the method changes nothing at its start, which adapters between layers nearly do. The head of a
    prompt or a prefix is solved for what it reads through that prompt."""
    base, model, task, (h, head) = solved
    if base == "NF4" and row.no_codes:
        with pytest.raises(tp.MethodError, match=row.no_codes): tp.fit_probe(model, task, row.small)
        return
    tuned = tp.fit_probe(model, task, row.small, rng=1, splits=("train",), n_folds=2)
    read, theirs = hidden_states(tuned, task, task.data("train")), tuned.head.state_dict()
    assert tuned.method == row.small and len(tuned.validated.labels) == len(h)
    if row.starts == "elsewhere":
        assert np.abs(read - h).max() > 0.1
        solved_again = tp.attach(model, tp.LinearProbe(), head=3)
        solve(solved_again, read, tuned.validated.labels, 2)
        assert all(np.array_equal(a, theirs[n]) for n, a in solved_again.head.state_dict().items())
    elif row.starts == "near the base":
        assert 0 < np.abs(read - h).max() < 0.02
    else:
        assert np.array_equal(read, h) and all(np.array_equal(a, theirs[n]) for n, a in head.items())
    texts = ["Number 4 is dull and slow", "Number 5 is bright"]
    expected = task.predict(tuned, texts, probabilities=True)[1]
    tuned.save(tmp_path)
    loaded = tp.load_adapter(model, tmp_path)
    assert np.array_equal(task.predict(loaded, texts, probabilities=True)[1], expected)


def test_several_methods_start_there_and_train_on():
    """At the rates that the docstring gives, a few steps do not lose what was solved."""
    model = tp.load_pretrained()
    rows = [(f"Number {i} is {word}", label) for i in range(9) for label in WORDS for word in WORDS[label].split()]
    task = tp.tasks.labelled(rows, model)
    tuned = tp.fit_probe(model, task, {"a": tp.LoRA(rank=2), "b": tp.PromptTuning(3)}, splits=("train",))
    before = tp.evaluate(tuned, task, "train")["loss"]
    assert list(tuned.parts) == ["a", "b"] and before < 0.5
    tp.train(tuned, task, 10, lr=1e-3)
    assert tp.evaluate(tuned, task, "train")["loss"] < before
    tuned = tp.fit_probe(model, task, tp.LoRA(rank=2), splits=("train",))
    tp.train(tuned, task, 10, lr=1e-3, head_lr=1e-1)                 # and at others they do
    assert tp.evaluate(tuned, task, "train")["loss"] > before


def test_it_is_saved_and_loaded_as_any_head(table, tmp_path):
    model = tp.load_pretrained()
    task = tp.tasks.labelled(table, model, held_out=(0, 0))
    tuned = tp.fit_probe(model, task)
    texts = ["Number 4 is dull and slow", "Number 5 is bright"]
    expected = task.predict(tuned, texts, probabilities=True)
    tuned.save(tmp_path)
    tp.tasks.save_task(task, tmp_path)
    loaded = tp.load_adapter(model, tmp_path)
    labels, p = tp.tasks.load_task(tmp_path, model).predict(loaded, texts, probabilities=True)
    assert labels == expected[0] == ["bad", "good"] and np.array_equal(p, expected[1])


def test_cross_validation_tells_classes_that_can_be_told(table):
    model = tp.load_pretrained()
    task = tp.tasks.labelled(table, model, held_out=(0, 0))
    validated = tp.fit_probe(model, task).validated
    low, high = validated.interval
    assert low < validated.accuracy < high and low > 1 / 3 and validated.loss < np.log(3)
    assert np.allclose(np.exp(validated.log_p).sum(1), 1)


def test_what_is_read_does_not_depend_on_the_batch(table):
    model = tp.load_pretrained()
    task = tp.tasks.labelled(table, model, held_out=(0, 0))
    rows = task.data("train")[:20]
    together, alone = hidden_states(model, task, rows, 16), hidden_states(model, task, rows, 1)
    assert_close(together, alone, 1e-5)


@pytest.mark.parametrize("reads, last", [("newline", "\n"), ("end", "")])
def test_the_head_reads_the_newline_or_the_end_of_text(table, reads, last):
    model = tp.load_pretrained()
    tokenizer = model.tokenizer
    task = tp.tasks.labelled(table, model, held_out=(0, 0), reads=reads, context=16)
    for text in ("short", "long " * 30):
        ids = task.encode(text)
        assert len(ids) <= 16 and ids[0] == tokenizer.opening
        assert tokenizer.decode(ids[-1:]) == last if last else ids[-1] == tokenizer.end_of_text
    with pytest.raises(ValueError, match="reads must be 'newline' or 'end', got 'middle'"):
        tp.tasks.labelled(table, model, reads="middle")


def test_a_class_with_one_row_is_refused(table, tmp_path):
    model = tp.load_pretrained()
    (tmp_path / "b.csv").write_text(table.read_text() + "Alone,rare\nAlone too,rare\nAnd a third,rare\n")
    task = tp.tasks.labelled(tmp_path / "b.csv", model, held_out=(0.15, 0.6))
    with pytest.raises(ValueError, match="the class 'rare' has 1 rows to learn from, expected two or more"):
        tp.fit_probe(model, task)


def test_an_interrupt_leaves_the_model_as_it_was(table, monkeypatch):
    model = tp.load_pretrained()
    task = tp.tasks.labelled(table, model, held_out=(0, 0))

    def interrupted(*args, **options): raise KeyboardInterrupt
    for step in ("hidden_states", "cross_validate", "fit"):
        with monkeypatch.context() as m:
            m.setattr(f"tinypeft.peft.probe.{step}", interrupted)
            with pytest.raises(KeyboardInterrupt): tp.fit_probe(model, task, tp.LoRA(), tp.PromptTuning())
        assert model.attached is None and model.head is None


def test_the_model_inside_another_method_is_refused(table):
    model = tp.load_pretrained()
    task, tuned = tp.tasks.labelled(table, model, held_out=(0, 0)), tp.attach(model, tp.LoRA())
    for inside, words in (tuned.model, "with LoRA.* attached"), (tuned.frozen, "as it was at attach"):
        with pytest.raises(ValueError, match=f"^fit_probe: this is the model inside a PeftModel, {words}"):
            tp.fit_probe(inside, task)


def test_the_cache_serves_the_same_row_of_the_same_model_only(table, monkeypatch):
    """Changed weights, codes of a quantized layer, rows or positions are read again; labels and the seed change nothing."""
    read, plain = [], probe.hidden_states

    def counted(model, task, rows, *options):
        read.append(len(rows))
        return plain(model, task, rows, *options)
    monkeypatch.setattr(probe, "hidden_states", counted)
    model, words = tp.load_pretrained(), "red blue old new big odd".split() * 3
    rows = [(f"Number {i} is {word}", "ab"[i % 2]) for i, word in enumerate(words)]

    def solved(model, rows=rows, cache=True, **options):
        tuned = tp.fit_probe(model, tp.tasks.labelled(rows, model, held_out=(0, 0), **options), n_folds=2, cache=cache)
        return tuned.head, read.pop() if read else 0
    first, n = solved(model)
    again, none = solved(model)
    assert (n, none) == (18, 0) and np.array_equal(first.weight.data, again.weight.data)
    assert solved(model, cache=False)[1] == 18
    assert solved(model, [(text, "ba"[label == "a"]) for text, label in rows])[1] == 0
    assert solved(model, [*rows, ("A new row", "a")])[1] == 1
    assert solved(model, reads="end")[1] == 18 and solved(model, context=4)[1] == 18
    model.blocks[3].mlp.down.weight.data[5, 7] += 1e-3
    assert solved(model)[1] == 18
    quantized = tp.quantize(tp.load_pretrained(), tp.NF4())
    assert [solved(quantized)[1] for _ in range(2)] == [18, 0]
    quantized.blocks[0].attention.value.weight.codes.reshape(-1)[:9] ^= 1
    assert solved(quantized)[1] == 18


def test_the_seed_draws_the_folds():
    model = small_llama()
    task = tp.tasks.labelled([(f"Number {i} is here", "ab"[i % 2]) for i in range(20)], model, held_out=(0, 0))
    found = []
    for seed in (0, 0, 1):
        tuned = tp.fit_probe(model, task, seed=seed, n_folds=2)
        found.append(tuned.validated.log_p)
    assert np.array_equal(found[0], found[1]) and not np.allclose(found[0], found[2])
