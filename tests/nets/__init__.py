"""One tiny net or several for every operator that has a coupling rule: `NETS[name]()` makes the model."""

from nets import (
    convolution,
    elementwise,
    indexing,
    linear,
    quantised,
    recurrent,
    reshaping,
    shuffle,
    signal,
    storage,
    subgraphs,
    transformer,
)
from nets.build import Build

FAMILIES: dict[str, dict[str, Build]] = {
    family.__name__.rsplit(".", maxsplit=1)[-1]: family.NETS
    for family in (
        subgraphs,
        convolution,
        elementwise,
        indexing,
        reshaping,
        linear,
        quantised,
        recurrent,
        shuffle,
        signal,
        storage,
        transformer,
    )
}

NETS: dict[str, Build] = {name: build for nets in FAMILIES.values() for name, build in nets.items()}

__all__ = ["FAMILIES", "NETS"]
