"""Request ids and the lines of requests that failed, on a small application."""

import asyncio
import logging
import re

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from restnet_runtime.observing import Observing


async def echo(request):
    if request.url.path == "/boom":
        raise ValueError("nobody expected this")
    return PlainTextResponse("x", int(request.query_params.get("status", 200)))


@pytest.fixture
def counted():
    return []


@pytest.fixture
def now():
    return [100.0]


@pytest.fixture
def ask(counted, now):
    app = Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST"])])
    app.add_middleware(Observing, failed=lambda *facts: counted.append(facts), clock=lambda: now[0])

    def ask(path, method="GET", **options):
        async def visit():
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://device") as client:
                return await client.request(method, path, **options)

        return asyncio.run(visit())

    return ask


def lines(caplog):
    return [record.facts for record in caplog.records if hasattr(record, "facts")]


@pytest.mark.parametrize("given", ["abc-123", "0af7651916cd43dd8448eb211c80319c", "a" * 128])
def test_an_id_is_taken_over(ask, given):
    assert ask("/", headers={"X-Request-ID": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", [None, "", "two words", "a" * 129, 'quo"te', b"\xff\xfe", "<script>"])
def test_otherwise_one_is_made(ask, given):
    headers = {} if given is None else {"X-Request-ID": given}
    made = [ask("/", headers=headers).headers["x-request-id"] for _ in range(2)]
    assert all(re.fullmatch("[0-9a-f]{16}", one) for one in made)
    assert made[0] != made[1]


def test_what_failed_has_a_line_with_its_id(ask, caplog, counted):
    caplog.set_level(logging.INFO)
    ask("/predict?status=200", "POST")
    ask("/predict?status=413", "POST", headers={"X-Request-ID": "big"})
    ask("/elsewhere?status=404", headers={"X-Request-ID": "lost"})
    ask("/v2/models/m/infer?status=503", "POST", headers={"X-Request-ID": "full"})
    found = lines(caplog)
    assert [(line["request_id"], line["status"], line["kind"]) for line in found] == [
        ("big", 413, "too_large"),
        ("lost", 404, "request"),
        ("full", 503, "overload"),
    ]
    assert "(request big)" in caplog.text
    assert counted == [(None, "invalid", "too_large"), ("m", "overloaded", "overload")]


def test_an_exception_is_a_line_too(ask, caplog):
    assert ask("/boom", headers={"X-Request-ID": "bang"}).status_code == 500
    (line,) = lines(caplog)
    assert (line["request_id"], line["kind"], line["reason"]) == ("bang", "internal", "nobody expected this")


def test_a_flood_of_failures_is_no_flood_of_lines(ask, caplog, counted, now):
    caplog.set_level(logging.INFO)
    for _ in range(50):
        ask("/predict?status=400", "POST")
    assert len(counted) == 50
    assert len(lines(caplog)) == 20
    now[0] += 1
    ask("/predict?status=400", "POST")
    assert "30 more requests failed" in caplog.text
    assert len(lines(caplog)) == 21


def test_paths_cannot_break_a_line(ask, caplog):
    caplog.set_level(logging.INFO)
    ask("/a%0Ab%1b[31m?status=400")
    assert "\n" not in caplog.messages[0]
    assert "\x1b" not in caplog.messages[0]
