"""Near-duplicates: images whose perceptual hashes differ in few of their 64 bits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

_BITS = 64


def near_duplicates(hashes: np.ndarray, max_distance: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images that are close to an earlier one: (their rows, the nearest earlier rows, distances), each (found,).

    `hashes` is (images,) uint64. Of several nearest ones the first counts.
    """
    distinct, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    same = np.flatnonzero(first[which] != np.arange(len(hashes)))
    one, other = pairs_within(distinct, max_distance)
    one, other = first[one], first[other]
    later, earlier = np.maximum(one, other), np.minimum(one, other)
    later, earlier = np.concatenate([same, later]), np.concatenate([first[which[same]], earlier])
    return _nearest(later, earlier, hamming(hashes[later], hashes[earlier]))


def near_others(hashes: np.ndarray, others: np.ndarray, max_distance: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `near_duplicates`, but of `hashes` to the rows of `others`."""
    ours, which = np.unique(hashes, return_inverse=True)
    theirs, first = np.unique(others, return_index=True)
    one, other = pairs_within(np.concatenate([ours, theirs]), max_distance)
    across = (one < len(ours)) & (other >= len(ours))
    one, other = one[across], other[across] - len(ours)
    one, other, distance = _nearest(one, first[other], hamming(ours[one], theirs[other]))
    place = np.full(len(ours), -1)
    place[one] = np.arange(len(one))
    rows = np.flatnonzero(place[which] >= 0)
    return rows, other[place[which[rows]]], distance[place[which[rows]]]


def pairs_within(hashes: np.ndarray, max_distance: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of rows at most `max_distance` apart, each once: two arrays (pairs,).

    Of `max_distance` + 1 bands of bits such a pair has at least one in common, so that only rows that share one are
    compared: those next to each other when sorted by it.
    """
    found = [np.empty((0, 2), int)]
    edges = np.linspace(0, _BITS, max_distance + 2).astype(int)
    for start, end in pairwise(edges):
        band = (hashes >> np.uint64(start)) & np.uint64(2 ** int(end - start) - 1)
        order = np.argsort(band, kind="stable")
        band = band[order]
        for step in range(1, len(hashes)):
            shared = np.flatnonzero(band[step:] == band[:-step])
            if not len(shared):
                break
            one, other = order[shared], order[shared + step]
            near = hamming(hashes[one], hashes[other]) <= max_distance
            found.append(np.sort(np.stack([one[near], other[near]], axis=1), axis=1))
    pairs = np.unique(np.concatenate(found), axis=0)
    return pairs[:, 0], pairs[:, 1]


def hamming(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The number of bits in which hashes differ."""
    return np.bitwise_count(one ^ other)


def _nearest(rows: np.ndarray, others: np.ndarray, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the pairs of each row the nearest, then the earliest."""
    order = np.lexsort((others, distance, rows))
    rows, others, distance = rows[order], others[order], distance[order]
    is_first = np.ones(len(rows), bool)
    is_first[1:] = rows[1:] != rows[:-1]
    return rows[is_first], others[is_first], distance[is_first]
