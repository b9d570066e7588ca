"""Metrics to JSONL and TensorBoard, always."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bessemer.core import device

if TYPE_CHECKING:
    from bessemer.train.loop import Report
    from bessemer.train.run import Run


class Log:
    """Writes each step's figures to `metrics.jsonl` and to TensorBoard, and shows the rate, the loss and the time left.

    Args:
        every: steps between two lines.
    """

    def __init__(self, run: Run, *, every: int = 1) -> None:
        self.run, self.every = run, every
        self.rate = 0.0

    def due(self, report: Report) -> bool:
        return report.progress.step % self.every == 0 or report.progress.done

    def __call__(self, report: Report) -> None:
        progress = report.progress
        rate = report.tokens / report.seconds
        first = not self.rate
        self.rate = rate if not self.rate else 0.9 * self.rate + 0.1 * rate
        line: dict[str, Any] = {
            "step": progress.step,
            "tokens": progress.tokens,
            "loss": report.result.loss,
            "terms": report.result.terms,
            "learning_rate": self.run.learning_rate(),
            "gradient_norm": report.norm,
            "rows": report.result.rows,
            "tokens_per_second": rate,
            "memory_bytes": device.memory_in_use(),
            "seconds": progress.seconds,
            "flops": progress.flops,
            "time": {**report.time, "other": max(0.0, report.seconds - sum(report.time.values()))},
            "skipped": progress.skipped,
            **self.run.energy(),
        }
        if not first or progress.done:  # a process's first step imports and compiles, and needn't wait for the peak to be measured
            line["mfu"] = self.run.flops_per_token * rate / self.run.peak
        if progress.noise_scale:
            line["noise_scale"] = progress.noise_scale
        if report.result.counts:
            line["counts"] = {name: count.tolist() for name, count in report.result.counts.items()}
        self.run.metrics.write(line)
        self.run.work.progress(*self.run.budget(), loss=report.result.loss, tokens_per_second=self.rate)

    def close(self) -> None:
        return
