"""LoReFT: the equations, the positions, prompts and what is written behind them, refusals, and its authors' numbers."""

import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import make_gpt
from tests.families import make
from tests.oracles import assert_close, pyreft
from tests.protocol import LENGTHS, assert_same_race, learned, move
from tinypeft.engine import functional as F
from tinypeft.engine.optim import AdamW
from tinypeft.engine.tensor import Tensor
from tinypeft.models.cache import KVCache
from tinypeft.models.generation import prompted
from tinypeft.peft import plain
from tinypeft.peft.loreft import ends
from tinypeft.peft.orthonormal import orthonormal

METHOD = tp.LoReFT(rank=3, first=2, last=1)
UNTIED = tp.LoReFT(rank=3, first=2, last=1, tied=False, targets=("blocks.1",))


# -- the equations -------------------------------------------------------------------------------
def test_it_is_the_papers_equation_one_state_after_the_other(gpt, rng):
    phi = learned(gpt(), METHOD).virtual.phi[0]
    x = rng.standard_normal((2, 7, 16))
    fast, n = Tensor(x, requires_grad=True), [7, 5]
    is_first, is_last = ends(7, np.array(n), 2, 1)
    tuned = learned(gpt(), METHOD)
    y = tuned.virtual.change(is_first, is_last, 0, fast, np.broadcast_to(np.arange(7), (2, 7)))
    for b in range(2):
        slow = Tensor(x[b, :n[b]], requires_grad=True)
        assert_close(y.data[b, :n[b]], plain.loreft(phi, slow, 2, 1), 1e-12)
    assert np.array_equal(y.data[1, 5:], x[1, 5:])                                       # no padding changes
    g = rng.standard_normal((7, 16))
    plain.loreft(phi, slow := Tensor(x[0], requires_grad=True), 2, 1).backward(g)
    y.backward(np.stack([g, 0 * g]))
    mine = tuned.virtual.phi[0]
    assert_close(fast.grad[0], slow.grad, 1e-12)
    for name in "MWb": assert_close(getattr(mine, name).grad, getattr(phi, name).grad, 1e-12)


def test_orthonormal_is_gram_schmidt_and_does_not_jump(rng):
    for d, r in ((9, 3), (5, 5), (6, 1)):
        M = rng.standard_normal((d, r))
        fast, slow, g = Tensor(M, requires_grad=True), Tensor(M, requires_grad=True), rng.standard_normal((d, r))
        Q = orthonormal(fast)
        assert_close(Q, plain.orthonormal(slow), 1e-12)
        assert_close(Q.data.T @ Q.data, np.eye(r), 1e-12)
        Q.backward(g)
        plain.orthonormal(slow).backward(g)
        assert_close(fast.grad, slow.grad, 1e-11)
    tp.gradcheck(orthonormal, Tensor(rng.standard_normal((9, 3)), requires_grad=True), tolerance=1e-8)
    M = rng.standard_normal((9, 3))
    sides = []
    for M[0, 0] in (1e-9, -1e-9): sides.append(orthonormal(Tensor(M)).data)
    assert_close(*sides, 1e-8)                                    # LAPACK's Q would change its sign here


def test_rows_stay_orthonormal_while_it_trains(gpt, tokens):
    tuned = tp.attach(gpt(np.float32), METHOD)
    start = [phi.R().data.copy() for phi in tuned.virtual.phi]
    optimizer = AdamW(tuned.trainable_parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(tuned(tokens[:, :-1]), tokens[:, 1:]).backward()
        optimizer.step()
        for phi in tuned.virtual.phi: assert_close(phi.R().data @ phi.R().data.T, np.eye(3), 1e-5)
    assert all(np.abs(phi.R().data - R).max() > 0.05 for phi, R in zip(tuned.virtual.phi, start, strict=True))


@pytest.mark.parametrize("method", [METHOD, UNTIED], ids=str)
def test_gradients_of_class_logits_numerical(method, gpt, tokens):
    tuned = tp.attach(gpt(), method, rng=0, head=3)
    move(tuned, np.random.default_rng(0))
    tp.gradcheck(lambda *_: tuned.class_logits(tokens, LENGTHS), *tuned.trainable_parameters(), tolerance=1e-8, directions=2)


def test_dropout_is_on_the_changed_states(gpt, tokens):
    tuned = learned(gpt(), tp.LoReFT(rank=3, first=1, last=1, dropout=0.5))
    x = Tensor(np.random.default_rng(0).standard_normal((3, 7, 16)))
    phi = tuned.virtual.phi[0]
    quiet = phi(x).data
    tuned.train()
    phi.dropout.rng = np.random.default_rng(5)
    assert_close(phi(x), F.dropout(Tensor(quiet), 0.5, np.random.default_rng(5)), 1e-12)
    changed = tuned.virtual.seams(tokens)["hook"](0, x, np.broadcast_to(np.arange(7), (3, 7))).data
    assert np.array_equal(changed[:, 1:-1], x.data[:, 1:-1]) and (changed[:, 0] == 0).any()


# -- the positions -------------------------------------------------------------------------------
@pytest.mark.parametrize("n, p, s, first, last", [
    (9, 2, 3, [0, 1], [6, 7, 8]), (5, 1, 4, [0], [1, 2, 3, 4]),
    (5, 2, 3, [0, 1], [2, 3, 4]), (4, 2, 3, [0, 1], [2, 3]), (3, 2, 3, [0], [1, 2]),
    (1, 2, 3, [], [0]), (1, 1, 0, [0], []), (5, 7, 0, [0, 1], []), (5, 0, 7, [], [2, 3, 4]), (2, 1, 1, [0], [1])])
def test_positions_are_those_of_the_paper_and_none_is_named_twice(n, p, s, first, last):
    """Where n < p + s, p becomes min(p, ⌊n/2⌋) and s min(s, ⌈n/2⌉)."""
    for T in (n, n + 3):
        is_first, is_last = ends(T, np.array([n, T]), p, s)
        assert np.flatnonzero(is_first[0]).tolist() == first and np.flatnonzero(is_last[0]).tolist() == last
        assert not (is_first & is_last).any()


def test_padding_changes_nothing(gpt, tokens):
    tuned = tp.attach(gpt(), METHOD, rng=0, head=3)
    move(tuned, np.random.default_rng(0))
    together = tuned.class_logits(tokens, LENGTHS).data
    for b, n in enumerate(LENGTHS): assert_close(together[b:b + 1], tuned.class_logits(tokens[b:b + 1, :n], [n]), 1e-12)
    mixed = tp.mixed_classify(tuned.model, {"a": tuned}, tokens, LENGTHS, "aaa")
    assert_close(np.stack(mixed), together, 1e-12)


def test_a_prompt_ends_where_prompted_says(gpt, tokens):
    """Behind it nothing changes; what is before sees only what is before it."""
    tuned = learned(gpt(), METHOD)
    with prompted(np.array([4, 4, 4])): logits = tuned(tokens).data
    assert_close(logits[:, :4], tuned(tokens[:, :4]).data, 1e-12)
    assert np.abs(logits - tuned(tokens).data).max() > 1e-3


def test_what_is_written_stays_as_it_is(gpt, tokens):
    """With a cache the prompt is fed once; without one it is fed with what follows, and still ends where it ended."""
    tuned = learned(gpt(), tp.LoReFT(rank=3, first=2, last=2))
    out = tuned.generate(tokens, 8)
    assert np.array_equal(out, tuned.generate(tokens, 8, use_cache=False)) and out.shape == (3, 15)
    cache = KVCache(2)
    with tp.no_grad():
        first = tuned(tokens, cache=cache, last=True).data
        after = tuned(out[:, 7:8], cache=cache).data
    assert_close(first, tuned(tokens).data[:, -1:], 1e-12)
    with prompted(np.full(3, 7)): assert_close(after, tuned(out[:, :8]).data[:, -1:], 1e-12)


def test_a_task_of_pairs_says_where_its_prompts_end(gpt):
    """In training the states that change are those that change when the answer is written."""
    tokenizer = tp.load_tokenizer()
    model = make_gpt(np.float64, vocab_size=1024, context_length=40)
    task = tp.tasks.Answering({"train": [("ab", "cd"), ("a longer one", "e")]}, tokenizer, 40)
    tuned = learned(model, METHOD)
    tokens, targets = batch = task.collate(task.data("train"))
    n = [len(prompt) for prompt, _ in task.data("train")]
    assert (targets != -100).argmax(1).tolist() == [i - 1 for i in n]
    with prompted(np.array(n)): want = F.cross_entropy(tuned(tokens), targets, ignore_index=-100)
    assert task.loss(tuned, batch).item() == want.item() != F.cross_entropy(tuned(tokens), targets, ignore_index=-100).item()


# -- beside other methods ------------------------------------------------------------------------
@pytest.mark.parametrize("other", [
    tp.PromptTuning(3), tp.PTuningV2(3, dropout=0.0), tp.PTuning((1, "context", 2, "target"), encoder=None), tp.LoRA(2),
    tp.ParallelAdapter(4, activation="gelu"), tp.TrainableTokens((3,))], ids=str)
def test_beside_another_method_the_same_tokens_change(other, gpt, tokens):
    """Virtual tokens are not counted: the first token of the text is the first, wherever it stands."""
    tuned = tp.attach(gpt(), {"other": other, "reft": METHOD}, rng=0, head=3)
    move(tuned, np.random.default_rng(0))
    changed = []
    change = tuned.parts["reft"].virtual.change

    def watched(is_first, is_last, i, x, places):
        y = change(is_first, is_last, i, x, places)
        changed.append((np.abs(y.data - x.data).max(-1) > 0, places))
        return y
    tuned.parts["reft"].virtual.change = watched
    tuned(tokens)
    for moved, places in changed:
        for b in range(3): assert np.flatnonzero(moved[b]).tolist() == [*places[b, :2], places[b, 6]]
    del tuned.parts["reft"].virtual.change
    tp.gradcheck(lambda *_: tuned.class_logits(tokens, LENGTHS), *tuned.trainable_parameters(), tolerance=1e-6, directions=1)
    assert np.array_equal(tuned.generate(tokens, 4), tuned.generate(tokens, 4, use_cache=False))
    both = tuned(tokens).data
    tuned.detach("reft")
    alone = tuned(tokens).data
    assert np.abs(both - alone).max() > 1e-3 and np.array_equal(tuned.reattach("reft")(tokens).data, both)


def test_rows_of_several_tasks_share_no_states(gpt, tokens):
    model, tuned = gpt(), {}
    for name, methods in {"a": [METHOD], "b": [UNTIED], "c": [tp.PromptTuning(3), METHOD], "d": [tp.PromptTuning(3)]}.items():
        tuned[name] = tp.attach(model, *methods, rng=0)
        move(tuned[name], np.random.default_rng(ord(name)))
    rows = np.concatenate([tokens, tokens])
    out = tp.mixed_batch(model, tuned, rows, [*"abcd", "a", None]).data
    for b, task in enumerate([*"abcd", "a"]):
        assert_close(out[b:b + 1], tuned[task](rows[b:b + 1]), 1e-12)
    assert_close(out[5:], model(rows[5:]), 1e-12)


def test_only_one_is_on_at_a_time(gpt):
    tuned = tp.attach(gpt(), {"one": METHOD})
    with pytest.raises(tp.MethodError, match="one and two both give the model a hook; only one of them can be on"):
        tuned.add({"two": UNTIED})


# -- activations, refusals -----------------------------------------------------------------------
def test_activations_can_be_computed_again(gpt, tokens):
    """Checkpointing of activations gives the same gradients."""
    from tinypeft.engine.recompute import recomputing
    gradients = []
    for again in (False, True):
        tuned = tp.attach(gpt(), METHOD, tp.LoRA(2), rng=0)
        move(tuned, np.random.default_rng(0))
        with recomputing(again): F.cross_entropy(tuned(tokens[:, :-1]), tokens[:, 1:]).backward()
        gradients.append([p.grad for p in tuned.trainable_parameters()])
    for a, b in zip(*gradients, strict=True): assert np.array_equal(a, b)


def test_no_position_and_no_block_are_refused(gpt):
    with pytest.raises(tp.MethodError, match="first and last are both 0"): tp.LoReFT(first=0, last=0)
    with pytest.raises(ValueError, match="'blocks.2' matches none of the blocks"):
        tp.attach(gpt(), tp.LoReFT(targets=("blocks.2",)))


# -- the authors' package, and PyTorch -----------------------------------------------------------
@pytest.mark.parametrize("tied, theirs", pyreft.stored(), ids=["tied", "untied"])
def test_logits_gradients_and_what_is_written_equal_the_authors_numerical(tied, theirs):
    """Padded rows on a Llama: `tests/oracles/pyreft.py` says how their numbers were made."""
    tuned = tp.attach(make(pyreft.FAMILY), tp.LoReFT(pyreft.RANK, pyreft.P, pyreft.S, tied=tied))
    phis = tuned.virtual.phi + tuned.virtual.phi_last
    for phi, R, W, b in zip(phis, theirs["R"], theirs["W"], theirs["b"], strict=True):
        phi.M.assign(R.T.copy())
        phi.W.assign(W)
        phi.b.assign(b)
        assert_close(phi.R(), R, 1e-14)
    counts = np.arange(pyreft.TOKENS.shape[1]) < pyreft.LENGTHS[:, None]
    with prompted(pyreft.LENGTHS): logits = tuned(pyreft.TOKENS)
    assert_close(logits.data[counts], theirs["logits"][counts], 1e-13)
    loss = F.cross_entropy(logits[counts], pyreft.TOKENS[counts])
    assert abs(loss.item() - theirs["loss"]) < 1e-13
    loss.backward()
    for phi, dW, db in zip(phis, theirs["dW"], theirs["db"], strict=True):
        assert np.abs(dW).max() > 1e-3
        assert_close(phi.W.grad, dW, 1e-12)
        assert_close(phi.b.grad, db, 1e-12)
    one = pyreft.LENGTHS.argmax()
    for use_cache in (True, False):
        written = tuned.generate(pyreft.TOKENS[one:one + 1], pyreft.NEW, use_cache=use_cache)
        assert np.array_equal(written, theirs["written"])


def test_20_steps_of_adamw_equal_those_of_torchs_qr_numerical(gpt, tokens):
    torch = pytest.importorskip("torch")
    from tests.oracles.torch_gpt import torch_copy
    tuned = learned(gpt(), METHOD)
    theirs = torch_copy(tuned.frozen)
    parameters, pairs = [], []
    for phi, block in zip(tuned.virtual.phi, theirs.blocks, strict=True):
        M, W, b = (torch.nn.Parameter(torch.as_tensor(p.data.copy())) for p in (phi.M, phi.W, phi.b))
        pairs += [(phi.M, M), (phi.W, W), (phi.b, b)]
        parameters.append((M, W, b))

        def changed(module, inputs, h, M=M, W=W, b=b):
            Q, S = torch.linalg.qr(M)
            Q = Q * torch.sign(torch.diagonal(S)).detach()
            new = h + (h @ W.T + b - h @ Q) @ Q.T
            return torch.cat([new[:, :2], h[:, 2:-1], new[:, -1:]], 1)
        block.register_forward_hook(changed)
    assert_same_race(tuned, theirs, pairs, tokens)
