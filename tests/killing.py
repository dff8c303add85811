"""A training run that is killed, for the tests of --resume."""

from collections.abc import Callable
from typing import Any

import dynamics
import pytest
import torch


def killed_after_two(run: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupts `run` at its third optimiser step; it saves after every step."""
    count, step = [], torch.optim.Adam.step

    def limited(self: Any, *args: Any, **kwargs: Any) -> Any:
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", limited)
        patch.setattr(dynamics, "SAVE_EVERY", 0.0)  # seconds
        with pytest.raises(KeyboardInterrupt):
            run()
