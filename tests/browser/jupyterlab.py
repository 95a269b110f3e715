"""Notebooks in a real JupyterLab in headless Chromium, as a reader who has just cloned the repository sees them: not trusted.

    python tests/browser/jupyterlab.py lessons/07_lora.ipynb [… --shots FOLDER --dark]

Every cell has to be there, every picture among the outputs with a size, every formula typeset and none refused. With
--shots also screenshots, page by page, to be looked at. Needs `chromium` on the path, and websocket-client, which jupyter
brings. Not a part of pytest, which needs no browser.
"""
import argparse
import base64
import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import nbformat
import websocket

LAB, CHROME, TOKEN = 8899, 9333, "look"
FLAGS = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync --remote-allow-origins=* about:blank").split()
PICTURES = {"image/png", "image/svg+xml"}
PANEL = "(document.querySelector('.jp-WindowedPanel-outer') || document.querySelector('.jp-Notebook'))"
SEEN = """JSON.stringify({
  cells: document.querySelectorAll('.jp-Notebook .jp-Cell').length,
  formulas: document.querySelectorAll('.jp-Notebook mjx-container').length,
  refused: [...document.querySelectorAll('mjx-merror')].map(e => e.textContent),
  raw: [...document.querySelectorAll('.jp-RenderedMarkdown')].map(e => e.innerText).filter(t => /\\$\\$|\\$\\\\/.test(t)),
  pictures: [...document.querySelectorAll('.jp-OutputArea img')].map(e => [e.naturalWidth, e.naturalHeight]),
  tables: document.querySelectorAll('.jp-Notebook table').length})"""


class Page:
    """A page of Chromium, by its debugging protocol."""

    def __init__(self, target):
        self.socket, self.number = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=120), 0

    def __call__(self, method, **params):
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number: return message["result"]

    def value(self, code):
        return self("Runtime.evaluate", expression=code, returnByValue=True)["result"].get("value")


@contextlib.contextmanager
def browser(folder, theme):
    """A Page, and JupyterLab on `folder` behind it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        settings = Path(scratch, "settings", "@jupyterlab")
        for plugin, value in (("notebook-extension/tracker", {"windowingMode": "none"}),        # all cells, not those in sight
                              ("apputils-extension/themes", {"theme": theme}),
                              ("apputils-extension/notification", {"fetchNews": "false", "checkForUpdates": False})):
            file = settings / f"{plugin}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(value))
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        lab = subprocess.Popen([sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={LAB}",
                                "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}",
                                f"--ServerApp.root_dir={folder}", f"--LabApp.user_settings_dir={settings.parent}"], **quiet)
        chrome = subprocess.Popen(["chromium", f"--user-data-dir={scratch}/profile", f"--remote-debugging-port={CHROME}",
                                   *FLAGS], **quiet)
        try:
            answer(f"http://127.0.0.1:{LAB}/api?token={TOKEN}")
            page = Page(next(t for t in answer(f"http://127.0.0.1:{CHROME}/json") if t["type"] == "page"))
            page("Page.enable")
            page("Emulation.setDeviceMetricsOverride", width=1300, height=1500, deviceScaleFactor=1, mobile=False)
            yield page
        finally:
            for process in (chrome, lab):
                process.terminate()
                try:                              process.wait(20)
                except subprocess.TimeoutExpired: process.kill()


def answer(url, seconds=120):
    """The JSON at `url`, as soon as somebody answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as reply: return json.load(reply)
        except OSError:
            if time.monotonic() > end: raise
            time.sleep(0.5)


def look(page, path, shots=None):
    """Open a notebook and return (what is seen, what is wrong with it as a list of sentences)."""
    notebook = nbformat.read(path, 4)
    page("Page.navigate", url=f"http://127.0.0.1:{LAB}/lab/tree/{path.name}?token={TOKEN}&reset")
    before, seen, end = None, {"cells": -1}, time.monotonic() + 240
    while (seen["cells"] < len(notebook.cells) or seen != before) and time.monotonic() < end:    # there, and no longer changing
        time.sleep(4)
        before, seen = seen, json.loads(page.value(SEEN) or '{"cells": -1}')
    outputs = [out.get("data", {}) for cell in notebook.cells for out in cell.get("outputs", ())]
    formulas = sum(cell.source.count("$$") for cell in notebook.cells if cell.cell_type == "markdown") // 2
    image = lambda data: "<img" in "".join(data.get("text/html", ""))         # a slider's, where its script does not run
    expected = sum(bool(PICTURES & data.keys()) or image(data) for data in outputs)
    wrong = []
    if seen["cells"] != len(notebook.cells): wrong.append(f"{seen['cells']} cells of {len(notebook.cells)}")
    if seen["cells"] < 0: return seen, wrong
    if len(seen["pictures"]) != expected or [0, 0] in seen["pictures"]:
        wrong.append(f"pictures {seen['pictures']}, expected {expected}")
    if seen["refused"] or seen["raw"]: wrong.append(f"formulas that are not typeset: {seen['refused'] + seen['raw']}")
    if seen["formulas"] < formulas: wrong.append(f"{seen['formulas']} formulas, expected the {formulas} displayed")
    if shots: photograph(page, path, shots)
    return seen, wrong


def photograph(page, path, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(page.value(f"{PANEL}.scrollHeight") // 1350 + 1):
        page.value(f"{PANEL}.scrollTop = {1350 * i}")
        time.sleep(0.6)
        (folder / f"{path.stem}_{i}.png").write_bytes(base64.b64decode(page("Page.captureScreenshot", format="png")["data"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--shots", type=Path, default=None, metavar="FOLDER")
    parser.add_argument("--dark", action="store_const", const="JupyterLab Dark", default="JupyterLab Light")
    args, bad = parser.parse_args(), 0
    for folder in dict.fromkeys(p.resolve().parent for p in args.notebooks):
        with browser(folder, args.dark) as page:
            for path in args.notebooks:
                if path.resolve().parent != folder: continue
                seen, wrong = look(page, path, args.shots)
                bad += bool(wrong)
                print(f"{path.name}: " + ("; ".join(wrong) or f"{seen['cells']} cells, {seen['formulas']} formulas, "
                                          f"{len(seen['pictures'])} pictures, {seen['tables']} tables"), flush=True)
    return bad


if __name__ == "__main__":
    raise SystemExit(main())
