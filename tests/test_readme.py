"""The README tells the truth: its tables and numbers are those of the stored results, its names and links exist."""
import json
import re
from pathlib import Path

import tinypeft as tp
from tinypeft.pretrained import training_record
from tinypeft.study import compare, gallery
from tinypeft.study.experiment import Results
from tinypeft.study.experiments import methods

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "figures" / "results"


def test_the_tables_are_the_stored_comparison():
    record = json.loads((RESULTS / "compare.json").read_text(encoding="utf-8"))
    assert compare.tables(record) in README
    assert methods.table(Results.load(RESULTS, "methods")) in README


def test_the_baselines_are_the_stored_ones():
    baselines = Results.load(RESULTS, "baselines").record["runs"]
    for name, loss in baselines["domain"]["0"].items(): assert f"{name} {loss:.3f} nats/token" in README
    for name, accuracy in baselines["classify"]["0"].items(): assert f"{name} {accuracy:.1%}" in README


def test_the_claims_are_judged_by_the_stored_results():
    assert gallery.in_brief(RESULTS) in README


def test_gpt2s_numbers_are_the_stored_benchmark():
    record = json.loads((RESULTS / "benchmark_gpt2.json").read_text(encoding="utf-8"))
    told = README.split("<!-- gpt2 -->")[1].split("<!-- /gpt2 -->")[0]
    peak = record["LoRA peak bytes"]
    ratios = [record["seconds"]["LoRA step"]["ratio"], peak["tinypeft"] / peak["PEFT"]]
    ratios += [r["ratio"] for r in record["tokens per second"].values()]
    for ratio in ratios: assert f"{ratio:.2f}" in told


def test_the_numbers_of_the_base_are_its_record():
    r = training_record()["results"]
    for name in r:
        assert f"{r[name]['loss']:.3f} ({r[name]['bits_per_byte']:.3f})" in README, name


def test_the_speed_is_the_stored_benchmark():
    record = json.loads((RESULTS / "benchmark_step.json").read_text(encoding="utf-8"))
    for size in record["steps"].values():
        for ratio in size["ratio"].values(): assert f"{ratio:.2f}" in README
    for library in record["lora"].values():
        assert f"{library['time']:.2f}" in README and f"{library['memory']:.2f}" in README


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_method_and_scheme_is_listed():
    for name, cls in {**tp.METHODS, **tp.SCHEMES}.items():
        assert f"`{name}`" in README and f"`{cls.__name__}`" in README


def test_there_are_exactly_two_commands_to_set_up():
    commands = re.search(r"```bash\n(.*?)```", README, re.S).group(1).strip().split("\n")
    assert len(commands) == 2 and "-m tinypeft" in commands[0] and "pytest" in commands[1]
    assert "torch" not in (ROOT / "requirements.txt").read_text(encoding="utf-8")
