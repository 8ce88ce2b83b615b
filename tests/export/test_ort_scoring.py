"""What networks answer and score in ONNX Runtime."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from restnet_export import ort_scoring

RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 3, 4, 4)).astype(np.float32)


@pytest.fixture
def head(graphs) -> onnx.ModelProto:
    return graphs.head("h", RNG.standard_normal((5, 3)), np.zeros(5), 4)


def test_scores_are_those_of_the_answers(graphs, head: onnx.ModelProto) -> None:
    """Whatever the batches are, and two networks at once."""
    labels = graphs.run(head, X).argmax(1)
    labels[:5] = (labels[:5] + 1) % 5
    other = graphs.head("o", np.eye(5)[:, :3], np.zeros(5), 4)

    def batches():  # type: ignore[no-untyped-def]
        return ((X[start : start + 17], labels[start : start + 17]) for start in range(0, 20, 17))

    found = ort_scoring.score_networks([lambda: head, lambda: other], batches)
    assert found == [0.75, float((graphs.run(other, X).argmax(1) == labels).mean())]
    assert np.allclose(ort_scoring.answers(lambda: head, X), graphs.run(head, X), atol=1e-6)


def test_products_are_as_exact_as_on_a_device(head: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """On x86 without dot products int8 saturates unless a session asks otherwise: choices and scores would come of wrong answers."""
    made = []

    class Session(ort.InferenceSession):  # the real one, seen from outside
        def __init__(self, model: bytes, options: ort.SessionOptions, **more: object) -> None:
            made.append(options)
            super().__init__(model, options, **more)

    monkeypatch.setattr(ort_scoring.ort, "InferenceSession", Session)
    monkeypatch.setattr(ort_scoring, "exact_products", lambda: {"session.x64quantprecision": "1"})
    ort_scoring.answers(lambda: head, X[:1])
    assert [options.get_session_config_entry("session.x64quantprecision") for options in made] == ["1"]


def test_latencies_are_of_runs_in_turns(graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disturbance that lasts for a third of the rounds falls upon all networks alike, and moves no median."""
    now, order = 0.0, []

    def clock() -> float:
        return now

    run = ort_scoring._run

    def slow(session: ort.InferenceSession, images: np.ndarray) -> np.ndarray:  # the real one, on a clock of its own
        nonlocal now
        classes = session.get_outputs()[0].shape[1]
        order.append(classes)
        now += classes * 1e-3 * (20 if 8 <= len(order) < 14 else 1)
        return run(session, images)

    monkeypatch.setattr(ort_scoring, "_run", slow)
    monkeypatch.setattr(ort_scoring.time, "perf_counter", clock)
    monkeypatch.setattr(ort_scoring, "_ROUNDS_S", 0.0)
    heads = [graphs.head("h", np.ones((classes, 3)), np.zeros(classes), 4) for classes in (4, 5)]
    assert ort_scoring.latencies_ms([lambda: heads[0], lambda: heads[1]], (3, 4, 4)) == pytest.approx([4.0, 5.0])
    assert order[:6] == [4, 5, 4, 5, 5, 4], "warmed up, then forwards and backwards"
