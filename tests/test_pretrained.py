"""The shipped base: small enough, loadable without a network, and as good as its record says."""
import shutil

import numpy as np
import pytest

import tinypeft as tp
from tests.stress.attacks import save_raw
from tinypeft.files import load_arrays
from tinypeft.pretrained import FOLDER, training_record
from tinypeft.pretrained.make import tasks
from tinypeft.text import base_corpus, domain_corpus


@pytest.fixture(scope="module")
def model():
    return tp.load_pretrained()


def test_it_is_at_most_four_megabytes():
    assert sum(f.stat().st_size for f in FOLDER.glob("*") if f.suffix in (".safetensors", ".json")) <= 4e6


def test_every_load_is_a_copy_of_its_own(model):
    other = tp.load_pretrained()
    other.blocks[0].mlp.up.weight.data[...] = 0
    assert model.blocks[0].mlp.up.weight.data.any() and model.token_embedding.weight.dtype == np.float32


def test_it_is_as_good_as_its_record_says(model):
    """On a part of both test splits, within four standard errors of the mean over windows."""
    record = training_record()
    if record["corpus"]["base"] != base_corpus().sha256 or record["corpus"]["domain"] != domain_corpus().sha256:
        pytest.xfail("this installation carries other versions of the text")
    for task, name in zip(tasks(model.tokenizer, model.config.context_length), ("base test", "domain test"), strict=True):
        losses = [tp.evaluate(model, Part(task, i), "test")["loss"] for i in range(0, 96, 3)]
        error = np.std(losses) / np.sqrt(len(losses))
        assert abs(np.mean(losses) - record["results"][name]["loss"]) < 4 * error


class Part:
    """Window `i` of a task's test split."""
    def __init__(self, task, i):
        self.task, self.i = task, i
        self.count, self.metrics, self.finish = task.count, task.metrics, task.finish

    def batches(self, split, size):
        ids, T = self.task.splits[split], self.task.context
        window = ids[self.i * T:(self.i + 1) * T + 1][None]
        yield window[:, :-1], window[:, 1:]


def test_it_is_clearly_better_than_the_n_gram_model():
    results = training_record()["results"]
    for name in ("base test", "domain test"):
        assert results[name]["loss"] < results["5-gram " + name]["loss"] - 0.05


def test_it_writes_like_documentation(model):
    """Nine tenths of its words are words of the corpus, though it spells them from pieces."""
    known = {w.strip(".,:;()`'\"") for w in base_corpus().text("train").split()}
    prompt = model.tokenizer.encode("scipy.linalg.solve(a, b)\n")[None]
    out = model.generate(np.repeat(prompt, 4, 0), 100, temperature=0.7, rng=0)
    words = [w.strip(".,:;()`'\"") for row in out for w in model.tokenizer.decode(row[prompt.shape[1]:]).split()]
    assert len(words) > 100 and np.mean([w in known for w in words]) > 0.9


# -- folders of weights that are not to be trusted -----------------------------------------------
@pytest.fixture
def folder(tmp_path):
    """A copy of the shipped base."""
    for name in "weights.safetensors", "tokenizer.json": shutil.copy(FOLDER / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize("change", [{"vocab_size": 1 << 40}, {"n_layers": 1 << 40}, {"d_model": 1 << 14}, {"norm_eps": -1},
                                    {"more": 1}, None])
def test_a_config_that_lies_is_refused_and_named(change, folder):
    arrays, meta = load_arrays(path := folder / "weights.safetensors")
    save_raw(path, arrays, {"config": change and meta["config"] | change})
    with pytest.raises((ValueError, KeyError), match="weights.safetensors: "): tp.load_pretrained(folder)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(model, folder):
    arrays, meta = load_arrays(path := folder / "weights.safetensors")
    arrays["token_embedding.weight"] = arrays["token_embedding.weight"][:500]
    save_raw(path, arrays, {"config": meta["config"] | {"vocab_size": 500}})
    with pytest.raises(ValueError, match="the tokenizer has 1024 tokens, the model only 500"): tp.load_pretrained(folder)
