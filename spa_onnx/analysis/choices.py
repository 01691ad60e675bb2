"""Choices: exactly one of several couplings holds, and this module decides which one.

An option that would leave no channel to remove is dropped. If pins leave one option, that one holds. Then the choices
around the heads of attention are settled, starting at the products of activations. All others take their first option.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import replace

from spa_onnx.analysis.network import Network
from spa_onnx.model.facts import Choice, Coupling, Option, Pin


def settle(network: Network, attention: str) -> None:
    """Settle every choice of the network. attention: `heads`, `width` or `none`, see `analyse`."""
    _Settlement(network, attention).run()


class _Settlement:
    """The open choices, numbered in graph order, and the classes that they touch."""

    def __init__(self, network: Network, attention: str) -> None:
        self._network = network
        self._attention = attention
        self._open: dict[int, Choice] = dict(enumerate(network.choices))
        self._at: dict[int, list[int]] = defaultdict(list)
        for number, choice in self._open.items():
            for found in {network.of[axis] for axis in choice.axes()}:
                self._at[found].append(number)

    def run(self) -> None:
        """Settle forced choices first, then those of attention, then the others in graph order."""
        if self._attention != "heads":
            axes = [self._network.classes[number].axes[0] for number in sorted(self._network.batches)]
            self._network.hold([Pin(axis, f"kept by --attention {self._attention}") for axis in axes])
        self._force(deque(self._open))
        self._settle_heads()
        for number in list(self._open):
            if number in self._open:
                alive = self._alive(self._open[number])
                self._take(
                    number, next((option for option in alive if self._continues(option)), alive[0] if alive else None)
                )

    def _force(self, waiting: deque[int]) -> None:
        """Settle the choices with at most one option left, and those that this leaves with one."""
        while waiting:
            number = waiting.popleft()
            if number in self._open:
                alive = self._alive(self._open[number])
                if len(alive) <= 1:
                    waiting.extend(self._hold(number, alive[0] if alive else None))

    def _settle_heads(self) -> None:
        """Settle choices that touch the batch axis of a product of activations, then those that touch its heads."""
        heads = set(self._network.batches)
        waiting = deque(sorted({number for found in heads for number in self._at[found]}))
        while waiting:
            number = waiting.popleft()
            if number not in self._open:
                continue
            option = self._preferred(self._open[number], heads)
            self._take(number, option)
            if option is not None and self._attention == "heads":
                new = {found for found in self._touched(option) if found not in heads}
                heads |= new
                waiting.extend(sorted({other for found in new for other in self._at[found]}))

    def _preferred(self, choice: Choice, heads: set[int]) -> Option | None:
        """Return the option to take for a choice around attention; None if no option is left."""
        alive = self._alive(choice)
        return next((option for option in alive if self._touched(option) & heads), alive[0] if alive else None)

    def _take(self, number: int, option: Option | None) -> None:
        """Let an option hold, then settle the choices that this forces."""
        self._force(deque(self._hold(number, option)))

    def _hold(self, number: int, option: Option | None) -> list[int]:
        """Let an option hold and return the choices to look at again.

        Without an option, every axis of the choice is pinned.
        """
        choice = self._open.pop(number)
        facts: tuple[Coupling | Pin, ...] = () if option is None else option.facts
        if option is None:
            cause = self._cause(choice)
            facts = tuple(replace(cause, axis=axis) for axis in sorted(set(choice.axes())))
        return sorted(
            {other for found in self._network.hold(facts) for other in self._at[found] if other in self._open}
        )

    def _cause(self, choice: Choice) -> Pin:
        """Return why no option is left: the pin that stops the option for heads, or else the first known pin."""
        nowhere = choice.axes()[0]
        if not self._allowed(choice):
            return Pin(nowhere, f"kept by --attention {self._attention}", choice.node)
        options = sorted(choice.options, key=lambda option: not self._touched(option) & self._network.batches)
        ties = (fact for option in options for fact in option.facts if isinstance(fact, Coupling))
        causes = (self._network.cause(axis) for tie in ties for axis in tie.axes())
        return next(
            (pin for pin in causes if pin), Pin(nowhere, "no way to cut it on both sides of a node", choice.node)
        )

    def _continues(self, option: Option) -> bool:
        """Return whether an axis would lose the channels that another node removes from it already.

        Two different ways to cut an axis would leave only the coarsest cut of both.
        """
        ends = [end for fact in option.facts if isinstance(fact, Coupling) for end in (fact.a, fact.b)]
        return any(self._network.is_cut(end) for end in ends if not end.is_whole(end.count))

    def _touched(self, option: Option) -> set[int]:
        """Return the classes that an option touches."""
        return {self._network.of[axis] for fact in option.facts if isinstance(fact, Coupling) for axis in fact.axes()}

    def _alive(self, choice: Choice) -> list[Option]:
        """Return the options under which channels can still be removed."""
        return [option for option in self._allowed(choice) if self._free_channels(option) > 0]

    def _allowed(self, choice: Choice) -> list[Option]:
        """Return the options that the settings allow: with `attention="none"`, none that concerns heads."""
        touched = {self._network.of[axis] for axis in choice.axes()}
        return [] if self._attention == "none" and touched & self._network.batches else list(choice.options)

    def _free_channels(self, option: Option) -> int:
        """Return how many channels could be removed if the option held and its couplings carried the pins on."""
        network = self._network
        ties = [fact for fact in option.facts if isinstance(fact, Coupling)]
        pinned = {network.of[axis]: network.pinned(axis).copy() for tie in ties for axis in tie.axes()}
        free = 0
        for _ in ties:
            free = 0
            for tie in ties:
                a, b, left, right = (
                    pinned[network.of[tie.a.axis]],
                    pinned[network.of[tie.b.axis]],
                    tie.a.indices(),
                    tie.b.indices(),
                )
                hit = a[left].any(axis=1) | b[right].any(axis=1)
                a[left[hit]], b[right[hit]] = True, True
                free += int((~hit).sum()) if tie.a.count > 1 else 0
        return free
