"""What architectures with layers of experts share: how their routers choose, and where each expert's matrices lie."""

from __future__ import annotations

from typing import Any, ClassVar

from bessemer.core.errors import ArtifactError
from bessemer.models.convert._architecture import Architecture, Config, Source


class Mixture(Architecture):
    """A Llama-like model whose feed-forward parts are experts chosen by softmax over all of them.

    What only training knows (balance loss, biases, capacity) takes our defaults on import, except that no bias is added to the choice:
    the architecture has no place for one.

    Attributes:
        place: of experts and router in a layer.
        router, gate, up, down: the names of their matrices there.
    """

    place: ClassVar[str] = "mlp"
    router: ClassVar[str] = "gate"
    gate: ClassVar[str] = "gate_proj"
    up: ClassVar[str] = "up_proj"
    down: ClassVar[str] = "down_proj"

    def experts(self, config: Config, ffn: int, normalise: bool, dense: int = 0) -> dict[str, Any]:
        """The `experts` table of a config.json, which says how many there are in one of two ways."""
        config("output_router_logits", bool, False)
        active = config("num_experts_per_tok", int)
        number = config("num_local_experts" if "num_local_experts" in config.table else "num_experts", int)
        if not 1 <= active <= number:
            raise ArtifactError(f"{active} of {number} experts can't be chosen", file=config.file, key="num_experts_per_tok")
        return {"count": number, "active": active, "ffn": ffn, "dense": dense, "scores": "softmax", "normalise": normalise, "bias": 0.0}

    def layer(self, o: dict[str, Any], ours: str, theirs: str) -> dict[str, Source]:
        found = super().layer(o, ours, theirs)
        e = o["experts"]
        if int(ours.split(".")[1]) < e["dense"]:
            return found
        found = {name: source for name, source in found.items() if not name.startswith(f"{ours}mlp.")}
        at = f"{theirs}{self.place}."
        each = [f"{at}experts.{number}." for number in range(e["count"])]
        found[f"{ours}mlp.router.gate.weight"] = Source((f"{at}{self.router}.weight",))
        names = tuple(f"{expert}{name}.weight" for expert in each for name in (self.gate, self.up))
        found[f"{ours}mlp.up.weight"] = Source(names, (e["ffn"],) * len(names))
        found[f"{ours}mlp.down.weight"] = Source(tuple(f"{expert}{self.down}.weight" for expert in each), (o["width"],) * e["count"])
        return found

    def why_not(self, o: dict[str, Any]) -> str | None:
        e = o.get("experts")
        if not e:
            return "it has no layers of experts"
        wanted = {"shared": (0,), "zero": (0,), "scores": ("softmax",), "scale": (1.0,), "bias": (0.0,)} | self.allowed(o)
        for key, allowed in wanted.items():
            if e[key] not in allowed:
                return f"experts.{key} is {e[key]!r}"
        return self.unfit(o)

    def allowed(self, o: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
        """What else the `experts` table may say, by key."""
        return {"dense": (0,), "ffn": (o["ffn"],)}
