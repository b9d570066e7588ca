"""What makes each text objective what it is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bessemer.core.batch import Batch
from bessemer.core.errors import DataError, RecipeError
from bessemer.core.registry import choose
from bessemer.data.special import BLANKS, EXTREME, MASK, REGULAR, SEQUENTIAL, SPEECH, TEXT, UNITS
from bessemer.models.attach import attach
from bessemer.models.families.decoder import Decoder
from bessemer.train.engine import Engine
from tests.contract.test_objectives import cut, ragged
from tests.unit.objectives import words
from tests.unit.objectives.words import Words, dressed

IDS = Words.special_ids
PLAIN = words.SIZE - len(words.NAMES)


def decoder(seed=1, **options):
    return Decoder(words.SIZE, seed, **({"depth": 2, "width": 32, "heads": 2, "ffn": 64} | options))


def made(name, model=None, **options):
    choice = choose("objectives", {"name": name, **words.options(name), **options})
    objective = choice() if model is None else attach(model, "text", choice)
    objective.read(Words())
    return objective


def rows(count=24, seed=0):
    """Packed rows of ordinary tokens, shifted by one as the loader gives them."""
    batch = ragged(count, seed)
    batch.tokens, batch.targets = batch.tokens % PLAIN, batch.targets % PLAIN
    first = batch.positions == 0
    batch.tokens = torch.where(first, 0, batch.targets.roll(1, 1))
    return batch


def documents(batch):
    """(row, columns) of every document."""
    for row in range(batch.rows):
        for number in batch.segments[row].unique().tolist():
            if number:
                yield row, (batch.segments[row] == number).nonzero().flatten()


TEXT_OBJECTIVES = ["meap", "ul2", "masked_language", "masked_diffusion", "electra", "position_prediction", "interleaved"]
EVERY = [*TEXT_OBJECTIVES, "sparse_distill", "self_distill"]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("parts", [2, 24])
def test_preparing_does_not_depend_on_how_rows_were_cut(name, parts):
    objective, batch = made(name), dressed(name, rows())
    whole = objective.prepare(batch, 7)
    pieces = [objective.prepare(part, 7) for part in cut(batch, parts)]
    for read in ("tokens", "positions", "targets", "segments", "open"):
        if getattr(whole, read) is not None:
            assert torch.equal(torch.cat([getattr(piece, read) for piece in pieces]), getattr(whole, read)), read
    for kind in ("weights", "streams"):
        for stream, value in getattr(whole, kind).items():
            assert torch.equal(torch.cat([getattr(piece, kind)[stream] for piece in pieces]), value), stream


@pytest.mark.parametrize("name", TEXT_OBJECTIVES)
def test_preparing_follows_seed_and_sample(name):
    objective, batch = made(name), rows()
    once, again, other = objective.prepare(batch, 7), objective.prepare(rows(), 7), objective.prepare(batch, 8)
    assert torch.equal(once.tokens, again.tokens)
    streams = [{**each.weights, **each.streams, "tokens": each.tokens} for each in (once, other)]
    assert any(not torch.equal(streams[0][key], streams[1][key]) for key in streams[0])
    later = rows()
    later.samples = later.samples + 100
    moved = objective.prepare(later, 7)
    streams = [{**each.weights, **each.streams, "tokens": each.tokens} for each in (once, moved)]
    assert any(not torch.equal(streams[0][key], streams[1][key]) for key in streams[0])


@pytest.mark.parametrize("name", [name for name in EVERY if name != "self_distill"])  # its distance is over all documents
def test_documents_do_not_touch_each_other(name):
    """Another text in one document changes no gradient that comes from the others."""
    model = decoder()
    objective = made(name, model)
    batch = dressed(name, rows(6))
    row, columns = next(documents(batch))
    other = dressed(name, rows(6))
    other.targets = other.targets.clone()
    other.tokens = other.tokens.clone()
    other.targets[row, columns] = (other.targets[row, columns] + 3) % PLAIN
    other.tokens[row, columns[1:]] = other.targets[row, columns[:-1]]
    if name == "sparse_distill":
        other.streams = batch.streams
    found = []
    for each in (batch, other):
        ready = objective.prepare(each, 3)
        for stream in ready.weights.values():
            stream[row, columns] = 0.0
        if "bound" in ready.streams:
            ready.streams["bound"][row, columns] = 0.0
        model.zero_grad()
        result = Engine(model, {"text": (objective, 1.0)}, torch.float32).forward_backward([ready])
        found.append((result.loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for key, value in found[0][1].items():
        assert float((found[1][1][key] - value).abs().max()) <= 1e-5 * max(1.0, float(value.abs().max())), key


def test_meap_masks_only_what_is_read():
    batch = rows(200)
    ready = made("meap").prepare(batch, 0)
    masked = ready.tokens == IDS[MASK]
    assert torch.equal(ready.targets, batch.targets)
    assert torch.equal(ready.weights["next_token"], batch.weights["next_token"])
    assert ready.open is None
    assert torch.equal(torch.where(masked, 0, ready.tokens), torch.where(masked, 0, batch.tokens))
    allowed = (batch.segments > 0) & (batch.positions > 0)
    assert not (masked & ~allowed).any()
    assert float(masked.sum() / allowed.sum()) == pytest.approx(0.15, abs=0.02)


def test_masked_language_reads_the_document_where_it_stands():
    batch = rows(300)
    ready = made("masked_language").prepare(batch, 0)
    chosen = ready.weights["masked_language"] > 0
    inside = batch.segments > 0
    assert ready.open.all()
    assert torch.equal(ready.tokens[inside & ~chosen], batch.targets[inside & ~chosen])
    assert not (chosen & ~inside).any()
    assert float(chosen.sum() / inside.sum()) == pytest.approx(0.15, abs=0.015)
    read, text = ready.tokens[chosen], batch.targets[chosen]
    assert float((read == IDS[MASK]).float().mean()) == pytest.approx(0.8, abs=0.04)
    assert float((read == text).float().mean()) == pytest.approx(0.1 + 0.1 / words.SIZE, abs=0.03)


def ul2_documents(shares, size=60, count=40):
    objective = made("ul2", shares=shares)
    for number in range(count):
        draw = np.random.default_rng(number)
        text = draw.integers(1, PLAIN, size)
        yield text, objective.denoise(text, draw)


@pytest.mark.parametrize("mode", ["regular", "extreme"])
@pytest.mark.parametrize("size", [8, 9, 13, 60, 500])
def test_ul2_spans_put_together_are_the_document(mode, size):
    blanks = [IDS[name] for name in BLANKS[:8]]
    hidden, ends = [], []
    for text, found in ul2_documents({mode: 1}, size):
        whole = found.text.tolist()
        assert len(whole) == size + 1
        assert whole[0] == IDS[REGULAR if mode == "regular" else EXTREME]
        task, answer = whole[1 : found.prefix], whole[found.prefix :]
        count = sum(token in blanks for token in task)
        ends.append((task[0] in blanks, task[-1] in blanks))
        assert answer[0] == blanks[0]
        assert answer[-1] == blanks[count]
        assert [token for token in task if token in blanks] == blanks[:count]
        spans = {}
        for token in answer:
            if token in blanks:
                spans[token] = []
                last = token
            else:
                spans[last].append(token)
        filled = [token for each in task for token in (spans[each] if each in blanks else [each])]
        assert filled == text[: len(filled)].tolist()
        assert len(filled) == size - 1 - 2 * count
        assert all(spans[blank] for blank in blanks[:count])
        hidden.append(sum(len(span) for span in spans.values()) / len(filled))
    begun, ended = zip(*ends, strict=True)
    assert set(ended) == {True, False}  # a lone span has text to its right as often as not
    assert size > 60 or set(begun) == {True, False}
    if size == 500:
        assert np.mean(hidden) == pytest.approx(0.15 if mode == "regular" else (0.5 + 0.5 + 0.15 + 0.5) / 4, abs=0.08)


def test_ul2_sequential_continues_the_document():
    endings = []
    for text, found in ul2_documents({"sequential": 1}, 40, 200):
        assert found.text.tolist() == [IDS[SEQUENTIAL], *text.tolist()]
        assert found.learned == found.prefix - 1
        endings.append(40 - found.learned)
    assert np.mean(endings) == pytest.approx(10, abs=1.0)
    assert max(endings) <= 20


def test_ul2_answers_see_the_task_both_ways_and_themselves_only_backwards():
    objective, batch = made("ul2", shares={"regular": 1}), rows(8)
    ready = objective.prepare(batch, 0)
    for row, columns in documents(batch):
        open_, weights = ready.open[row, columns], ready.weights["next_token"][row, columns]
        prefix = int(open_.sum())
        assert open_[:prefix].all()
        assert not weights[: prefix - 1].any()
        assert weights[prefix:].all()
    row, columns = next((r, c) for r, c in documents(batch) if len(c) >= 8)
    model = decoder()
    before = model(ready).hidden[row, columns]
    prefix = int(ready.open[row, columns].sum())
    changed = ready.map(lambda value: value.clone())
    changed.tokens[row, columns[prefix - 1]] = 1
    assert (model(changed).hidden[row, columns[0]] - before[0]).abs().max() > 0
    changed = ready.map(lambda value: value.clone())
    changed.tokens[row, columns[-1]] = 1
    assert torch.equal(model(changed).hidden[row, columns[:-1]], before[:-1])


def test_diffusions_bound_is_the_likelihood_where_the_model_knows_the_truth():
    """Three tokens of a known joint distribution, and a model that gives its exact conditionals: the mean bound is the entropy."""
    draw = np.random.default_rng(0)
    joint = draw.dirichlet(np.ones(8)).reshape(2, 2, 2)
    count = 120_000
    text = np.array(list(itertools.product(range(2), repeat=3)))[draw.choice(8, count, p=joint.ravel())]
    blank = IDS[MASK]
    batch = Batch(
        torch.zeros(count, 3, dtype=torch.int64),
        torch.arange(3).expand(count, 3),
        None,
        torch.from_numpy(text),
        {"next_token": torch.ones(count, 3)},
        samples=torch.arange(count),
    )
    ready = made("masked_diffusion").prepare(batch, 0)
    cost = torch.zeros(count, 3)
    for row_pattern in itertools.product([0, 1, blank], repeat=3):
        known = (ready.tokens == torch.tensor(row_pattern)).all(1)
        for place in range(3):
            if row_pattern[place] == blank:
                index = tuple(slice(None) if value == blank or at == place else value for at, value in enumerate(row_pattern))
                axes = [at for at, value in enumerate(row_pattern) if value == blank]
                table = joint[index]
                keep = axes.index(place)
                marginal = table.sum(axis=tuple(at for at in range(len(axes)) if at != keep))
                nats = torch.tensor(-np.log(marginal / marginal.sum()))
                cost[known, place] = nats[batch.targets[known, place]].float()
    bound = float((cost * ready.streams["bound"]).sum(1).double().mean())
    entropy = -float((joint * np.log(joint)).sum())
    assert bound == pytest.approx(entropy, rel=0.01)


def test_diffusion_times_are_even_and_each_document_has_its_own():
    ready = made("masked_diffusion").prepare(rows(400), 0)
    batch = rows(400)
    rates = []
    for row, columns in documents(batch):
        bound = ready.streams["bound"][row, columns]
        kinds = bound[bound > 0].unique()
        assert len(kinds) <= 1  # one time for the document
        rates += [1 / float(kinds[0])] if len(kinds) else []
        masked = ready.tokens[row, columns] == IDS[MASK]
        assert torch.equal(masked, bound > 0)
    times = made("masked_diffusion")._times(batch, 0)[batch.segments > 0]
    assert np.histogram(times.numpy(), bins=10, range=(0, 1))[0].min() > 0.7 * len(times) / 10
    assert float(times.min()) >= 1e-3


def test_electra_generator_and_discriminator_learn_apart():
    model = decoder()
    objective = made("electra", model)
    ready = objective.prepare(rows(), 0)
    seen = objective.before(ready)
    chosen = ready.weights["generator"] > 0
    assert torch.equal(seen.tokens[~chosen], ready.tokens[~chosen])
    terms = objective(model(seen), seen)
    generator = set(objective.parts["generator"].parameters())
    trunk = [p for p in model.parameters() if p not in generator]
    for name, own, others in (("generator", generator, trunk), ("discriminator", set(trunk), generator)):
        found = torch.autograd.grad(terms[name].sum, list(model.parameters()), allow_unused=True, retain_graph=True)
        moved = {p for p, gradient in zip(model.parameters(), found, strict=True) if gradient is not None and gradient.abs().max() > 0}
        assert moved
        assert moved <= set(own), name
        assert not moved & set(others)


def test_electra_counts_a_right_guess_as_original():
    model = decoder()
    objective = made("electra", model)
    ready = objective.prepare(rows(), 0)
    seen = objective.before(ready)
    outputs = model(seen)
    weights = ready.weights["discriminator"]
    verdict = objective.parts["verdict"](F.gelu(objective.parts["dense"](outputs.hidden)))[..., 0]
    wanted = F.binary_cross_entropy_with_logits(verdict, (seen.tokens != ready.targets).float(), reduction="none")
    assert float(objective(outputs, seen)["discriminator"].sum.detach()) == pytest.approx(float((wanted * weights).sum().detach()), rel=1e-5)
    chosen = ready.weights["generator"] > 0
    assert 0 < int((seen.tokens != ready.targets)[weights > 0].sum()) <= int(chosen.sum())


def test_samples_follow_the_logits():
    from bessemer.objectives.electra import sampled

    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    drawn = sampled(logits.expand(40_000, 4), torch.rand(40_000, generator=torch.Generator().manual_seed(0)))
    np.testing.assert_allclose(np.bincount(drawn.numpy(), minlength=4) / 40_000, [0.1, 0.2, 0.3, 0.4], atol=0.01)


def test_positions_give_nothing_away():
    """Windows are permuted whole, all positions are 0, and the trunk's view of a window is the same whatever the order was."""
    batch = rows(16)
    ready = made("position_prediction", window=8, context=1.0).prepare(batch, 0)
    assert not ready.positions.any()
    for row in range(batch.rows):
        for number in ready.segments[row].unique().tolist():
            if not number:
                assert (batch.segments[row][ready.segments[row] == 0] == 0).all()
                continue
            columns = (ready.segments[row] == number).nonzero().flatten()
            assert len(columns) <= 8
            assert batch.segments[row, columns].unique().numel() == 1
            place = ready.streams["place"][row, columns]
            assert sorted(place.tolist()) == list(range(len(columns)))
            assert torch.equal(ready.tokens[row, columns], batch.targets[row, columns[0] + place])
    model = decoder()
    row = next(r for r in range(16) if (ready.segments[r] == 1).sum() == 8)
    columns = (ready.segments[row] == 1).nonzero().flatten()
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    moved = ready.map(lambda value: value.clone())
    moved.tokens[row, columns] = ready.tokens[row, columns[order]]
    torch.testing.assert_close(model(moved).hidden[row, columns], model(ready).hidden[row, columns[order]])


def test_interleaved_spans_say_the_tokens_they_stand_for():
    objective = made("interleaved", rate=0.5, span=4.0)
    speech, text, first = IDS[SPEECH], IDS[TEXT], IDS[UNITS[0]]
    said = []
    for number in range(50):
        draw = np.random.default_rng(number)
        document = draw.integers(1, PLAIN, 80)
        mixed = objective.interleave(document, draw).tolist()
        at, place = 0, 0
        while place < len(mixed):
            if mixed[place] != speech:
                assert mixed[place] == document[at]
                at, place = at + 1, place + 1
                continue
            end = mixed.index(text, place)
            units, expected, begun = mixed[place + 1 : end], [], at
            while len(expected) < len(units):
                expected += [first + byte % 8 for byte in Words().bytes_of(int(document[at]))]
                at += 1
            assert units == expected
            said.append(at - begun)
            place = end + 1
        assert at == len(document)
    assert sum(said) / (50 * 80) == pytest.approx(0.5, abs=0.08)


def test_interleaved_rows_are_texts_read_shifted_by_one():
    batch = rows(10)
    ready = made("interleaved").prepare(batch, 0)
    for row, columns in documents(batch):
        assert torch.equal(ready.tokens[row, columns[1:]], ready.targets[row, columns[:-1]])
        assert ready.tokens[row, columns[0]] == batch.tokens[row, columns[0]]
    assert (ready.targets == IDS[SPEECH]).any()


def teacher_streams(batch, logits, keep):
    logs, ids = logits.log_softmax(-1).topk(keep)
    return {"teacher_ids": ids, "teacher_logs": logs}


@pytest.mark.parametrize("rest", ["even", "together"])
def test_with_all_tokens_kept_sparse_distillation_is_cross_entropy_with_the_teacher(rest):
    batch, teacher, model = rows(), decoder(9)(rows()).logits().detach() * 5, decoder()
    batch.streams = teacher_streams(batch, teacher, words.SIZE)
    objective = made("sparse_distill", chunk=50, rest=rest)
    outputs = model(batch)
    found = objective(outputs, batch)["distill"]
    nats = -(teacher.softmax(-1) * outputs.logits().log_softmax(-1)).sum(-1)
    wanted = (nats * batch.weights["next_token"]).sum()
    assert float(found.sum.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    for mine, other in zip(*(torch.autograd.grad(each, list(model.parameters()), retain_graph=True) for each in (found.sum, wanted)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_what_is_not_kept_is_spread_evenly():
    batch, teacher, model = rows(), decoder(9)(rows()).logits().detach() * 5, decoder()
    batch.streams = teacher_streams(batch, teacher, 4)
    ids, logs = batch.streams["teacher_ids"], batch.streams["teacher_logs"]
    rest = (1 - logs.exp().sum(-1, keepdim=True)) / (words.SIZE - 4)
    smooth = rest.expand(*rest.shape[:-1], words.SIZE).clone().scatter(-1, ids, logs.exp())
    torch.testing.assert_close(smooth.sum(-1), torch.ones(smooth.shape[:-1]))
    outputs = model(batch)
    wanted = (-(smooth * outputs.logits().log_softmax(-1)).sum(-1) * batch.weights["next_token"]).sum()
    assert float(made("sparse_distill")(outputs, batch)["distill"].sum.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_what_is_not_kept_is_one_class():
    """So the best a student can do about it is to give all of it together as much as the teacher did, in whatever parts."""
    batch, teacher, model = rows(), decoder(9)(rows()).logits().detach() * 5, decoder()
    batch.streams = teacher_streams(batch, teacher, 4)
    ids, likely = batch.streams["teacher_ids"], batch.streams["teacher_logs"].exp()
    outputs = model(batch)
    own = outputs.logits().softmax(-1).gather(-1, ids)
    classes, told = (torch.cat((each, 1 - each.sum(-1, keepdim=True)), -1) for each in (own, likely))
    wanted = (-(told * classes.log()).sum(-1) * batch.weights["next_token"]).sum()
    found = made("sparse_distill", rest="together")(outputs, batch)["distill"].sum
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    for mine, other in zip(*(torch.autograd.grad(each, list(model.parameters()), retain_graph=True) for each in (found, wanted)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_where_the_teacher_read_nothing_nothing_is_learned():
    batch, model = dressed("sparse_distill", rows()), decoder()
    batch.streams["teacher_logs"] = torch.full_like(batch.streams["teacher_logs"], -math.inf)
    outputs = model(batch)
    objective = made("sparse_distill", hard=0.25)
    terms = objective(outputs, batch)
    assert float(terms["distill"].sum.detach()) == 0
    assert (terms["distill"].scale, terms["next_token"].scale) == (0.75, 0.25)
    with pytest.raises(DataError, match="store_logits"):
        objective(outputs, rows())


def test_self_distillation_adds_the_distance_to_the_teachers_states():
    model = decoder()
    objective = made("self_distill", model, weight=0.5)
    ready = objective.prepare(rows(), 0)
    terms = objective(model(ready), objective.before(ready))
    teacher = objective.teacher(ready).hidden
    inside = (ready.segments > 0)[..., None]
    wanted = ((model(ready).hidden - teacher).square() * inside).sum() / 32
    assert float(terms["distance"].sum.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert terms["distance"].scale == 0.5
    assert {"masked_language", "distance"} == set(terms.terms)
    same = decoder(5)
    assert float(objective(same(ready), ready)["distance"].sum.detach()) == pytest.approx(0, abs=1e-6)
    assert not any("teacher" in name for name, _ in model.named_parameters())


def test_self_distillation_refuses_another_shape():
    objective = made("self_distill", teacher=str(words.model(width=64)))
    ready = objective.prepare(rows(), 0)
    with pytest.raises(RecipeError, match="64 values"):
        objective(decoder()(ready), ready)
    with pytest.raises(RecipeError, match="no model in"):
        made("self_distill", teacher="/nowhere")


class Bare:
    vocabulary_size, special_ids = 300, {"<|end|>": 256}

    def bytes_of(self, id):
        return b"x"


@pytest.mark.parametrize("name", ["meap", "ul2", "masked_language", "masked_diffusion", "electra", "interleaved"])
def test_a_tokenizer_without_the_special_tokens_is_refused(name):
    with pytest.raises(RecipeError, match=r"reserve = \["):
        choose("objectives", name)().read(Bare())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("meap", {"rate": 0.0}),
        ("masked_language", {"rate": 1.0}),
        ("ul2", {"shares": {"other": 1}}),
        ("ul2", {"shares": {"regular": 0}}),
        ("ul2", {"shares": {"regular": -1.0}}),
        ("electra", {"width": 3}),
        ("position_prediction", {"window": 1}),
        ("position_prediction", {"context": 0.0}),
        ("interleaved", {"span": 0.5}),
        ("sparse_distill", {"hard": 2.0}),
    ],
)
def test_options_that_cannot_be_are_refused(name, options):
    with pytest.raises(RecipeError, match=r"task\.objective\."):
        choose("objectives", {"name": name, **options})()


def test_other_peoples_names_are_found():
    class Theirs(Bare):
        special_ids = {"[MASK]": 7}

    objective = choose("objectives", "meap")()
    objective.read(Theirs())
    assert objective.blank == 7
