"""Submissions that mean harm, or look as if they did: the cells of each, by its name.

Some know the grader: they find the pipe through which the worker answers, and write there what they like.
"""
from tinypeft.course import percent

__all__ = ["CELLS", "EARNS", "HONEST", "IMPORTS", "PART", "PIPE", "SOLVED"]

IMPORTS = "import os, sys, time\nimport numpy as np\nimport tinypeft as tp\nfrom tinypeft import functional as F"
SOLVED = [cell.source for cell in percent.read(percent.sources("07")[0]) if cell.exercise]
HONEST = {"ada": [IMPORTS, *SOLVED], "zoe": ["1 / 0", IMPORTS, *SOLVED]}
PIPE = IMPORTS + """
import base64, fcntl, json, stat
def pipes(way):
    for n in range(100):
        try:
            if stat.S_ISFIFO(os.fstat(n).st_mode) and fcntl.fcntl(n, fcntl.F_GETFL) & os.O_ACCMODE == way: yield n
        except OSError: pass
(*_, ASKED), (*_, PIPE) = pipes(os.O_RDONLY), pipes(os.O_WRONLY)
def say(line):
    line = (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\\n"
    while line: line = line[os.write(PIPE, line):]
def wait():
    while True: time.sleep(1)
NONE = {"dict": []}
def told(functions=NONE, problem=None): return {"dict": [["functions", functions], ["problem", problem]]}
FIVE = {"list": [{"tuple": [name, 1, False]} for name in ("x", "W", "A", "B", "alpha")]}
def forward(parameters=FIVE, uses={"list": []}): return {"dict": [["lora_forward", {"tuple": ["x", uses, parameters]}]]}
def outcome(value, error=None, changed={"list": []}, gradients=NONE, strained=""):
    return {"dict": [["value", value], ["error", error], ["unsolved", False], ["changed", changed], ["gradients", gradients],
                     ["strained", strained], ["borrowed", {"list": []}], ["answer", ""]]}
def array(dtype, shape, data=b""): return {"array": dtype, "shape": shape, "data": base64.b64encode(data).decode()}
"""
BOMB = """
import io, zipfile
file, head = io.BytesIO(), io.BytesIO()
np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (2**28,)})
with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as z, z.open("a0.npy", "w", force_zip64=True) as member:
    member.write(head.getvalue())
    for _ in range(2**10): member.write(bytes(2**20))
say([{"array": 0, "scalar": False}, base64.b64encode(file.getvalue()).decode()]); wait()
"""


def says(line: str) -> list[str]:
    """Cells that write one line in place of the description of the functions."""
    return [PIPE, f"say({line}); wait()"]


def answers(outcome: str) -> list[str]:
    """Cells that describe one function and then answer each question with an outcome of their own."""
    return [PIPE, f"say(told(forward()))\nwhile os.read(ASKED, 2**20): say({outcome})"]


def forward(body: str, before: str = "") -> list[str]:
    """Cells that define the function of the first exercise."""
    return [IMPORTS, before, "def lora_forward(x, W, A, B, alpha):\n    " + body]


CELLS = {
    # -- in place of the description
    "names_os_system": says("told(problem={'function': ['tinypeft.course.wire', 'os.system']})"),
    "names_main": says("told(problem={'function': ['tinypeft.__main__', 'main']})"),
    "problem_is_an_array": says("told(problem=array('<f8', [3], bytes(24)))"),
    "problem_is_a_list": says("told(problem={'list': [1]})"),
    "functions_are_a_number": says("told(5)"),
    "names_are_numbers": says("told({'dict': [[5, 6]]})"),
    "parameters_are_nonsense": says("told(forward({'list': [{'tuple': ['a b', 99, True]}]}))"),
    "not_text": says("bytes(n for n in range(256) if n != 10) * 100"),
    "nested_deeply": says("b'[' * 200_000 + b']' * 200_000"),
    "nested_by_name": says("b'{\"list\": [' * 500 + b']}' * 500"),
    "a_million_lists": says("b'{\"list\": [' + b'[],' * 4_000_000 + b'1]}'"),
    "an_array_of_4_TiB": says("told(array('<f4', [2**40]))"),
    "an_array_of_objects": says("told(array('|O', [1], bytes(8)))"),
    "the_old_messages_bomb": [PIPE, BOMB],
    "writes_without_end": [PIPE, "while True: os.write(PIPE, b'x' * 65536)"],
    "writes_lines_without_end": [PIPE, "while True: os.write(PIPE, b'\\n' * 65536)"],
    "writes_slowly": [PIPE, "while True: os.write(PIPE, b'x'); time.sleep(.1)"],
    "half_a_message_then_silence": [PIPE, "os.write(PIPE, b'{\"dict\": [[\"fun'); wait()"],
    "half_a_message_then_exit": [PIPE, "os.write(PIPE, b'{\"dict\": [[\"fun'); os._exit(0)"],
    "closes_everything": [IMPORTS, *SOLVED, "os.closerange(0, 1000)"],
    # -- in place of an outcome
    "answers_in_advance": [PIPE, "say(told(forward()))\nfor _ in range(99): say(outcome(1.0))\nwait()"],
    "answers_the_same": answers("outcome(1.0)"),
    "an_error_that_is_a_number": answers("outcome(None, 5)"),
    "gradients_that_are_a_list": answers("outcome(1.0, gradients={'list': []})"),
    "strained_by_a_number": answers("outcome(1.0, strained=5)"),
    "uses_are_text": says("told(forward(uses='attention'))"),
    "changed_that_are_numbers": answers("outcome(1.0, changed={'list': [1]})"),
    "a_result_of_no_columns": answers("outcome(array('<f4', [2**60, 0]))"),
    "controls_the_terminal": answers(r"outcome(None, '\x1b[2J\x1b]0;title\x07\u202e\ud800\x00' * 50)"),
    # -- processes and signals
    "exits": [IMPORTS, *SOLVED, "os._exit(0)"],
    "stops_itself": [IMPORTS, "import signal; os.kill(os.getpid(), signal.SIGSTOP)"],
    "loops_and_ignores_signals": [IMPORTS, "import signal\nfor s in {*signal.Signals} - {signal.SIGKILL, signal.SIGSTOP}: "
                                           "signal.signal(s, signal.SIG_IGN)\nwhile True: pass"],
    "leaves_a_child_with_the_pipe": [IMPORTS, "if os.fork() == 0:\n    os.setsid(); time.sleep(40)\nos._exit(0)"],
    "leaves_children": [IMPORTS, *SOLVED, "for _ in range(20):\n    if os.fork() == 0: time.sleep(1000); os._exit(0)"],
    "leaves_a_thread": [IMPORTS, *SOLVED, "import threading; threading.Thread(target=time.sleep, args=(1000,)).start()"],
    "crashes": [IMPORTS, "import ctypes; ctypes.string_at(0)"],
    "recurses_without_end": [IMPORTS, "sys.setrecursionlimit(10**9)\nf = lambda: f()\nf()"],
    "exits_when_called": forward("sys.exit()"),
    "sleeps_when_called": forward("time.sleep(9); return x @ (W + alpha / len(A) * B @ A).T"),
    # -- memory and disk
    "allocates_without_end": [IMPORTS, "kept = []\nwhile True: kept.append(np.ones(2**24))"],
    "returns_2_GiB": forward("return np.zeros(2**28)"),
    "returns_a_view_of_8_TiB": forward("return np.broadcast_to(1.0, (2**20, 2**20))"),
    "returns_a_text_of_1_GiB": forward("return 'x' * 2**30"),
    "returns_many_numbers": forward("return list(range(10**7))"),
    "writes_a_file_without_end": [IMPORTS, "with open('f', 'wb') as f:\n    while True: f.write(bytes(2**24))"],
    "leaves_a_deep_folder": [IMPORTS, *SOLVED, "for _ in range(3000): os.mkdir('d'); os.chdir('d')"],
    "leaves_a_locked_folder": [IMPORTS, *SOLVED, "os.mkdir('d'); open('d/f', 'w').close(); os.chmod('d', 0)"],
    # -- results
    "returns_itself": forward("a = []; a.append(a); return a"),
    "returns_a_deep_list": forward("a = []\n    for _ in range(10**5): a = [a]\n    return a"),
    "returns_a_huge_integer": forward("return 10**4000"),
    "returns_a_failing_repr": forward("return Odd()", "class Odd:\n    def __repr__(self): raise KeyError(self)\n"
                                                      "    def __getattr__(self, name): raise KeyError(name)"),
    "returns_an_endless_repr": forward("return Odd()", "class Odd:\n    def __repr__(self):\n        while True: pass"),
    "returns_objects": forward("return np.array([object(), None, {}])"),
    "returns_a_tensor_of_text": forward("t = tp.Tensor(np.ones(2)); t.data = np.array(['a', 'b']); return t"),
    "returns_a_subclass": forward("return np.ones(3).view(Odd)", "class Odd(np.ndarray):\n    def tobytes(self): return b'x'"),
    "raises_nonsense": forward("raise Odd", "class Odd(Exception):\n    def __str__(self): raise self\nraise Odd"),
    "raises_a_long_error": forward("raise ValueError('\\ud800' * 10**7)", "raise ValueError('\\x1b[31m' + 'long ' * 10**7)"),
    "has_a_false_signature": [*forward("return 0"), "lora_forward.__signature__ = 'nonsense'"],
    "has_names_that_are_numbers": [IMPORTS, "globals()[5] = print; globals()[(1,)] = print"],
    # -- the machinery
    "replaces_builtins": [IMPORTS, "import builtins; builtins.len = builtins.isinstance = lambda *a: 10**9"],
    "replaces_json": [IMPORTS, "import json; json.dumps = lambda *a, **k: '[' * 10**5"],
    "replaces_the_judge": [IMPORTS, "import tinypeft.course.judge as j\nj.judge = lambda *a: True\n"
                                    "sys.modules['__main__'].encode = lambda v: b'true\\n'"],
    "replaces_the_check": [*forward("return x @ W.T"), "tp.check = lambda *a, **k: True"],
    "prints_points": [IMPORTS, "print('lora.forward: right. 3 points.'); os.write(1, b'{}\\n')"],
}
# These harm nobody but themselves, and have solved the exercises.
EARNS = {"leaves_children", "leaves_a_thread", "leaves_a_deep_folder", "leaves_a_locked_folder"}
# How many points these earn depends on the machine's speed.
PART = {"sleeps_when_called"}
