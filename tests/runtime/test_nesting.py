"""JSON whose lists would take many times the memory of its text."""

import json
import tracemalloc

import numpy as np
import pytest

from restnet_runtime.bodies import PredictRequest, read_json
from restnet_runtime.errors import InputError
from restnet_runtime.nesting import MOST_PARTS, check_nesting

EMPTY = b",".join([b"[]"] * (MOST_PARTS + 1))


def test_as_many_as_may_be_and_one_more():
    check_nesting(EMPTY[3:])
    with pytest.raises(InputError, match="has 500001 arrays and objects; the limit is 500000"):
        check_nesting(EMPTY)


def test_they_are_counted_before_they_take_memory():
    body = b'{"inputs": [' + EMPTY + b"]}"
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="arrays and objects"):
            read_json(PredictRequest, body)
        assert tracemalloc.get_traced_memory()[1] < len(body)
    finally:
        tracemalloc.stop()


def test_the_largest_batch_of_large_images_is_within():
    body = json.dumps(np.zeros((1, 1024, 1)).tolist())
    assert 64 * 3 * body.count("[") < MOST_PARTS


def test_on_every_path_that_takes_json(family_bundle, cache_root, serve):
    with serve(family_bundle, cache_root) as server:
        for path, key, status in (
            ("/predict", b"inputs", 422),
            ("/v2/models/shapes/infer", b"inputs", 400),
            ("/v2/repository/index", b"ready", 400),
        ):
            body = b'{"%s": [%s]}' % (key, EMPTY)
            answer = server.client.post(path, content=body, headers={"Content-Type": "application/json"})
            assert (answer.status_code, "arrays and objects" in answer.json()["error"]) == (status, True), answer.text[:200]
        for path in ("/budget", "/pin"):
            assert server.client.put(path, content=EMPTY).status_code == 422
