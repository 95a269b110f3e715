"""What all tests share: every core, one BLAS thread, no network, small models, and a loud word about what was skipped.

`pytest --no-skips` (or TINYPEFT_NO_SKIPS=1) fails when anything is skipped: with the oracles of
tests/requirements.txt installed nothing may be.
"""
import gc
import itertools
import os
import signal
import socket
import sys
from pathlib import Path

sys.modules.setdefault("rfc3987_syntax", None)           # jsonschema's, for addresses that no notebook has: it takes 3 s
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")                     # sums in one order, and no fight over cores

import numpy as np  # noqa: E402
import pytest  # noqa: E402

import tinypeft as tp  # noqa: E402
from tests.once import encode_corpora_once  # noqa: E402

encode_corpora_once()
try:
    from hypothesis import settings
    settings.register_profile("tests", derandomize=True, deadline=None, database=None)
    settings.load_profile("tests")
except ImportError:                                      # its tests skip themselves
    pass


# -- cores ---------------------------------------------------------------------------------------
def cores():
    """How many processes run whole folders of tests. Each may hold PyTorch and SmolLM2, so four at most."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return min(len(usable), 4)


@pytest.hookimpl(tryfirst=True)                          # before xdist looks at its options
def pytest_cmdline_main(config):
    """Whole folders run on every core where pytest-xdist is installed: each process takes a run of neighbouring tests,
    which share what their module builds, and then helps another one. Single files start faster without.
    """
    option = config.option
    if not config.pluginmanager.hasplugin("xdist") or "PYTEST_XDIST_WORKER" in os.environ: return      # this is one of them
    if option.numprocesses is not None or option.dist != "no": return                                  # somebody chose
    if option.usepdb or option.capture == "no" or not all(os.path.isdir(arg) for arg in config.args): return
    if cores() > 1: option.numprocesses, option.dist = cores(), "worksteal"


def pytest_collectstart():
    """While files are imported nothing becomes garbage, and to look for it takes a fifth of the time."""
    gc.disable()


def pytest_collection_finish():
    """Python's collector looks no longer at what the imports have made: with PyTorch a look at all of it takes half a second,
    and tests ask for a thousand."""
    gc.enable()
    gc.collect()
    gc.freeze()


# -- signals -------------------------------------------------------------------------------------
def pytest_configure(config):
    """A shell starts a command in the background with Ctrl-C ignored, and then no test could send it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)


# -- progress ------------------------------------------------------------------------------------
@pytest.fixture(autouse=True)
def no_line_of_progress(monkeypatch):
    """A command says to a pipe what takes longer than a second, which depends on the machine; `test_progress.py` sets it."""
    monkeypatch.setattr("tinypeft.common.progress.FIRST", 1000)


# -- the user's cache ----------------------------------------------------------------------------
CACHES = itertools.count()


@pytest.fixture(autouse=True)
def own_cache_of_features(monkeypatch, tmp_path_factory):
    """What a model computed in another test, or with yesterday's code, is not taken from the user's cache."""
    folder = tmp_path_factory.getbasetemp() / f"cache{next(CACHES)}"
    monkeypatch.setattr("tinypeft.files.cached.cache_directory", lambda: folder)


# -- skips ---------------------------------------------------------------------------------------
def pytest_addoption(parser):
    parser.addoption("--no-skips", action="store_true", default=bool(os.environ.get("TINYPEFT_NO_SKIPS")),
                     help="fail when a test is skipped, for want of an oracle or otherwise")


def _skipped(config):
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return reporter.stats.get("skipped", []) if reporter else []


def pytest_sessionfinish(session, exitstatus):
    if session.config.getoption("--no-skips") and _skipped(session.config) and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    skipped = _skipped(config)
    oracle = [r for r in skipped if "could not import" in str(r.longrepr)]
    if oracle:
        terminalreporter.section("oracles are missing", red=True, bold=True)
        terminalreporter.write_line(f"{len(oracle)} tests or files of tests skipped for want of oracles: "
                                    "pip install -r tests/requirements.txt", red=True, bold=True)
    if skipped and config.getoption("--no-skips"):
        terminalreporter.write_line(f"--no-skips: {len(skipped)} skipped, so this run fails", red=True, bold=True)


# -- the network ---------------------------------------------------------------------------------
def _is_here(family, address):
    return family == getattr(socket, "AF_UNIX", None) or address[0] in ("127.0.0.1", "::1", "localhost")


@pytest.fixture
def no_home(monkeypatch):
    """The user's id has no entry, and so no name and no home, as in a container."""
    def home(): raise RuntimeError("Could not determine home directory.")
    for name in ("TINYPEFT_CACHE", "XDG_CACHE_HOME"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test that reaches for another machine fails, even if what reached takes the refusal calmly. Jupyter's kernels are
    reached on this one."""
    attempts, connect, look_up = [], socket.socket.connect, socket.getaddrinfo

    def refuse(address):
        attempts.append(address)
        raise OSError(f"a test reached for the network: {address}")
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: connect(self, address)
                        if _is_here(self.family, address) else refuse(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **kwargs: look_up(host, *args, **kwargs)
                        if host in (None, "127.0.0.1", "::1", "localhost", socket.gethostname()) else refuse(host))
    yield attempts
    assert not attempts, f"reached for the network: {attempts}"


# -- models --------------------------------------------------------------------------------------
TINY = tp.GPTConfig(vocab_size=37, context_length=24, d_model=16, n_layers=2, n_heads=4)


def make_gpt(dtype=np.float64, rng=0, **sizes):
    """A tiny GPT whose every parameter, biases and norms included, is random and large enough to matter."""
    model = tp.GPT(tp.GPTConfig(**{**vars(TINY), **sizes})).to(dtype)
    rng = np.random.default_rng(rng)
    for name, p in model.named_parameters():
        p.data[...] = 0.3 * rng.standard_normal(p.shape) + ("norm" in name and name.endswith("weight"))
    return model


@pytest.fixture
def gpt():
    """`gpt()` or `gpt(np.float32, dropout=0.1)`: see `make_gpt`."""
    return make_gpt


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module", params=[1, pytest.param(3, marks=pytest.mark.long)], ids=["one seed", "three seeds"])
def seeds(request):
    """The seeds that a direction must hold for: one in every run, all of them in a long one."""
    return range(request.param)


@pytest.fixture
def tokens():
    """Tokens (3, 7) for a tiny GPT, repeated ones among them."""
    return np.random.default_rng(1).integers(0, TINY.vocab_size, (3, 7))


@pytest.fixture
def torch():
    """PyTorch, or the test is skipped. For test files of which only a part needs it."""
    return pytest.importorskip("torch")


@pytest.fixture
def transformers(torch):
    """transformers, with PyTorch, or the test is skipped."""
    return pytest.importorskip("transformers")


# -- what is computed ------------------------------------------------------------------------------
class Watched(np.ndarray):
    """An array that notes every matrix product it, or what is computed from it, takes part in."""
    products = []                                        # shapes of the two factors

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        plain = lambda a: a.view(np.ndarray) if isinstance(a, Watched) else a
        if out is not None: kwargs["out"] = tuple(map(plain, out))
        y = getattr(ufunc, method)(*map(plain, inputs), **kwargs)
        if ufunc is np.matmul: self.products.append((inputs[0].shape, inputs[1].shape))
        return out[0] if out is not None else y.view(Watched) if isinstance(y, np.ndarray) else y


@pytest.fixture
def products(monkeypatch):
    """The matrix products computed since `products.clear()` from tensors given to `products.watch`."""
    monkeypatch.setattr(np, "asarray", np.asanyarray)    # which would make plain arrays of the watched
    class Products(list):
        def watch(self, *tensors):
            for t in tensors: t.data = t.data.view(Watched)
    Watched.products = Products()
    return Watched.products
