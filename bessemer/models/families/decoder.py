"""The decoder family: one transformer whose options cover Llama 2/3, Qwen 2/3, Mistral, OLMo 2 and GPT-2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bessemer.core.batch import Batch, Outputs
from bessemer.core.errors import RecipeError
from bessemer.core.registry import Auto
from bessemer.models import transfer as transfers
from bessemer.models.adapters._adapter import VECTORS, place
from bessemer.models.families._decoder_options import attention_flops, check, resolve
from bessemer.models.heads.ahead import Ahead
from bessemer.models.layers import experts as mixture
from bessemer.models.layers import mask as masks
from bessemer.models.layers.attention import Attention, Context, QKNorm
from bessemer.models.layers.block import Block, NormPlace
from bessemer.models.layers.embedding import Embedding
from bessemer.models.layers.experts import Experts, MixtureOfExperts
from bessemer.models.layers.head import Head
from bessemer.models.layers.mlp import MLPName, mlp
from bessemer.models.layers.modal import Kinds, kinds
from bessemer.models.layers.norm import NormName, norm
from bessemer.models.layers.rope import Rope
from bessemer.models.reparameterized import Matrix


class Decoder(nn.Module):
    """A causal transformer over tokens: the shapes of Llama, Qwen, Mistral, OLMo 2 and GPT-2 as options.

    `depth` alone gives a Qwen 3 shape: width 64 x depth, heads of 64, SwiGLU of 8/3 width, RMSNorm before each part, RMSNorm
    on queries and keys, rotary positions, untied head. Its learning rate carries over from depth to depth (models/transfer.py).

    Args:
        vocabulary: how many tokens there are.
        seed: of the initial values.
        depth: layers.
        width: size of the residual stream; auto: 64 x depth, at least 128.
        heads: query heads; auto: width / head_size.
        kv_heads: key and value heads, a divisor of heads; auto: heads up to 16, beyond that a quarter of them or so.
        head_size: elements of a head, even with rotary positions; auto: width / heads, or 64.
        ffn: width of the feed-forward part; auto: 8/3 width for SwiGLU and 4 width for GELU, rounded to 64.
        mlp: SwiGLU, GELU, or GPT-2's tanh approximation of GELU.
        norm, norm_place, norm_eps: which normalisation, where in the block, and its epsilon.
        qk_norm: RMSNorm on queries and keys: per head (Qwen 3), over all heads (OLMo 2), none.
        attention_bias, mlp_bias: which products have biases.
        parallel: attention and feed-forward read the same input (PaLM).
        positions: rotary or learned absolute ones.
        theta, rope_scaling: base of the rotary frequencies, and a table with "rope_type" and its keys as in Hugging Face's
            config.json (linear, dynamic, yarn, llama3, longrope).
        length: positions the model is made for, its context; auto: those of the rows it is trained on, 2,048 outside of training.
        window: tokens each query may look back at, itself included; None: all.
        window_layers: which layers have the window; None: all.
        tied: the head shares the embedding's weight.
        head_bias: a bias on the logits.
        experts: a table that makes the feed-forward parts mixtures of experts (models/layers/experts.py); `{ count = 16 }` is enough.
        modalities: streams of adapters, such as "patches", whose columns go through feed-forward parts of their own (models/layers/modal.py).
        ahead: modules that predict further tokens, read by the objective multi_token.
        transfer: initial values and learning-rate scales that carry over between sizes; false: plain, as imported models are.

    Raises:
        RecipeError: options contradict each other.
    """

    def __init__(
        self,
        vocabulary: int,
        seed: int = 0,
        *,
        depth: int,
        width: int | Auto = "auto",
        heads: int | Auto = "auto",
        kv_heads: int | Auto = "auto",
        head_size: int | Auto = "auto",
        ffn: int | Auto = "auto",
        mlp: MLPName = "swiglu",
        norm: NormName = "rms",
        norm_place: NormPlace = "pre",
        norm_eps: float = 1e-6,
        qk_norm: QKNorm = "head",
        attention_bias: Literal["none", "qkv", "all"] = "none",
        mlp_bias: bool = False,
        parallel: bool = False,
        positions: Literal["rope", "learned", "none"] = "rope",
        theta: float = 10000.0,
        rope_scaling: dict[str, Any] | None = None,
        length: int | Auto = "auto",
        window: int | None = None,
        window_layers: list[int] | None = None,
        tied: bool = False,
        head_bias: bool = False,
        experts: Experts | None = None,
        modalities: list[str] = [],
        ahead: int = 0,
        transfer: bool = True,
    ) -> None:
        super().__init__()
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__", "vocabulary", "seed")}
        self.vocabulary = vocabulary
        self.options = o = resolve(given)
        check(vocabulary, o)
        self.embed = Embedding(vocabulary, o["width"])
        self.place = Embedding(o["length"], o["width"], "position") if positions == "learned" else None
        self.rope = Rope(o["head_size"], theta, o["length"], rope_scaling) if positions == "rope" else None
        self.blocks = nn.ModuleList(_block(o, layer) for layer in range(depth))
        self.windowed = [window is not None and (window_layers is None or layer in window_layers) for layer in range(depth)]
        self.norm = nn.Identity() if norm_place == "post" else _norm(o)
        self.head = Head(o["width"], vocabulary, head_bias, self.embed.weight if tied else None)
        self.adapters, self.tasks = nn.ModuleDict(), nn.ModuleDict()
        self.attached: dict[str, dict[str, Any]] = {"adapters": {}, "tasks": {}}
        self.ahead = nn.ModuleList(Ahead(o["width"], _block(o, depth + k), _norm(o), _norm(o), _norm(o)) for k in range(ahead))
        if not self.embed.weight.is_meta:
            self.initialise(seed)

    def initialise(self, seed: int) -> None:
        """Draws every parameter anew; needed after building on the meta device and allocating."""
        transfers.initialise(self, seed)

    def forward(self, batch: Batch | Tensor, cache: Any = None) -> Any:
        """Outputs of a batch; logits [rows, length, vocabulary] when given bare tokens [rows, length].

        Args:
            batch: positions restart at each document; segments None means each row is one document from its first column.
            cache: for generation (see layers/attention.py); the batch then holds only the new tokens. With segments None all
                rows' documents begin at column 0; otherwise they may be padded on the left with segment 0.
        """
        if isinstance(batch, Tensor):
            return self.forward(_bare(batch, cache), cache).logits()
        if batch.first is not None:  # here, where sharded parameters are whole
            batch = batch.first(replace(batch, first=None))
        x = self.embed(batch.tokens)
        if self.place is not None:
            x = x + self.place(_within(batch.positions, self.place))
        x = self._adapt(x, batch)
        full, near = self.contexts(batch, cache)
        for block, windowed in zip(self.blocks, self.windowed, strict=True):
            x = block(x, near if windowed else full, cache)
        outputs = Outputs(self.norm(x), self.head, self, batch)
        if self.ahead and cache is None and batch.targets is not None:
            self._look_ahead(x, batch, full, outputs)
        if self.options["experts"]:
            mixture.report(self, outputs)
        return outputs

    def after_step(self, progress: Any, optimizers: Any, counts: dict[str, Tensor]) -> None:
        """What changes once a step without a gradient: the routers' biases, by the counts of the step's outputs over all batches and ranks."""
        mixture.nudge(self, counts)

    def _adapt(self, x: Tensor, batch: Batch) -> Tensor:
        """Inputs other than tokens, laid into their columns; see models/attach.py."""
        for adapter in self.adapters.values():
            x = adapter(x, batch)
        made = batch.streams.get(VECTORS)
        return x if made is None else place(x, made, batch.streams[f"{VECTORS}_index"])

    def contexts(self, batch: Batch, cache: Any = None) -> tuple[Context, Context]:
        """What the layers share for this batch: for those that see whole documents, and for those with a window."""
        cos, sin = self.rope(batch.positions, getattr(batch.spread, "longest", None)) if self.rope else (None, None)
        full = self._context(batch, cache, None, cos, sin)
        if self.options["modalities"]:
            full = full._replace(kinds=self.kinds(batch))
        if self.options["window"] is None:
            return full, full
        return full, self._context(batch, cache, self.options["window"], cos, sin)._replace(kinds=full.kinds)

    def kinds(self, batch: Batch) -> Kinds | None:
        """Which columns go through which modality's feed-forward parts."""
        return kinds(batch, self.options["modalities"])

    def _context(self, batch: Batch, cache: Any, window: int | None, cos: Tensor | None, sin: Tensor | None) -> Context:
        length = batch.tokens.shape[1]
        if cache is None:
            valid = None if batch.segments is None else batch.segments != 0
            if batch.spread is not None:
                return Context(cos, sin, None, valid=valid, spread=batch.spread, window=window)
            if batch.segments is not None or batch.open is not None:
                segments = torch.ones_like(batch.tokens) if batch.segments is None else batch.segments
                return Context(cos, sin, masks.packed(segments, window, batch.open), batch.open is None, valid=valid)
            near = window is not None and length > window
            return Context(cos, sin, masks.windowed(length, window, batch.tokens.device) if near and window else None)
        start, columns = cache.length, getattr(cache, "columns", None)
        simple = batch.segments is None and columns is None and not isinstance(start, Tensor)
        if simple and (window is None or start + length <= window) and (start == 0 or length == 1):
            return Context(cos, sin, None, causal=start == 0)
        if columns is None:
            columns = (int(start.max()) if isinstance(start, Tensor) else start) + length
        return Context(cos, sin, masks.cached(batch.positions, start, columns, window))

    def _look_ahead(self, x: Tensor, batch: Batch, context: Context, outputs: Outputs) -> None:
        tokens = batch.targets
        assert tokens is not None
        for number, module in enumerate(self.ahead, start=1):
            x, hidden = module(x, self.embed(tokens), context)
            outputs.extras[f"ahead_{number}"] = hidden
            tokens = batch.later(tokens, 1)

    def flops_per_token(self, length: int) -> float:
        """Floating point operations of training on one token, in rows of `length` tokens.

        6 for each weight in a matrix product (2 forward, 4 backward; embeddings are looked up, not multiplied; a tied head
        counts), plus for attention 12 x heads x head size x the mean number of visible tokens per layer: scores and mixing
        take 2 x 2 forward and twice that backward. Causal attention sees (length + 1) / 2 on average, the masked half is not
        counted; a window sees less. Of the experts only those count that a token gets. Packing is not accounted for: documents are taken to
        fill their rows; nor are the adapters and heads of single tasks.
        """
        blocks, rest = self.flops_by_part(length)
        return sum(blocks) + rest

    def flops_by_part(self, length: int) -> tuple[list[float], float]:
        """The same of each block, and of all that follows them: the head, and modules that look further ahead with a head each."""
        blocks = [_flops(block) + attention_flops(self.options, [near], length) for block, near in zip(self.blocks, self.windowed, strict=True)]
        ahead = sum(_flops(module) + _flops(self.head) + attention_flops(self.options, [False], length) for module in self.ahead)
        return blocks, _flops(self.head) + ahead


def _flops(part: nn.Module) -> float:
    """Training operations per token of the matrix products in a part of the model."""
    beside = {id(m) for name, other in part.named_modules() if name.endswith("others") for m in other.modules()}  # a column goes through one part
    inside = [m for m in part.modules() if id(m) not in beside]
    weights = float(sum(m.weight.numel() for m in inside if isinstance(m, nn.Linear)))
    weights += sum(m.active_weights() for m in inside if isinstance(m, MixtureOfExperts))
    return 6.0 * weights + sum(m.flops() for m in inside if isinstance(m, Matrix))  # what reparameterized layers say of themselves


def _block(o: dict[str, Any], layer: int) -> Block:
    attention = Attention(
        o["width"], o["heads"], o["kv_heads"], o["head_size"], layer, qk_norm=o["qk_norm"], bias=o["attention_bias"], eps=o["norm_eps"]
    )
    second = None if o["parallel"] else _norm(o)
    routed = o["experts"] is not None and layer >= o["experts"]["dense"]
    feed = MixtureOfExperts(o["width"], o["mlp"], o["experts"]) if routed else mlp(o["mlp"], o["width"], o["ffn"], o["mlp_bias"])
    others = [mlp(o["mlp"], o["width"], o["ffn"], o["mlp_bias"]) for _ in o["modalities"]]
    return Block(attention, feed, _norm(o), second, o["norm_place"], o["parallel"], others)


def _norm(o: dict[str, Any]) -> nn.Module:
    return norm(o["norm"], o["width"], o["norm_eps"])


def _bare(tokens: Tensor, cache: Any) -> Batch:
    """Tokens [rows, length] as a batch of one document a row, going on where the cache ends."""
    start = 0 if cache is None else cache.length
    offset = start[:, None] if isinstance(start, Tensor) else start
    return Batch(tokens, (torch.arange(tokens.shape[1], device=tokens.device) + offset).expand_as(tokens))


def _within(positions: Tensor, table: Embedding) -> Tensor:
    if positions.shape[1] > table.weight.shape[0]:
        raise RecipeError(
            f"rows of {positions.shape[1]} tokens are longer than the model's {table.weight.shape[0]} learned positions",
            key="length",
            mend="shorten the rows or build the model with a greater length",
        )
    return positions
