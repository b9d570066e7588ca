"""Import, export and greedy generation equal transformers for every supported shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bessemer
from bessemer.core.batch import Batch
from bessemer.models.families.decoder import Decoder
from bessemer.models.hugging_face import export, write_folder
from bessemer.models.package import Model, save_model
from tests.parity.parity_shapes import MAIN, SHAPES, VOCABULARY, reference, tokens

NEAR = 1e-5


class Columns:
    """The plainest cache that keeps the contract of layers/attention.py."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[Tensor, Tensor]] = {}
        self.length = 0

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self.held:
            key, value = torch.cat((self.held[layer][0], key), 2), torch.cat((self.held[layer][1], value), 2)
        self.held[layer] = (key, value)
        return key, value

    def advance(self) -> None:
        self.length = self.held[0][0].shape[2]


def imported(name: str, folder: Path, **saving: Any) -> tuple[Any, Any]:
    theirs = reference(name)
    theirs.save_pretrained(folder, **saving)
    return theirs, bessemer.load(folder)


def far(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_import_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    theirs, ours = imported(name, tmp_path)
    for length in (5, 48):  # below and beyond the first context of the stretched ones
        x = tokens(2, length)
        assert far(ours(x), theirs(x).logits) < NEAR


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_left_padded_rows_give_the_same_logits(name: str, tmp_path: Path) -> None:
    theirs, ours = imported(name, tmp_path)
    batch, real = left_padded()
    wanted = theirs(batch.tokens, attention_mask=real.long(), position_ids=batch.positions).logits
    assert far(ours(batch).logits()[real], wanted[real]) < NEAR
    assert far(ours(batch, Columns()).logits()[real], wanted[real]) < NEAR


def left_padded() -> tuple[Batch, Tensor]:
    x = tokens(3, 20)
    real = torch.arange(20) >= torch.tensor([0, 7, 15])[:, None]
    positions = (real.long().cumsum(1) - 1).clamp(min=0)
    return Batch(torch.where(real, x, 0), positions, real.long()), real


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_export_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs, ours = imported(name, tmp_path / "theirs")
    write_folder(ours, tmp_path / "ours", architecture=theirs.config.model_type, tokens={"bos": 1})
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(back) is type(theirs)
    for length in (5, 48):
        x = tokens(2, length)
        assert far(ours(x), back(x).logits) < NEAR
        assert torch.equal(reference(name)(x).logits, back(x).logits)


@pytest.mark.parametrize("name", MAIN)
@torch.no_grad()
def test_greedy_generation_is_the_same(name: str, tmp_path: Path) -> None:
    theirs, ours = imported(name, tmp_path)
    prompt = tokens(2, 6)
    wanted = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False)
    plain, cached, cache = prompt, prompt, Columns()
    for _ in range(64):
        plain = torch.cat((plain, ours(plain)[:, -1:].argmax(-1)), 1)
        step = ours(cached[:, cache.length :], cache)
        cache.advance()
        cached = torch.cat((cached, step[:, -1:].argmax(-1)), 1)
    assert plain.tolist() == wanted.tolist()
    assert cached.tolist() == wanted.tolist()


@pytest.mark.parametrize("name", MAIN)
@torch.no_grad()
def test_cached_chunks_of_ragged_rows_equal_one_pass(name: str, tmp_path: Path) -> None:
    _, ours = imported(name, tmp_path)
    batch, real = left_padded()
    whole, cache = ours(batch).logits(), Columns()
    for start, stop in ((0, 16), (16, 17), (17, 20)):
        part = batch.map(lambda t, a=start, b=stop: t[:, a:b])
        got = ours(part, cache).logits()
        cache.advance()
        assert far(got[real[:, start:stop]], whole[:, start:stop][real[:, start:stop]]) < NEAR


@pytest.mark.parametrize(
    "options", [{}, {"tied": True}, {"kv_heads": 1, "window": 8, "window_layers": [1]}, {"ahead": 1}, {"modalities": ["patches"]}], ids=str
)
@torch.no_grad()
def test_our_default_decoder_exports_as_qwen3(options: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = Decoder(VOCABULARY, depth=2, **options).eval()
    for number, parameter in enumerate(model.parameters()):
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.05)
    found = write_folder(model, tmp_path)
    assert found["architecture"] == "Qwen3ForCausalLM"
    assert found["left_out"] == (["ahead"] if "ahead" in options else ["blocks.others"] if "modalities" in options else [])
    x = tokens(2, 40)
    assert far(model(x), AutoModelForCausalLM.from_pretrained(tmp_path).eval()(x).logits) < NEAR
    assert far(model(x), bessemer.load(tmp_path)(x)) < NEAR


@torch.no_grad()
def test_shards_are_read_and_written(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs, ours = imported("qwen3", tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    write_folder(ours, tmp_path / "ours", shard_bytes=20_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    x = tokens(1, 12)
    assert far(ours(x), theirs(x).logits) < NEAR
    assert far(AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()(x).logits, theirs(x).logits) < NEAR


@torch.no_grad()
def test_gpt2_saved_from_the_trunk_alone(tmp_path: Path) -> None:
    theirs = reference("gpt2")
    theirs.transformer.save_pretrained(tmp_path)
    table = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(table | {"architectures": ["GPT2LMHeadModel"]}))
    x = tokens(1, 12)
    assert far(bessemer.load(tmp_path)(x), theirs(x).logits) < NEAR


def tiny_tokenizer() -> Any:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>", "<|pad|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(["to be or not to be, that is the question"] * 4, trainer)
    return made


@torch.no_grad()
def test_an_exported_folder_loads_with_its_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bessemer.core.artifact import seal
    from bessemer.data.tokenizer import guess_notes, write_tokenizer

    made = tiny_tokenizer()
    (tmp_path / "tokenizer").mkdir()
    write_tokenizer(tmp_path / "tokenizer", made, guess_notes(made))
    model = Decoder(made.get_vocab_size(), depth=1)
    save_model(model, tmp_path / "model", tokenizer=tmp_path / "tokenizer", extra={"tokens": {"bos": 0, "eos": 0, "pad": 1}})
    seal(tmp_path / "model", "model", recipe={}, parents={}, info={})
    artifact = Model.open(tmp_path / "model")
    export(artifact, tmp_path / "out", dtype=torch.bfloat16)
    export(artifact, tmp_path / "out")  # over an earlier export
    read, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("to be or not", return_tensors="pt").input_ids
    assert ids[0].tolist() == made.encode("to be or not").ids
    assert tokenizer.decode(ids[0]) == "to be or not"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1)
    assert read.generation_config.eos_token_id == 0
    assert far(read.eval()(ids).logits, artifact.build()(ids)) < NEAR
