"""The messages of the Open Inference Protocol: from bytes to tensors and back, without a server."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restnet_runtime.errors import RequestError
from restnet_runtime.v2_request import InferRequest, InputTensor, WantedOutput, parse_header_length, parse_request
from restnet_runtime.v2_response import write_response
from restnet_runtime.v2_tensors import DTYPES, OutputTensor, read_numbers, read_strings, write_binary


def body(*inputs: dict, **more: object) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def entry(**changes: object) -> dict:
    return {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4], **changes}


def sized(size: object, **changes: object) -> dict:
    tensor = entry(parameters={"binary_data_size": size}, **changes)
    del tensor["data"]
    return tensor


def with_binary(binary: bytes, *inputs: dict, **more: object) -> tuple[bytes, int]:
    head = body(*inputs, **more)
    return head + binary, len(head)


def tensor(data: object = None, raw: bytes | None = None, datatype: str = "FP32", shape: tuple[int, ...] = (2, 2)) -> InputTensor:
    return InputTensor("x", datatype, shape, data, None if raw is None else memoryview(raw))


def test_a_whole_request() -> None:
    request = parse_request(
        body(entry(), id="42", parameters={"budget": "30ms"}, outputs=[{"name": "y", "parameters": {"classification": 3}}]), None
    )
    x = InputTensor("x", "FP32", (2, 2), [1, 2, 3, 4], None)
    assert request == InferRequest("42", {"budget": "30ms"}, (x,), (WantedOutput("y", False, 3),), False)


def test_binary_data_belong_to_the_inputs_in_order_and_are_not_copied() -> None:
    whole, length = with_binary(b"abcdefgh12", sized(8, name="a"), entry(name="j"), sized(2, name="b"))
    a, j, b = parse_request(whole, length).inputs
    assert (a.raw, j.raw, b.raw) == (b"abcdefgh", None, b"12")
    assert a.raw is not None
    assert a.raw.obj is whole


def test_outputs_are_binary_where_the_request_says_so_and_they_do_not_say_otherwise() -> None:
    outputs = [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}, {"name": "c", "parameters": {"binary_data": True}}]
    for default, expected in ((True, [True, False, True]), (False, [False, False, True])):
        request = parse_request(body(entry(), outputs=outputs, parameters={"binary_data_output": default}), None)
        assert request.outputs is not None
        assert [output.binary for output in request.outputs] == expected
        assert request.binary is default


def test_nothing_named_means_all() -> None:
    assert parse_request(body(entry()), None).outputs is None
    assert parse_request(body(entry(), outputs=[]), None).outputs is None


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"", "the body is empty"),
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b'{"inputs": [NaN]}', "cannot be read as JSON"),
        (b'{"inputs": [Infinity]}', "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "cannot be read as JSON"),
        (b'{"id": "\\ud800"}', "cannot be read as JSON"),
        (b"[]", r"the request is \[\]: give an object"),
        (b"null", "the request is None"),
        (b'{"inputs": {}}', "the request has inputs {}"),
        (b'{"inputs": [1]}', "input 0 is 1"),
        (body(entry(), id=7), "id 7: give a string"),
        (body(entry(), parameters=[1]), "parameters"),
        (body(entry(), outputs={}), "outputs"),
        (body(entry(), outputs=["y"]), "output 0 is 'y'"),
        (body(entry(), outputs=[{}]), "output 0 has name None"),
        (body(entry(), outputs=[{"name": "y", "parameters": {"binary_data": 1}}]), "binary_data 1: give true or false"),
        (body(entry(), outputs=[{"name": "y", "parameters": {"classification": -1}}]), "classification -1"),
        (body(entry(), outputs=[{"name": "y", "parameters": {"shared_memory_region": "r"}}]), "shared memory"),
        (body(entry(parameters={"shared_memory_region": "r"})), "shared memory"),
        (body(entry(name=None)), "name None"),
        (body(entry(datatype=4)), "datatype 4"),
        (body(entry(shape=None)), "shape None"),
        (body(entry(shape=[1] * 9)), "up to 8 whole numbers"),
        (body(entry(shape=[-1, 4])), "-1 in its shape"),
        (body(entry(shape=[2.0, 2])), "2.0 in its shape"),
        (body(entry(shape=[True, 4])), "True in its shape"),
        (body(entry(shape=[2**31, 2**31])), "2147483648 in its shape"),
        (body(entry(shape=[10**4000])), "in its shape"),
        (body(entry(data=None)), "has no data"),
        (body(entry(data="AAAA")), "has no data"),
        (body(entry(parameters={"binary_data_size": 16})), "both data and binary_data_size"),
        (body(sized(16)), "Inference-Header-Content-Length is missing"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_refused(sent: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_request(sent, None)


@pytest.mark.parametrize(
    ("binary", "inputs", "message"),
    [
        (b"1234", [sized(5)], "binary_data_size 5, and 4 bytes are left"),
        (b"1234", [sized(3), sized(2)], "input 1 has binary_data_size 2, and 1 bytes are left"),
        (b"1234", [sized(3)], "4 bytes follow the JSON, and the inputs account for 3"),
        (b"1234", [entry()], "account for 0"),
        (b"1234", [], "account for 0"),
        (b"1234", [sized(-4)], "binary_data_size -4"),
        (b"1234", [sized(4.0)], "binary_data_size 4.0"),
        (b"1234", [sized(True)], "binary_data_size True"),
        (b"1234", [sized("4")], "binary_data_size '4'"),
        (b"1234", [sized(10**4000)], "binary_data_size"),
    ],
)
def test_binary_data_that_do_not_add_up(binary: bytes, inputs: list[dict], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_request(*with_binary(binary, *inputs))


@pytest.mark.parametrize(("text", "expected"), [(None, None), ("0", 0), ("10", 10), ("007", 7)])
def test_header_length(text: str | None, expected: int | None) -> None:
    assert parse_header_length(text, 10) == expected


@pytest.mark.parametrize("text", ["11", "-1", "1.0", "", " 1", "\u0661", "9" * 19, "0x1"])
def test_header_lengths_that_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="Inference-Header-Content-Length"):
        parse_header_length(text, 10)


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]], [1.0, 2, 3, 4.0]], ids=["flat", "nested", "mixed"])
@pytest.mark.parametrize("datatype", ["FP32", "UINT8"])
def test_numbers_in_json(data: list, datatype: str) -> None:
    if datatype == "UINT8" and any(isinstance(one, float) for one in data):
        with pytest.raises(RequestError, match="other data than UINT8"):
            read_numbers(tensor(data, datatype=datatype))
        return
    values = read_numbers(tensor(data, datatype=datatype))
    assert values.dtype == DTYPES[datatype]
    np.testing.assert_array_equal(values, [[1, 2], [3, 4]])


def test_binary_numbers_are_a_view() -> None:
    raw = np.arange(4, dtype="<f4").tobytes()
    values = read_numbers(tensor(raw=raw))
    np.testing.assert_array_equal(values, [[0, 1], [2, 3]])
    assert np.shares_memory(values, np.frombuffer(raw, "<f4"))


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (tensor([1, 2, 3]), "takes 4 elements; it has 3"),
        (tensor([1, 2, 3, 4, 5]), "takes 4 elements; it has more"),
        (tensor([[1, 2, 3, 4]]), r"data of shape \[1, 4\]"),
        (tensor([[1, 2], [3]]), "no array of numbers"),
        (tensor(["1", "2", "3", "4"]), "other data than FP32"),
        (tensor([True, False, True, True]), "other data than FP32"),
        (tensor([None] * 4), "other data than FP32"),
        (tensor([{}] * 4), "other data than FP32"),
        (tensor([2**70] * 4), "other data than FP32"),
        (tensor([1, 2, 3, 256], datatype="UINT8"), "outside 0 to 255"),
        (tensor([1, 2, 3, -1], datatype="UINT8"), "outside 0 to 255"),
        (tensor(raw=bytes(15)), "takes 16 bytes; it has 15"),
        (tensor(raw=bytes(20)), "takes 16 bytes; it has 20"),
        (tensor(raw=bytes(16), shape=(2**31 - 1,) * 8), "takes 18"),
        (tensor([], shape=(2**31 - 1,) * 8), "it has 0"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_numbers_that_are_refused(sent: InputTensor, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_numbers(sent)


def packed(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(one)) + one for one in elements)


def test_strings() -> None:
    assert read_strings(tensor(raw=packed(b"ab", b""), datatype="BYTES", shape=(2,))) == [b"ab", b""]
    assert read_strings(tensor(["ab", ""], datatype="BYTES", shape=(2,))) == ["ab", ""]
    assert read_strings(tensor([["ab"], [""]], datatype="BYTES", shape=(2, 1))) == ["ab", ""]


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (tensor(raw=packed(b"ab")[:3], shape=(1,)), "in the middle of a length"),
        (tensor(raw=packed(b"ab")[:-1], shape=(1,)), "an element of 2 bytes, and 1 are left"),
        (tensor(raw=b"\xff\xff\xff\xff", shape=(1,)), "an element of 4294967295 bytes"),
        (tensor(raw=packed(b"a", b"b"), shape=(1,)), "takes 1 elements; it has more"),
        (tensor(raw=packed(b"a"), shape=(2,)), "takes 2 elements; it has 1"),
        (tensor(raw=bytes(4_000_000), shape=(1,)), "it has more"),
        (tensor([1], shape=(1,)), "no strings"),
        (tensor([["a", "b"]], shape=(1,)), "it has more"),
        (tensor([[["a"]]], shape=(1,)), "no strings"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_strings_that_are_refused(sent: InputTensor, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_strings(sent)


def test_a_response_in_both_forms() -> None:
    numbers = OutputTensor("y", (1, 2), np.array([[1.5, -2]], np.float32))
    texts = OutputTensor("class", (2,), ["one", "zw\u00f6lf"])
    plain = write_response("m", "1", "7", {"route": "r"}, [(numbers, False), (texts, False)])
    assert plain.header_length is None
    assert json.loads(plain.body) == {
        "model_name": "m",
        "model_version": "1",
        "id": "7",
        "parameters": {"route": "r"},
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2.0]},
            {"name": "class", "datatype": "BYTES", "shape": [2], "data": ["one", "zw\u00f6lf"]},
        ],
    }
    both = write_response("m", "1", None, {}, [(numbers, True), (texts, True)])
    assert both.header_length is not None
    head = json.loads(both.body[: both.header_length])
    assert "id" not in head
    assert [output["parameters"]["binary_data_size"] for output in head["outputs"]] == [8, 17]
    assert both.body[both.header_length :] == struct.pack("<ff", 1.5, -2) + packed(b"one", "zw\u00f6lf".encode())
    assert read_strings(tensor(raw=write_binary(texts), shape=(2,))) == [b"one", "zw\u00f6lf".encode()]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", ""]) | JSON,
        "datatype": st.sampled_from(["FP32", "UINT8", "BYTES"]) | JSON,
        "shape": st.lists(st.integers(-2, 5), max_size=4) | JSON,
        "data": JSON,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-3, 40) | JSON}) | JSON,
    },
)
REQUEST = st.fixed_dictionaries({"inputs": st.lists(TENSOR, max_size=3) | JSON}, optional={"outputs": JSON, "id": JSON, "parameters": JSON})


@pytest.mark.untraced
@settings(max_examples=400, deadline=None)
@given(REQUEST, st.binary(max_size=60), st.integers(-10, 10), st.booleans())
def test_whatever_comes_is_read_or_refused(document: object, binary: bytes, off: int, whole: bool) -> None:
    head = json.dumps(document).encode()
    sent = head + binary
    try:
        request = parse_request(sent, None if whole else parse_header_length(str(len(head) + off), len(sent)))
        for one in request.inputs:
            values = read_numbers(one) if one.datatype in DTYPES else read_strings(one)
            assert (values.size if isinstance(values, np.ndarray) else len(values)) == one.count
    except RequestError:
        pass
