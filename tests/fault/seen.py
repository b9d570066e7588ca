"""A user's own hook, named in a recipe by its dotted path: writes down which samples each step saw."""

import json
from pathlib import Path


class Seen:
    """Appends {"step", "samples"} to a file outside the run's folder.

    Args:
        file: where to.
    """

    def __init__(self, run, *, file: str) -> None:
        self.file = Path(file)

    def due(self, report):
        return True

    def __call__(self, report):
        samples = [int(i) for batch in report.batches for i in batch.samples]
        with open(self.file, "a") as out:
            out.write(json.dumps({"step": report.progress.step, "samples": samples}) + "\n")

    def close(self):
        return
