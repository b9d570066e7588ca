"""Three levels of sharing out: parameters over neighbours, gradients over a node, optimizer state over all (Xu et al. 2025, "Scaling large language model training on Frontier with low-bandwidth partitioning").

The ranks of the data axis are divided into nodes, and these into pairs (or larger sets) of devices with the fastest links. What the optimizer
reads and writes is shared out over all ranks, as with "full". In a step, parameters cross nodes once: the first forward pass leaves each rank
the part of its place in the pair, from which all later passes gather inside the pair. Gradients are scattered over the node after every
micro-batch and kept there, and cross nodes once, after the last.

FSDP2 calls what stands here in the place of its own collectives; layouts of its flat buffers are in the order of the ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bessemer.core.collectives import join_flat, scatter_flat
from bessemer.core.errors import RecipeError
from bessemer.core.mesh import World


class Levels:
    """The groups of this rank at each level, and where the step stands.

    Args:
        world: the ranks.
        name: of the axis that is divided, for the groups' names.
        members: the ranks along it, in order.
        pair: how many neighbours share out parameters.
        node: how many share out gradients.

    Raises:
        RecipeError: the sizes don't divide each other.
    """

    def __init__(self, world: World, name: str, members: list[int], pair: int, node: int) -> None:
        count = len(members)
        if node % pair:
            raise RecipeError(f"a node of {node} ranks can't be divided into sets of {pair}", key="parallel.pair", mend=f"choose a divisor of {node}")
        if count % node:
            problem = f"{count} ranks of data x context can't be divided into nodes of {node}"
            raise RecipeError(problem, key="parallel.node", mend=f"choose a divisor of {count}")
        self.pair, self.node, self.pairs, self.nodes = pair, node, count // pair, count // node
        here = members.index(world.rank)

        def among(what: str, size: int, near: bool) -> Any:
            """The set of `size` neighbours this rank is in, or those that stand where it does in theirs."""
            first = here - here % size
            return world.among(f"{name} {what}", members[first : first + size] if near else members[here % size :: size])

        self.in_pair, self.over_pairs = among("pair", pair, True), among("pairs", pair, False)
        self.in_node, self.over_nodes = among("node", node, True), among("nodes", node, False)
        self.inside, self.last = False, True
        self.parts: list[tuple[Gather, Scatter]] = []

    def attach(self, module: Any) -> None:
        """Has a sharded module's collectives go by levels."""
        self.parts.append((Gather(self), Scatter(self)))
        module.set_custom_all_gather(self.parts[-1][0])
        module.set_custom_reduce_scatter(self.parts[-1][1])

    def before_micro_batch(self, last: bool) -> None:
        """A micro-batch of a step begins; until its end parameters don't change."""
        self.inside, self.last = True, last

    def settle(self) -> None:
        """The step is over: parameters may change.

        Raises:
            RecipeError: some gradients did not take part in the last micro-batch.
        """
        self.inside, self.last = False, True
        for gather, scatter in self.parts:
            gather.held = None
            if scatter.held is not None:
                raise uneven()


def uneven() -> RecipeError:
    """What is said of a step whose micro-batches use different parameters."""
    problem = "micro-batches of a step use different parameters, whose gradients can't be kept together on a node"
    return RecipeError(problem, key="parallel.shard", mend='use parallel.shard = "full"')


class _Own:
    """Memory as usual."""

    def __init__(self, levels: Levels) -> None:
        self.levels = levels
        self.held: Tensor | None = None

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Room for what travels."""
        return torch.empty(size, dtype=dtype, device=device)


class Gather(_Own):
    """All ranks' shards: over the pairs once a step, inside the pair each time.

    Attributes:
        held: this rank's part of the parameters while a step goes on, [pairs x shard].
    """

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> None:
        """input_tensor: [shard]; output_tensor: [ranks x shard]."""
        levels, held = self.levels, self.held
        if held is None:
            held = _gathered(input_tensor, levels.pairs, levels.over_pairs)
        self.held = held if levels.inside else None
        found = _gathered(held, levels.pair, levels.in_pair)
        output_tensor.view(levels.pairs, levels.pair, -1).copy_(found.view(levels.pair, levels.pairs, -1).transpose(0, 1))


class Scatter(_Own):
    """The sum of all ranks' gradients, of which each gets its shard after the last micro-batch, and zeros before.

    Attributes:
        held: the node's sum so far, of which this rank has its part: [nodes x shard].
    """

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False) -> None:
        """input_tensor: [ranks x shard]; output_tensor: [shard]."""
        levels = self.levels
        by_place = input_tensor.view(levels.nodes, levels.node, -1).transpose(0, 1).reshape(-1)
        mine = _scattered(by_place, levels.node, levels.in_node)
        if self.held is not None:
            if len(self.held) != len(mine):
                raise uneven()
            mine += self.held
        self.held = None if levels.last else mine
        if levels.last:
            output_tensor.copy_(_scattered(mine, levels.nodes, levels.over_nodes))
        else:
            output_tensor.zero_()


def _gathered(values: Tensor, count: int, group: Any) -> Tensor:
    if group is None:
        return values.clone()
    found = values.new_empty(count * len(values))
    join_flat(found, values, group=group)
    return found


def _scattered(values: Tensor, count: int, group: Any) -> Tensor:
    if group is None:
        return values
    found = values.new_empty(len(values) // count)
    scatter_flat(found, values, group=group)
    return found
