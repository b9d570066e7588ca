"""What a cluster needs to run a recipe: a batch script for Slurm, a manifest for Kubernetes. Both start torchrun on every node."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from bessemer.core.errors import RecipeError
from bessemer.core.recipe import Recipe
from bessemer.run import order as orders

PORT = 29500


@dataclass(frozen=True)
class Job:
    """A run on a cluster.

    Attributes:
        name: of the run.
        command: the words after `bessemer` that each rank is started with.
        nodes: machines.
        per_node: ranks on each.
    """

    name: str
    command: Sequence[str]
    nodes: int
    per_node: int


def job(recipe: Recipe, words: Sequence[str], per_node: int) -> Job:
    """The job of a recipe: as many ranks as the mesh of its stages takes.

    Args:
        words: the recipe and its overrides as they were given.
        per_node: ranks on each machine.

    Raises:
        RecipeError: the ranks don't fill whole machines, or stages want different numbers of them.
    """
    wanted = {stage.name: orders.ranks_of(stage.choice) for stage in recipe.stages if orders.ranks_of(stage.choice) > 1}
    if len(set(wanted.values())) > 1:
        raise RecipeError(f"stages want different numbers of ranks: {wanted}", key="mesh", mend="run them as recipes of their own")
    ranks = next(iter(wanted.values()), 1)
    per_node = min(per_node, ranks)
    if per_node < 1 or ranks % per_node:
        raise RecipeError(f"{ranks} ranks don't fill machines of {per_node}", key="--per-node", mend=f"choose a divisor of {ranks}")
    return Job(re.sub(r"[^a-z0-9-]+", "-", recipe.name.lower()).strip("-") or "bessemer", ["run", *words], ranks // per_node, per_node)


def slurm(job: Job) -> str:
    """A script for `sbatch`."""
    return f"""#!/bin/bash
#SBATCH --job-name={job.name}
#SBATCH --nodes={job.nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={job.per_node}
#SBATCH --output=%x-%j.log
#SBATCH --signal=TERM@120
#SBATCH --requeue

# The same script again continues the run: --signal lets it save before the time is up, --requeue starts it again after a failed node.
set -euo pipefail
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes={job.nodes} --nproc-per-node={job.per_node} \\
    --rdzv-backend=c10d --rdzv-endpoint="$HEAD:{PORT}" --rdzv-id="$SLURM_JOB_ID" \\
    -m bessemer {shlex.join(job.command)}
"""


def kubernetes(job: Job, image: str, claim: str) -> str:
    """A manifest for `kubectl apply`: one pod a node, found by its index.

    Args:
        image: with bessemer installed.
        claim: the PersistentVolumeClaim that holds the data and takes the run, mounted as the working folder.
    """
    words = ["torchrun", f"--nnodes={job.nodes}", f"--nproc-per-node={job.per_node}", "--node-rank=$(JOB_COMPLETION_INDEX)"]
    words += [f"--master-addr={job.name}-0.{job.name}", f"--master-port={PORT}", "-m", "bessemer", *job.command]
    arguments = "\n".join(f"            - {_quoted(word)}" for word in words)
    return f"""apiVersion: v1
kind: Service
metadata:
  name: {job.name}
spec:
  clusterIP: None
  selector:
    job-name: {job.name}
---
apiVersion: batch/v1
kind: Job
metadata:
  name: {job.name}
spec:
  completions: {job.nodes}
  parallelism: {job.nodes}
  completionMode: Indexed
  backoffLimit: {4 * job.nodes}
  template:
    spec:
      subdomain: {job.name}
      restartPolicy: OnFailure
      terminationGracePeriodSeconds: 120
      containers:
        - name: rank
          image: {_quoted(image)}
          workingDir: /work
          command:
{arguments}
          env:
            - name: JOB_COMPLETION_INDEX
              valueFrom:
                fieldRef:
                  fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
          resources:
            limits:
              nvidia.com/gpu: {job.per_node}
          volumeMounts:
            - name: work
              mountPath: /work
            - name: shared-memory
              mountPath: /dev/shm
      volumes:
        - name: work
          persistentVolumeClaim:
            claimName: {claim}
        - name: shared-memory
          emptyDir:
            medium: Memory
"""


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "''") + "'"
