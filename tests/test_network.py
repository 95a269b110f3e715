"""Nothing needs a network: the commands run where no socket can be made."""
import socket

import pytest

from tinypeft.commands.cli import main


@pytest.fixture
def no_sockets(monkeypatch):
    class Refused(socket.socket):
        def __init__(self, *args, **kwargs): raise OSError("a socket was asked for")
    monkeypatch.setattr(socket, "socket", Refused)
    with pytest.raises(OSError, match="asked for"): socket.create_connection(("127.0.0.1", 9), timeout=1)


@pytest.mark.parametrize("command", [
    "memory", "quantize nf4 --quick", "finetune lora --steps 1 --quick", "generate text --max-new-tokens 3"])
def test_commands_without_sockets(command, no_sockets, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 0, capsys.readouterr().err


def test_a_test_that_reaches_out_is_refused(no_network):
    with pytest.raises(OSError, match="a test reached for the network"):
        socket.socket().connect(("192.0.2.1", 9))                        # an address for documentation
    assert no_network == [("192.0.2.1", 9)]
    no_network.clear()
