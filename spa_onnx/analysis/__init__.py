"""Facts -> groups: axes in networkx, channels inside each component with arrays.

Axes whose indices correspond one to one form a *class* and share their arrays (network). Couplings between classes (a
Flatten, a Concat, a grouped convolution) are edges. Pins travel along edges; choices are settled when all pins are
known (choices); then the connected indices of every component are its channels (channels).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from spa_onnx.analysis.channels import groups
from spa_onnx.analysis.choices import settle
from spa_onnx.analysis.demands import all_facts
from spa_onnx.analysis.groups import Analysis
from spa_onnx.analysis.network import Network
from spa_onnx.analysis.shuffle import chains
from spa_onnx.model.model import Model

ATTENTION = ("heads", "width", "none")
"""What attention may lose: whole heads (a key-value head with its query heads), indices inside each head, or nothing.
"""


def analyse(
    model: Model, exclude: Sequence[re.Pattern[str]] = (), *, inexact: bool = False, attention: str = "heads"
) -> Analysis:
    """Find the channels that are removed together, and those that cannot be removed.

    Args:
        model: The model.
        exclude: Nodes and tensors whose name matches a pattern keep all their channels.
        inexact: Whether channels may be removed from axes that a norm or mean runs over, which changes the statistic.
        attention: A name of ATTENTION.
    """
    reorderings = chains(model)
    network = Network(model, all_facts(model, reorderings, exclude), inexact=inexact)
    settle(network, attention)
    return Analysis(model, tuple(groups(network)), network.graph, tuple(reorderings), network.statistics)


__all__ = ["ATTENTION", "analyse"]
