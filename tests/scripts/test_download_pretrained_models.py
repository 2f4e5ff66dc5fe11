"""scripts/download_pretrained_models.py against a server on loopback."""

from __future__ import annotations

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from dp_basicsr.archs import pretrained

import pytest

from scripts import download_pretrained_models as command


def test_it_downloads_and_verifies_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = b"weights of a network"
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / name).write_bytes(content)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "public"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(pretrained, "weights_url", lambda network: f"http://127.0.0.1:{server.server_port}/{name}")
        assert command.main(["vgg19"]) == 0
        server.shutdown()
    assert (tmp_path / "experiments/pretrained_models" / name).read_bytes() == content
    assert command.main(["vgg19"]) == 0
    assert "already exists" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        command.main(["resnet50", "--output", str(tmp_path / "other")])
    assert stopped.value.code == 2
    assert name in capsys.readouterr().err


def test_an_unknown_network_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["vgg99"])
    assert stopped.value.code == 2
    assert "vgg99" in capsys.readouterr().err
