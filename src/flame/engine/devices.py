"""Which devices the setting `engine.device` names."""

from __future__ import annotations

import re

from flame.errors import ConfigError

_NUMBERED = re.compile(r"cuda:\d+")
_ALL = "cuda:all"


def devices(setting: str) -> tuple[str, ...]:
    """One device, as it is named there, or several: CUDA devices by number between commas, or all with `cuda:all`.

    Whether a named device is here, its backend knows. Raises `ConfigError` for anything else than different CUDA
    devices where there are several, and for `cuda:all` where there is none.
    """
    if setting.strip() == _ALL:
        return _all_cuda_devices()
    names = tuple(name.strip() for name in setting.split(","))
    if len(names) > 1 and not (all(map(_NUMBERED.fullmatch, names)) and len(set(names)) == len(names)):
        raise ConfigError(
            f"engine.device is {setting!r}: several devices are different CUDA devices by number, as cuda:0,cuda:1"
        )
    return names


def one_device(setting: str) -> str:
    """The same where only one will do. Raises `ConfigError` where there are several."""
    first, *more = devices(setting)
    if more:
        raise ConfigError(f"engine.device is {setting!r}: name one device here, such as {first}")
    return first


def _all_cuda_devices() -> tuple[str, ...]:
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not found:
        raise ConfigError(f"engine.device is {_ALL!r}, but PyTorch finds no CUDA device here")
    return tuple(f"cuda:{number}" for number in range(found))
