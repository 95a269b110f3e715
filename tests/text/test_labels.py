"""labels.py: the score of a label is the log-probability of its tokens after the text."""
import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tinypeft.engine import functional as F
from tinypeft.text.tasks.labels import TEMPLATE, Labels


@pytest.fixture(scope="module")
def model(): return tp.load_pretrained()


@pytest.mark.parametrize("labels", [("a sum", "an array of numbers", "error"), ("a", "the")], ids=["long", "one token"])
@pytest.mark.parametrize("template", [TEMPLATE, "{text}\n{label}"])
def test_probabilities_are_those_of_the_whole_text(model, labels, template):
    task, texts = Labels(labels, model, template), ["Return the elements.", "No", "A much longer text, in two parts, of words."]
    names, p = task.predict(model, texts, probabilities=True)
    encode, log_p = model.tokenizer.encode, np.zeros((3, len(labels)))
    for i, text in enumerate(texts):
        for j, label in enumerate(labels):
            head, _, middle = template.removesuffix("{label}").partition("{text}")
            start = np.concatenate([[model.tokenizer.opening], encode(head + text)])
            ids = np.concatenate([start, encode(middle + label)])
            scores = F.log_softmax(model(ids[None, :-1])).data[0]
            n = len(encode(middle + label)) - len(encode(middle.rstrip(" ")))
            log_p[i, j] = scores[np.arange(len(ids) - 1 - n, len(ids) - 1), ids[-n:]].sum()
    expected = np.exp(log_p) / np.exp(log_p).sum(1, keepdims=True)
    assert_close(p, expected, 1e-4)
    assert names == [labels[i] for i in expected.argmax(1)]


def test_batches_and_order_change_nothing(model):
    task, texts = Labels(("sum", "an array"), model), [f"{'long ' * n}text" for n in (0, 30, 3, 11)]
    _, together = task.predict(model, texts, probabilities=True)
    _, alone = task.predict(model, texts[::-1], probabilities=True, batch_size=1)
    assert_close(together, alone[::-1], 1e-4)
    names, none = task.predict(model, [], probabilities=True)
    assert names == [] and none.shape == (0, 2)


def test_a_long_text_is_cut(model):
    rows = Labels(("sum", "an array"), model, context=24).rows("word " * 100)
    assert max(map(len, rows)) <= 24


@pytest.mark.parametrize("labels, template, says", [
    (["one"], "{text} {label}", "two or more different names"), (["a", "a"], "{text} {label}", "different names"),
    (["a", " "], "{text} {label}", "different names"), (["a", "b"], "{text}", "must have {text} and end with {label}"),
    (["a", "b"], "{label} {text}", "must have {text}"), (["a", "b"], "{text} {label}!", "must have {text}")])
def test_misuse(model, labels, template, says):
    with pytest.raises(ValueError, match=says):
        Labels(labels, model, template)
