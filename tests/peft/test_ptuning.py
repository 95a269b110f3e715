"""P-tuning: where pseudo-tokens go, the LSTM, PEFT's encoders, and templates against a row-by-row torch version."""
import numpy as np
import pytest

import tinypeft as tp
from tests.protocol import assert_gradients, assert_same_race, assert_saves, move
from tinypeft.peft.lstm import BiLSTM, lstm
from tinypeft.peft.ptuning import places
from tinypeft.text import BPETokenizer

SEP = 5
TEMPLATE = (2, "context", 3, "target")
LSTM, MLP, BARE = (tp.PTuning(TEMPLATE, SEP, encoder, n) for encoder, n in (("lstm", 8), ("mlp", 12), (None, None)))
FRONT = tp.PTuning(TEMPLATE, hidden=4)
ALL = [LSTM, MLP, BARE, FRONT]
each = pytest.mark.parametrize("method", ALL, ids=str)


@pytest.fixture
def marked(tokens):
    """The tokens with one separator per row, at the places 3, 6 (the end) and 0."""
    tokens = np.where(tokens == SEP, SEP + 1, tokens)
    tokens[[0, 1, 2], [3, 6, 0]] = SEP
    return tokens


@each
def test_gradients(method, gpt, marked, rng):
    tuned = tp.attach(gpt(), method, rng=0)
    assert_gradients(tuned, marked, kinks=True)


def test_save_and_load_in_a_fresh_process(gpt, marked, tmp_path):
    assert_saves(gpt, [*ALL, tp.PTuning(TEMPLATE, np.int32(SEP), "mlp", np.int64(4))], marked, tmp_path)


# -- the LSTM ------------------------------------------------------------------------------------
def test_lstm_gradients(rng):
    tp.gradcheck(lstm, rng.standard_normal((6, 12)), 0.5 * rng.standard_normal((12, 3)))
    net = BiLSTM(4, 3, 2, np.random.default_rng(0)).to(np.float64)
    tp.gradcheck(lambda x, *_: net(x), rng.standard_normal((5, 4)), *net.parameters())


@pytest.mark.parametrize("T", [1, 6])
def test_lstm_equals_torch(T, rng):
    torch = pytest.importorskip("torch")
    ours = BiLSTM(4, 3, 2, np.random.default_rng(0)).to(np.float64)
    theirs = torch.nn.LSTM(4, 3, num_layers=2, bidirectional=True).double()
    params = {}
    for layer in (0, 1):
        for one, suffix in ((ours.forwards[layer], ""), (ours.backwards[layer], "_reverse")):
            for name, p in one.named_parameters(): params[f"{name}_l{layer}{suffix}"] = p
    theirs.load_state_dict({name: torch.as_tensor(p.data.copy()) for name, p in params.items()})
    x, dy = rng.standard_normal((T, 4)), rng.standard_normal((T, 6))
    a, b = tp.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = ours(a), theirs(b)[0]
    np.testing.assert_allclose(y.data, z.detach().numpy(), rtol=0, atol=1e-12)
    y.backward(dy); z.backward(torch.as_tensor(dy))
    np.testing.assert_allclose(a.grad, b.grad.numpy(), rtol=0, atol=1e-12)
    for name, p in theirs.named_parameters():
        np.testing.assert_allclose(params[name].grad, p.grad.numpy(), rtol=0, atol=1e-12, err_msg=name)


def test_lstm_starts_as_in_pytorch():
    """U(−1/√n, 1/√n), n = 64: near both ends, and with the variance of this distribution."""
    for name, p in BiLSTM(16, 64, 1, np.random.default_rng(0)).named_parameters():
        assert -0.125 <= p.data.min() < -0.12 and 0.12 < p.data.max() <= 0.125, name
        np.testing.assert_allclose(p.data.std(), 0.125 / 3 ** 0.5, rtol=0.1)


def test_lstm_refuses_other_shapes(rng):
    with pytest.raises(ValueError, match=r"expected a \(T, 4n\)"):
        lstm(tp.Tensor(rng.standard_normal((6, 11))), tp.Tensor(rng.standard_normal((12, 3))))


# -- against PyTorch -----------------------------------------------------------------------------
@pytest.mark.parametrize("kind, n", [("LSTM", 8), ("MLP", 12)])
def test_encoders_equal_peft(kind, n, gpt, tokens):
    """PEFT's P-tuning, which has no template: all pseudo-tokens stand before the text."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from tests.oracles.torch_gpt import torch_copy
    model = gpt()
    copy = torch_copy(model)
    theirs = peft.PromptEncoder(peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, token_dim=16, num_transformer_submodules=1, num_layers=2,
        num_attention_heads=4, encoder_reparameterization_type=kind, encoder_hidden_size=n,
        **({"encoder_num_layers": 2} if kind == "LSTM" else {}))).double()
    oracle = lambda x: copy(x, prompt=theirs(torch.arange(5).expand(len(x), -1)))
    tuned = tp.attach(model, tp.PTuning(TEMPLATE, encoder=kind.lower(), hidden=n), rng=0)
    v, names = tuned.virtual, dict(theirs.named_parameters())
    pairs = [(v.embedding, names["embedding.weight"])]
    if kind == "LSTM":
        for layer in (0, 1):
            for one, suffix in ((v.encoder.lstm.forwards[layer], ""), (v.encoder.lstm.backwards[layer], "_reverse")):
                pairs += [(p, names[f"lstm_head.{name}_l{layer}{suffix}"]) for name, p in one.named_parameters()]
    for i, linear in enumerate((v.encoder.W1, v.encoder.W2, getattr(v.encoder, "W3", None))):
        if linear is not None:
            pairs += [(p, names[f"mlp_head.{2 * i}.{name}"]) for name, p in linear.named_parameters()]
    assert_same_race(tuned, oracle, pairs, tokens)


@pytest.mark.parametrize("template, sizes", [(TEMPLATE, (2, 3)), ((2, "premise", "hypothesis", 1, "target"), (2, 0, 1)),
                                             (("a", 2, "b"), (0, 2))])
def test_templates_equal_torch(template, sizes, gpt, marked):
    pytest.importorskip("torch")
    from tests.oracles.torch_gpt import torch_copy
    from tests.oracles.torch_ptuning import TemplatedPTuning
    model = gpt()
    tokens = np.hstack([marked, np.full((3, 2), SEP), [[1], [2], [3]], [[4], [6], [7]]])
    oracle = TemplatedPTuning(torch_copy(model), sizes, SEP, 8)
    tuned = tp.attach(model, tp.PTuning(template, SEP, hidden=8), rng=0)
    assert_same_race(tuned, oracle, oracle.pairs(tuned.virtual), tokens)


# -- the template --------------------------------------------------------------------------------
def test_places(marked):
    at = places(marked, (2, 3), SEP)
    assert at.tolist() == [[0, 1, 6, 7, 8], [0, 1, 9, 10, 11], [0, 1, 3, 4, 5]]
    assert places(marked, (2, 3), None).tolist() == [[0, 1, 2, 3, 4]] * 3           # no parts: all before the text
    assert places(marked, (2, 3), None, [4, 7, 1]).tolist() == at.tolist()           # classification: the row's end
    assert places(marked, (2, 3), SEP, [2, 2, 2]).tolist() == [[0, 1, 4, 5, 6]] * 3
    three = places(marked, (1, 1, 1), SEP, [6, 7, 3])                                # premise | hypothesis | class
    assert three.tolist() == [[0, 5, 8], [0, 8, 9], [0, 2, 5]]
    assert places(marked, (4,), None, [2, 2, 2]).tolist() == [[0, 1, 2, 3]] * 3


def test_a_separator_in_the_padding_ends_no_part(gpt):
    """A row means the same with padding, whatever the padding is."""
    row, counts = np.array([[1, SEP, 6, 7]]), (1, 1, 1)
    assert places(np.hstack([row, [[SEP, SEP]]]), counts, SEP, [4]).tolist() == places(row, counts, SEP, [4]).tolist()
    tuned, none = tp.attach(gpt(), tp.PTuning((1, "a", 1, "b", 1, "c"), SEP), head=3), "row 0 has 0 of the 1 separators"
    for tokens in ([[1, 6, 7]], [[1, 6, 7, SEP]]):
        with pytest.raises(ValueError, match=none): places(np.array(tokens), counts, SEP, [3])
        with pytest.raises(ValueError, match=none): tuned.class_logits(np.array(tokens), [3])


def test_what_precedes_does_not_move_when_text_is_added(marked):
    """So generation without a cache puts the pseudo-tokens where generation with one left them."""
    longer = np.hstack([marked, marked])
    assert np.array_equal(places(marked, (2, 3), SEP), places(longer, (2, 3), SEP))


def test_a_row_without_its_separator_is_refused(gpt, marked):
    marked[1, 6] = 9
    with pytest.raises(ValueError, match="row 1 has 0 of the 1 separators"):
        tp.attach(gpt(), LSTM)(marked)


def test_the_last_pseudo_token_predicts_the_target(gpt, marked):
    """Pseudo-tokens behind the context change what follows the separator, and nothing before it."""
    tuned = tp.attach(gpt(), BARE, rng=0)
    before = tuned(marked).data
    tuned.virtual.embedding.data[-1, :8] += 1.0
    changed = np.abs(tuned(marked).data - before).max(-1) > 1e-9
    assert changed.tolist() == [[False] * 3 + [True] * 4, [False] * 6 + [True], [True] * 7]


def test_the_head_reads_the_last_pseudo_token(gpt, tokens):
    tuned = tp.attach(gpt(), tp.PTuning(TEMPLATE, encoder=None), head=3)
    at = [[0, 1, 9, 10, 11], [0, 1, 6, 7, 8], [0, 1, 4, 5, 6]]
    states = tuned.model.hidden(tokens, prompt=tuned.virtual.embedding, prompt_at=at)
    got = tuned.class_logits(tokens, [7, 4, 2]).data
    assert np.array_equal(got, tuned.head(states[np.arange(3), [6, 3, 1]]).data)
    tuned.virtual.embedding.data[-1, :8] += 1.0
    assert (np.abs(tuned.class_logits(tokens, [7, 4, 2]).data - got).max(-1) > 1e-3).all()
    filled = np.where(np.arange(7) < [[7], [4], [2]], tokens, 0)                    # what fills a row is never seen
    want = tuned.class_logits(tokens, [7, 4, 2]).data
    np.testing.assert_allclose(tuned.class_logits(filled, [7, 4, 2]).data, want, rtol=0, atol=1e-12)


@each
def test_generates_with_and_without_cache(method, gpt, tokens, rng):
    tokens = np.where(tokens == SEP, 6, tokens)
    tokens[[0, 1, 2], [3, 6, 0]] = SEP
    tuned = tp.attach(gpt(), method, rng=0)
    move(tuned, rng)
    a, b = (tuned.generate(tokens, 8, use_cache=cached) for cached in (True, False))
    assert a.shape == (3, 15) and np.array_equal(a, b)


def test_counts_and_folding(gpt, marked):
    P, d, n = 5, 16, 12
    tuned = tp.attach(gpt(np.float32), MLP)
    assert tuned.summary().trained == P * d + (n * d + n) + (n * n + n) + (n * d + d)
    tuned = tp.attach(gpt(np.float32), tp.PTuning((3, "target"), hidden=12))
    assert tuned.summary().trained == (3 * d + 8 * (n * d + n * n + 2 * n) + 8 * (3 * n * n + 2 * n)
                                       + 4 * n * n + 2 * n + 2 * n * d + d) == 7576                    # PEFT's count
    tuned = tp.attach(gpt(np.float32), LSTM)
    before = tuned(marked).data
    assert tuned.summary().stored == P * d
    tuned.fold()
    assert np.array_equal(tuned(marked).data, before) and tuned.method == BARE
    assert tuned.summary().trained == tuned.summary().stored == P * d
    assert tp.attach(gpt(), tp.PTuning()).virtual.encoder.lstm.forwards[0].weight_hh.shape == (32, 8)  # n = d/2


def test_separator_as_text(gpt):
    model = gpt(vocab_size=300)
    with pytest.raises(tp.MethodError, match="tokenizer"):
        tp.attach(model, tp.PTuning(separator="\n"))
    model.tokenizer = BPETokenizer.train("axes of the axes of the " * 20, 264)
    assert tp.attach(model, tp.PTuning(separator="\n")).virtual.separator == 10
    model = gpt(vocab_size=300)
    model.tokenizer = BPETokenizer.train("axes of the axes of the " * 20, 264)
    with pytest.raises(tp.MethodError, match="must be one token"):
        tp.attach(model, tp.PTuning(separator="::"))


@pytest.mark.parametrize("make, word", [
    (lambda: tp.PTuning((0, "context", 0, "target")), "positive"),
    (lambda: tp.PTuning((3, 3)), "must name a part"),
    (lambda: tp.PTuning((3, "context", 3, "target", 3)), "never sees them")])
def test_nonsense_is_refused_at_once(make, word):
    with pytest.raises(tp.MethodError, match=word):
        make()


def test_the_end_of_text_separates(gpt):
    model = gpt(vocab_size=300)
    model.tokenizer = tokenizer = BPETokenizer.train("axes of the axes of the " * 20, 264)
    assert tp.attach(model, tp.PTuning(separator="<|endoftext|>")).virtual.separator == tokenizer.end_of_text


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_encoders_start_with_pytorchs_spread_numerical(encoder, gpt):
    """A Linear of PyTorch starts within ±1/√d_in, of standard deviation 1/√(3 d_in)."""
    made = tp.attach(gpt(np.float32, d_model=128), tp.PTuning(encoder=encoder, hidden=96), rng=0).virtual.encoder
    layers = [m for _, m in made.named_modules() if hasattr(m, "d_in")]
    assert len(layers) == (3 if encoder == "mlp" else 2)
    for layer in layers: assert layer.weight.data.std() == pytest.approx((3 * layer.d_in) ** -0.5, rel=0.05)
