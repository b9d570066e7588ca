"""Models as folders: what is written is read, and what is wrong is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import bessemer
from bessemer.core.artifact import seal
from bessemer.core.errors import ArtifactError, BessemerError
from bessemer.core.work import Work
from bessemer.models import hugging_face, weights
from bessemer.models.families.decoder import Decoder
from bessemer.models.package import Model, save_model
from bessemer.run.stages.export import export as export_stage
from bessemer.run.stages.import_model import import_model

SMALL = {"depth": 2, "width": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "length": 64}


def sealed(folder: Path, model: Decoder | None = None, **saving: Any) -> Model:
    info = save_model(model or Decoder(50, 3, **SMALL), folder, **saving)
    seal(folder, "model", recipe={}, parents={}, info=info)
    return Model.open(folder)


@pytest.mark.parametrize(
    "options", [{}, {"tied": True}, {"ahead": 1}, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "window": 4}], ids=str
)
@pytest.mark.parametrize("shard_bytes", [1 << 30, 5000])
def test_what_is_saved_is_loaded(options, shard_bytes, tmp_path):
    model = Decoder(50, 3, **SMALL, **options)
    artifact = sealed(tmp_path / "m", model, shard_bytes=shard_bytes)
    assert (len(list((tmp_path / "m").glob("*.safetensors"))) > 1) == (shard_bytes == 5000)
    back = artifact.build()
    assert back.options == model.options
    assert [n for n, _ in back.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))
    tokens = torch.arange(20)[None]
    assert torch.equal(back(tokens), model(tokens))
    assert torch.equal(bessemer.load(tmp_path / "m")(tokens), model(tokens))


def test_types_are_kept_or_changed(tmp_path):
    artifact = sealed(tmp_path, dtype=torch.bfloat16)
    assert artifact.info["dtype"] == "bfloat16"
    assert {p.dtype for p in artifact.build(None).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in artifact.build().parameters()} == {torch.float32}


def test_saving_again_leaves_no_stale_shard(tmp_path):
    model = Decoder(50, 3, **SMALL)
    save_model(model, tmp_path, shard_bytes=5000)
    save_model(model, tmp_path)
    assert [path.name for path in tmp_path.glob("model*")] in (["model.json", "model.safetensors"], ["model.safetensors", "model.json"])


def test_a_runs_folder_gives_its_newest_model(tmp_path):
    sealed(tmp_path / "first", Decoder(50, 1, **SMALL))
    manifest = json.loads((tmp_path / "first" / "manifest.json").read_text())
    (tmp_path / "first" / "manifest.json").write_text(json.dumps(manifest | {"made_at": "2020-01-01T00:00:00Z"}))
    latest = Decoder(50, 2, **SMALL)
    sealed(tmp_path / "second", latest)
    tokens = torch.arange(5)[None]
    assert torch.equal(bessemer.load(tmp_path)(tokens), latest(tokens))


def edit(file: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        table = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(json.dumps({key: value for key, value in table.items() if value != "GONE"}))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def edited(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors")

    return edited


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def torn_json(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_text((folder / file).read_text()[:-20])  # type: ignore[return-value]


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


OURS: list[tuple[Callable[[Path], Any], str]] = [
    (truncate, "truncated or altered"),
    (lambda f: (f / "model.safetensors").unlink(), "has neither model.safetensors"),
    (pickled, "pickled"),
    (torn_json("model.json"), "not whole JSON"),
    (edit("model.json", vocabulary=51), r"shape \[50, 32\] where the options ask for \[51, 32\]"),
    (edit("model.json", vocabulary="many"), "model.json: vocabulary"),
    (edit("model.json", family="encoder"), "there is no 'encoder'"),
    (edit("model.json", format=2), "format 2"),
    (edit("model.json", options="GONE"), "model.json: options"),
    (edit("model.json", options={**SMALL, "colour": "blue"}), "options.colour"),
    (edit("model.json", options={**SMALL, "depth": "two"}), "options.depth"),
    (edit("model.json", options={**SMALL, "depth": 3}), "tensors are missing, among them blocks.2"),
    (edit("model.json", options={**SMALL, "depth": 1}), "belong to no parameter, among them blocks.1"),
    (edit("model.json", options={**SMALL, "heads": 3, "kv_heads": 2}), "kv_heads"),
    (tensors(lambda t: t.pop("norm.weight")), "missing, among them norm.weight"),
    (tensors(lambda t: t.update(stray=torch.zeros(2))), "no parameter, among them stray"),
    (tensors(lambda t: t.update({"norm.weight": torch.ones(31)})), r"norm.weight: has shape \[31\]"),
]


@pytest.mark.parametrize(("harm", "told"), OURS)
def test_a_broken_model_says_what_is_wrong(harm, told, tmp_path):
    save_model(Decoder(50, 3, **SMALL), tmp_path)
    harm(tmp_path)
    with pytest.raises(BessemerError, match=told):
        bessemer.load(tmp_path)


FOREIGN: list[tuple[Callable[[Path], Any], str]] = [
    (truncate, "truncated or altered"),
    (pickled, "pickled"),
    (torn_json("config.json"), "not whole JSON"),
    (lambda f: (f / "config.json").write_text("[]"), "no table of settings"),
    (edit("config.json", model_type="bert"), "model_type: 'bert' is not supported"),
    (edit("config.json", model_type="qwen4"), "did you mean 'qwen"),
    (edit("config.json", architectures=["Qwen3ForSequenceClassification"]), "predict the next token"),
    (edit("config.json", hidden_size="GONE"), "hidden_size: this key is needed"),
    (edit("config.json", hidden_size="big"), "hidden_size: 'big' is not a whole number"),
    (edit("config.json", hidden_act="relu"), "hidden_act: 'relu' is not supported"),
    (edit("config.json", quantization_config={"bits": 4}), "quantization_config"),
    (edit("config.json", logit_softcap=30.0), "logit_softcap: 30.0 is set"),
    (edit("config.json", rope_scaling={"rope_type": "spiral"}), "rope_type: 'spiral'"),
    (edit("config.json", rope_scaling={"rope_type": "linear"}), "factor: the linear scaling needs it"),
    (edit("config.json", rope_scaling={"rope_type": "default", "partial_rotary_factor": 0.5}), "part of a head"),
    (edit("config.json", vocab_size=49), r"embed_tokens.weight: has shape \[50, 32\] where the options ask for \[49, 32\]"),
    (edit("config.json", num_hidden_layers=3), "missing, among them model.layers.2"),
    (edit("config.json", num_key_value_heads=3), "kv_heads"),
    (edit("config.json", tie_word_embeddings="yes"), "true or false"),
    (tensors(lambda t: t.pop("model.layers.1.self_attn.q_norm.weight")), "missing, among them model.layers.1.self_attn.q_norm.weight"),
    (tensors(lambda t: t.update({"model.layers.0.lora_A": torch.zeros(2)})), "no parameter, among them model.layers.0.lora_A"),
]


@pytest.mark.parametrize(("harm", "told"), FOREIGN)
def test_a_broken_hugging_face_folder_says_what_is_wrong(harm, told, tmp_path):
    hugging_face.write_folder(Decoder(50, 3, **SMALL), tmp_path)
    harm(tmp_path)
    with pytest.raises(BessemerError, match=told):
        bessemer.load(tmp_path)


SHARDED: list[tuple[Callable[[Path], Any], str]] = [
    (lambda f: next(iter(sorted(f.glob("model-00002*")))).unlink(), "missing is model-00002"),
    (edit("model.safetensors.index.json", weight_map={"a": "model-00001-of-00002.safetensors"}), "missing is|says this tensor is in"),
    (edit("model.safetensors.index.json", weight_map=3), "no table of tensors"),
    (lambda f: sorted(f.glob("model-0*"))[0].write_bytes(b"torn"), "no whole safetensors file"),
]


@pytest.mark.parametrize(("harm", "told"), SHARDED)
def test_broken_shards_say_what_is_wrong(harm, told, tmp_path):
    hugging_face.write_folder(Decoder(50, 3, **SMALL), tmp_path, shard_bytes=20_000)
    harm(tmp_path)
    with pytest.raises(ArtifactError, match=told):
        bessemer.load(tmp_path)


@pytest.mark.parametrize("what", ["missing", "file", "empty"])
def test_no_model_there(what, tmp_path):
    place = tmp_path / "x"
    if what == "file":
        place.write_text("")
    elif what == "empty":
        place.mkdir()
    with pytest.raises(ArtifactError, match=r"no such folder|holds no model"):
        bessemer.load(place)


def test_export_touches_no_foreign_folder(tmp_path):
    artifact = sealed(tmp_path / "m")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match="nothing in it was touched"):
        hugging_face.export(artifact, tmp_path / "theirs")
    assert [p.name for p in (tmp_path / "theirs").iterdir()] == ["thesis.tex"]
    with pytest.raises(ArtifactError, match="is a file"):
        hugging_face.export(artifact, tmp_path / "theirs" / "thesis.tex")


def test_an_export_that_fails_leaves_the_earlier_one(tmp_path, monkeypatch):
    artifact = sealed(tmp_path / "m")
    hugging_face.export(artifact, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(BessemerError, match="disk is full"):
        hugging_face.export(artifact, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "out"]


@pytest.mark.parametrize(
    "options", [{"norm_place": "post"}, {"parallel": True}, {"positions": "none"}, {"qk_norm": "whole"}, {"mlp": "gelu"}], ids=str
)
def test_a_model_of_no_known_architecture_is_not_exported(options, tmp_path):
    with pytest.raises(ArtifactError, match=f"not qwen3: .*{next(iter(options))} is"):
        hugging_face.write_folder(Decoder(50, 3, **SMALL, **options), tmp_path)
    assert not list(tmp_path.iterdir())


def test_stages_import_and_export(tmp_path):
    model = Decoder(50, 3, **SMALL)
    hugging_face.write_folder(model, tmp_path / "theirs", tokens={"eos": 7})
    (tmp_path / "ours").mkdir()
    work = Work(tmp_path / "ours")
    import_model(work, path=str(tmp_path / "theirs"))
    seal(work.out, "model", recipe={}, parents={}, info=work.info)
    imported = Model.open(work.out)
    assert imported.card["tokens"] == {"eos": 7}
    assert imported.card["architecture"] == "qwen3"
    assert not imported.options["transfer"]
    out = Work(tmp_path / "out")
    out.out.mkdir()
    export_stage(out, imported, dtype="bfloat16")
    assert out.info["architecture"] == "Qwen3ForCausalLM"
    tokens = torch.arange(9)[None]
    assert (bessemer.load(tmp_path / "out")(tokens) - model(tokens)).abs().max() < 0.05
    with pytest.raises(ArtifactError, match="the model is no llama: qk_norm"):
        export_stage(out, imported, architecture="llama")
    with pytest.raises(ArtifactError, match="there is no 'lama'"):
        export_stage(out, imported, architecture="lama")
    for name, told in (("llama", "the model is no llama: qk_norm.*\n.*it fits qwen3"), ("lama", "there is no 'lama'(.|\n)*there is .*llama, ")):
        with pytest.raises(ArtifactError, match=told):
            hugging_face.export(imported, tmp_path / "asked", architecture=name)
    assert not (tmp_path / "asked").exists()
    assert hugging_face.export(imported, tmp_path / "asked", architecture="qwen3")["architecture"] == "Qwen3ForCausalLM"
    with pytest.raises(ArtifactError, match=r"no config\.json"):
        import_model(work, path=str(tmp_path))


def word_tokenizer(folder: Path, words: int) -> Path:
    """A tokenizer's files with that many tokens, the last of them the end."""
    import tokenizers

    known = {f"w{n}": n for n in range(words - 1)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="w0"))
    made.add_special_tokens(["<|end|>"])
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    return folder


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path):
    model, more = Decoder(50, 3, **SMALL), word_tokenizer(tmp_path / "more", 51)
    with pytest.raises(ArtifactError, match="has 51 tokens, and the model only 50"):
        save_model(model, tmp_path / "m", tokenizer=more)
    with pytest.raises(ArtifactError, match="has 51 tokens, and the model only 50"):
        hugging_face.write_folder(model, tmp_path / "out", tokenizer=more)
    hugging_face.write_folder(model, tmp_path / "theirs", tokenizer=word_tokenizer(tmp_path / "right", 50))
    assert Model.tokenizer(sealed(tmp_path / "kept", model, tokenizer=tmp_path / "right")).vocabulary_size == 50  # type: ignore[union-attr]
    (tmp_path / "theirs" / "tokenizer.json").write_bytes((more / "tokenizer.json").read_bytes())
    with pytest.raises(ArtifactError, match="has 51 tokens, and the model only 50"):
        bessemer.load(tmp_path / "theirs")
