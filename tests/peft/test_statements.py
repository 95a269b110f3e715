"""Sentences of the methods' docstrings that a run can check: on PEFT, on defaults, on a second training."""
from types import SimpleNamespace

import numpy as np
import pytest

import tinypeft as tp
from tests.conftest import make_gpt
from tests.toys import Noise, small
from tinypeft.engine.optim import AdamW
from tinypeft.training.options import TrainOptions
from tinypeft.training.rates import groups, trained


def test_the_random_tables_of_prefix_tuning_start_at_62_and_peft_s_at_28_hundredths():
    """prefix.py: with the MLP, W₁ and W₂ are wider here than in PEFT."""
    torch, encoder = pytest.importorskip("torch"), pytest.importorskip("peft.tuners.prefix_tuning.model")
    torch.manual_seed(0)
    ours, theirs, base = [], [], tp.GPT(tp.GPTConfig(37, 24, 128, 5, 4))
    settings = SimpleNamespace(prefix_projection=True, token_dim=128, num_layers=5, encoder_hidden_size=64,
                               num_virtual_tokens=10, init_weights="default", inference_mode=False)
    for seed in range(10):
        tuned = tp.attach(base, tp.PrefixTuning(10, init="random"), rng=seed)
        ours.append(tuned.virtual.table().data.std())
        theirs.append(encoder.PrefixEncoder(settings)(torch.arange(10)).std().item())
    assert abs(np.mean(ours) - 0.62) < 0.015 and abs(np.mean(theirs) - 0.28) < 0.015


@pytest.mark.parametrize("dtype, trained", [
    ("float32", False), ("float64", True), ("bfloat16", True), ("float16", True)])
def test_peft_trains_adaloras_rank_number_unless_the_base_is_float32(dtype, trained):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = torch.nn.Sequential(torch.nn.Linear(8, 8)).to(getattr(torch, dtype))
    config = peft.AdaLoraConfig(init_r=4, target_r=2, target_modules=["0"], total_step=10)
    flags = [p.requires_grad for n, p in peft.get_peft_model(model, config).named_parameters() if "ranknum" in n]
    assert flags == [trained]


def test_pefts_low_rank_defaults_are_eight_and_eight_and_ours_are_the_papers():
    config = pytest.importorskip("peft").LoraConfig()
    assert (config.r, config.lora_alpha) == (8, 8) and (tp.LoRA().rank, tp.LoRA().alpha) == (8, 16)


def test_adalora_trained_twice_starts_at_the_initial_rank_again():
    tuned = tp.attach(small(), tp.AdaLoRA(init_rank=4, target_rank=2, t_init=2, t_final=2, delta_t=1), rng=0)
    seen = []
    tuned.after_step = lambda step, total: (tuned.method.after_step(tuned.wrappers, step, total),
                                            seen.append(sum(tuned.ranks().values()) / len(tuned.ranks())))
    for _ in range(2): tp.train(tuned, Noise(), 8, progress=False)
    assert seen[0] == seen[8] == 4 and seen[7] == seen[15] == 2


def test_weight_decay_skips_the_singular_values():
    tuned = tp.attach(small(), tp.AdaLoRA(init_rank=4, target_rank=2), rng=0)
    matrices, rest = groups(trained(tuned), TrainOptions(steps=1, lr=1e-2))
    assert {p.ndim for p in matrices["params"]} == {2} and rest["weight_decay"] == 0
    assert len(rest["params"]) == len(tuned.wrappers)
    optimizer = AdamW([matrices, rest], lr=1e-3, weight_decay=0.5)
    lam = rest["params"][0]
    lam.data[:], before = 1, [p.data.copy() for p in matrices["params"]]
    for p in tuned.trainable_parameters(): p.grad = np.zeros_like(p.data)
    optimizer.step()
    assert (lam.data == 1).all() and not np.array_equal(matrices["params"][0].data, before[0])


def test_norms_are_trained_in_both_placements_unless_switched_off():
    for placement in ("houlsby", "pfeiffer"):
        assert tp.attach(make_gpt(), tp.BottleneckAdapter(bottleneck=2, placement=placement)).trained
    assert not tp.attach(make_gpt(), tp.BottleneckAdapter(bottleneck=2, placement="pfeiffer", norms=False)).trained


def test_ranks_in_blocks_are_drawn_by_the_number_of_blocks():
    """dylora.py: p_B(b) ∝ (1 − p)^(b/n)."""
    method = tp.DyLoRA(rank=8, block_size=2, distribution="geometric", p=0.3)
    want = np.array([0.7 ** (b / 2) for b in (2, 4, 6, 8)])
    np.testing.assert_allclose(method.probabilities(), want / want.sum(), rtol=1e-12)
