from __future__ import annotations

import argparse
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from glyphrun.models.torch_files import WeightsError
from glyphrun.models.weights import (
    PUBLISHED,
    PUBLISHED_CHARSET,
    Origin,
    load_weights,
    plain_name,
    weights_origin,
)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"encoder.norm.weight": torch.randn(4), "head.weight": torch.randn(11, 4), "head.bias": torch.randn(11)}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


class Site:
    """A web server on this machine: files by path, what it says of their length, and who asked for what."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.lengths: dict[str, int] = {}
        self.moved: dict[str, str] = {}
        self.asked: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                site.asked.append(path)
                if path in site.moved:
                    self.send_response(302)
                    self.send_header("Location", site.moved[path])
                    self.end_headers()
                elif path in site.files:
                    body = site.files[path]
                    self.send_response(200)
                    self.send_header("Content-Length", str(site.lengths.get(path, len(body))))
                    self.end_headers()
                    self.wfile.write(body)
                else:
                    self.send_error(404)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def put(self, folder: str, path: Path) -> tuple[str, str]:
        """Serve a file under a name that ends in the start of its sha256; its url and that name."""
        body = path.read_bytes()
        name = f"{path.stem}-{hashlib.sha256(body).hexdigest()[:8]}{path.suffix}"
        self.files[f"{folder}/{name}"] = body
        return f"{self.url}{folder}/{name}", name


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    site = Site()
    thread = threading.Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    site.server.shutdown()
    site.server.server_close()
    thread.join()


@pytest.fixture
def saved(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    torch.save(tensors, tmp_path / "tiny.pt")
    return tmp_path / "tiny.pt"


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "_orig_mod.", "model.module.", "model._orig_mod.module."])
@pytest.mark.parametrize("container", [None, "state_dict", "model"])
def test_a_name_is_the_same_whatever_wrapped_the_model(tmp_path, tensors, prefix, container):
    wrapped = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    checkpoint = wrapped if container is None else {container: wrapped, "hp": argparse.Namespace(lr=1), "epoch": 3}
    torch.save(checkpoint, tmp_path / "x.ckpt")
    assert same(load_weights(str(tmp_path / "x.ckpt")), tensors)


def test_wrappers_of_torch_itself_are_taken_off():
    model = nn.Sequential(nn.Linear(2, 2), torch.compile(nn.Linear(2, 2)))
    wrapped = nn.DataParallel(torch.compile(model))
    assert {plain_name(name) for name in wrapped.state_dict()} == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_two_models_in_one_file_are_not_mixed_up(tmp_path, tensors):
    torch.save({**tensors, "model.head.bias": torch.zeros(11)}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"x\.pt holds both head\.bias and model\.head\.bias"):
        load_weights(str(tmp_path / "x.pt"))


def test_safetensors_and_folders_with_weights_are_read(tmp_path, tensors):
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "weights.safetensors")
    assert same(load_weights(str(tmp_path / "weights.safetensors")), tensors)
    assert same(load_weights(str(tmp_path)), tensors)


def test_a_bundle_whose_weights_were_changed_is_refused(tmp_path, tensors):
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path)
    (tmp_path / "SHA256SUMS").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  weights.safetensors\n")
    assert same(load_weights(str(tmp_path)), tensors)
    save_file({**tensors, "head.bias": torch.zeros(11)}, path)
    with pytest.raises(WeightsError, match=r"weights\.safetensors was changed: .* copy the bundle again"):
        load_weights(str(tmp_path))


def test_a_bundle_and_a_published_name_say_what_they_were_trained_for(tmp_path):
    manifest = {"codec": {"charset": "0123"}, "recognizer": {"kind": "parseq", "encoder": {"image": [40, 48]}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert (
        weights_origin(str(tmp_path))
        == weights_origin(str(tmp_path / "weights.safetensors"))
        == Origin("0123", (40, 48))
    )
    assert weights_origin(str(tmp_path / "other.pt")) == Origin(None, None)
    assert weights_origin("parseq-tiny") == Origin(PUBLISHED_CHARSET, (32, 128))
    assert weights_origin("parseq-small-patch16-224").image == (224, 224)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"manifest\.json is no bundle's manifest"):
        weights_origin(str(tmp_path))


def test_the_published_charset_is_that_of_the_published_toy(shared):
    card = json.loads((shared / "oracles" / "parseq_toy.json").read_text())
    assert card["toy94"]["charset"] == PUBLISHED_CHARSET


def test_a_file_without_tensors_by_name_is_refused(tmp_path):
    for content, kind in ((nn.Linear(2, 2), "a pickled torch.nn.modules"), ([torch.ones(2)], "a list without tensors")):
        torch.save({"model": content} if isinstance(content, nn.Module) else content, tmp_path / "x.pt")
        with pytest.raises(WeightsError, match=rf"x\.pt holds {kind}.*: save the model's state_dict"):
            load_weights(str(tmp_path / "x.pt"))
    torch.save({"state_dict": {"weight": torch.eye(3).to_sparse()}}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="holds weight as .*not as a plain tensor"):
        load_weights(str(tmp_path / "x.pt"))


def test_a_web_page_or_a_cut_file_in_place_of_safetensors_is_named(tmp_path, tensors):
    path = tmp_path / "w.safetensors"
    path.write_text("<html>Sign in</html>")
    with pytest.raises(WeightsError, match=r"w\.safetensors is an HTML page"):
        load_weights(str(path))
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(WeightsError, match=r"w\.safetensors is cut off or damaged .* copy or download it again"):
        load_weights(str(path))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("parseq-tyni", "no published weights are called 'parseq-tyni': did you mean parseq-tiny"),
        ("zzz", "did you mean parseq-small or parseq-small-patch16-224 or parseq-tiny?"),
        ("nowhere/x.pt", "there is no file nowhere/x.pt: give the path"),
        ("x.safetensors", "there is no file x.safetensors: give the path"),
        ("s3://bucket/x-0123abcd.pt", "is not read: copy the file and give its path"),
        (
            "https://example.com/weights.pt",
            r"a changed file would go unseen: give https://example.com/weights.pt#sha256=",
        ),
        ("https://example.com/weights.pt#sha256=123", "does not say what its file's sha256 is"),
        ("https://example.com/weights.zip#sha256=0123abcd", "names no weights file: give one that ends in .pt"),
    ],
)
def test_a_source_that_cannot_be_loaded_is_answered_with_what_to_give(tmp_path, source, sentence):
    with pytest.raises(WeightsError, match=sentence):
        load_weights(source, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_or_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(WeightsError, match=r"notes\.txt is no weights file by its name"):
        load_weights(str(tmp_path / "notes.txt"))
    with pytest.raises(WeightsError, match=r"holds no weights\.safetensors"):
        load_weights(str(tmp_path))


def test_a_download_is_checked_kept_and_not_repeated(tmp_path, tensors, saved, site, monkeypatch):
    url, name = site.put("/release", saved)
    site.moved["/short/" + name] = url
    seen: list[tuple[int, int | None]] = []
    found = load_weights(f"{site.url}/short/{name}", tmp_path / "cache", lambda *counts: seen.append(counts))
    assert same(found, tensors)
    size = saved.stat().st_size
    assert seen[-1] == (size, size)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [name]
    monkeypatch.setenv("GLYPHRUN_CACHE", str(tmp_path / "cache"))
    site.asked.clear()
    assert same(load_weights(url), tensors)
    assert site.asked == []


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path, tensors, saved, site):
    url, name = site.put("/release", saved)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / name).write_bytes(saved.read_bytes()[:50])
    assert same(load_weights(url, tmp_path / "cache"), tensors)
    assert len(site.asked) == 1


def test_a_hash_in_the_url_stands_for_one_in_the_name(tmp_path, tensors, saved, site):
    digest = hashlib.sha256(saved.read_bytes()).hexdigest()
    site.files["/tiny.pt"] = saved.read_bytes()
    for length in (8, 64):
        assert same(load_weights(f"{site.url}/tiny.pt?download=1#sha256={digest[:length]}", tmp_path / "c"), tensors)
    with pytest.raises(WeightsError, match=f"begins with {digest[:10]}, not 0123456789"):
        load_weights(f"{site.url}/tiny.pt#sha256=0123456789", tmp_path / "c")


def test_a_file_url_is_checked_like_any_other(tmp_path, tensors, saved):
    digest = hashlib.sha256(saved.read_bytes()).hexdigest()
    assert same(load_weights(f"{saved.as_uri()}#sha256={digest}", tmp_path / "cache"), tensors)
    with pytest.raises(WeightsError, match="begins with"):
        load_weights(f"{saved.as_uri()}#sha256=00000000", tmp_path / "cache")
    with pytest.raises(WeightsError, match=r"absent\.pt: there is no such file"):
        load_weights(f"{saved.with_name('absent.pt').as_uri()}#sha256=00000000", tmp_path / "cache")


def test_another_file_under_the_name_is_not_kept(tmp_path, saved, site):
    url, name = site.put("/release", saved)
    site.files[f"/release/{name}"] = b"<html>Sign in</html>"
    with pytest.raises(WeightsError, match=f"{url} gave a file whose sha256 begins with .*, not {name[-11:-3]}"):
        load_weights(url, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_half_a_download_is_never_used(tmp_path, saved, site):
    url, name = site.put("/release", saved)
    whole = site.files[f"/release/{name}"]
    site.files[f"/release/{name}"] = whole[:1000]
    site.lengths[f"/release/{name}"] = len(whole)
    with pytest.raises(WeightsError, match=r"broke off.*try again"):
        load_weights(url, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_address_without_the_file_says_so(tmp_path, site):
    with pytest.raises(WeightsError, match=r"x-0123abcd\.pt answered 404 Not Found: check the address, or download it"):
        load_weights(f"{site.url}/x-0123abcd.pt", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_host_that_cannot_be_reached_is_answered_with_how_to_give_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(WeightsError, match=r"127\.0\.0\.1 cannot be reached .*give the file's path instead"):
        load_weights(f"http://127.0.0.1:{closed_port()}/x-0123abcd.pt", tmp_path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_stand_for_the_releases_files(tmp_path, monkeypatch, name):
    """Through a proxy that does not answer, so that nothing is downloaded here."""
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{closed_port()}")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    files = {
        "parseq-tiny": "parseq_tiny-e7a21b54.pt",
        "parseq-small": "parseq-bb5792a6.pt",
        "parseq-small-patch16-224": "parseq_small_patch16_224-fcf06f5a.pt",
    }
    url = f"https://github.com/baudm/parseq/releases/download/v1.0.0/{files[name]}"
    with pytest.raises(WeightsError, match=rf"^{url}: github.com cannot be reached"):
        load_weights(name, tmp_path)


def test_a_cache_that_cannot_be_written_is_named(tmp_path, saved):
    (tmp_path / "cache").write_text("a file where the folder would be")
    digest = hashlib.sha256(saved.read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match="cache cannot be written .*set GLYPHRUN_CACHE to another folder"):
        load_weights(f"{saved.as_uri()}#sha256={digest}", tmp_path / "cache")
