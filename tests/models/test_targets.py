"""targets.py: one rule for the names of layers and parameters, and what is no name."""
import itertools

import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import make_gpt
from tests.families import FAMILIES, make
from tests.toys import linear_paths
from tinypeft.models.targets import TargetError, chosen, match_targets, names_for

Q, K, V, O, UP, DOWN = LAYERS = [*(f"attention.{x}" for x in ("query", "key", "value", "output")), "mlp.up", "mlp.down"]
BLOCKS = [f"blocks.{n}.{layer}" for n in range(12) for layer in LAYERS]


def blocks(numbers, *layers):
    return [f"blocks.{n}.{layer}" for n in numbers for layer in layers or LAYERS]


def test_a_name_is_a_part_of_a_path_or_all_of_it(gpt):
    model = gpt()
    paths = lambda targets: [path for path, _ in match_targets(model, targets)]
    assert len(paths("all")) == 12 and paths(("query",)) == ["blocks.0.attention.query", "blocks.1.attention.query"]
    assert paths(["up", "blocks.1.attention.key"]) == ["blocks.0.mlp.up", "blocks.1.attention.key", "blocks.1.mlp.up"]
    assert all(layer is model.get(path) for path, layer in match_targets(model, "all"))
    tp.attach(model, tp.LoRA(rank=2, targets=("query",)))
    assert len(paths("all")) == 12                                       # the wrappers, and not the layers in them as well


@pytest.mark.parametrize("names, expected", [
    (("attention",), blocks(range(12), Q, K, V, O)), (("blocks",), BLOCKS), (("blocks.0",), blocks([0])), (("1",), blocks([1])),
    (("attention.query",), blocks(range(12), Q)), (("blocks.10.mlp",), blocks([10], UP, DOWN)),
    (("blocks.2-5",), blocks(range(2, 6))), (("blocks.6-",), blocks(range(6, 12))), (("blocks.9-10.up",), blocks([9, 10], UP)),
    (("blocks.11-99", "3-3"), blocks([3, 11])), (("blocks.3.query", "blocks.key"), [p for p in BLOCKS if p.endswith("key")
                                                                                 or p == "blocks.3.attention.query"]),
    (("*",), BLOCKS), (("blocks.*.mlp.*",), blocks(range(12), UP, DOWN)), (("*.query",), blocks(range(12), Q)),
    (("blocks.[02].m*",), blocks([0, 2], UP, DOWN)), (("blocks.1?.value",), blocks([10, 11], V)),
    (("[!q]*y",), blocks(range(12), K)), (("mlp", "!up"), blocks(range(12), DOWN)), (("!blocks.0-10",), blocks([11])),
    (("!up", "query", "!blocks.1-"), blocks([0], Q)),
    (("!attention", "!up"), blocks(range(12), DOWN))], ids=str)
def test_names_are_parts_ranges_patterns_and_what_to_leave_out(names, expected):
    assert chosen(BLOCKS, names) == expected == chosen(iter(BLOCKS), list(reversed(names)))


def test_what_was_a_name_before_means_the_same(gpt):
    """The last part or the full path of a layer; any run of the parts of a parameter's name."""
    for path in BLOCKS:
        for name in path, path.rpartition(".")[2]:
            assert chosen(BLOCKS, (name,)) == [p for p in BLOCKS if name in (p, p.rpartition(".")[2])]
    parameters = [name for name, _ in gpt().named_parameters()]
    for name in {".".join(parts[i:j]) for parts in (p.split(".") for p in parameters)
                 for i, j in itertools.combinations(range(len(parts) + 1), 2)}:
        assert chosen(parameters, (name,)) == [p for p in parameters if f".{name}." in f".{p}."]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_and_quantize_follow_the_rule(family):
    names, model = ("attention", "mlp", "!blocks.0.attention", "!*.key"), make(family, np.float32)
    paths = chosen(linear_paths(model), names)
    assert 0 < len(paths) < len(linear_paths(model))
    for method in (tp.LoRA(rank=2, targets=names), tp.DyLoRA(rank=2, targets=names),
                   tp.AdaLoRA(2, 1, targets=names), tp.IA3(names, feedforward=("blocks.1-.mlp",))):
        tuned = tp.attach(model, method)
        assert list(tuned.wrappers) == paths
        if isinstance(method, tp.IA3):
            inner = [path for path, w in tuned.wrappers.items() if type(w).__name__ == "ScaledInput"]
            assert inner == [path for path in paths if path.startswith("blocks.1.mlp.")]
    with_norms = tp.attach(model, tp.FullFineTuning(targets=("*norm*", "!final_norm", "!blocks.0")))
    assert with_norms.trained and all(n.startswith("blocks.1.") and "norm" in n for n in with_norms.trained)
    tp.quantize(model, tp.PEQA(), targets=names)
    assert [path for path in linear_paths(model) if hasattr(model.get(path), "convert")] == paths
    some = tp.attach(model, tp.PEQA(targets=("blocks.1.mlp",)))
    assert list(some.wrappers) == [path for path in paths if path.startswith("blocks.1.mlp.")]


def test_of_the_keys_of_a_pattern_the_one_with_more_parts_counts_then_the_last(gpt):
    ranks = lambda pattern: list(tp.attach(gpt(), tp.LoRA(2, rank_pattern=pattern)).ranks().values())    # q v q v
    assert ranks({"blocks.1.value": 3, "value": 4, "attention": 1}) == [1, 1, 1, 3]
    assert ranks({"attention": 1, "value": 4}) == [1, 4, 1, 4]
    assert ranks({"blocks.0.attention.value": 5, "blocks.0-": 3}) == [3, 5, 3, 3]
    layer = tp.attach(gpt(), tp.LoRA(2, alpha_pattern={"blocks.1": 3})).wrappers["blocks.1.attention.query"]
    assert layer.scale == 1.5


def test_an_adapter_with_such_targets_is_saved_and_loaded(gpt, tokens, tmp_path):
    method = tp.LoRA(2, targets=("blocks.1-", "!mlp"), rank_pattern={"q*": 1, "*y": 3})
    tuned = tp.attach(gpt(np.float32), method)
    tuned.save(tmp_path)
    loaded = tp.load_adapter(gpt(np.float32), tmp_path)
    assert loaded.method == method and loaded.ranks() == tuned.ranks() == {
        f"blocks.1.attention.{name}": r for name, r in (("query", 3), ("key", 3), ("value", 2), ("output", 2))}


@pytest.mark.parametrize("paths, names", [
    (BLOCKS, ("query", "key", "value", "output", "up", "down")), (blocks(range(12), V, UP), ("value", "up")),
    (blocks(range(11), V), None), (blocks([3], V, UP), None), (blocks(range(12), V) + blocks([0], UP), None)])
def test_paths_have_short_names_if_every_block_has_them(paths, names):
    assert names_for(iter(paths), 12) == (names or tuple(paths))
    assert set(chosen(BLOCKS, names_for(paths, 12))) == set(paths)


# -- what is refused -----------------------------------------------------------------------------
@pytest.mark.parametrize("targets, words", [
    ((), r"tuple of names .* got \(\)"), ([], r"got \[\]"), ("query", "got 'query'"), (("query", 1), r"got \('query', 1\)"),
    (("token_embedding",), "tied to the output"), (("head",), "tied to the output"),
    (("attn",), r"'attn' matches none of the layers; did you mean 'attention'\? There are attention, blocks, down, key, mlp, "
                "output, query, up, value, in paths from 'blocks.0.attention.query' to 'blocks.1.mlp.down'"),
    (("zzzz",), "'zzzz' matches none of the layers; there are attention"), (("!qeury",), "'!qeury' matches none .* 'query'"),
    (("query", "blocks.9.mlp.up"), "'blocks.9.mlp.up' matches none"), (("blocks.5-2",), "'blocks.5-2' matches none"),
    (("blocks.2-5",), "did you mean 'blocks"), (("query.attention",), "matches none of the layers"),
    (("mlp", "!blocks"), r"\('mlp', '!blocks'\) leaves out all that it chooses"), (("blocks.0-" + "9" * 5000,), "matches none"),
    (("query.query",), "matches none"), (("blocks.0.attention.query.more",), "matches none")])
def test_what_names_nothing_is_refused(targets, words, gpt):
    with pytest.raises(TargetError, match=words): match_targets(gpt(), targets)


@pytest.mark.parametrize("name", ["", "!", "!!mlp", ".", "blocks.", ".query", "blocks..0", "query value", " query", "query\n"])
def test_what_is_not_spelled_as_a_name_is_refused_before_there_is_a_model(name):
    for field in (lambda: tp.LoRA(targets=("key", name)), lambda: tp.LoRA(rank_pattern={name: 3}),
                  lambda: tp.IA3(feedforward=(name,)), lambda: tp.FullFineTuning(targets=(name,))):
        with pytest.raises(tp.MethodError, match="must be a .*names"): field()


def test_a_hostile_name_takes_no_time():
    """Names come from files, too. `fnmatch` does not try all ways in which stars can share a part."""
    with pytest.raises(TargetError): match_targets(make_gpt(), ("*q" * 40 + "z", "blocks." * 500 + "x"))
