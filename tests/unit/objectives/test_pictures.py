"""What makes each objective of examples what it is."""

import math

import pytest
import torch
from torch.nn import functional as F

from bessemer.core.batch import Batch
from bessemer.core.errors import RecipeError
from bessemer.core.registry import choose
from bessemer.objectives._contrast import groups, pairing
from bessemer.objectives._views import views
from bessemer.objectives.dmjd import histograms
from bessemer.objectives.filip import likeness_of_captions, likeness_of_pictures
from bessemer.objectives.lejepa import gaussian_level, sigreg
from tests.unit.objectives import pictures
from tests.unit.objectives.words import Words


def ready(name, rows=4, **options):
    model = pictures.decoder()
    objective = pictures.made(name, model, **options)
    loader = pictures.loader(objective)
    raw = loader.batch(0, rows)
    return model, objective, raw, objective.prepare(raw, 7)


def test_simmim_hides_its_share_and_the_trunk_cannot_see_it():
    model, objective, _, batch = ready("simmim", ratio=0.5)
    hidden = objective.view(batch.weights["simmim"], batch)
    assert (hidden.sum(-1) == 8).all()
    before = model(batch).hidden
    changed = batch.streams["patches"].clone()
    changed[batch.streams["patches_blank"]] += 1.0
    batch.streams["patches"] = changed
    assert torch.equal(model(batch).hidden, before)


def test_mae_reads_only_what_is_visible_and_predicts_the_rest():
    _, objective, raw, batch = ready("mae")
    values = objective.raw(raw)
    place = objective.held(batch, "_place")
    assert torch.equal(objective.held(batch), values.gather(2, place[..., None].expand(-1, -1, -1, values.shape[-1])))
    assert torch.equal(batch.weights["mae"].sum(-1), torch.full(place.shape[:2], 12.0))
    assert not batch.weights["mae"].gather(2, place).any()
    decoder = objective.parts["decoder"]
    states = torch.randn(3, 4, 32)
    where = torch.tensor([[0, 3, 5, 9]]).expand(3, 4)
    swapped = decoder(states[:, [1, 0, 2, 3]], where[:, [1, 0, 2, 3]])
    torch.testing.assert_close(swapped, decoder(states, where))


def test_an_example_sees_only_itself():
    model, objective, _, batch = ready("mae")
    before = objective.view(model(batch).hidden, batch)
    batch.streams["patches"] = batch.streams["patches"].clone()
    batch.streams["patches"][:, : objective.columns] += 1.0
    after = objective.view(model(batch).hidden, batch)
    assert torch.equal(before[:, 1:], after[:, 1:])
    assert not torch.equal(before[:, 0], after[:, 0])


def test_dmjd_views_see_disjoint_patches_that_are_targets_elsewhere():
    _, objective, _, batch = ready("dmjd", views=4, ratio=0.75)
    place = objective.held(batch, "_place")
    assert torch.equal(place.sort(-1).values, torch.arange(16).expand_as(place))
    assert torch.equal(batch.weights["hidden"].sum(2), torch.full(batch.weights["hidden"].sum(2).shape, 3.0))
    with pytest.raises(RecipeError, match="disjoint"):
        choose("objectives", {"name": "dmjd", "views": 4, "ratio": 0.5})()


def test_histograms_find_the_direction_of_an_edge():
    picture = torch.zeros(1, 1, 16, 16, 3, dtype=torch.uint8)
    picture[:, :, :, 8:] = 255
    found = histograms(picture, 8)[0, 0]
    assert found.argmax(-1).tolist() == [4] * 4  # brighter to the right: an angle of zero
    assert torch.equal(histograms(255 - picture, 8)[0, 0].argmax(-1) % 8, torch.zeros(4, dtype=torch.int64))


def test_clip_is_the_symmetric_cross_entropy_within_groups():
    model, objective, _, batch = ready("clip", rows=8)
    outputs = model(batch)
    terms = objective(outputs, batch)
    picture, caption = objective.embed(outputs, batch)
    expected = 0.0
    for start in (0, 4):
        p, c = picture[start : start + 4].flatten(0, 1), caption[start : start + 4].flatten(0, 1)
        logits = objective.parts["scale"]() * p @ c.T
        right = torch.arange(len(p))
        expected += (F.cross_entropy(logits, right, reduction="sum") + F.cross_entropy(logits.T, right, reduction="sum")) / 2
    assert terms["pairs"].sum.item() == pytest.approx(expected.item(), rel=1e-5)


def test_captions_and_pictures_of_a_pair_do_not_see_each_other_in_clip_and_do_in_captioning():
    for name, sees in (("clip", False), ("captioning", True)):
        model, objective, _, batch = ready(name)
        before = objective.view(model(batch).hidden, batch)
        batch.streams["patches"] = batch.streams["patches"] + 1.0
        after = objective.view(model(batch).hidden, batch)
        assert torch.equal(before[:, :, 16:20], after[:, :, 16:20]) is not sees


def test_captioning_is_causal_over_words_and_open_over_patches():
    model, objective, raw, batch = ready("captioning")
    before = objective.view(model(batch).hidden, batch)
    batch.tokens = batch.tokens.clone()
    objective.view(batch.tokens, batch)[:, :, 18] += 1
    changed = (objective.view(model(batch).hidden, batch) - before).abs().amax(-1).amax((0, 1)) > 0
    assert not changed[:18].any()
    assert changed[18]
    batch.streams["patches"] = batch.streams["patches"].clone()
    batch.streams["patches"][:, 15] += 1.0  # the last patch of the first example
    moved = (objective.view(model(batch).hidden, batch) - before).abs().amax(-1)[:, 0].amax(0) > 0
    assert moved[:16].all()
    targets, caption = objective.view(batch.targets, batch)[:, :, 16:], raw.streams["caption"]
    assert torch.equal(torch.where(caption >= 0, targets, -1), caption)
    assert torch.equal(objective.view(batch.weights["captioning"], batch)[:, :, 16:], (caption >= 0).float())


def test_filip_takes_the_best_partner_of_each():
    patches, words = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    valid = torch.tensor([[True] * 5, [True, True, False, False, False]])
    of_pictures, of_captions = likeness_of_pictures(patches, words, valid), likeness_of_captions(words, valid, patches)
    for p in range(2):
        for c in range(2):
            table = patches[p] @ words[c][valid[c]].T
            assert float(of_pictures[p, c]) == pytest.approx(float(table.amax(1).clamp(min=-1.0).mean()), rel=1e-5)
            assert float(of_captions[c, p]) == pytest.approx(float(table.amax(0).mean()), rel=1e-5)


def test_groups_are_of_neighbouring_rows():
    same, mine = groups(4, 2, 3, pictures.made("clip").ranks, torch.device("cpu"))
    assert same[0].tolist() == [True] * 6 + [False] * 6
    assert mine.tolist() == list(range(12))
    loss, hits = pairing(torch.eye(12) * 20, same, mine, torch.ones(12))
    assert float(loss) < 1e-3
    assert float(hits) == 12


def test_m3i_counts_examples_without_captions_for_views_alone():
    model, objective, raw, _ = ready("m3i")
    raw.streams["caption"] = raw.streams["caption"].clone()
    raw.streams["caption"][0, 0] = -1
    batch = objective.prepare(raw, 7)
    assert float(batch.weights["captions"][0, 0]) == 0.0
    assert float(batch.weights["views"][0, 0]) == 1.0
    assert all(math.isfinite(float(term.sum)) for _, term in objective(model(batch), batch))


def test_sigreg_is_low_for_a_gaussian_and_high_for_what_is_not():
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(64, 8, generator=draw)
    gaussian = torch.stack([float(sigreg(torch.randn(1, 256, 8, generator=draw), directions)) * torch.ones(()) for _ in range(20)]).mean()
    assert float(gaussian) == pytest.approx(gaussian_level(), rel=0.15)
    for other in (torch.zeros(1, 256, 8), torch.randn(1, 256, 8, generator=draw) * 2, torch.randn(1, 256, 8, generator=draw) + 1.0):
        assert float(sigreg(other, directions)) > 5 * gaussian_level()
    one_sided = torch.randn(1, 256, 8, generator=draw)
    one_sided[..., 1:] = one_sided[..., :1]  # all in one direction
    assert float(sigreg(one_sided, directions)) > 5 * gaussian_level()


def test_sigreg_equals_its_integral():
    x = torch.randn(1, 40, 1, generator=torch.Generator().manual_seed(1))
    points = torch.linspace(-5, 5, 20001, dtype=torch.float64)
    phase = torch.exp(1j * points[:, None] * x[0, :, 0].double()[None])
    gap = (phase.mean(1) - torch.exp(-points.square() / 2)).abs().square() * torch.exp(-points.square() / 2)
    assert float(sigreg(x, torch.ones(1, 1))) == pytest.approx(float(torch.trapezoid(gap, points)) * 40, rel=2e-2)


def test_flow_matching_goes_from_noise_to_the_picture():
    _, objective, raw, batch = ready("flow_matching", words=12)
    values, time = objective.raw(raw), batch.streams["time"]
    laid = objective.held(batch) if objective.columns == 16 else batch.streams["patches"].view(values.shape)
    velocity = batch.streams["velocity"]
    torch.testing.assert_close(laid + (1 - time)[..., None, None] * velocity, values, rtol=1e-5, atol=1e-5)
    noise = laid - time[..., None, None] * velocity
    assert abs(float(noise.mean())) < 0.05
    assert float(noise.std()) == pytest.approx(1.0, abs=0.05)


def test_a_head_that_says_the_picture_leads_straight_to_it():
    model, objective, _, batch = ready("flow_matching")
    wanted = batch.streams["between"] + (1 - batch.streams["time"])[..., None, None] * batch.streams["velocity"]
    objective.parts["head"].forward = lambda hidden: wanted.clone()
    with torch.no_grad():
        found = objective.velocity(model(objective.before(batch)), batch)
    far = batch.streams["time"] < 0.95
    torch.testing.assert_close(found[far], batch.streams["velocity"][far], rtol=1e-3, atol=1e-4)


def test_flow_matching_knows_the_time_by_its_column():
    model, objective, raw, _ = ready("flow_matching")
    values = objective.raw(raw)
    early, late = (objective.rows(raw, values, torch.full(values.shape[:2], t), None) for t in (0.1, 0.9))
    found = [model(objective.before(batch)).hidden for batch in (early, late)]
    assert not torch.allclose(found[0], found[1])


def test_views_are_keyed_by_draw_and_stay_in_range():
    raw = torch.randint(0, 256, (2, 3, 32, 32, 3), dtype=torch.uint8)
    draw = torch.arange(6).view(2, 3)
    whole = views(raw, draw, 5, 2, least=0.4, colour=0.3, flip=True)
    assert torch.equal(views(raw[1:], draw[1:], 5, 2, least=0.4, colour=0.3, flip=True), whole[1:])
    assert not torch.equal(views(raw, draw, 6, 2, least=0.4, colour=0.3, flip=True), whole)
    assert float(whole.min()) >= 0.0
    assert float(whole.max()) <= 255.0
    plain = torch.full_like(raw, 90)
    assert torch.allclose(views(plain, draw, 5, 2, least=0.4, colour=0.0, flip=True), torch.tensor(90.0), atol=1e-2)
    recoloured = views(plain, draw, 5, 2, least=0.4, colour=0.3, flip=False)
    assert 63.0 - 0.1 <= float(recoloured.min()) < float(recoloured.max()) <= 117.0 + 0.1


@pytest.mark.parametrize("name", ["patches", "frames", "series", "log_mel"])
def test_adapters_cut_every_value_into_one_place(name):
    adapter = choose("models/adapters", name)(16)
    raw = torch.rand(2, *adapter.shape, generator=torch.Generator().manual_seed(0)) * 255
    pieces = adapter.cut(raw)
    assert pieces.shape == (2, adapter.pieces, adapter.size)
    if name in ("patches", "frames"):
        assert torch.equal(((pieces + 1) * 127.5).flatten(1).sort(1).values.round(), raw.flatten(1).sort(1).values.round())
        index = torch.zeros(adapter.shape)
        corner = tuple(slice(0, n) for n in ((2, 8, 8) if name == "frames" else (8, 8)))
        index[corner] = 255.0
        assert adapter.cut(index)[0].min() == 1.0
        assert adapter.cut(index)[1:].max() == -1.0
    if name == "series":
        torch.testing.assert_close(pieces.mean((1, 2)), torch.zeros(2), atol=1e-5, rtol=0)


def test_log_mel_puts_a_tone_in_its_band():
    adapter = choose("models/adapters", "log_mel")(16)
    seconds = torch.arange(16000) / 16000
    bands = [adapter.cut(torch.sin(2 * math.pi * hertz * seconds))[10].view(4, 40).mean(0).argmax() for hertz in (300.0, 1000.0, 4000.0)]
    assert bands[0] < bands[1] < bands[2]


def test_places_tell_pieces_apart():
    adapter = pictures.made("mae", pictures.decoder()).adapter
    assert len({tuple(row.tolist()) for row in adapter.at(torch.arange(16))}) == 16
    assert torch.equal(adapter.at(torch.tensor(6)), adapter.places[0].weight[1] + adapter.places[1].weight[2])


def test_an_example_without_a_caption_trains_only_what_needs_none():
    model, objective, raw, _ = ready("captioning")
    raw.streams["caption"] = torch.full_like(raw.streams["caption"], -1)
    batch = objective.prepare(raw, 7)
    assert float(batch.count("captioning")) == 0.0
    assert isinstance(batch, Batch)
    assert Words.vocabulary_size == model.vocabulary
