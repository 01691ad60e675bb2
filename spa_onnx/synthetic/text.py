"""Sentences that a language model makes up itself: each token drawn from what the model predicts after those before it.

So the model tells what it was trained on (Liu et al., LLM-QAT: data-free quantization aware training for large language models, 2023).
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
"""Tokens of a sentence, where the model leaves that free."""

SENTENCE_MACS = 2500 * 10**9
"""Multiply-accumulates that sentences may cost together; a model that could make fewer than FEWEST_SENTENCES for it does not speak."""

FEWEST_SENTENCES = 16


@dataclass(frozen=True, slots=True)
class CausalLanguageModel:
    """ids: the input of token ids, (samples, positions). scores: the output with a score for every token, (samples, positions, tokens).

    free: the symbolic dimension that counts positions, if there is one. length: positions of a sentence. cost: multiply-accumulates of one.
    """

    ids: str
    scores: str
    free: str
    length: int
    cost: float

    def longer(self, dims: Mapping[str, int]) -> dict[str, int]:
        """The sizes of symbolic dimensions, with as many positions as a sentence has."""
        return {**dims, self.free: self.length} if self.free else dict(dims)


def causal_language_model(model: Model) -> CausalLanguageModel | None:
    """A model that looks tokens up in a table, has a score for each of its rows at every position, and makes enough sentences for SENTENCE_MACS."""
    for value in feeds(model.proto.graph):
        name, shape, tokens = value.name, model.shape(value.name) or (), table_rows(model, value.name)
        scores = next((output for output in model.outputs if model.shape(output) == (*shape, tokens)), None)
        if len(shape) != 2 or tokens < 2 or scores is None:
            continue
        dim = value.type.tensor_type.shape.dim[1]
        free = "" if dim.dim_value > 0 else dim.dim_param or f"{name}:1"
        length = LENGTH if free else shape[1]
        batch = 1 if value.type.tensor_type.shape.dim[0].dim_value < 1 else shape[0]
        found = CausalLanguageModel(
            name, scores, free, length, macs(model) / batch / shape[1] * length**2 / (2 if free else 1)
        )
        return found if FEWEST_SENTENCES * found.cost <= SENTENCE_MACS else None
    return None


class SentenceGenerator:
    """The model in a session. Raises RefusedError where onnxruntime does not run it."""

    def __init__(self, model: Model, language_model: CausalLanguageModel) -> None:
        self._language_model = language_model
        self._session = open_session(model.proto, optimise=True)

    def looks_ahead(self, feed: Feed) -> bool:
        """Whether what is predicted at the first position depends on the last token: such a model fills gaps and does not speak."""
        ids = feed[self._language_model.ids]
        changed = ids.copy()
        changed[:, -1] = np.where(ids[:, -1] == 0, 1, 0)
        first, second = (self._scores({**feed, self._language_model.ids: tokens})[:, 0] for tokens in (ids, changed))
        return not np.allclose(first, second, rtol=1e-4, atol=1e-5)

    def sentences(self, feed: Feed, rng: np.random.Generator) -> Feed:
        """The feed with all tokens but the first of each sample drawn from the predictions."""
        ids = feed[self._language_model.ids].copy()
        for position in range(1, ids.shape[1]):
            prompt = {**feed, self._language_model.ids: ids}
            if self._language_model.free:  # what comes later need not be computed
                prompt = {
                    name: array[:, :position] if array.shape == ids.shape else array for name, array in prompt.items()
                }
            scores = self._scores(prompt)[:, position - 1].astype(np.float64)
            gumbel = -np.log(
                -np.log(rng.uniform(1e-12, 1 - 1e-12, scores.shape))
            )  # the largest of scores with such noise: softmax
            ids[:, position] = (scores + gumbel).argmax(axis=1)
        return {**feed, self._language_model.ids: ids}

    def _scores(self, feed: Feed) -> Array:
        return self._session.run(feed, [self._language_model.scores])[0]


def generate_sentences(
    model: Model, language_model: CausalLanguageModel, drawn: Sequence[Feed], seed: int
) -> list[Feed] | None:
    """Sentences for drawn feeds, as many of these as SENTENCE_MACS allows; None where the model looks ahead.

    Raises RefusedError where onnxruntime does not run the model with sentences of that length.
    """
    generator = SentenceGenerator(model, language_model)
    if generator.looks_ahead(drawn[0]):
        return None
    rng = np.random.default_rng(seed)
    count = max(int(SENTENCE_MACS // (language_model.cost * len(drawn[0][language_model.ids]))), 1)
    return [generator.sentences(feed, rng) for feed in drawn[:count]]
