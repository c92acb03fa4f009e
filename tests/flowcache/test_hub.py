"""The Hub's cache and a Hub that does not answer; nothing leaves this machine."""

import logging
import socket
import threading
import time

import pytest
from huggingface_hub import close_session, constants

from flowcache.hub import fetch_snapshot


@pytest.fixture
def silent_hub(monkeypatch, tmp_path):
    """A Hub that accepts connections and never answers, and an empty cache; returns the connections."""
    taken = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept():
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
        close_session()
        yield taken
        close_session()
        server.shutdown(socket.SHUT_RDWR)
        for connection in taken:
            connection.close()


def test_a_silent_hub_is_named_and_not_waited_for_long_nor_asked_in_vain(silent_hub, tmp_path, caplog):
    snapshot = tmp_path / "models--a--whole" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    checked = []
    assert fetch_snapshot("model_id", "a/whole", ["*"], checked.append) == snapshot
    assert checked == [snapshot] and not silent_hub
    started = time.monotonic()
    with caplog.at_level(logging.INFO), pytest.raises(OSError, match=r"model_id: a/b could not be") as raised:
        fetch_snapshot("model_id", "a/b", ["*"], lambda folder: None)
    assert time.monotonic() - started < 10
    assert silent_hub, "it was asked"
    (line,) = [record.message for record in caplog.records if record.name == "flowcache.hub"]
    assert "a/b" in line and constants.ENDPOINT in line
    assert "\n" not in str(raised.value)
