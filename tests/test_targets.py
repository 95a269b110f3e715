"""targets.py: names of layers, by their last part or in full, and what is no name."""
import pytest

import tinypeft as tp
from tinypeft.targets import TargetError, match_targets


def test_a_name_is_the_last_part_of_a_path_or_all_of_it(gpt):
    model = gpt()
    paths = lambda targets: [path for path, _ in match_targets(model, targets)]
    assert len(paths("all")) == 12 and paths(("query",)) == ["blocks.0.attention.query", "blocks.1.attention.query"]
    assert paths(["up", "blocks.1.attention.key"]) == ["blocks.0.mlp.up", "blocks.1.attention.key", "blocks.1.mlp.up"]
    assert all(layer is model.get(path) for path, layer in match_targets(model, "all"))
    tp.attach(model, tp.LoRA(rank=2, targets=("query",)))
    assert len(paths("all")) == 12                                       # the wrappers, and not the layers in them as well


@pytest.mark.parametrize("targets, words", [
    ((), r"tuple of names .* got \(\)"), ([], r"got \[\]"), ("query", "got 'query'"),
    (("token_embedding",), "tied to the output"), (("head",), "tied to the output"), (("attention",), "matches nothing"),
    (("qeury",), "'qeury' matches nothing; there are down, key, output, query, up, value"),
    (("query", "blocks.9.mlp.up"), "'blocks.9.mlp.up' matches nothing")])
def test_what_names_nothing_is_refused(targets, words, gpt):
    with pytest.raises(TargetError, match=words): match_targets(gpt(), targets)
