"""A check finds what does not hold: settings, values, numbers changed by hand, and numbers that the code no longer gives."""
import dataclasses
import functools
import json

import numpy as np
import pytest

import tinypeft as tp
from tests.study.test_measuring import changed, stored, toy, with_condition
from tests.study.toy import MEASURED, TOY, Length, measure
from tinypeft.commands import study
from tinypeft.commands.cli import main
from tinypeft.engine import nn, optim
from tinypeft.study import checking, measuring, tuning
from tinypeft.study.conditions import described
from tinypeft.study.experiment import Experiment
from tinypeft.study.experiments import EXPERIMENTS, arms
from tinypeft.study.experiments.best import RESULTS, of_files
from tinypeft.study.measuring import hash_of, run
from tinypeft.study.tuning import Arm


@pytest.fixture(autouse=True)
def nothing_measured():
    MEASURED.clear()


def found(folder, e=TOY, shown=(), every=False):
    """The result of a check of one experiment, begun anew."""
    MEASURED.clear()
    scratch = folder / f"scratch {len(list(folder.iterdir()))}"
    return checking.check([e], folder, scratch, {e.name: list(shown)}, every, jobs=1, progress=False,
                          say=lambda line: None)[e.name]


def with_other_runs(folder, edit):
    """Change the stored numbers, and their hash: as if the code had given others."""
    runs = stored(folder)["runs"]
    for by_seed in runs.values():
        for metrics in by_seed.values(): edit(metrics)
    changed(folder, runs=runs, runs_hash=hash_of(runs))


def test_what_holds_holds_by_one_run(tmp_path):
    toy(tmp_path)
    of = found(tmp_path)
    assert of.holds() and MEASURED == [(1, 0)] and of.lines() == ["holds: a"]


def test_every_condition_or_those_that_a_page_shows_with_all_seeds(tmp_path):
    toy(tmp_path)
    assert found(tmp_path, every=True).holds() and MEASURED == [(1, 0), (2, 0)]
    assert found(tmp_path, shown=["bb"]).holds() and sorted(MEASURED) == [(1, 0)] + [(2, s) for s in range(5)]
    assert found(tmp_path, shown=["a"]).holds() and sorted(MEASURED) == [(1, s) for s in range(5)]


def test_a_check_that_was_stopped_goes_on_until_the_code_or_the_experiment_changes(tmp_path, monkeypatch):
    toy(tmp_path)
    check = lambda e=TOY: checking.check([e], tmp_path, tmp_path / "scratch", {}, True, 1, False, say=lambda line: None)["toy"]
    with pytest.raises(KeyboardInterrupt): check(dataclasses.replace(TOY, measure=until_the_second))
    MEASURED.clear()
    assert check().measured == ["a", "bb"] and MEASURED == [(2, 0)]
    assert check().holds() and MEASURED == [(2, 0)]
    monkeypatch.setattr(checking, "code_hash", lambda: "another")
    assert check().holds() and len(MEASURED) == 3
    toy(tmp_path, with_condition(a=Length(9)))           # such as an arm with a new best rate, which is no change of code
    assert check(with_condition(a=Length(9))).holds() and (9, 0) in MEASURED


def until_the_second(length, seed, settings):
    if length.n == 2: raise KeyboardInterrupt
    return measure(length, seed, settings)


# -- without measuring ----------------------------------------------------------------------------
@pytest.mark.parametrize("e, says", [
    (dataclasses.replace(TOY, settings={"size": 3.0}), "a: settings.size: 2.0 → 3.0"),
    (with_condition(a=Length(1, wide=True)), "a: its value.Length.wide: false → true"),
    (with_condition(c=Length(3)), "c, seed 0: it was never measured"),
    (dataclasses.replace(TOY, conditions={"a": Length(1)}), "bb: it is stored, and is no condition today"),
    (dataclasses.replace(TOY, name="other"), "a, seed 0: it was never measured")])
def test_what_is_not_todays_is_found(tmp_path, e, says):
    toy(tmp_path)
    of = found(tmp_path, e)
    assert says in of.differs and not of.holds() and f"differs: {says}" in of.lines()


def test_a_number_that_was_changed_by_hand_is_found_in_a_condition_that_is_not_measured(tmp_path):
    toy(tmp_path)
    runs = stored(tmp_path)["runs"]
    runs["bb"]["4"]["loss"] += 1e-6
    changed(tmp_path, runs=runs)
    of = found(tmp_path)
    assert not of.holds() and not MEASURED and "its runs are not those that were measured" in of.differs[0]


@pytest.mark.parametrize("key, other", [("text", {"base": "0", "domain": "0"}), ("base", "0")])
def test_another_text_or_base_is_not_comparable_and_nothing_moved(tmp_path, key, other):
    toy(tmp_path)
    changed(tmp_path, **{key: other})
    of = found(tmp_path)
    assert not of.holds() and of.not_comparable and not of.moved and not of.differs and not MEASURED
    assert of.lines()[0].startswith("is not comparable: the ")


# -- by measuring ---------------------------------------------------------------------------------
@pytest.mark.parametrize("metric, by, says", [
    ("loss", lambda x: x * 1.001, "loss was "), ("curve", lambda x: [*x[:2], x[2] + 0.01], "curve (number 2) was"),
    ("curve", lambda x: x[:2], "curve was"), ("n", lambda x: 4, "n was 4, and is 3"),
    ("n", lambda x: "three", "n was 'three', and is 3")])
def test_a_number_that_moved_is_told(tmp_path, metric, by, says):
    toy(tmp_path)
    with_other_runs(tmp_path, lambda m: m.update({metric: by(m[metric])}))
    of = found(tmp_path)
    assert not of.holds() and len(of.moved) == 1 and of.moved[0].startswith(f"a, seed 0: {says}")


def test_clocks_and_rounding_may_differ(tmp_path):
    toy(tmp_path)
    with_other_runs(tmp_path, lambda m: m.update(seconds=1000, loss=m["loss"] * (1 + 5e-5)))
    assert found(tmp_path).holds()


def test_another_processor_may_differ_within_the_interval(tmp_path):
    toy(tmp_path)
    with_other_runs(tmp_path, lambda m: m.update(loss=m["loss"] + 0.05))
    assert found(tmp_path).moved
    changed(tmp_path, rounding="of another machine")
    assert found(tmp_path).holds()
    with_other_runs(tmp_path, lambda m: m.update(loss=m["loss"] + 50))
    assert found(tmp_path).moved


def test_of_one_seed_another_processor_may_differ_by_two_per_cent():
    at = lambda x, same: checking.moved({"0": {"loss": [2.0, 1.0]}}, "0", {"loss": [2.0, x]}, same)
    assert not at(1.039, False) and at(1.041, False) and at(1.039, True)


def test_infinities_are_numbers():
    """A rate at which the training diverges has an infinite loss."""
    at = lambda old, new: checking.moved({"0": {"loss": old}}, "0", {"loss": new}, True)
    assert not at([1.0, np.inf, np.nan], [1.0, np.inf, np.nan])
    assert at([1.0, np.inf], [1.0, 5.0]) and at([1.0, 5.0], [1.0, np.inf]) and at([1.0, np.inf], [1.1, np.inf])


# -- planted: what makes real results move, or be another condition --------------------------------
def short(value, seed, settings):
    """A training of a few steps."""
    tuned, history = value.train(seed, settings)
    return {"loss": history.loss[-1]}


def short_run(**conditions):
    return Experiment("short", "A few steps.", {"loss": "nats/token, training"}, short, conditions,
                      {"steps": 4, "batch_size": 2}, {}, seeds=(0, 1))


ONE = short_run(lora=Arm(tp.LoRA(rank=2), 0.01))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("short")
    run(ONE, folder, jobs=1, progress=False)
    return folder


def test_a_training_gives_its_numbers_again(measured):
    of = found(measured, ONE)
    assert of.holds() and of.measured == ["lora"]


@pytest.mark.parametrize("e, says", [
    (short_run(lora=Arm(tp.LoRA(rank=2, alpha=8.0), 0.01)), "its value.Arm.method.LoRA.alpha: 16.0 → 8.0"),
    (short_run(lora=Arm(tp.LoRA(rank=2), 0.02)), "its value.Arm.lr: 0.01 → 0.02")])
def test_another_default_or_rate_of_a_method_is_another_condition(measured, e, says):
    assert found(measured, e).differs == [f"lora: {says}"]


def plant_training(monkeypatch):
    """The loop's own default of AdamW's β₁."""
    monkeypatch.setattr(tuning, "train", functools.partial(tuning.train, betas=(0.5, 0.999)))


def plant_kernel(monkeypatch):
    """Each product of a linear layer is off by one in a thousand."""
    plain = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: plain(self, x) * 1.001)


def test_another_default_of_the_optimizer_is_another_condition(measured, monkeypatch):
    monkeypatch.setattr(optim.AdamW, "__init__", functools.partialmethod(optim.AdamW.__init__, eps=1e-4))
    assert found(measured, ONE).differs == ["lora: its value.Arm.optimizer.AdamW.eps: 1e-08 → 0.0001"]


@pytest.mark.parametrize("plant", [plant_training, plant_kernel])
def test_code_that_gives_other_numbers_is_found(measured, monkeypatch, plant):
    plant(monkeypatch)
    of = found(measured, ONE)
    assert of.moved and not of.differs


OTHER_NF4 = dataclasses.make_dataclass("NF4", [("block_size", int, 32), ("double_quant", bool, False)], frozen=True)()


class OtherGaLore(optim.GaLore):
    def __init__(self, parameters, lr=1e-3, rank=4, every=200, scale=0.25, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8,
                 by_adamw=()):
        super().__init__(parameters, lr, rank, every, scale, weight_decay, betas, eps, by_adamw)


OtherGaLore.__name__ = "GaLore"


@pytest.mark.parametrize("value, other, says", [
    (tp.NF4(), OTHER_NF4, "its value.NF4.block_size: 64 → 32"),
    (optim.GaLore, OtherGaLore, "its value.GaLore.rank: 8 → 4")], ids=["of a scheme", "of an optimizer"])
def test_a_changed_default_is_another_condition(tmp_path, value, other, says):
    before = dataclasses.replace(TOY, measure=nothing, conditions={"a": value})
    toy(tmp_path, before)
    assert found(tmp_path, before).holds()
    assert found(tmp_path, dataclasses.replace(before, conditions={"a": other})).differs == [f"a: {says}"]


def nothing(value, seed, settings): return {"loss": 0.0}


# -- what cannot be measured here ------------------------------------------------------------------
def needs_a_file(length, seed, settings):
    if length.n == 2: raise FileNotFoundError("small:1 does not exist; `make small:1` trains it")
    return {"loss": float(length.n)}


def test_what_is_not_here_is_said_and_the_others_are_measured(tmp_path):
    """A base that was not trained here, or a model that is not installed."""
    e = dataclasses.replace(TOY, measure=nothing, conditions={c: Length(n) for n, c in enumerate("abcd")})
    toy(tmp_path, e)
    with_other_runs(tmp_path, lambda m: m.update(loss=3.0))
    of = found(tmp_path, dataclasses.replace(e, measure=needs_a_file), every=True)
    assert of.not_here == ["c: small:1 does not exist; `make small:1` trains it"]
    assert of.measured == ["a", "b", "d"] and [line[:1] for line in of.moved] == ["a", "b"]


# -- which are measured by default -----------------------------------------------------------------
def test_the_sample_has_every_kind_of_arm_and_every_experiment():
    experiments = list(EXPERIMENTS.values())
    chosen = checking.sample(experiments, RESULTS)
    assert all(chosen[e.name] for e in experiments)
    kinds = {checking.kind(value) for e in experiments for value in e.conditions.values()}
    assert kinds == {checking.kind(e.conditions[label]) for e in experiments for label in chosen[e.name]}
    assert sum(map(len, chosen.values())) < 0.3 * sum(len(e.conditions) for e in experiments)


def test_a_kind_is_measured_where_it_takes_least(tmp_path):
    slow, fast = (dataclasses.replace(TOY, name=name, conditions={"x": 1, "a": Length(1)}) for name in ("slow", "fast"))
    for e, seconds in ((slow, 50.0), (fast, 5.0)):
        (tmp_path / f"{e.name}.json").write_text(json.dumps({"seconds": seconds, "runs": {"a": {"0": {}}}}), "utf-8")
    assert checking.sample([slow, fast], tmp_path) == {"slow": ["x"], "fast": ["x", "a"]}


# -- the command -----------------------------------------------------------------------------------
@pytest.fixture
def command(tmp_path, monkeypatch):
    """`figures --check` on the toy alone; nothing is on the first page."""
    monkeypatch.setitem(EXPERIMENTS, "toy", TOY)
    monkeypatch.setattr("tinypeft.study.pages.on_first_page", lambda results: {})
    monkeypatch.setattr(study, "LATEST", tmp_path / "latest")
    toy(tmp_path / "results")
    return lambda *flags: main(["figures", "toy", "--check", "--jobs", "1", "--out", str(tmp_path), *flags])


def test_the_command_says_what_holds_and_what_does_not(command, tmp_path, capsys):
    assert command() == 0
    assert capsys.readouterr().out == ("toy holds: a\n1 conditions of 1 experiments were measured again. "
                                       "All that was measured holds.\n")
    with_other_runs(tmp_path / "results", lambda m: m.update(n=4))
    assert command("--all") == 1
    said = capsys.readouterr().out
    assert "toy moved: bb, seed 0: n was 4, and is 3\n" in said and "These do not hold: toy.\n" in said
    assert command("--json") == 1
    assert json.loads(capsys.readouterr().out)["toy"]["moved"] == ["a, seed 0: n was 4, and is 3"]


def test_the_command_counts_what_cannot_be_measured_here(command, monkeypatch, capsys):
    monkeypatch.setitem(EXPERIMENTS, "toy", dataclasses.replace(TOY, measure=not_here))
    assert command() == 0
    assert "measured again, and 1 cannot be measured here. All that was measured holds.\n" in capsys.readouterr().out


def not_here(length, seed, settings): raise FileNotFoundError("small:1 does not exist")


def test_flags_that_do_not_go_together_are_refused(capsys):
    assert main(["figures", "rank", "--all"]) == 2 and "--all goes with --check" in capsys.readouterr().err
    for flag in ("--quick", "--rerun"):
        assert main(["figures", "rank", "--check", flag]) == 2
        assert "give --check, or --rerun, or --quick" in capsys.readouterr().err


def test_the_main_job_is_checked_with_its_seed(tmp_path, monkeypatch):
    record = {"seed": 4, **measuring.measured_with(), "methods": [{"name": "full", "losses": [2.5, 2.6]}],
              "schemes": [{"label": "NF4", "loss": 2.4}]}
    (tmp_path / "compare.json").write_text(json.dumps(record), "utf-8")
    seeds = []
    monkeypatch.setattr(checking.compare, "compare", lambda seed, **_: seeds.append(seed) or record)
    assert checking.check_main_job(tmp_path).holds() and seeds == [4]
    other = record | {"methods": [{"name": "full", "losses": [2.5, 2.7]}]}
    monkeypatch.setattr(checking.compare, "compare", lambda seed, **_: other)
    assert checking.check_main_job(tmp_path).moved == ["full (number 1) was 2.6, and is 2.7"]
    assert checking.check_main_job(tmp_path / "nowhere").differs


def test_the_best_rates_are_part_of_the_conditions(monkeypatch):
    """Another best rate makes other conditions of the experiments that use it."""
    rate = lambda: described(arms.tuned("rank")["64"])["Arm"]["lr"]
    assert rate() == of_files()["domain"]["rank: 64"]
    monkeypatch.setitem(of_files()["domain"], "rank: 64", 0.123)
    assert rate() == 0.123
