"""Who may ask a server, and how often."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import httpx
import pytest

from commands import refusal, said
from glyphrun_serve.access import Access, Guard
from glyphrun_serve.limits import Limits
from glyphrun_serve.rates import Buckets, Rate
from glyphrun_serve.routes import http_app
from glyphrun_serve.tokens import KnownToken, TokensError, add_token, holder, known_tokens, token_hash
from local_app import Clock, EngineReader, no_log
from serving import assert_refused


@pytest.fixture(autouse=True)
def no_tokens_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLYPHRUN_TOKENS", raising=False)


def asked(guard: Guard, *requests: tuple[str, dict[str, str]], client: str = "127.0.0.1") -> list[httpx.Response]:
    """What GET requests of a path with headers are answered, one after another, in the same second."""
    app = http_app(EngineReader(None), Limits(), guard, clock=Clock(), log=no_log)  # type: ignore[arg-type]

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, client=(client, 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return [await http.get(path, headers=headers) for path, headers in requests]

    return asyncio.run(ask())


def test_a_token_is_kept_as_a_hash_that_only_its_owner_reads(tmp_path: Path) -> None:
    file = tmp_path / "kept" / "tokens"
    first, second = add_token(file, "camera-1"), add_token(file, "camera-2")
    assert first != second and len(first) > 40
    assert file.read_text() == f"camera-1:{token_hash(first)}\ncamera-2:{token_hash(second)}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]
    known = known_tokens(file, {"GLYPHRUN_TOKENS": f"other:{token_hash('x')}"})
    assert [one.name for one in known] == ["camera-1", "camera-2", "other"]
    assert holder(known, f"Bearer {second}") == known[1]
    assert holder(known, f"bearer  {second}") == known[1]
    for wrong in (None, "", "Bearer", f"Basic {second}", second, f"Bearer {second}x", f"Bearer {token_hash(second)}"):
        assert holder(known, wrong) is None
    with pytest.raises(TokensError, match="has a token of camera-1"):
        add_token(file, "camera-1")
    with pytest.raises(TokensError, match="no name of a token"):
        add_token(file, "../camera")


def test_the_verb_prints_the_token_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    made = said("token", "camera-1", "--file", str(file)).removesuffix("\n")
    assert file.read_text() == f"camera-1:{token_hash(made)}\n"
    assert "has a token of camera-1" in refusal("token", "camera-1", "--file", str(file))


def test_a_file_that_is_no_list_of_hashes_is_refused_without_quoting_it(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    with pytest.raises(TokensError, match="glyphrun token NAME"):
        known_tokens(file, {})
    file.write_text("# nobody yet\n")
    with pytest.raises(TokensError, match="holds no tokens"):
        known_tokens(file, {})
    file.write_text(f"# cameras\none:{'0' * 64}\nglyphrun_secret\n")
    with pytest.raises(TokensError, match="line 3, is not NAME:HASH") as refused:
        known_tokens(file, {})
    assert "secret" not in str(refused.value)
    file.write_bytes("one".encode("utf-16"))
    with pytest.raises(TokensError, match="tokens is not text in UTF-8"):
        known_tokens(file, {})
    assert "not text in UTF-8" in refusal("token", "camera-1", "--file", str(file))
    file.write_text(f"\ufeffone:{'0' * 64}\n")
    assert [one.name for one in known_tokens(file, {})] == ["one"]


def test_a_host_that_others_reach_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"):
        Access().check_host(host)
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):
        with pytest.raises(TokensError, match="make one with `glyphrun token NAME"):
            Access().check_host(host)
    Access(anyone=True).check_host("0.0.0.0")
    monkeypatch.setenv("GLYPHRUN_TOKENS", f"one:{'0' * 64}")
    Access().check_host("0.0.0.0")


def test_without_tokens_this_machine_alone_is_answered() -> None:
    models = ("/v1/models", {})
    assert [asked(Guard(), models, client=host)[0].status_code for host in ("127.0.0.1", "::ffff:127.0.0.1")] == [
        200
    ] * 2
    (refused,) = asked(Guard(), models, client="192.168.0.7")
    assert_refused(refused, 401, "no_token", "answers its own machine alone: make one with")
    assert asked(Guard(anyone=True), models, client="192.168.0.7")[0].status_code == 200


def test_with_tokens_only_who_bears_one_is_told_of_the_model_and_probes_need_none() -> None:
    guard = Guard((KnownToken("one", token_hash("secret")),))
    bearing = {"Authorization": "Bearer secret"}
    paths = ("/v1/models", "/metrics", "/v1/none", "/v2")
    refused = asked(guard, *((path, {"Authorization": "Bearer guess"}) for path in paths))
    for response in refused:
        assert_refused(response, 401, "no_token", "Authorization: Bearer TOKEN")
        assert response.headers["www-authenticate"] == "Bearer"
    assert [response.status_code for response in asked(guard, *((path, bearing) for path in paths))] == [
        200,
        200,
        404,
        404,
    ]
    open_to_all = ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/static/app.js")
    assert {response.status_code for response in asked(guard, *((path, {}) for path in open_to_all))} == {200}


def test_each_token_has_a_rate_of_its_own_and_guessing_is_slowed() -> None:
    guard = Guard(
        (KnownToken("one", token_hash("1")), KnownToken("two", token_hash("2"))), Rate(per_second=0.5, burst=2)
    )
    one, two, guess = ({"Authorization": f"Bearer {token}"} for token in ("1", "2", "guess"))
    answers = asked(guard, *(("/v1/models", headers) for headers in (one, one, one, two, guess, guess, guess)))
    assert [answer.status_code for answer in answers] == [200, 200, 429, 200, 401, 401, 429]
    assert_refused(answers[2], 429, "too_many_requests", "the next is answered in 2 s")
    assert answers[2].headers["retry-after"] == "2"


def test_a_bucket_fills_with_time_and_clients_that_are_gone_are_forgotten() -> None:
    clock = Clock()
    buckets = Buckets(Rate(per_second=4, burst=2), clock, most=100)
    assert [buckets.wait_s("a") for _ in range(3)] == [0, 0, 0.25]
    clock.now += 0.25
    assert [buckets.wait_s("a") for _ in range(2)] == [0, 0.25]
    clock.now += 3600
    assert [buckets.wait_s("a") for _ in range(3)] == [0, 0, 0.25]
    for number in range(99):
        buckets.wait_s(str(number))
    assert buckets.wait_s("a") == 0.25
    for number in range(100):
        buckets.wait_s(str(number))
    assert buckets.wait_s("a") == 0


def test_limits_of_access_are_settings_of_a_deployment(tmp_path: Path) -> None:
    add_token(tmp_path / "tokens", "one")
    guard = Access(tokens=tmp_path / "tokens").guard()
    assert [one.name for one in guard.tokens] == ["one"] and guard.rate == Rate()
    assert Access().guard() == Guard()
    assert Access(rate=Rate(per_second=3)).guard().rate == Rate(per_second=3)
