"""Sentences that a causal language model generates: each token is drawn from the prediction at the position before.

The samples then resemble the training data (Liu et al., LLM-QAT: data-free quantization aware training for large
language models, 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spa_onnx.execution.session import Feed, open_session
from spa_onnx.model.folding import Array
from spa_onnx.model.model import Model, feeds
from spa_onnx.operators.macs import macs
from spa_onnx.synthetic.tokens import table_rows

LENGTH = 48
"""The number of tokens of a sentence if the model leaves it free."""

SENTENCE_MACS = 2500 * 10**9
"""The maximum number of multiply-accumulates for all sentences together."""

FEWEST_SENTENCES = 16
"""A model that cannot generate this number of sentences within SENTENCE_MACS generates none."""


@dataclass(frozen=True, slots=True)
class CausalLanguageModel:
    """The input of tokens and the output of predictions of a causal language model.

    Args:
        ids: The input of token ids, (samples, positions).
        scores: The output with a score for every token, (samples, positions, tokens).
        free: The symbolic dimension that counts positions; empty if their number is fixed.
        length: The number of positions of a sentence.
        cost: The multiply-accumulates of a sentence.
    """

    ids: str
    scores: str
    free: str
    length: int
    cost: float

    def sentence_dims(self, dims: Mapping[str, int]) -> dict[str, int]:
        """Return the sizes of symbolic dimensions for sentences of `length` positions."""
        return {**dims, self.free: self.length} if self.free else dict(dims)


def causal_language_model(model: Model) -> CausalLanguageModel | None:
    """Return the description of a model that can generate sentences; None for other models.

    Such a model looks tokens up in a table, and has a score for each row of the table at every position. It can
    generate FEWEST_SENTENCES within SENTENCE_MACS.
    """
    for value in feeds(model.proto.graph):
        name, shape, tokens = value.name, model.shape(value.name) or (), table_rows(model, value.name)
        scores = next((output for output in model.outputs if model.shape(output) == (*shape, tokens)), None)
        if len(shape) != 2 or tokens < 2 or scores is None:
            continue
        dim = value.type.tensor_type.shape.dim[1]
        free = "" if dim.dim_value > 0 else dim.dim_param or f"{name}:1"
        length = LENGTH if free else shape[1]
        batch = 1 if value.type.tensor_type.shape.dim[0].dim_value < 1 else shape[0]
        language_model = CausalLanguageModel(
            name, scores, free, length, macs(model) / batch / shape[1] * length**2 / (2 if free else 1)
        )
        return language_model if FEWEST_SENTENCES * language_model.cost <= SENTENCE_MACS else None
    return None


class SentenceGenerator:
    """A causal language model in a session.

    Raises:
        RefusedError: onnxruntime does not run the model.
    """

    def __init__(self, model: Model, language_model: CausalLanguageModel) -> None:
        self._language_model = language_model
        self._session = open_session(model.proto, optimise=True)

    def looks_ahead(self, feed: Feed) -> bool:
        """Return whether the prediction at the first position depends on the last token: such a model is not causal."""
        ids = feed[self._language_model.ids]
        changed = ids.copy()
        changed[:, -1] = np.where(ids[:, -1] == 0, 1, 0)
        first, second = (self._scores({**feed, self._language_model.ids: tokens})[:, 0] for tokens in (ids, changed))
        return not np.allclose(first, second, rtol=1e-4, atol=1e-5)

    def sentences(self, feed: Feed, rng: np.random.Generator) -> Feed:
        """Return the feed with sentences: all tokens after the first are drawn from the predictions."""
        ids = feed[self._language_model.ids].copy()
        for position in range(1, ids.shape[1]):
            prompt = {**feed, self._language_model.ids: ids}
            if self._language_model.free:  # a causal prediction does not depend on later positions
                prompt = {
                    name: array[:, :position] if array.shape == ids.shape else array for name, array in prompt.items()
                }
            scores = self._scores(prompt)[:, position - 1].astype(np.float64)
            # the largest score plus Gumbel noise is a draw from the softmax of the scores
            gumbel = -np.log(-np.log(rng.uniform(1e-12, 1 - 1e-12, scores.shape)))
            ids[:, position] = (scores + gumbel).argmax(axis=1)
        return {**feed, self._language_model.ids: ids}

    def _scores(self, feed: Feed) -> Array:
        """Return the scores of a feed."""
        return self._session.run(feed, [self._language_model.scores])[0]


def generate_sentences(
    model: Model, language_model: CausalLanguageModel, drawn: Sequence[Feed], seed: int
) -> list[Feed] | None:
    """Generate sentences for as many of the drawn feeds as SENTENCE_MACS allows, at least one.

    Args:
        model: The model.
        language_model: Its description.
        drawn: Feeds with the first token of each sentence.
        seed: The seed.

    Returns:
        The sentences, or None if the model looks ahead.

    Raises:
        RefusedError: onnxruntime does not run the model with sentences of that length.
    """
    generator = SentenceGenerator(model, language_model)
    if generator.looks_ahead(drawn[0]):
        return None
    rng = np.random.default_rng(seed)
    count = max(int(SENTENCE_MACS // (language_model.cost * len(drawn[0][language_model.ids]))), 1)
    return [generator.sentences(feed, rng) for feed in drawn[:count]]
