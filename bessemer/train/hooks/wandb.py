"""Figures to Weights & Biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from bessemer.core.errors import BessemerError

if TYPE_CHECKING:
    from bessemer.train.loop import Report
    from bessemer.train.run import Run


class Wandb:
    """Sends every line of the metrics to Weights & Biases too; needs `pip install 'bessemer[track]'`.

    Args:
        project: what the run is filed under.
        mode: `offline` keeps it in the run's folder, to be sent with `wandb sync`.
    """

    listens = True  # to figures that are written: only on the rank that writes them

    def __init__(self, run: Run, *, project: str = "bessemer", mode: Literal["online", "offline"] = "online") -> None:
        try:
            import wandb
        except ImportError:
            raise BessemerError("the package wandb is not installed", key="hooks.wandb", mend="pip install 'bessemer[track]'") from None
        self.session: Any = wandb.init(project=project, mode=mode, dir=str(run.work.out), config=run.work.recipe, id=run.identity(), resume="allow")
        run.metrics.listeners.append(self.hear)

    def hear(self, line: dict[str, float], step: int) -> None:
        self.session.log(line, step=step)

    def due(self, report: Report) -> bool:
        return False

    def __call__(self, report: Report) -> None:
        return

    def close(self) -> None:
        self.session.finish()
