"""A model and its optimizers as named tensors and plain values, and back: keyed by parameter names, not by their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer

from bessemer.core import shards
from bessemer.core.errors import ArtifactError, BessemerError, neighbours
from bessemer.train.checkpoint_folder import Checkpoint
from bessemer.train.checkpoint_pieces import in_pieces

WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")
SWITCHES = ("params", "names", "parts", "foreach", "fused", "capturable", "differentiable")  # how a machine does it, not what it does


def state_of(
    model: nn.Module, optimizers: Iterable[Optimizer] = (), parts: Mapping[str, Sequence[int]] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state as `Checkpointer.save` takes it, by reference; only buffers, which a forward may change, are copied.

    Args:
        parts: rows of the matrices stacked in a parameter, by name, where ranks cut each by itself (parallel/layout.py).

    Returns:
        tensors: "model.<name>" for each parameter and lasting buffer (one name for tied ones), "optimizer.<parameter>.<key>" for
            each tensor of an optimizer's state. Sharded ones are DTensors.
        plain: {"model": other state of the modules, "optimizers": [{"kind", "groups", "state", "apart"}]}; keys of one's own may be added.
            State that one rank keeps alone is in its "apart", which is None where no optimizer of this kind shares parameters out so
            (parallel/layout.py joins what the ranks have).

    Raises:
        BessemerError: an optimizer holds a parameter that is not the model's, or state that can't be stored.
    """
    tensors, extra = _model_state(model)
    for name, value in tensors.items():
        if not isinstance(value, nn.Parameter):
            tensors[name] = value.detach().clone()  # the next forward may change a buffer while parameters are being copied
    names = _parameter_names(model)
    plain: dict[str, Any] = {"model": extra, "optimizers": []}
    for number, optimizer in enumerate(optimizers):
        groups = []
        for place, group in enumerate(optimizer.param_groups):
            where = f"optimizer.groups[{number}][{place}]"
            options = {k: _encode(v, f"{where}.{k}", None, tensors) for k, v in group.items() if k not in SWITCHES}
            groups.append({"parameters": [_name(p, names, optimizer) for p in group["params"]], "options": options})
        state: dict[str, Any] = {}
        apart: dict[str, Any] = {}
        for parameter, entries in optimizer.state.items():
            name = _name(parameter, names, optimizer)
            if _keeps(optimizer, parameter):
                like, rows = _like(optimizer, parameter), apart if _apart(optimizer, parameter) else state
                rows[name] = {k: _encode(v, f"optimizer.{name}.{k}", like, tensors) for k, v in entries.items()}
        shared = any(_apart(optimizer, p) for group in optimizer.param_groups for p in group["params"])
        plain["optimizers"].append({"kind": type(optimizer).__name__, "groups": groups, "state": state, "apart": apart if shared else None})
    return in_pieces(tensors, parts or {}), plain


def restore(
    checkpoint: Checkpoint, model: nn.Module, optimizers: Iterable[Optimizer] = (), parts: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Any]:
    """Loads a checkpoint into a model and its optimizers, in place, and returns the plain values saved beside them.

    Fresh optimizers get their state made; a state tensor shaped like its parameter is laid out like it. Every rank calls it.
    Options of the parameter groups (learning rates, counters) are restored too; which kernel does the work stays as built.

    Raises:
        ArtifactError: the checkpoint is of another model (names, shapes, vocabulary, types) or of other optimizers; nothing was changed.
    """
    plain, optimizers = checkpoint.plain, list(optimizers)
    tensors, _ = _model_state(model)
    elsewhere = {f"model.{_clean(name)}" for name, value in [*model.named_parameters(), *model.named_buffers()] if value.is_meta}
    _check_model(checkpoint, tensors, elsewhere)
    saved = plain.get("optimizers", [])
    if len(saved) != len(optimizers):
        problem = f"holds {len(saved)} optimizers and this run has {len(optimizers)}"
        raise ArtifactError(problem, file=checkpoint.folder, mend="give the same optim options as the run that saved it")
    parameters = {name: parameter for parameter, name in _parameter_names(model).items()}
    made = [_remake(checkpoint, rows, optimizer, parameters, tensors) for rows, optimizer in zip(saved, optimizers, strict=True)]
    checkpoint.load(in_pieces(tensors, parts or {}))
    for optimizer, (state, groups) in zip(optimizers, made, strict=True):
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, options in zip(optimizer.param_groups, groups, strict=True):
            for key in group.keys() - options.keys() - {*SWITCHES} - optimizer.defaults.keys():
                del group[key]  # was first counted after the save
            group.update(options)
    if plain.get("model"):
        model.load_state_dict(plain["model"], strict=False)
    return plain


def _apart(optimizer: Optimizer, parameter: Tensor) -> bool:
    """Whether one rank keeps all state of a parameter that several hold pieces of."""
    return getattr(optimizer, "whole", False) and shards.pieces(parameter) > 1


def _keeps(optimizer: Optimizer, parameter: Tensor) -> bool:
    """Whether it is this one, or nobody in particular."""
    return not _apart(optimizer, parameter) or optimizer.keeps(parameter)  # type: ignore[attr-defined]


def _like(optimizer: Optimizer, parameter: Tensor) -> Tensor:
    """What state of a parameter's shape is laid out like: the parameter, or where only whole tensors move a plain one, here without memory."""
    if not isinstance(parameter, DTensor) or not getattr(optimizer, "whole", False):
        return parameter
    return shards.local(parameter).new_empty(()).expand(parameter.shape)


def _model_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    extra: dict[str, Any] = {}
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            extra[name] = value
        elif value.is_meta:  # another stage of a pipeline holds it
            continue
        elif id(value) not in seen:
            seen.add(id(value))
            tensors[f"model.{_clean(name)}"] = value
    return tensors, extra


def _parameter_names(model: nn.Module) -> dict[Tensor, str]:
    return {parameter: _clean(name) for name, parameter in model.named_parameters()}


def _clean(name: str) -> str:
    """Compiling or recomputing a block must not rename its parameters."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _name(parameter: Any, names: dict[Tensor, str], optimizer: Optimizer) -> str:
    if not isinstance(parameter, Tensor) or parameter not in names:
        shape = f"of shape {tuple(parameter.shape)}" if isinstance(parameter, Tensor) else repr(parameter)
        raise BessemerError(f"{type(optimizer).__name__} holds a parameter {shape} that is none of the model's, so it has no name to be saved under")
    return names[parameter]


def _encode(value: Any, name: str, parameter: Tensor | None, tensors: dict[str, Tensor]) -> Any:
    """A value of an optimizer's state as JSON, its tensors put into `tensors` under their names."""
    if isinstance(value, Tensor):
        if isinstance(parameter, DTensor) and not isinstance(value, DTensor) and _is_part(value, parameter):
            raise BessemerError("is one rank's part of a sharded state held in a plain tensor; the optimizer must keep it as a DTensor", key=name)
        tensors[name] = value
        return {"tensor": name, "near": parameter is not None and value.device == parameter.device, "mesh": isinstance(value, DTensor)}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if isinstance(value, list | tuple):
        return {"tuple" if isinstance(value, tuple) else "list": [_encode(v, f"{name}.{i}", parameter, tensors) for i, v in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"dict": {k: _encode(v, f"{name}.{k}", parameter, tensors) for k, v in value.items()}}
    raise BessemerError(f"is a {type(value).__name__}, which a checkpoint can't hold; tensors, numbers, words, lists and dicts it can", key=name)


def _is_part(value: Tensor, parameter: DTensor) -> bool:
    return value.ndim > 0 and parameter.shape != value.shape == parameter.to_local().shape


def _remake(
    checkpoint: Checkpoint, rows: dict[str, Any], optimizer: Optimizer, parameters: dict[str, Tensor], tensors: dict[str, Tensor]
) -> tuple[dict[Tensor, dict[str, Any]], list[dict[str, Any]]]:
    """The state and the group options an optimizer will have; the tensors in them are put into `tensors`, to be filled."""
    names = {parameter: name for name, parameter in parameters.items()}
    elsewhere = {name for name, parameter in parameters.items() if parameter.is_meta}
    mend = "give the same optim options as the run that saved it, or begin a new run with --out"
    if rows["kind"] != type(optimizer).__name__:
        raise ArtifactError(f"holds the state of {rows['kind']} where this run has {type(optimizer).__name__}", file=checkpoint.folder, mend=mend)
    here = [[_name(p, names, optimizer) for p in group["params"]] for group in optimizer.param_groups]
    there = [group["parameters"] for group in rows["groups"]]
    if here != [[name for name in members if name not in elsewhere] for members in there]:
        text = f"groups the parameters of {rows['kind']} otherwise: {[len(g) for g in there]} in the checkpoint, {[len(g) for g in here]} here"
        raise ArtifactError(text, file=checkpoint.folder, mend=mend)
    state: dict[Tensor, dict[str, Any]] = {}
    wanted = {name: entries for name, entries in rows["state"].items() if name not in elsewhere}
    group_of = {name: group for group, members in zip(optimizer.param_groups, here, strict=True) for name in members}
    for name, entries in wanted.items():
        if name not in group_of:
            raise ArtifactError(f"holds state for a parameter that {rows['kind']} has not", file=checkpoint.folder, key=name, mend=mend)
        parameter, group = parameters[name], group_of[name]
        held = optimizer.state.get(parameter, {})
        if not _keeps(optimizer, parameter):
            entries = {k: v for k, v in entries.items() if "value" in v}  # plain numbers every rank may have
        like = _like(optimizer, parameter)
        state[parameter] = {k: _decode(checkpoint, v, like, group, held.get(k), tensors) for k, v in entries.items()}
    options = [
        {k: _decode(checkpoint, v, None, {}, group.get(k), tensors) for k, v in row["options"].items()}
        for row, group in zip(rows["groups"], optimizer.param_groups, strict=True)
    ]
    return state, options


def _decode(
    checkpoint: Checkpoint, row: dict[str, Any], parameter: Tensor | None, group: dict[str, Any], held: Any, tensors: dict[str, Tensor]
) -> Any:
    if "value" in row:
        return row["value"]
    if "dict" in row:
        held = held if isinstance(held, dict) else {}
        return {k: _decode(checkpoint, v, parameter, group, held.get(k), tensors) for k, v in row["dict"].items()}
    if "tensor" not in row:
        kind, rows = ("tuple", row["tuple"]) if "tuple" in row else ("list", row["list"])
        before = held if isinstance(held, list | tuple) and len(held) == len(rows) else [None] * len(rows)
        values = [_decode(checkpoint, v, parameter, group, b, tensors) for v, b in zip(rows, before, strict=True)]
        return tuple(values) if kind == "tuple" else values
    name = row["tensor"]
    if name not in checkpoint.shapes:
        raise ArtifactError("the checkpoint's values speak of this tensor but it holds none such", file=checkpoint.folder, key=name)
    dtype, shape = checkpoint.shapes[name]
    fits = isinstance(held, Tensor) and held.shape == shape and held.dtype == dtype
    tensors[name] = held if fits else _place(row, dtype, shape, parameter, group, name)
    return tensors[name]


def _place(row: dict[str, Any], dtype: torch.dtype, shape: torch.Size, parameter: Tensor | None, group: dict[str, Any], name: str) -> Tensor:
    """An empty tensor for a saved state, laid out as the optimizer would have made it."""
    if parameter is None:
        return torch.empty(shape, dtype=dtype)
    if shape == parameter.shape and shape:
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    near = row["near"]
    if name.endswith(".step") and not shape:  # torch's optimizers keep their count on the host unless a kernel reads it
        near = bool(group.get("fused") or group.get("capturable"))
    local = torch.empty(shape, dtype=dtype, device=parameter.device if near else None)
    if row["mesh"] and isinstance(parameter, DTensor):
        return DTensor.from_local(local, parameter.device_mesh, [Replicate()] * parameter.device_mesh.ndim, run_check=False)
    return local


def _check_model(checkpoint: Checkpoint, tensors: dict[str, Tensor], elsewhere: set[str]) -> None:
    """Refuses a checkpoint of another model.

    Args:
        elsewhere: names that other stages of a pipeline hold.
    """
    saved = {name for name in checkpoint.shapes if name.startswith("model.")}
    for name in sorted(saved - tensors.keys() - elsewhere):
        raise ArtifactError("is in the checkpoint but not in the model of this run", file=checkpoint.folder, key=name, mend=neighbours(name, tensors))
    for name in sorted(tensors.keys() - saved):
        raise ArtifactError("is in the model of this run but not in the checkpoint", file=checkpoint.folder, key=name, mend=neighbours(name, saved))
