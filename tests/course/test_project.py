"""A project's record: each criterion is met by what meets it, and by nothing less."""
import numpy as np
import pytest

import tinypeft as tp
from tinypeft.course import Project


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    things, words = "lamp chair coat spoon radio table".split(), {"fine": "good", "poor": "bad"}
    rows = [f"The {thing} number {i} is {word},{words[word]}" for i, (thing, word) in
            enumerate((t, w) for t in things for w in [*words] * 5)]
    file = tmp_path_factory.mktemp("own") / "rows.csv"
    file.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return tp.tasks.labelled(file, held_out=(0.2, 0.2))


def whole(task, quantized=False):
    """A project that meets all criteria."""
    project = Project("Which of two?", budget=1000, quantized=quantized)
    project.data(task)
    project.frozen(3, weights=600)
    project.frozen(3.1, weights=200, bits=4.5)
    for name, method, bits, off in (("a", tp.LoRA(rank=2), 4.5, 0.0), ("b", tp.IA3(), 32, 0.2)):
        project.arm(name, method, bits)
        assert project.tuned(name, {0.1: 2.5, 0.01: 2.2, 0.001: 2.4}, seeds=(100,)) == 0.01
        project.ran(name, {0: 2.0 + off, 1: 2.1 + 1.1 * off, 2: 2.06 + 0.9 * off}, peak=900)
    project.concludes("a", "b")
    return project


def unmet(project):
    return [sentence for met, sentence in project.criteria() if not met]


def test_all_criteria_can_be_met(task):
    assert whole(task).finished and len(list(whole(task).criteria())) == 8
    assert whole(task, quantized=True).finished and len(list(whole(task, quantized=True).criteria())) == 9
    assert repr(whole(task)).count("✔") == 8


def test_an_empty_project_says_what_to_do():
    project = Project("Which?", budget=10, quantized=True)
    assert not project.finished and len(unmet(project)) == 9
    assert "○" in repr(project) and "✔" not in repr(project) and project._repr_html_().count("○") == 9


def only(rates):
    """Try these rates alone for an arm: `tuned` adds to those of before."""
    def spoil(project, name):
        project.arms[name].tried = {}
        project.tuned(name, rates, (100,))
    return spoil


SPOILED = {
    "the best rate is the lowest": (
        lambda p: only({0.1: 2.5, 0.01: 2.2, 0.003: 2.1})(p, "a"), "others on both sides (now: a)"),
    "the best rate is the highest": (
        lambda p: only({0.1: 2.0, 0.01: 2.2, 0.003: 2.1})(p, "b"), "others on both sides (now: b)"),
    "two rates": (lambda p: only({0.1: 2.5, 0.01: 2.2})(p, "a"), "Try 3 rates or more"),
    "a seed for both": (
        lambda p: p.tuned("a", {0.1: 2.5, 0.01: 2.2, 0.001: 2.4}, (0,)), "seeds that you do not report (now: a)"),
    "another seed": (
        lambda p: p.ran("b", {0: 2.2, 1: 2.32, 2: 2.24, 3: 2.26}, 900), "the same 3 seeds or more (now: b)"),
    "other seeds": (lambda p: p.ran("b", {0: 2.2, 1: 2.3, 3: 2.26}, 900), "the same 3 seeds or more (now: b)"),
    "MiB in place of bytes": (lambda p: p.ran("a", p.arms["a"].runs, 20), "weights, and has more bytes (now: a)"),
    "the weights alone": (lambda p: p.ran("b", p.arms["b"].runs, 600), "weights, and has more bytes (now: b)"),
    "the rounded base's loss": (lambda p: p.bases.pop(4.5), "Call frozen(loss, weights, bits) with the test loss and the "
                                                            "bytes of the base (now: 4.5 bits)"),
    "two seeds": (lambda p: [p.ran(n, {0: 2.0 + x, 1: 2.1 + x}, 900) for n, x in (("a", 0), ("b", 1.0))], "3 seeds or more"),
    "other seeds, and no difference": (lambda p: [p.ran("b", {4: 2.0, 5: 2.1, 6: 2.0}, 900), p.concludes(None)],
                                       "that both arms ran with; b and a share 0."),
    "one seed, and no difference": (lambda p: [*(p.ran(n, {0: 2.0 + x}, 900) for n, x in (("a", 0), ("b", 0.1))),
                                               p.concludes(None)], "3 seeds or more that both arms ran with; a and b share 1."),
    "too large": (lambda p: p.ran("a", p.arms["a"].runs, 1001), "stay within 1,000 (now: a)"),
    "the wrong way": (lambda p: p.concludes("b", "a"), "do not show that b is better than a"),
    "no difference": (lambda p: p.concludes(None), "a is better than b by 0.200"),
    "a difference by chance": (lambda p: p.ran("b", {0: 1.9, 1: 2.3, 2: 2.0}, 900), "do not show that a is better"),
}


WITHOUT_PAIRS = {name for name in SPOILED if "seed" in name} - {"a seed for both", "another seed"}


@pytest.mark.parametrize("name", SPOILED)
def test_one_criterion_fails_at_a_time(task, name):
    spoil, said = SPOILED[name]
    project = whole(task, quantized=True)
    spoil(project)
    lacking = unmet(project)
    assert any(said in sentence for sentence in lacking), lacking
    assert len(lacking) == (2 if name in WITHOUT_PAIRS else 1), lacking
    assert "nan" not in repr(project) + project.markdown() and "inf" not in repr(project) + project.markdown()


def test_a_reference_may_be_above_the_budget_and_does_not_make_a_project_alone(task):
    project = whole(task, quantized=True)
    project.arm("b", tp.IA3(), reference=True)
    project.tuned("b", {0.1: 2.5, 0.01: 2.2, 0.001: 2.4}, seeds=(100,))
    project.ran("b", {0: 2.2, 1: 2.32, 2: 2.24}, peak=5000)
    assert project.finished and "All arms but the reference stay within the budget." in repr(project)
    project.ran("a", project.arms["a"].runs, peak=1001)
    assert any("stay within 1,000 (now: a)" in sentence for sentence in unmet(project))
    project.arms["a"].peak, project.arms["a"].reference = 900, True
    assert not project.finished


def test_the_quantized_arm_is_asked_for(task):
    project = whole(task, quantized=True)
    project.arm("a", tp.LoRA(rank=2), 16)
    assert any("on a quantized base" in sentence for sentence in unmet(project))


def test_rates_of_the_same_seeds_add_up(task):
    """The notebook says: try one more on that side."""
    project = whole(task)
    project.tuned("a", {0.1: 2.0}, seeds=(100,))
    assert "others on both sides (now: a)" in str(unmet(project)) and len(project.arms["a"].tried) == 3
    assert project.tuned("a", {0.3: 2.3}, seeds=(100,)) == 0.1 and project.finished
    project.tuned("a", {0.3: 2.3}, seeds=(101,))
    assert project.arms["a"].tried == {0.3: 2.3}


def test_another_look_at_the_test_part_leaves_a_trace(task):
    """A cell may run twice; other losses than before are told, and `arm` does not hide them."""
    project = whole(task)
    runs = project.arms["a"].runs
    project.ran("a", runs, peak=900)
    assert "measured anew" not in repr(project)
    project.ran("a", {seed: loss - 0.1 for seed, loss in runs.items()}, peak=900)
    assert project.finished and "the test part was measured anew, and you should say why (a 2 times)." in project.markdown()
    project.arm("a", tp.LoRA(rank=2), 4.5)
    project.ran("a", {seed: loss - 0.2 for seed, loss in runs.items()}, peak=900)
    project.tuned("a", {0.1: 2.5, 0.01: 2.2, 0.001: 2.4}, seeds=(100,))
    assert project.finished and "(a 3 times)" in repr(project)


def test_no_difference_may_be_the_conclusion(task):
    project = whole(task)
    project.ran("b", {0: 2.1, 1: 2.0, 2: 2.06}, 900)
    project.concludes(None)
    assert project.finished


def test_a_conclusion_before_the_runs_has_no_numbers(task):
    project = whole(task)
    project.arm("b", tp.IA3())
    assert "A conclusion needs two arms that ran (missing: b)." in unmet(project)
    assert "nan" not in repr(project) and "inf" not in repr(project)


@pytest.mark.parametrize("loss, said", [(5.0, "has 5.000, and a 2.053."), (1.0, "has 1.000, and a 2.053, which is no better.")])
def test_the_best_baseline_stands_beside_the_best_arm(task, loss, said):
    """A method that a count of words beats has not solved the task."""
    project = whole(task)
    name, described, _ = project.task
    project.task = name, described, {"majority": {"accuracy": 0.9}, "words": {"loss": loss}, "rare": {"loss": 6.0}}
    assert f"the baselines are measured: the best, words, {said}" in repr(project)
    assert f"| words | – | – | – | {loss:.3f} | – |" in project.markdown()


def test_the_difference_is_paired(task):
    from scipy.stats import ttest_rel
    project = whole(task)
    a, b = ([project.arms[n].runs[s] for s in (0, 1, 2)] for n in "ab")
    mean, half = project.difference("a", "b")
    interval = ttest_rel(a, b).confidence_interval(0.95)
    np.testing.assert_allclose((mean - half, mean + half), (interval.low, interval.high), rtol=1e-12)
    assert project.best() == ["a", "b"]


def test_the_page(task, tmp_path):
    path = whole(task).report(tmp_path / "report.md", "## Mine\n\nA sentence.")
    page = path.read_text("utf-8")
    assert page.startswith("# Which of two?") and page.rstrip().endswith("A sentence.")
    assert "| a | `LoRA(rank=2)` | 4.5 | 0.01 | 2.053 ± " in page and "| b − a | +0.200 ± " in page
    assert page.count("- [x]") == 8 and "- [ ]" not in page


def test_the_page_of_one_arm_has_no_differences(task, tmp_path):
    project = whole(task)
    project.concludes(None)
    del project.arms["b"]
    page = project.report(tmp_path / "report.md").read_text("utf-8")
    assert "## Arms" in page and "## Differences" not in page


@pytest.mark.parametrize("call, error, said", [
    (lambda p: Project(" ", 1), ValueError, "your question"),
    (lambda p: Project("q", "8 GB"), TypeError, "budget must be a number"),
    (lambda p: p.data("rows.csv"), TypeError, "expected a task"),
    (lambda p: p.arm("c", tp.LoRA), TypeError, "expected a method"),
    (lambda p: p.ran("c", {0: 1.0}, 1), KeyError, "the arms are: a, b"),
    (lambda p: p.concludes("a"), ValueError, "name two arms"),
    (lambda p: p.ran("a", {0: float("nan")}, 1), ValueError, "did the run diverge"),
    (lambda p: p.frozen(2.0, "4.6 MB"), TypeError, "weights must be a number"),
    (lambda p: p.tuned("a", {"fast": 1.0}, (1,)), TypeError, "a rate must be a number")])
def test_what_is_refused(task, call, error, said):
    with pytest.raises(error, match=said): call(whole(task))
