"""Levels at a price: the best path over nodes when every link costs a multiplier.

With a price per link the number of levels is free, and one left-to-right pass finds the
best path: f[j] = min over k < j of f[k] + cost[k, j] + price. The cost is Monge, so of two
predecessors the later one, once better, stays better; a queue of predecessors with the
positions where each takes over gives O(m log m) time and O(m) memory (Hirschberg and
Larmore 1987, Galil and Park 1990). The best costs are convex in the number of links, so the
price can be searched for the wanted number (Aggarwal, Schieber and Tokuyama 1994).
"""

from __future__ import annotations

import numpy as np

from quiver_kernels.cpu.compile import Floats, Ints, kernel


@kernel
def priced_paths(
    x: Floats, area: Floats, first: Floats, price: float, f: Floats, back: Ints
) -> None:
    """Fill f[j] and back[j] for the inner nodes j = 1 .. m - 2; O(m log m).

    f[j] is the least cost of a path from node 0 to j, `price` per link included; back[j]
    its last node before j. `first[j]` is the cost of the link (0, j).
    """
    m = x.size
    end = m - 2
    # From starts[i] on, queue[i] is the best predecessor; entries before `head` are past.
    queue = np.empty(m, np.int64)
    starts = np.empty(m, np.int64)
    queue[0], starts[0] = 0, 1
    head, size = 0, 1
    f[0] = 0.0
    for j in range(1, end + 1):
        while head + 1 < size and starts[head + 1] <= j:
            head += 1
        k = queue[head]
        xj, aj = x[j], area[j]
        # The first link uses its exact cost: cost~ from a far outlier would drown the rest.
        fj = first[j] if k == 0 else f[k] + (xj * area[k] - x[k] * aj)
        fj += price
        f[j] = fj
        back[j] = k
        old = -1
        at = j + 1
        while size > head:
            old = queue[size - 1]
            at = max(starts[size - 1], j + 1)
            if at > end:
                break
            mine = fj + (x[at] * aj - xj * area[at])
            theirs = first[at] if old == 0 else f[old] + (x[at] * area[old] - x[old] * area[at])
            if mine > theirs:
                break
            size -= 1
        if size == head:
            queue[size], starts[size] = j, j + 1
            size += 1
            continue
        # Gallop, then bisect, for the first place where j beats the last in the queue.
        xo, ao, fo = x[old], area[old], f[old]
        low, high, step = at, end + 1, 1
        galloping = True
        while high - low > 1:
            probe = low + step if galloping else (low + high) // 2
            if probe >= high:
                galloping = False
                continue
            mine = fj + (x[probe] * aj - xj * area[probe])
            theirs = first[probe] if old == 0 else fo + (x[probe] * ao - xo * area[probe])
            if mine > theirs:
                low = probe
                step *= 2
            else:
                high = probe
                galloping = False
        if high <= end:
            queue[size], starts[size] = j, high
            size += 1


@kernel
def trace(back: Ints, end: int, path: Ints) -> int:
    """Write the path that ends with the link (end, last node), first node first.

    Returns
    -------
    int
        Its number of links; the nodes are path[:links + 1], so `path` needs m places.
    """
    links = 1
    k = end
    while k > 0:
        links += 1
        k = back[k]
    path[links] = back.size - 1
    k = end
    for place in range(links - 1, 0, -1):
        path[place] = k
        k = back[k]
    path[0] = 0
    return links
