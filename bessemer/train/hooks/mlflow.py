"""Figures to MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bessemer.core.errors import BessemerError

if TYPE_CHECKING:
    from bessemer.train.loop import Report
    from bessemer.train.run import Run


class Mlflow:
    """Sends every line of the metrics to an MLflow tracking server or folder too; needs `pip install 'bessemer[track]'`.

    Args:
        experiment: what the run is filed under.
        uri: the tracking server or folder; None for MLflow's own default.
    """

    listens = True  # to figures that are written: only on the rank that writes them

    def __init__(self, run: Run, *, experiment: str = "bessemer", uri: str | None = None) -> None:
        try:
            from mlflow import MlflowClient
        except ImportError:
            raise BessemerError("the package mlflow is not installed", key="hooks.mlflow", mend="pip install 'bessemer[track]'") from None
        self.client = MlflowClient(tracking_uri=uri)
        found = self.client.get_experiment_by_name(experiment)
        place = found.experiment_id if found else self.client.create_experiment(experiment)
        tag = f"tags.`bessemer.run` = '{run.identity()}'"
        earlier = self.client.search_runs([place], filter_string=tag)
        self.id = earlier[0].info.run_id if earlier else self.client.create_run(place, tags={"bessemer.run": run.identity()}).info.run_id
        run.metrics.listeners.append(self.hear)

    def hear(self, line: dict[str, float], step: int) -> None:
        for name, value in line.items():
            self.client.log_metric(self.id, name, value, step=step)

    def due(self, report: Report) -> bool:
        return False

    def __call__(self, report: Report) -> None:
        return

    def close(self) -> None:
        self.client.set_terminated(self.id)
