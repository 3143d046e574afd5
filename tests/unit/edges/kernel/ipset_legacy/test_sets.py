"""How long a program that lists a set is waited for, and which names are refused."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

import pytest

from sikkerguard.core.net.family import Family
from sikkerguard.edges.kernel.ipset_legacy.set_netlink import BUSY
from sikkerguard.edges.kernel.ipset_legacy.sets import Sets
from sikkerguard.errors import BusyError, KernelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sikkerguard.edges.kernel.ipset_legacy.set_netlink import NetlinkSets

EBUSY, IPSET_ERR_BUSY, IPSET_ERR_TYPE_MISMATCH = 16, 4100, 4102
ONE, OTHER = "sikkerguard-v4", "sikkerguard-load-v4"


class Netlink:
    """The kernel, which says that a set is busy until this moment."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.until = 0.0
        self.tries = 0

    def change(self, *_: object) -> None:
        raise AssertionError("a set was changed")

    add = delete = flush = change
    header = contains = packets = prefixes = hits = counts = change

    def swap(self, one: str, other: str) -> None:
        self.tries += 1
        if time.monotonic() < self.until:
            raise (BusyError if self.code in BUSY else KernelError)(f"set {one} could not be swapped: {self.code}")


class Host:
    """Sets over that, and how often something was done while they waited."""

    def __init__(self, code: int) -> None:
        self.netlink = Netlink(code)
        self.waits = 0
        self.sets = Sets(cast("NetlinkSets", self.netlink), self.note)

    def note(self) -> None:
        self.waits += 1


@pytest.fixture(params=[EBUSY, IPSET_ERR_BUSY])
def host(request: pytest.FixtureRequest) -> Host:
    return Host(request.param)


def test_a_listing_that_ends_in_time_delays_a_swap_alone(host: Host) -> None:
    host.netlink.until = time.monotonic() + 0.2
    host.sets.swap(ONE, OTHER)
    assert time.monotonic() - host.netlink.until < 0.2
    # Often enough to get in between two listings, and each time the trial may be renewed.
    assert host.netlink.tries > 10
    assert host.waits == host.netlink.tries - 1


def test_one_that_does_not_end_is_given_up_and_not_waited_for_again(host: Host) -> None:
    host.netlink.until = time.monotonic() + 60
    began = time.monotonic()
    with pytest.raises(BusyError, match="another program is listing the set sikkerguard-v4 or sikkerguard-load-v4"):
        host.sets.swap(ONE, OTHER, 0.2)
    assert time.monotonic() - began >= 0.2
    tries = host.netlink.tries
    began = time.monotonic()
    with pytest.raises(BusyError):
        host.sets.swap("sikkerguard-v4", "sikkerguard-new-v4", 5.0)
    assert time.monotonic() - began < 0.2
    assert host.netlink.tries == tries + 1
    # Another one is, and so is this one once it was let go.
    host.netlink.until = time.monotonic() + 0.1
    host.sets.swap("sikkerguard-v6", "sikkerguard-new-v6", 5.0)
    host.sets.swap(ONE, OTHER)
    host.netlink.until = time.monotonic() + 0.1
    host.sets.swap(ONE, OTHER)


def test_what_else_the_kernel_refuses_is_final() -> None:
    host = Host(IPSET_ERR_TYPE_MISMATCH)
    host.netlink.until = time.monotonic() + 60
    with pytest.raises(KernelError, match="could not be swapped: 4102") as raised:
        host.sets.swap(ONE, OTHER)
    assert not isinstance(raised.value, BusyError)
    assert (host.netlink.tries, host.waits) == (1, 0)


@pytest.mark.parametrize("name", ["", "blacklist", "sikkerguard", "sikkerguard-" + 20 * "x"])
def test_a_set_that_is_not_ours_is_never_touched(name: str) -> None:
    # Without a name, pyroute2 and the kernel would act on every set of the host.
    host = Host(EBUSY)
    changes: tuple[Callable[[], None], ...] = (
        lambda: host.sets.flush(name),
        lambda: host.sets.destroy(name),
        lambda: host.sets.swap(ONE, name),
        lambda: host.sets.swap(name, ONE),
        lambda: host.sets.add(name, Family.V4, bytes(4)),
        lambda: host.sets.delete(name, Family.V4, singles=bytes(4)),
    )
    for change in changes:
        with pytest.raises(ValueError, match="is not the name of a set of ours"):
            change()
    assert host.netlink.tries == 0
