"""What machine time costs: pure arithmetic over what a pod requested and for how long.

A pod is charged for what it requested, used or not, because that is what nobody else could have: millicores, mebibytes
(a started one counts whole) and thousandths of a GPU, each times seconds. Time counts in whole seconds, as Kubernetes'
own timestamps do. The cost of each resource is rounded up once, to the nano-dollar: charging a stretch of time in parts
never charges less than charging it at once, and at most a nano-dollar more for each cut and resource.

Boundary: no clock and no I/O. When a stretch begins and ends is the operator's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from almoner_core.money import Money

MEBIBYTE: Final = 1024 * 1024
SECONDS_PER_HOUR: Final = 3600
SPLITS: Final = 8
"""In how many records what is held may be used up: each may round up once."""
MS_PER_HOUR: Final = 3_600_000
NOT_BILLED: Final = "not billed"
"""Price version of machine time that has no price: it costs 0, and that is known."""


class ComputeResource(StrEnum):
    """What a pod requests; the `model` of a record of type compute."""

    CPU = "cpu"
    MEMORY = "memory"
    GPU = "gpu"


# Units of a record (millicores, mebibytes, thousandths of a GPU) in what a price is for (a core, a GiB, a GPU).
_UNITS: Final = {ComputeResource.CPU: 1000, ComputeResource.MEMORY: 1024, ComputeResource.GPU: 1000}


_ROUNDED: Final = SPLITS * len(ComputeResource)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a pod requests: cpu in millicores, memory in bytes, gpu in whole devices."""

    cpu: int = 0
    memory: int = 0
    gpu: int = 0

    def units(self, resource: ComputeResource, seconds: int) -> int:
        """Give the units of a resource over a time: millicore-, mebibyte- or thousandth-of-a-GPU-seconds."""
        if seconds < 0:
            raise ValueError(f"a stretch of time must not be negative, got {seconds} s")
        if resource is ComputeResource.CPU:
            return self.cpu * seconds
        if resource is ComputeResource.MEMORY:
            return -(-self.memory // MEBIBYTE) * seconds
        return self.gpu * 1000 * seconds


@dataclass(frozen=True, slots=True)
class ComputeUse:
    """Use of one resource over a stretch: `units` as Machine.units gives them, and what they cost."""

    resource: ComputeResource
    units: int
    cost_nanos: int
    price_version: str


@dataclass(frozen=True, slots=True)
class ComputePrices:
    """Nano-dollars per core-hour, GiB-hour and GPU-hour. None: that resource is not billed."""

    cpu_hour: int | None = None
    memory_gib_hour: int | None = None
    gpu_hour: int | None = None

    @classmethod
    def parse(cls, cpu_hour: str | None, memory_gib_hour: str | None, gpu_hour: str | None) -> ComputePrices:
        """Read prices written as US dollars, such as '0.031'; empty or None: not billed. Raises ValueError."""
        return cls(*(Money.parse(text).nanos if text else None for text in (cpu_hour, memory_gib_hour, gpu_hour)))

    def price(self, resource: ComputeResource) -> int | None:
        """Give the price of a resource in nano-dollars an hour; None: not billed."""
        prices = {
            ComputeResource.CPU: self.cpu_hour,
            ComputeResource.MEMORY: self.memory_gib_hour,
            ComputeResource.GPU: self.gpu_hour,
        }
        return prices[resource]

    def version(self, resource: ComputeResource) -> str:
        """Give what a record names as the price it was rated with: the price itself."""
        price = self.price(resource)
        return NOT_BILLED if price is None else f"compute/{resource.value}-hour/{Money(price)}"

    @property
    def billed(self) -> bool:
        """Whether any machine time costs anything."""
        return any(self.price(resource) for resource in ComputeResource)

    def cost(self, resource: ComputeResource, units: int) -> int:
        """Give what units of a resource cost, in nano-dollars, rounded up."""
        return -(-units * (self.price(resource) or 0) // (_UNITS[resource] * SECONDS_PER_HOUR))

    def use(self, machine: Machine, seconds: int) -> list[ComputeUse]:
        """Give what a pod used over a stretch of whole seconds, resource by resource; without what it has none of."""
        return [
            ComputeUse(resource, units, self.cost(resource, units), self.version(resource))
            for resource in ComputeResource
            if (units := machine.units(resource, seconds))
        ]

    def per_hour(self, machine: Machine) -> int:
        """Give what an hour of a machine costs, in nano-dollars, rounded up."""
        return sum(self.cost(resource, machine.units(resource, SECONDS_PER_HOUR)) for resource in ComputeResource)

    def hold(self, machine: Machine, seconds: int) -> int:
        """Give what must be held so that `seconds` can be used up in up to SPLITS records, in nano-dollars."""
        return hold_nanos(self.per_hour(machine), seconds * 1000)


def hold_nanos(per_hour: int, milliseconds: int) -> int:
    """Give what must be held for machine time at a rate: what it costs, and what its records may round up."""
    return -(-per_hour * milliseconds // MS_PER_HOUR) + _ROUNDED if per_hour else 0


def paid_ms(held: int, per_hour: int) -> int:
    """Give how many milliseconds of machine time a hold pays for. The inverse of `hold_nanos`."""
    return max(0, held - _ROUNDED) * MS_PER_HOUR // per_hour
