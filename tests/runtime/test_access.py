"""Access: tokens, the names that a server goes by, and the options that set them."""

import argparse
from pathlib import Path

import pytest

from restnet_runtime.access import Access, Token, is_address, read_token
from restnet_runtime.access_options import add_access_options, read_access
from restnet_runtime.errors import AccessError

SECRET = "0123456789abcdef-._~+/=="


def parse(*options: str) -> Access:
    parser = argparse.ArgumentParser()
    add_access_options(parser)
    return read_access(parser.parse_args(options))


def test_a_token_matches_itself_alone_and_is_not_shown() -> None:
    token = Token(SECRET)
    assert token.matches(SECRET.encode())
    for wrong in (b"", SECRET[:-1].encode(), SECRET.upper().encode(), SECRET.encode() + b" ", b"\xff" * 24):
        assert not token.matches(wrong)
    assert SECRET not in repr(token)
    assert SECRET not in repr(Access(token))


@pytest.mark.parametrize("text", ["", "short", "x" * 15, "x" * 1025, "two words of secret", "quote'0123456789", "0123456789abcdefé"])
def test_tokens_that_are_refused(text: str) -> None:
    with pytest.raises(AccessError, match="openssl rand") as caught:
        Token(text)
    assert not text or text not in str(caught.value)


def test_a_token_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"\n {SECRET}\n")
    assert read_token(path).matches(SECRET.encode())
    for data in (b"", b"\xff\xfe" * 20, b"secret\n", b"0123456789abcdef\n0123456789abcdef"):
        path.write_bytes(data)
        with pytest.raises(AccessError, match=str(path)):
            read_token(path)
    with pytest.raises(AccessError, match="cannot be read"):
        read_token(tmp_path)
    with pytest.raises(AccessError, match="No such file"):
        read_token(tmp_path / "none")


@pytest.mark.parametrize(
    ("host", "trusted"),
    [
        ("localhost", True),
        ("LOCALHOST:8080", True),
        ("app.localhost:80", True),
        ("localhost.", True),
        ("127.0.0.1:8080", True),
        ("192.168.1.20", True),
        ("[::1]:8080", True),
        ("[fe80::1]", True),
        ("pi.local", True),
        ("PI.local:8080", True),
        ("a.example.org", True),
        ("b.a.example.org:1", True),
        ("example.org", False),
        ("badexample.org", False),
        ("evil.com", False),
        ("localhost.evil.com", False),
        ("127.0.0.1.evil.com", False),
        ("evil.com:localhost", False),
        ("evil.com@localhost", False),
        ("localhost/evil.com", False),
        ("localhost\x00", False),
        ("[::1]evil.com", False),
        ("", False),
        ("127.1", False),
        ("2130706433", False),
    ],
)
def test_names_of_this_server(host: str, trusted: bool) -> None:
    assert Access(trusted_hosts=("pi.local", "*.example.org")).trusts_host(host) is trusted
    assert Access(trusted_hosts=None).trusts_host(host)


def test_origins() -> None:
    assert not Access().shares_with("https://example.org")
    some = Access(cors_origins=("https://Example.org", "http://[::1]:3000"))
    assert some.shares_with("https://example.org")
    assert some.shares_with("http://[::1]:3000")
    for other in ("http://example.org", "https://example.org:8443", "https://example.org.evil.com", "null", ""):
        assert not some.shares_with(other)
    assert Access(cors_origins=("*",)).shares_with("https://anyone.example")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trusted_hosts": ("http://pi.local",)}, "is no host name"),
        ({"trusted_hosts": ("pi.local:80",)}, "is no host name"),
        ({"trusted_hosts": ("*",)}, "is no host name"),
        ({"trusted_hosts": ("",)}, "is no host name"),
        ({"cors_origins": ("example.org",)}, "is no origin"),
        ({"cors_origins": ("https://example.org/",)}, "is no origin"),
        ({"cors_origins": ("https://*.example.org",)}, "is no origin"),
        ({"require": "all"}, "a token is required"),
    ],
)
def test_settings_that_would_not_do_what_they_say(changes: dict, message: str) -> None:
    with pytest.raises(AccessError, match=message):
        Access(**changes)


def test_is_address() -> None:
    assert is_address("10.0.0.1")
    assert is_address("::1")
    assert is_address("[::1]")
    assert not is_address("localhost")
    assert not is_address("1.2.3")


def test_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESTNET_TOKEN", raising=False)
    assert parse() == Access()
    assert parse("--allow-remote").trusted_hosts is None
    assert parse("--allow-remote", "--trusted-host", "pi.local").trusted_hosts == ("pi.local",)
    assert parse("--trusted-host", "a", "--trusted-host", "b").trusted_hosts == ("a", "b")
    assert parse("--cors-origin", "https://a.example").cors_origins == ("https://a.example",)
    with pytest.raises(AccessError, match="there is none"):
        parse("--require-token", "all")
    path = tmp_path / "token"
    path.write_text(SECRET)
    access = parse("--token-file", str(path), "--require-token", "all")
    assert access.require == "all"
    assert access.token is not None
    assert access.token.matches(SECRET.encode())


def test_a_token_from_the_environment_does_not_stay_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTNET_TOKEN", SECRET)
    token = parse().token
    assert token is not None
    assert token.matches(SECRET.encode())
    assert parse().token is None
    monkeypatch.setenv("RESTNET_TOKEN", SECRET)
    (tmp_path / "token").write_text(SECRET)
    with pytest.raises(AccessError, match="both"):
        parse("--token-file", str(tmp_path / "token"))
