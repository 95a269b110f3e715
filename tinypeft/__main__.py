"""`python -m tinypeft`. Ctrl-C ends it in one line, also while modules are imported."""
import sys

if __name__ == "__main__":
    try:
        from .commands.cli import main
        status = main()
    except KeyboardInterrupt:
        print("tinypeft: stopped", file=sys.stderr)
        status = 130
    raise SystemExit(status)
