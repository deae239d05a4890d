"""A client that is told to use fewer threads: what share of its device's speed is left."""

from __future__ import annotations

from fedsplit.devices.profile import DeviceProfile


def share_of(device: DeviceProfile, dtype: str, threads: int) -> float:
    """Of the speed that ``device`` was measured with, at most 1; ``threads``: 0 for as many as that was.

    Measured where the profile has it, between two measured numbers by a straight line; else taken to be proportional.
    """
    if not threads or threads >= device.threads:
        return 1.0
    kept = device.flops_by_threads.get(dtype) or device.flops_by_threads.get("float32") or {}
    known = {int(count): flops for count, flops in kept.items()}
    if device.threads not in known:
        return threads / device.threads
    points = {0: 0.0} | known
    below, above = max(n for n in points if n <= threads), min(n for n in points if n >= threads)
    along = (threads - below) / (above - below) if above > below else 0.0
    return min(1.0, (points[below] + along * (points[above] - points[below])) / known[device.threads])
