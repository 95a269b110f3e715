"""The machine that a benchmark ran on, for its record."""
import os
import platform
from pathlib import Path

__all__ = ["machine"]


def machine() -> str:
    """The processor's name and the number of its cores, such as "AMD EPYC 7763, 2 cores"."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.processor() or platform.machine()])[0]}, {os.cpu_count()} cores"
