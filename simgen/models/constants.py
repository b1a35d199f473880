"""Constants of a network in the full precision of whatever dtype it is converted to."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class ConstantsModule(nn.Module):
    """A module whose constants follow its dtype and device, but are not part of its weights.

    An ordinary buffer would keep the rounding errors of float32 when converted to float64.
    """

    def __init__(self) -> None:
        super().__init__()
        self._exact: dict[str, Tensor] = {}

    def register_constant(self, name: str, value: Tensor) -> None:
        """Add a constant as a buffer; floating point ones are given in float64."""
        self._exact[name] = value
        self.register_buffer(name, value, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ConstantsModule:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in self._exact.items():
            converted = self.get_buffer(name)
            self._buffers[name] = value.to(device=converted.device, dtype=converted.dtype)
        return self
