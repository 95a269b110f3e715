"""nn.py: layers against PyTorch and finite differences, and the tree of modules with its names."""
import numpy as np
import pytest

import tinypeft as tp
from tests.oracles import assert_close
from tinypeft.engine.nn import Dropout, Embedding, LayerNorm, Linear, Module, Parameter, RMSNorm, replace_modules
from tinypeft.engine.tensor import Tensor

rng = np.random.default_rng(0)
X = rng.standard_normal((2, 5, 4))
IDS = np.array([[1, 4, 1], [0, 1, 5]])


def randomized(module):
    module.to(np.float64)
    for p in module.parameters(): p.data = rng.standard_normal(p.shape)
    return module


# name → (our layer, its input, PyTorch's layer)
LAYERS = {
    "Linear":    (lambda: Linear(4, 3), X, lambda nn: nn.Linear(4, 3)),
    "no bias":   (lambda: Linear(4, 3, bias=False), X, lambda nn: nn.Linear(4, 3, bias=False)),
    "LayerNorm": (lambda: LayerNorm(4, eps=1e-3), X, lambda nn: nn.LayerNorm(4, eps=1e-3)),
    "RMSNorm":   (lambda: RMSNorm(4, eps=1e-3), X, lambda nn: nn.RMSNorm(4, eps=1e-3)),
    "Embedding": (lambda: Embedding(6, 3), IDS, lambda nn: nn.Embedding(6, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_agree_with_pytorch(name, torch):
    ours, x, theirs = LAYERS[name]
    ours, theirs = randomized(ours()), theirs(torch.nn).double()
    theirs.load_state_dict({n: torch.tensor(a) for n, a in ours.state_dict().items()})       # the names agree too
    y, z = ours(Tensor(x) if x is X else x), theirs(torch.tensor(x))
    assert_close(y, z, 1e-12)
    dy = rng.standard_normal(y.shape)
    y.backward(dy)
    z.backward(torch.tensor(dy))
    for (n, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_close(p.grad, q.grad, 1e-12, n)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_by_finite_differences(name):
    make, x, _ = LAYERS[name]
    layer = randomized(make())
    tp.gradcheck(lambda *_: layer(Tensor(x) if x is X else x), *layer.parameters())


def test_an_offset_is_added_to_the_weights_of_a_norm():
    """Gemma's RMSNorm holds γ − 1; both compute the same function, and start with γ = 1."""
    first, second = randomized(RMSNorm(4)), RMSNorm(4, offset=1.0).to(np.float64)
    assert np.array_equal(second(Tensor(X)).data, RMSNorm(4).to(np.float64)(Tensor(X)).data)
    second.weight.data = first.weight.data - 1
    assert_close(second(Tensor(X)), first(Tensor(X)), 1e-14)
    tp.gradcheck(lambda x, *_: second(x), X, second.weight)


def test_dropout_acts_in_training_only():
    layer, x = Dropout(0.5, rng=0), Tensor(np.ones((100, 100)))
    assert layer(x) is x
    layer.train()
    assert 0.45 < (layer(x).data == 0).mean() < 0.55
    assert layer.eval()(x) is x and Dropout(0.0).train()(x) is x
    with pytest.raises(ValueError, match=r"in \[0, 1\), got 1"):
        Dropout(1)


@pytest.mark.parametrize("make", [lambda n: Linear(n, 3), lambda n: LayerNorm(n), lambda n: RMSNorm(n, offset=1.0),
                                  lambda n: Embedding(n, 3)])
def test_layers_of_shapes_only_take_no_memory(make):
    n = 1 << 40
    with tp.engine.nn.shapes_only():
        assert n in make(n).weight.shape and not make(4).weight.data.flags.writeable
        with pytest.raises((ValueError, OverflowError)): make(1 << 80)
    layer = make(4)
    assert layer.weight.data.flags.writeable and layer.weight.data.flags.owndata


def test_initialisation():
    assert_close(Linear(300, 400, rng=0).weight.data.std(), 0.02, 0.02)
    assert not Linear(3, 4).bias.data.any() and Linear(3, 4, bias=False).bias is None
    assert np.array_equal(Linear(3, 4, rng=5).weight.data, Linear(3, 4, rng=np.random.default_rng(5)).weight.data)
    W = tp.engine.nn.kaiming_uniform((200, 100), np.random.default_rng(0))
    assert W.dtype == np.float32 and np.abs(W).max() <= 0.1 and np.isclose(W.std(), 0.1 / np.sqrt(3), rtol=0.02)


# -- the tree --------------------------------------------------------------------------------------
class Leaf(Module):
    def __init__(self, n):
        self.w, self.steps = Parameter(np.full(n, 1.0, np.float32)), np.zeros(2, np.int64)


class Tree(Module):
    def __init__(self):
        self.first, self.many, self.note = Leaf(1), [Leaf(2), Leaf(3)], "not a child"
        self.tied = self.many[0].w


def test_names_come_in_order_of_construction():
    tree = Tree()
    assert [path for path, _ in tree.named_modules()] == ["", "first", "many.0", "many.1"]
    assert [n for n, _ in tree.named_parameters()] == ["tied", "first.w", "many.1.w"]   # tied once, under its first path
    assert list(tree.state_dict()) == ["tied", "first.w", "many.1.w", "first.steps", "many.0.steps", "many.1.steps"]
    assert tree.get("many.1") is tree.many[1] and tree.get("") is tree
    assert tree.n_parameters() == 6
    with pytest.raises(KeyError, match="no module 'many.2'; there are: first, many.0, many.1"):
        tree.get("many.2")


def test_a_module_is_found_along_its_path_alone(monkeypatch):
    """A method on a model of 30 blocks asks for hundreds of modules: a walk through all for each took seconds."""
    grove, visited, children = Module(), [], Module.children
    grove.trees = [Tree() for _ in range(12)]
    monkeypatch.setattr(Module, "children", lambda self: visited.append(self) or children(self))
    assert grove.get("trees.11.many.1") is grove.trees[11].many[1] and grove.get("trees.1.first") is grove.trees[1].first
    assert visited == [grove, grove.trees[11], grove, grove.trees[1]]
    for path in ("trees", "trees.12", "trees.1.", ".trees.1", "trees.1.many", "trees.1.first.w", "trees.01"):
        with pytest.raises(KeyError, match="no module .*; there are: trees.0, trees.0.first, .*"): grove.get(path)


def test_a_frozen_parameter_stays_a_parameter():
    tree = Tree()
    for p in tree.parameters(): p.requires_grad = False
    assert len(tree.parameters()) == 3 and len(tree.state_dict()) == 6


def test_state_goes_out_and_in():
    one, other = Tree(), Tree()
    for array in one.state_dict().values(): array[...] = rng.integers(0, 9, array.shape)
    other.load_state_dict({k: a.copy() for k, a in one.state_dict().items()})
    for name, array in other.state_dict().items():
        assert np.array_equal(array, one.state_dict()[name]) and not np.shares_memory(array, one.state_dict()[name])
        assert array.dtype == one.state_dict()[name].dtype
    assert other.tied is other.many[0].w


def test_loading_casts_to_the_dtype_of_the_module():
    tree = Tree().load_state_dict({n: a.astype(np.float64) for n, a in Tree().state_dict().items()})
    assert {str(a.dtype) for a in tree.state_dict().values()} == {"float32", "int64"}


def test_loading_is_all_or_nothing():
    tree = Tree()
    good = {k: np.full_like(a, 7) for k, a in tree.state_dict().items()}
    for state, error, says in (({**good, "many.1.w": np.ones(4)}, ValueError, r"many.1.w has shape \(4,\), expected \(3,\)"),
                               ({**good, "extra": np.ones(1)}, KeyError, r"missing nothing, unknown \['extra'\]"),
                               ({"tied": good["tied"]}, KeyError, r"missing \['first.steps'")):
        with pytest.raises(error, match=says):
            tree.load_state_dict(state)
        assert not any((a == 7).any() for a in tree.state_dict().values())
    tree.load_state_dict({"tied": good["tied"], "extra": np.ones(1)}, strict=False)
    assert (tree.tied.data == 7).all() and (tree.first.w.data == 1).all()


def test_train_and_eval_reach_everything():
    tree = Tree()
    assert not any(m.training for _, m in tree.named_modules())
    assert all(m.training for _, m in tree.train().named_modules())
    assert not any(m.training for _, m in tree.eval().named_modules())


def test_to():
    tree = Tree()
    tree.first.w.grad = np.ones(1, np.float32)
    assert tree.to(np.float64) is tree and all(p.dtype == np.float64 and p.grad is None for p in tree.parameters())
    assert tree.first.steps.dtype == np.int64
    for dtype in (np.float16, "int32"):
        with pytest.raises(TypeError, match="expected float32 or float64, got"):
            tree.to(dtype)


def test_replace_modules():
    tree = Tree()
    before = dict(tree.named_modules())
    new = {"first": Leaf(5), "many.1": Leaf(6)}
    old = replace_modules(tree, new)
    assert tree.first is new["first"] and tree.many[1] is new["many.1"] and tree.many[0] is before["many.0"]
    replace_modules(tree, old)
    assert dict(tree.named_modules()) == before
    with pytest.raises(KeyError, match="no module 'second'"):
        replace_modules(tree, {"first": Leaf(1), "second": Leaf(1)})
    assert dict(tree.named_modules()) == before


def test_printed():
    model = tp.GPT(tp.GPTConfig(vocab_size=11, context_length=8, d_model=4, n_layers=1, n_heads=2, dropout=0.1))
    text = repr(model)
    assert text.splitlines()[0] == f"GPT({model.n_parameters():,} parameters)("
    for line in ("(token_embedding): Embedding(11 × 4)", "(blocks.0): Block(", "(query): Linear(4 → 4)",
                 "(norm1): LayerNorm(4)", "(dropout): Dropout(0.1)"):
        assert line in text
    assert repr(Linear(2, 3, bias=False)) == "Linear(2 → 3, no bias)"


def test_equal_neighbours_in_a_list_are_printed_once():
    model = tp.GPT(tp.GPTConfig(vocab_size=11, context_length=8, d_model=4, n_layers=30, n_heads=2))
    plain = repr(model)
    assert "\n  (blocks.0 … blocks.29): 30 × Block(\n    (norm1): LayerNorm(4)\n" in plain and len(plain.splitlines()) < 25
    model.blocks[7].mlp.up = Linear(4, 16, bias=False)
    lines = repr(model).splitlines()
    assert [line for line in lines if "Block" in line] == [
        "  (blocks.0 … blocks.6): 7 × Block(", "  (blocks.7): Block(", "  (blocks.8 … blocks.29): 22 × Block("]
    for name in ("query", "key", "value", "output"):                          # alike, but each has a name of its own
        assert sum(f"({name}): Linear(4 → 4)" in line for line in lines) == 3
    model.blocks[7].mlp.up = Linear(4, 16)
    assert repr(model) == plain
    tuned = tp.attach(model, tp.LoRA(2, targets="all"), tp.IA3(), tp.PrefixTuning(3))
    assert len(repr(tuned).splitlines()) < 60 and tuned._repr_html_().count("<tr") < 50


def test_loading_keeps_the_layout_in_memory_on_which_blas_rounds():
    one, rng = Linear(3, 5), np.random.default_rng(0)
    one.weight.data = np.asfortranarray(one.weight.data)
    W = rng.standard_normal((5, 3)).astype(np.float32)
    one.load_state_dict({"weight": W, "bias": one.bias.data})
    assert one.weight.data.flags.f_contiguous and np.array_equal(one.weight.data, W)


@pytest.mark.parametrize("bad, says", [
    (np.array([1, np.nan]), "float32 cannot hold"), (np.array([1, np.inf]), "cannot hold"),
    (np.array([1, 1e300]), "cannot hold"),
    (np.array([1, 1j]), "is complex128, expected real numbers"), (np.array(["a", "b"]), "expected real numbers"),
    (np.array([None, 1]), "expected real numbers")])
def test_loading_refuses_what_the_type_cannot_hold_and_changes_nothing(bad, says):
    class Two(Module):
        def __init__(self):
            self.first, self.w = Parameter(np.zeros(3, np.float32)), Parameter(np.zeros(2, np.float32))
    m = Two()
    with pytest.raises(ValueError, match=f"load_state_dict: w .*{says}"): m.load_state_dict({"first": np.ones(3), "w": bad})
    assert not m.first.data.any() and not m.w.data.any()


@pytest.mark.parametrize("bad", [np.array([256]), np.array([-1]), np.array([0.5]), np.array([np.nan])])
def test_a_buffer_of_integers_takes_integers_in_its_range(bad):
    class Buffer(Module):
        def __init__(self): self.codes = np.zeros(1, np.uint8)
    with pytest.raises(ValueError, match="codes has numbers that uint8 cannot hold"): Buffer().load_state_dict({"codes": bad})
    assert Buffer().load_state_dict({"codes": np.array([7.0])}).codes.tolist() == [7]


@pytest.mark.filterwarnings("ignore:GPTQ. 36 calibration tokens")
def test_loading_is_all_or_nothing_with_packed_weights(gpt):
    """The packed weight is made before a parameter changes: here its order is no order."""
    m = tp.quantize(gpt(np.float32), tp.GPTQ(bits=4, act_order=True), np.arange(36).reshape(2, 18))
    before = {n: a.copy() for n, a in m.state_dict().items()}
    name = next(n for n in before if n.endswith("order"))
    state = {n: a + 1 if a.dtype.kind == "f" else a for n, a in before.items()} | {name: np.zeros_like(before[name])}
    with pytest.raises(ValueError, match="order must have each of"): m.load_state_dict(state)
    assert all(np.array_equal(before[n], a) for n, a in m.state_dict().items())
