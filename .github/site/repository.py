"""Where the repository is, and the lines that get it, install it and open a notebook."""
import os

INSTALL = "python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt"


def address():
    """Return the repository's address as the workflow gives it, else what TINYPEFT_REPOSITORY says, else ""."""
    name = os.environ.get("GITHUB_REPOSITORY")
    server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
    return f"{server}/{name}" if name else os.environ.get("TINYPEFT_REPOSITORY", "").rstrip("/")


def get():
    """Return the command that brings one into the checkout."""
    if address():
        return f"git clone {address()} tinypeft && cd tinypeft"
    return "cd tinypeft    # your copy of the repository"


def commands(last):
    """Return three lines as a block of code: get it, install it, and `last`."""
    return f"```bash\n{get()}\n{INSTALL}\n{last}\n```"


def linked():
    """Return the words "the repository", as a link if its address is known."""
    return f"[the repository]({address()})" if address() else "your copy of the repository"


def shown(path, lines):
    """Return the HTML that names a file and its lines, above its code."""
    name = f"<a href='{address()}/blob/HEAD/{path}'>{path}</a>" if address() else f"<code>{path}</code>"
    return f"<p class='file'>{name}, lines {lines[0]} to {lines[1]}</p>"
