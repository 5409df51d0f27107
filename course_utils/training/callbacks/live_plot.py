"""A loss curve that moves while the run goes on, in JupyterLab; one picture at the end everywhere else (lesson 05)."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from transformers import TrainerCallback

from course_utils.progress import is_live

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LivePlot(TrainerCallback):
    """Draw ``state.log_history`` while training; rank 0 only.

    Live, one picture is displayed under an identity and replaced (``display(..., display_id=True)``, then
    ``handle.update``): at most every ``seconds``, since a picture costs a few hundredths of a second. Not live, there
    is one picture, at the end. The history is the Trainer's own, so a resumed run goes on with the whole curve.

    Args:
        draw: ``draw(log_history)`` returns a figure.
        show: displays the last figure where nothing is live, for example ``teach.show``; None: a plain picture.
        live: None: ``is_live()``.
        seconds: shortest time between two pictures.
    """

    def __init__(
        self,
        draw: Callable[[Sequence[Mapping[str, float]]], Figure],
        show: Callable[[Figure], object] | None = None,
        live: bool | None = None,
        seconds: float = 1.0,
    ):
        self.draw, self.show, self.seconds = draw, show, seconds
        self.live = is_live() if live is None else live
        self.pictures = 0
        self._handle, self._last = None, float("-inf")

    def on_train_begin(self, args, state, control, **kwargs):
        self.pictures, self._handle, self._last = 0, None, float("-inf")

    def on_log(self, args, state, control, **kwargs):
        if self.live and state.is_world_process_zero and time.monotonic() - self._last >= self.seconds:
            self._update(state)

    def on_train_end(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        if self.live:
            self._update(state)
        else:
            self.pictures += 1
            (self.show or _display)(self.draw(state.log_history))

    def _update(self, state) -> None:
        figure = self.draw(state.log_history)
        if self._handle is None:
            self._handle = _display(figure, display_id=True)
        else:
            self._handle.update(_picture(figure))
        self.pictures += 1
        self._last = time.monotonic()


def _display(figure: Figure, **options):
    from IPython.display import display

    return display(_picture(figure), **options)


def _picture(figure: Figure):
    from IPython.display import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return Image(data=buffer.getvalue(), format="png", alt=getattr(figure, "alternative_text", "") or None)
