"""The machine that a benchmark ran on, for its record."""
import os
import platform
import re
from pathlib import Path

__all__ = ["machine"]


def machine() -> str:
    """The processor's name, its generation if Linux says it, and the number of cores, such as "AMD EPYC (family 25, model 17),
    2 cores"."""
    cpuinfo = Path("/proc/cpuinfo")
    first = cpuinfo.read_text("utf-8").partition("\n\n")[0] if cpuinfo.exists() else ""
    of = dict(re.findall(r"(.+?)\s*: (.*)", first))
    generation = f" (family {of['cpu family']}, model {of['model']})" if "cpu family" in of else ""
    return f"{of.get('model name') or platform.processor() or platform.machine()}{generation}, {os.cpu_count()} cores"
