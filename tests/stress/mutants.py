"""Do the tests notice a single fault? Mutation testing, by mutmut: it changes one thing in a function, and the tests that
call this function must fail.

    pip install mutmut
    python -m tests.stress.mutants peft/lora.py quant/uniform.py         the faults of two modules, and those not noticed
    python -m tests.stress.mutants peft/lora.py --record                 and write these counts to results/mutants.json

The faults are planted in a copy of the checkout. Only the module's own tests run: tests/a/test_b.py of tinypeft/a/b.py.
Lines that raise an error stay as they are. Not all survivors are holes: some faults change no result (`None` for float64,
which is the default), some only words, and some are noticed by the tests of another module.
"""
import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.stress import RESULTS, record

__all__ = ["main", "own_tests"]

ROOT = Path(__file__).parents[2]
SETTINGS = r"""
[tool.mutmut]
source_paths = ["tinypeft"]
also_copy = ["lessons", "figures"]
only_mutate = ["tinypeft/{module}"]
do_not_mutate_patterns = ['raise \w+']
pytest_add_cli_args_test_selection = ["{tests}"]
pytest_add_cli_args = ["-p", "no:xdist", "-p", "no:cacheprovider"]
"""


def own_tests(module: str) -> str:
    """The path of the file that tests a module, such as peft/lora.py."""
    path = Path(module)
    return f"tests/{path.parent.as_posix()}/test_{path.name}"


def mutmut(folder, *arguments):
    """What mutmut prints. SystemExit if it fails."""
    done = subprocess.run([sys.executable, "-m", "mutmut", *arguments], cwd=folder, text=True, capture_output=True)
    if done.returncode: raise SystemExit(f"mutmut {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def plant(module: str) -> tuple[dict[str, int], str]:
    """Plant every fault of a module, one at a time. Returns mutmut's counts, and the faults that no test noticed."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "build"), dirs_exist_ok=True)
        settings = (ROOT / "pyproject.toml").read_text("utf-8") + SETTINGS.format(module=module, tests=own_tests(module))
        Path(folder, "pyproject.toml").write_text(settings, "utf-8")
        mutmut(folder, "run", "--max-children", "2")
        mutmut(folder, "export-cicd-stats")
        counts = json.loads(Path(folder, "mutants/mutmut-cicd-stats.json").read_text("utf-8"))
        survivors = [line.split(":")[0].strip() for line in mutmut(folder, "results").splitlines() if ": survived" in line]
        return counts, "\n".join(mutmut(folder, "show", name) for name in survivors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+", help="such as peft/lora.py")
    parser.add_argument("--record", action="store_true", help="add the counts to those of the modules that are recorded")
    args = parser.parse_args()
    stored = RESULTS / "mutants.json"
    figures = json.loads(stored.read_text("utf-8"))["modules"] if stored.exists() else {}
    for module in args.modules:
        counts, survivors = plant(module)
        figures[module] = {"planted": counts["total"], "caught": counts["killed"] + counts["timeout"]}
        print(survivors, f"{module}: {figures[module]}", sep="\n", flush=True)
        if args.record: record("mutants", {"modules": dict(sorted(figures.items()))})


if __name__ == "__main__":
    main()
