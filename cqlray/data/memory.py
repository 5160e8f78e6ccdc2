"""Whether a dataset is kept on the device, in the machine's memory or in a file on disk while it is
trained on: decided from its size and from what is free.
"""

from __future__ import annotations

from typing import Literal

Place = Literal["device", "host", "disk"]
# What training itself, the libraries and other processes need beside the data.
DEVICE_RESERVE, HOST_RESERVE, RESERVED_SHARE = 2 * 2**30, 2**30, 0.1
LOADING_FACTOR = 1.2  # peak memory of loading, in sizes of the data


def data_bytes(transitions: int, episodes: int, observation_dim: int, action_dim: int) -> int:
    """Bytes of a dataset's columns as trained on."""
    return 4 * (transitions + episodes) * observation_dim + transitions * (
        4 * action_dim + 8 + 4 + 4
    )


def where_data_lives(
    size: int, device_free_bytes: int | None, host_free_bytes: int
) -> tuple[Place, str]:
    """Where `size` bytes of data are kept, and why, in a line.

    Data reaches a device through the host's memory, so it must fit there also.

    Args:
        device_free_bytes: None where training is on the CPU.
    """
    host = host_free_bytes - max(HOST_RESERVE, int(RESERVED_SHARE * host_free_bytes))
    needed = int(LOADING_FACTOR * size)
    if needed > host:
        has_room = f"loading takes {_gib(needed)} of memory, {_gib(max(host, 0))} can be used"
        return "disk", f"{has_room}: read from a file on disk"
    if device_free_bytes is None:
        return "device", f"{_gib(size)} in memory, of {_gib(host)} that can be used"
    device = device_free_bytes - max(DEVICE_RESERVE, int(RESERVED_SHARE * device_free_bytes))
    if size > device:
        has_room = f"{_gib(size)}, the device has room for {_gib(max(device, 0))}"
        return "host", f"{has_room}: in memory, batches sent ahead"
    return "device", f"{_gib(size)} on the device, of {_gib(device)} that can be used"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
