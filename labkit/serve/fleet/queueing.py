"""What queueing theory knows exactly about fleets, to check the simulator by."""

from __future__ import annotations

from labkit.core.whole import need_whole


def erlang_c(servers: int, offered: float) -> float:
    """The share of requests that have to wait, when c servers take from one queue (M/M/c).

    Args:
        servers: c.
        offered: arrivals per second times mean seconds of service; below c, or the queue grows for ever.

    Raises ValueError for an offered load that is not below c. Source: Erlang 1917; Kleinrock 1975, Queueing Systems I,
    section 3.5.

    >>> round(erlang_c(1, 0.8), 6), round(erlang_c(2, 1.0), 6)
    (0.8, 0.333333)
    """
    need_whole("servers", servers)
    if not 0 <= offered < servers:
        raise ValueError(f"offered load is {offered} on {servers} servers; give 0 or more, and less than there are")
    blocked = 1.0  # Erlang B, by its recursion
    for count in range(1, servers + 1):
        blocked = offered * blocked / (count + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked))


def mean_wait(servers: int, rate: float, service: float) -> float:
    """Mean seconds in the queue of M/M/c.

    Args:
        rate: arrivals per second; service: mean seconds of one.

    >>> round(mean_wait(1, 0.9, 1.0), 6)
    9.0
    """
    return erlang_c(servers, rate * service) * service / (servers - rate * service)


def share_as_long(length: int, load: float, choices: int = 2) -> float:
    """The share of queues with at least so many requests, each arrival going to the shortest of `choices` drawn queues.

    Exact as the number of M/M/1 servers grows without end: load^((d^k - 1)/(d - 1)) for length k and d choices. With
    one choice that is load^k; with two it falls doubly exponentially, so that the longest of n queues has about
    log log n / log 2. Source: Mitzenmacher 2001 (IEEE TPDS 12(10)), section 3; Vvedenskaya, Dobrushin and Karpelevich
    1996.

    Args:
        length: k, the one that is being answered included; load: of each server, from 0 to below 1.

    >>> [round(share_as_long(k, 0.9), 3) for k in (1, 2, 3, 4, 5)]
    [0.9, 0.729, 0.478, 0.206, 0.038]
    """
    need_whole("length", length, 0)
    need_whole("choices", choices)
    if not 0 <= load < 1:
        raise ValueError(f"load is {load}; give 0 or more, below 1")
    return load ** (length if choices == 1 else (choices**length - 1) // (choices - 1))


def mean_seconds(load: float, choices: int = 2) -> float:
    """Mean time from arrival to end with `choices` drawn queues, in mean times of service.

    >>> round(mean_seconds(0.9, 1), 6), round(mean_seconds(0.9, 2), 3)
    (10.0, 2.614)
    """
    if load == 0:
        return 1.0
    total, length = 0.0, 1
    while (part := share_as_long(length, load, choices)) > 1e-15:  # Little's law: requests there, by arrivals
        total, length = total + part, length + 1
    return total / load
