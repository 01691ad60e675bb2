"""Common divisors of sizes, for grouped operators."""

from __future__ import annotations


def divisors(*numbers: int) -> list[int]:
    return [d for d in range(2, min(numbers) + 1) if all(number % d == 0 for number in numbers)]
