"""What the converters share: reading config.json strictly, rotary scaling in its old and new spelling, Llama-like names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from bessemer.core.errors import ArtifactError
from bessemer.models.layers.rope import SCALINGS, scaling_problem

NEUTRAL = {
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "_attn_implementation_autoset", "use_cache",
    "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id", "attention_dropout", "resid_pdrop", "embd_pdrop",
    "attn_pdrop", "dropout", "hidden_dropout", "id2label", "label2id", "problem_type", "return_dict", "output_hidden_states", "output_attentions",
    "chunk_size_feed_forward", "is_encoder_decoder", "pretraining_tp", "task_specific_params", "use_return_dict", "auto_map", "summary_type",
    "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout", "reorder_and_upcast_attn", "n_ctx", "finetuning_task",
    "bessemer", "max_window_layers", "router_aux_loss_coef", "gradient_checkpointing", "unsloth_version", "unsloth_fixed", "tokenizer_class", "head_dim",
}  # fmt: skip
"""Keys that don't change what the forward pass computes at inference, or that are read where they matter."""

NAMES: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false", dict: "a table", list: "a list", str: "a string"}


@dataclass
class Source:
    """Where one of our parameters lies in a Hugging Face checkpoint.

    Attributes:
        names: tensors that, one below the other, make ours; each expert's matrix in turn where ours are stacked.
        rows: how many rows of ours each of them holds.
        transposed: theirs are [inputs, outputs] (GPT-2's Conv1D).
    """

    names: tuple[str, ...]
    rows: tuple[int, ...] = ()
    transposed: bool = False


@dataclass
class Config:
    """A config.json being read: every key asked for is ticked off, and what is left over is refused."""

    table: dict[str, Any]
    file: Path
    read: set[str] = field(default_factory=set)

    def __call__(self, key: str, kind: type, default: Any = ...) -> Any:
        """The value of a key, checked for its type; null counts as absent.

        Raises:
            ArtifactError: it is missing without default, or of another type.
        """
        self.read.add(key)
        value = self.table.get(key)
        if value is None:
            if default is ...:
                raise ArtifactError("this key is needed and missing", file=self.file, key=key)
            return default
        if not isinstance(value, (float, int) if kind is float else kind) or (isinstance(value, bool) and kind is not bool):
            raise ArtifactError(f"{value!r} is not {NAMES[kind]}", file=self.file, key=key)
        return float(value) if kind is float else value  # type: ignore[arg-type]

    def must_be(self, key: str, *allowed: Any) -> Any:
        """The value of a key that has to be one of `allowed`; absent is the first.

        Raises:
            ArtifactError: it is another.
        """
        self.read.add(key)
        value = self.table.get(key)
        if value is None:
            return allowed[0]
        if value not in allowed:
            raise ArtifactError(f"{value!r} is not supported; {' or '.join(repr(each) for each in allowed)} is", file=self.file, key=key)
        return value

    def finish(self) -> None:
        """Refuses keys nobody asked for, unless they are known to be neutral or switched off.

        Raises:
            ArtifactError: naming the first of them.
        """
        for key, value in self.table.items():
            if key not in self.read | NEUTRAL and value not in (None, False, 0, 1.0, {}, []):
                raise ArtifactError(
                    f"{value!r} is set, and it is not known here what that changes",
                    file=self.file,
                    key=key,
                    mend="if it changes nothing in the forward pass, take the key out of config.json and import again",
                )


class Architecture:
    """One Hugging Face architecture; a subclass a file. This base reads and writes what looks like Llama.

    Attributes:
        model_type, name: as config.json has them.
        dropped: endings of tensors that carry nothing (buffers old versions saved).
    """

    model_type: ClassVar[str]
    name: ClassVar[str]
    dropped: ClassVar[tuple[str, ...]] = ("rotary_emb.inv_freq",)
    prefix: ClassVar[str] = "model."
    required: ClassVar[dict[str, tuple[Any, ...]]] = {}
    default_eps: ClassVar[float] = 1e-6

    def options(self, config: Config) -> dict[str, Any]:
        """Our options of a config.json; raises ArtifactError where it says something we can't do."""
        return read_llama_like(config, self.default_eps)

    def config(self, o: dict[str, Any], vocabulary: int) -> dict[str, Any]:
        """The config.json of our options."""
        return write_llama_like(o, vocabulary)

    def sources(self, o: dict[str, Any]) -> dict[str, Source]:
        """Where each of our parameters lies, by our name."""
        found = {"embed.weight": Source(("model.embed_tokens.weight",)), "norm.weight": Source(("model.norm.weight",))}
        for layer in range(o["depth"]):
            found |= self.layer(o, f"blocks.{layer}.", f"model.layers.{layer}.")
        if not o["tied"]:
            found["head.weight"] = Source(("lm_head.weight",))
        return found

    def layer(self, o: dict[str, Any], ours: str, theirs: str) -> dict[str, Source]:
        """One layer of `sources`."""
        rows = tuple(n * o["head_size"] for n in (o["heads"], o["kv_heads"], o["kv_heads"]))
        first, second = (
            ("post_attention_layernorm", "post_feedforward_layernorm")
            if o["norm_place"] == "reordered"
            else ("input_layernorm", "post_attention_layernorm")
        )
        found = {
            f"{ours}attention_norm.weight": Source((f"{theirs}{first}.weight",)),
            f"{ours}mlp_norm.weight": Source((f"{theirs}{second}.weight",)),
        }
        for kind, wanted in (("weight", True), ("bias", o["attention_bias"] != "none")):
            if wanted:
                found[f"{ours}attention.qkv.{kind}"] = Source(tuple(f"{theirs}self_attn.{n}_proj.{kind}" for n in "qkv"), rows)
        for kind, wanted in (("weight", True), ("bias", o["attention_bias"] == "all")):
            if wanted:
                found[f"{ours}attention.out.{kind}"] = Source((f"{theirs}self_attn.o_proj.{kind}",))
        for kind, wanted in (("weight", True), ("bias", o["mlp_bias"])):
            if wanted:
                found[f"{ours}mlp.gate_up.{kind}"] = Source((f"{theirs}mlp.gate_proj.{kind}", f"{theirs}mlp.up_proj.{kind}"), (o["ffn"], o["ffn"]))
                found[f"{ours}mlp.down.{kind}"] = Source((f"{theirs}mlp.down_proj.{kind}",))
        if o["qk_norm"] != "none":
            found |= {f"{ours}attention.{n}_norm.weight": Source((f"{theirs}self_attn.{n}_norm.weight",)) for n in "qk"}
        return found

    def why_not(self, o: dict[str, Any]) -> str | None:
        """Why a model of these options is not of this architecture, or None."""
        return "it has layers of experts" if o.get("experts") else self.unfit(o)

    def unfit(self, o: dict[str, Any]) -> str | None:
        """Which option is not among those `required`, or None."""
        for key, allowed in self.required.items():
            if o[key] not in allowed:
                return f"{key} is {o[key]!r}"
        return None


LLAMA_LIKE: dict[str, tuple[Any, ...]] = {
    "mlp": ("swiglu",), "norm": ("rms",), "norm_place": ("pre",), "parallel": (False,), "positions": ("rope",), "head_bias": (False,), "qk_norm": ("none",),
    "attention_bias": ("none", "all"), "mlp_bias": (False,), "window": (None,),
}  # fmt: skip


def read_llama_like(config: Config, default_eps: float, tied: bool = False) -> dict[str, Any]:
    """The options every Llama-like config.json spells the same way."""
    config.must_be("hidden_act", "silu", "swish")
    config.must_be("quantization_config", None)
    config.must_be("partial_rotary_factor", 1.0)
    width, heads = config("hidden_size", int), config("num_attention_heads", int)
    head_size = config("head_dim", int, width // max(heads, 1))
    length = config("max_position_embeddings", int, 2048)
    theta, scaling = read_rope(config, head_size)
    return {
        "depth": config("num_hidden_layers", int), "width": width, "heads": heads, "kv_heads": config("num_key_value_heads", int, heads), "head_size": head_size,
        "ffn": config("intermediate_size", int), "mlp": "swiglu", "norm": "rms", "norm_eps": config("rms_norm_eps", float, default_eps), "theta": theta,
        "rope_scaling": scaling, "length": length, "tied": config("tie_word_embeddings", bool, tied), "qk_norm": "none", "transfer": False,
    }  # fmt: skip


def write_llama_like(o: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """The keys of config.json that `read_llama_like` reads."""
    return {
        "vocab_size": vocabulary, "hidden_size": o["width"], "intermediate_size": o["ffn"], "num_hidden_layers": o["depth"], "num_attention_heads": o["heads"],
        "num_key_value_heads": o["kv_heads"], "head_dim": o["head_size"], "hidden_act": "silu", "max_position_embeddings": o["length"],
        "rms_norm_eps": o["norm_eps"], "rope_theta": o["theta"], "rope_scaling": o["rope_scaling"], "tie_word_embeddings": o["tied"],
        "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True,
    }  # fmt: skip


def read_rope(config: Config, head_size: int) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling: `rope_parameters` as transformers 5 writes it, or `rope_theta` and `rope_scaling` as before."""
    table = dict(config("rope_parameters", dict, None) or config("rope_scaling", dict, None) or {})
    config.read |= {"rope_parameters", "rope_scaling"}
    theta = config("rope_theta", float, 10000.0)
    theta = float(table.pop("rope_theta", theta))
    legacy = table.pop("type", None)
    kind = table.setdefault("rope_type", legacy or "default")
    if kind == "su":
        table["rope_type"] = kind = "longrope"
    if table.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ArtifactError("rotary positions on part of a head are not supported", file=config.file, key="rope_parameters.partial_rotary_factor")
    original = config("original_max_position_embeddings", int, None)
    if kind not in SCALINGS:
        raise ArtifactError(f"{kind!r} is no known scaling; there is {', '.join(SCALINGS)}", file=config.file, key="rope_parameters.rope_type")
    needed, optional = SCALINGS[kind]
    if original and "original_max_position_embeddings" in needed | optional:
        table.setdefault("original_max_position_embeddings", original)
    table = {key: value for key, value in table.items() if value is not None and not (key.startswith("original_") and key not in needed | optional)}
    if kind == "default":
        return theta, None
    problem = scaling_problem(table, head_size)
    if problem:
        raise ArtifactError(problem[1], file=config.file, key=f"rope_parameters.{problem[0]}")
    return theta, table


def read_windows(config: Config, depth: int) -> tuple[int | None, list[int] | None]:
    """The window and its layers as the Qwen configs spell them: a switch, a size, and a type by layer."""
    on, size = config("use_sliding_window", bool, False), config("sliding_window", int, None)
    kinds, first = config("layer_types", list, None), config("max_window_layers", int, depth)
    if not on or size is None:
        return None, None
    layers = [i for i, kind in enumerate(kinds) if kind == "sliding_attention"] if kinds else list(range(first, depth))
    if not layers:
        return None, None
    return size, None if len(layers) == depth else layers


def write_windows(o: dict[str, Any]) -> dict[str, Any]:
    """The keys `read_windows` reads."""
    near = [] if o["window"] is None else list(range(o["depth"])) if o["window_layers"] is None else o["window_layers"]
    kinds = ["sliding_attention" if layer in near else "full_attention" for layer in range(o["depth"])]
    first = min(near, default=o["depth"])
    return {"use_sliding_window": bool(near), "sliding_window": o["window"], "max_window_layers": first, "layer_types": kinds}
