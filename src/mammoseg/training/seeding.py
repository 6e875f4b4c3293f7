"""Random numbers as pure functions of (seed, step, rank), so that a killed and resumed run draws what a whole one draws."""

from __future__ import annotations

import random

import numpy as np
import torch


def generator(*keys: int) -> np.random.Generator:
    """A numpy generator that depends on `keys` (non-negative integers) alone.

    >>> float(generator(1, 2).random()) == float(generator(1, 2).random()) != float(generator(2, 1).random())
    True
    """
    return np.random.default_rng(np.random.SeedSequence([int(k) for k in keys]))


def seed_all(*keys: int) -> None:
    """Seeds Python's, numpy's and torch's global generators from `keys`."""
    state = np.random.SeedSequence([int(k) for k in keys]).generate_state(2)
    random.seed(int(state[0]))
    np.random.seed(int(state[0]))
    torch.manual_seed(int(state[1]))


def epoch_order(n: int, epoch: int, seed: int) -> np.ndarray:
    """The order in which `n` items are seen in `epoch`: int64[n], a permutation that depends on (seed, epoch) alone."""
    return generator(seed, 7919, epoch).permutation(n)


def batch_indices(n: int, step: int, batch_size: int, seed: int) -> list[int]:
    """The items of batch number `step` when epochs follow each other without a gap; across an epoch's end a batch mixes both.

    >>> sorted(batch_indices(4, 0, 2, 0) + batch_indices(4, 1, 2, 0))
    [0, 1, 2, 3]
    """
    first = step * batch_size
    orders: dict[int, np.ndarray] = {}
    indices = []
    for position in range(first, first + batch_size):
        epoch, offset = divmod(position, n)
        if epoch not in orders:
            orders[epoch] = epoch_order(n, epoch, seed)
        indices.append(int(orders[epoch][offset]))
    return indices
