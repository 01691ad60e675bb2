"""A language model tells what it was trained on."""

from __future__ import annotations

import numpy as np
import pytest
from nets.build import net
from onnx import numpy_helper

from spa_onnx.model.model import Model
from spa_onnx.synthetic import text as sentences
from spa_onnx.synthetic.generate import generate_samples
from spa_onnx.synthetic.text import LENGTH, causal_language_model
from spa_onnx.synthetic.working import WorkingInputs

TOKENS = 11


def model_of(nodes: str = "y = MatMul(a, w)", shape: str = "N,L", tokens: int = TOKENS, weights: str = "") -> Model:
    """After each token it predicts the next number, with next to no doubt."""
    proto = net(
        f"int64[{shape}] ids, int64[{shape}] attention_mask",
        f"float[{TOKENS},{TOKENS}] table, float[{TOKENS},{tokens}] w, int64[1] first = {{1}}, "
        f"int64[1] last = {{2}}{weights}",
        f"h = Gather(table, ids) m = Cast<to=1>(attention_mask) u = Unsqueeze(m, last) a = Mul(h, u) {nodes}",
        f"float[{shape},{tokens}] y",
    )()
    values = {"table": np.eye(TOKENS), "w": 40 * np.roll(np.eye(TOKENS), 1, axis=1)[:, :tokens]}
    for tensor in proto.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name].astype(np.float32), tensor.name))
    return Model.of(proto, {"L": 5} if "L" in shape else None)


@pytest.mark.parametrize(("shape", "length"), [("N,L", LENGTH), ("N,7", 7), ("2,7", 7), ("2,L", LENGTH)])
def test_each_token_is_what_the_model_expects_after_the_one_before(shape, length):
    made = generate_samples(model_of(shape=shape), WorkingInputs({"N": 3, "L": 5}), 20, 8, 0)
    assert not made.uncertain
    ids = np.concatenate([feed["ids"] for feed in made.feeds])
    assert ids.shape[1] == length
    assert len(ids) >= 20
    assert (np.diff(ids, axis=1) % TOKENS == 1).all()
    assert len(set(ids[:, 0].tolist())) > 3
    assert all((feed["attention_mask"] == 1).all() for feed in made.feeds)


def test_tokens_are_drawn_as_often_as_predicted():
    model = model_of(
        "c = Mul(a, a) s = Sub(c, c) y = MatMul(s, w)"
    )  # all scores are zero: any token is as likely as another
    counts = np.bincount(
        np.concatenate(
            [feed["ids"] for feed in generate_samples(model, WorkingInputs({"N": 1, "L": 5}), 200, 50, 0).feeds]
        ).ravel()
    )
    assert counts.min() > 0.85 * counts.mean()
    assert counts.max() < 1.15 * counts.mean()


def test_a_model_that_looks_ahead_is_given_drawn_tokens():
    model = model_of("t = ReduceSum(a, first) b = Add(a, t) y = MatMul(b, w)")
    assert causal_language_model(model) is not None
    made = generate_samples(model, WorkingInputs({"N": 1, "L": 5}), 20, 8, 0)
    assert made.uncertain
    assert made.feeds[0]["ids"].shape == (8, 5)


def test_scores_for_other_things_than_tokens_are_no_speech():
    assert causal_language_model(model_of(tokens=TOKENS - 1)) is None


def test_a_model_that_costs_too_much_does_not_speak(monkeypatch):
    language_model = causal_language_model(model_of())
    assert language_model is not None
    monkeypatch.setattr(sentences, "SENTENCE_MACS", language_model.cost * 20)
    assert (
        sum(len(feed["ids"]) for feed in generate_samples(model_of(), WorkingInputs({"N": 1, "L": 5}), 100, 8, 0).feeds)
        == 16
    )
    monkeypatch.setattr(sentences, "SENTENCE_MACS", language_model.cost * 15)
    assert causal_language_model(model_of()) is None


def test_where_the_model_does_not_run_with_sentences_of_that_length_tokens_are_drawn():
    model = model_of("k = Add(a, places) y = MatMul(k, w)", weights=f", float[5,{TOKENS}] places")
    assert causal_language_model(model) is not None
    made = generate_samples(model, WorkingInputs({"N": 1, "L": 5}), 20, 8, 0)
    assert made.uncertain
    assert made.feeds[0]["ids"].shape == (8, 5)
