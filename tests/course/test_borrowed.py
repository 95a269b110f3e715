"""An answer that is one call of the package earns nothing, and one that calls it in another way is shown to the grader."""
import numpy as np
import pytest

import tinypeft as tp
from tests.course.test_exercises import prepared
from tests.course.test_grade import IMPORTS, hand_in
from tinypeft import Tensor
from tinypeft.course import grade as g
from tinypeft.course import percent
from tinypeft.course.borrowed import watched
from tinypeft.course.calls import Local
from tinypeft.course.exercises import TOPICS, find
from tinypeft.course.judge import judge
from tinypeft.engine import functional as F
from tinypeft.engine import plain as plain_engine
from tinypeft.interop import gguf_architectures
from tinypeft.quant import gptq, int8, obq, plain, rounding
from tinypeft.quant.loftq import loftq_rounds
from tinypeft.quant.uniform import Uniform
from tinypeft.text.tasks.distillation import divergence


def vector_wise(X, W):
    Q, s = int8.int8_inputs(X, "token")
    return (s * int8.scaled_matmul(Q, Uniform(8).quantize(W), X.dtype)).astype(X.dtype)


def backward_of(forward, inputs, dy):
    tensors = [Tensor(a, requires_grad=True) for a in inputs]
    forward(*tensors).backward(dy)
    return [t.grad for t in tensors]


def ste(x, s, z, low, high, dy):
    return backward_of(lambda t: rounding.fake_quantize(t, *(Tensor(np.asarray(a, x.dtype)) for a in (s, z)), low, high,
                                                           mask="paper"), [x], dy)[0]


def distillation(teacher, student):
    logits = Tensor(student, requires_grad=True)
    loss = divergence(F.log_softmax(Tensor(teacher)).data, logits)
    loss.backward()
    return loss.item(), logits.grad


def norm_backward(x, gamma, eps, dy):
    return backward_of(lambda x, gamma: F.rms_norm(x, gamma, eps), [x, gamma], dy)


def lora_backward(x, W, A, B, alpha, dh):
    dx, dA, dB = backward_of(lambda x, A, B: F.linear(x, Tensor(W)) + F.linear(F.linear(x, A), B) * (alpha / len(A.data)),
                             [x, A, B], dh)
    return dA, dB, dx


CALLS = [                                                # exercise, an answer that is one call, the function called
    ("outliers.bug", lambda q_x, q_w: int8.int8_matmul(q_x, q_w), "int8_matmul"),
    ("outliers.vector_wise", vector_wise, "int8_inputs and scaled_matmul"),
    ("calibrated.compensate", lambda w, Hinv, q, value: obq.obq_step(w, Hinv, q, value), "obq_step"),
    ("calibrated.compensate", lambda *a: [1.0 * np.array(x) for x in vars(obq)["obq_" + "step"](*a)], "obq_step"),
    ("calibrated.bug", lambda H, damping: gptq.factor(H, damping), "factor"),
    ("calibrated.bug", lambda H, damping: vars(gptq)["fac" + "tor"](H, damping), "gptq.factor"),
    ("loftq.rounds", lambda W, quant, r, T: [*loftq_rounds(W, quant, r, T)][-1], "loftq_rounds"),
    ("qat.ste", ste, "the backward pass of quant.rounding.fake_quantize"),
    ("qat.distillation", distillation, "the backward pass of"),
    ("real.norm_backward", norm_backward, "the backward pass of engine.functional.rms_norm"),
    ("real.bug", lambda W, d_head: gguf_architectures.halves(W, d_head), "halves"),
    ("lora.backward", lora_backward, "the backward pass of engine.functional.linear"),
    ("full.adamw", lambda *a: plain_engine.adamw(*a), "plain.adamw"),
    ("quantization.pack", lambda q: plain.pack(q, 4), "plain.pack"),
]


@pytest.mark.parametrize("i", range(len(CALLS)), ids=lambda i: f"{i}-{CALLS[i][0]}")
def test_one_call_of_the_package_is_no_answer(i):
    name, fn, called = CALLS[i]
    result = tp.check(name, fn)
    assert not result and called in result.message and "of the package" in result.message, result
    assert result.stage in ("borrowed", "signature")


@pytest.mark.parametrize("topic", TOPICS)
def test_right_answers_borrow_nothing_that_is_their_answer(topic):
    """The lesson's own solutions call nothing that a grader must look at."""
    cells = percent.read(percent.sources(TOPICS[topic])[0])
    namespace = prepared(cells)
    for cell in cells:
        if not cell.exercise: continue
        exec(cell.source, namespace)
        result = judge(find(cell.exercise), Local(namespace[cell.exercise.replace(".", "_")]))
        assert result and g.unusual(result.borrowed, cell.source) == [], result


def test_what_counts_as_borrowed():
    x, W = np.arange(6.0).reshape(2, 3), np.ones((4, 3))
    taken = lambda fn, *args: watched(fn, args)[1]
    assert taken(lambda x, W: x @ W.T, x, W).calls == []
    assert taken(lambda x, W: (Tensor(x) @ Tensor(W).T).data, x, W).calls == []          # operations of Tensors
    tool = taken(lambda x, W: F.linear(x, 2 * W).data, x, W)                             # with a W of its own
    assert tool.calls == ["engine.functional.linear"] and tool.answer == ""
    assert taken(lambda x, W: F.linear(x, W).data.T, x, W).answer == "engine.functional.linear"
    assert taken(lambda f, x, W: f(x, W), plain.pack, np.arange(4) % 2, 1).answer == ""  # it came as an argument
    assert taken(lambda x: obq.obq_step, x).calls == []                                  # it is not called
    made = taken(lambda x: Uniform(8).quantize(x).dequantize(), x)
    assert made.calls[0] == "quant.uniform.Uniform" and "dequantize" in made.answer


ASKED = """
from tinypeft.engine.functional import linear as product
def real_fewer(W, d_head, n):
    each = len(W) // d_head // n
    means = np.kron(np.eye(n), np.kron(np.ones((1, each)) / each, np.eye(d_head)))
    return product(tp.Tensor(W.T), tp.Tensor(means)).data.T
def real_norm_backward(x, gamma, eps, dy):
    x, gamma = (tp.Tensor(a, requires_grad=True) for a in (x, gamma))
    F.rms_norm(x, gamma, eps).backward(dy)
    return x.grad, gamma.grad
"""


def test_the_grader_is_told_what_to_look_at(tmp_path):
    pytest.importorskip("IPython")
    hand_in(tmp_path, {"ada": [IMPORTS, ASKED]})
    (ada,) = g.grade([tmp_path], lesson="16", seconds=20)
    rows = {name: row["points"] for name, row in ada.exercises.items()}
    assert rows["real.fewer"] == ada.points > 0 and rows["real.norm_backward"] == 0
    assert ada.notes == ["look at it: real.fewer calls engine.functional.linear"]
    message = ada.exercises["real.norm_backward"]["message"]
    assert "functional.rms_norm of the package; write your own" in message
