"""What a build says while it works: one line a stage, with the seconds since it began."""
import time

START = time.perf_counter()


def say(stage):
    """Print a stage that begins now."""
    print(f"{time.perf_counter() - START:4.0f} s  {stage}", flush=True)
