"""The site: `python .github/site/build.py` makes it in build/site, and `--open` shows it in a browser.

It needs what requirements.txt of this folder lists, and the package's own requirements.
"""
import argparse
import sys
import webbrowser
from pathlib import Path

from progress import say

FOLDER = Path(__file__).parents[2] / "build" / "site"
PAGES = FOLDER / "html"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--open", action="store_true", help="open what was built last")
    if parser.parse_args().open:
        return not webbrowser.open((PAGES / "index.html").as_uri())
    say("loads the package and Sphinx")
    from sphinx.cmd.build import build_main  # here, because the line above comes first
    from stage import stage
    links = stage(FOLDER / "source")
    for path, link in links.missing:
        print(f"{path}: {link} leads nowhere", file=sys.stderr)
    failed = build_main([*"-q -a -E -W --keep-going -d".split(), *map(str, (FOLDER / "doctrees", FOLDER / "source", PAGES))])
    sizes = {file: file.stat().st_size for file in PAGES.rglob("*") if file.is_file()}
    pages = sum(file.suffix == ".html" for file in sizes)
    say(f"{'failed' if failed or links.missing else 'done'}: {pages} pages, {sum(sizes.values()) / 2**20:.1f} MiB, "
        f"{PAGES / 'index.html'}")
    return failed or bool(links.missing)


if __name__ == "__main__":
    sys.exit(main())
