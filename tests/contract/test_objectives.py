"""Every objective: the same gradient under any split into micro-batches, in joint steps and in mixed micro-batches; masked places inert."""

import itertools
from dataclasses import replace

import pytest
import torch

from bessemer.core import registry
from bessemer.core.batch import Batch
from bessemer.models.attach import attach
from bessemer.objectives._examples import FromExamples
from bessemer.train.engine import Engine
from bessemer.train.mixed import MIXED, Mixed, trunk_streams
from tests.unit.objectives import pictures, words

NAMES = registry.names("objectives")
VOCABULARY, LENGTH, ROWS = words.SIZE, 24, 24
TOLERANCE = 1e-6


def ragged(rows=ROWS, seed=0, length=LENGTH):
    """Packed rows of documents of many lengths, with padding, and one row that has no target at all."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCABULARY, (rows, length), generator=draw)
    targets = torch.randint(0, VOCABULARY, (rows, length), generator=draw)
    positions, segments, weights = (
        torch.zeros(rows, length, dtype=torch.int64),
        torch.zeros(rows, length, dtype=torch.int64),
        torch.zeros(rows, length),
    )
    for row in range(1, rows):
        at, number = 0, 1
        while at < length - 2:
            size = int(torch.randint(2, 12, (1,), generator=draw))
            size = min(size, length - at)
            positions[row, at : at + size] = torch.arange(size)
            segments[row, at : at + size] = number
            weights[row, at : at + size] = 1.0
            at, number = at + size + (row % 3 == 0), number + 1
    return Batch(tokens, positions, segments, targets, {"next_token": weights}, samples=torch.arange(rows))


def cut(batch, parts, unit=1):
    units = batch.rows // unit
    edges = [round(units * i / parts) * unit for i in range(parts + 1)]
    return [batch.rows_of(a, b) for a, b in itertools.pairwise(edges) if b > a]


def joint_model(name):
    return pictures.decoder(ahead=2 if name == "multi_token" else 0)


def of_examples(name):
    target = registry.find("objectives", name)
    return issubclass(target, FromExamples)


def task(name, model, label="mine", length=LENGTH, rows=ROWS):
    """An objective attached to a model, and its raw rows."""
    if of_examples(name):
        objective = pictures.made(name, model, label)
        return objective, pictures.loader(objective, label, max(length, objective.columns)).batch(0, rows)
    options = {"z": 1e-3} if name == "next_token" else words.options(name)
    objective = attach(model, label, registry.choose("objectives", {"name": name, **options}))
    objective.read(words.Words())
    return objective, replace(words.dressed(name, ragged(rows, length=length)), task=label)


def wide(batch, length):
    """A batch with padding up to a length."""
    more = length - batch.tokens.shape[1]
    if not more:
        return batch

    def pad(value):
        is_columns = value.ndim > 1 and value.shape[1] == batch.tokens.shape[1]
        return torch.cat((value, value.new_zeros(value.shape[0], more, *value.shape[2:])), 1) if is_columns else value

    return batch.map(pad)


def gradients(model, objectives, batches):
    result = Engine(model, {name: (each, 1.0) for name, each in objectives.items()}, torch.float32).forward_backward(batches)
    return result, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def same(found, expected):
    assert found.keys() == expected.keys()
    scale = max(1.0, *(float(g.abs().max()) for g in expected.values()))
    for key, value in expected.items():
        assert float((found[key] - value).abs().max()) <= TOLERANCE * scale, key


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parts", [2, 3, 24])
def test_gradient_does_not_depend_on_micro_batches(name, parts):
    """Rows are prepared part by part, as the loader gives them."""
    model, again = joint_model(name), joint_model(name)
    objective, raw = task(name, model)
    whole, expected = gradients(model, {"mine": objective}, [objective.prepare(raw, 7)])
    other, _ = task(name, again)
    split, found = gradients(again, {"mine": other}, [other.prepare(part, 7) for part in cut(raw, parts, other.unit)])
    assert split.loss == pytest.approx(whole.loss, rel=1e-5, abs=1e-6)
    assert split.terms == pytest.approx(whole.terms, rel=1e-4, abs=1e-6)
    same(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_places_without_weight_and_padding_are_inert(name):
    model, again = joint_model(name), joint_model(name)
    objective, raw = task(name, model)
    prepared = objective.prepare(raw, 7)
    _, expected = gradients(model, {"mine": objective}, [prepared])
    other, _ = task(name, again)
    changed = other.prepare(raw, 7)
    counted = sum((w for w in changed.weights.values() if w.shape == changed.tokens.shape), torch.zeros(changed.tokens.shape)) != 0
    assert changed.targets is not None
    assert changed.segments is not None
    changed.targets = torch.where(counted, changed.targets, (changed.targets + 7) % VOCABULARY)
    changed.tokens = torch.where(changed.segments > 0, changed.tokens, (changed.tokens + 5) % VOCABULARY)
    if name not in ("multi_token", "electra", "self_distill"):  # these read targets as inputs, or compare padding's states with a teacher's
        _, found = gradients(again, {"mine": other}, [changed])
        same(found, expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", [1, -1])
def test_a_task_has_the_same_gradient_in_a_joint_step(name, order):
    """The joint step's gradient is the sum of the tasks' own, in any order of micro-batches."""
    alone, beside, joint = joint_model(name), joint_model(name), joint_model(name)
    mine, raw = task(name, alone)
    single, first = gradients(alone, {"mine": mine}, [mine.prepare(raw, 7)])
    partner = "next_token" if of_examples(name) else "captioning"
    theirs, their_raw = task(partner, beside, "theirs", rows=8)
    task(name, beside)
    _, second = gradients(beside, {"theirs": theirs}, [theirs.prepare(their_raw, 7)])
    both = {"mine": task(name, joint)[0], "theirs": task(partner, joint, "theirs")[0]}
    batches = [both["mine"].prepare(part, 7) for part in cut(raw, 2, both["mine"].unit)] + [both["theirs"].prepare(their_raw, 7)]
    result, found = gradients(joint, both, batches[::order])
    assert {k.removeprefix("mine/"): v for k, v in result.terms.items() if k.startswith("mine/")} == pytest.approx(single.terms, rel=1e-4, abs=1e-6)
    expected = {k: first.get(k, 0.0) + second.get(k, 0.0) for k in found}
    same(found, expected)
    assert first.keys() | second.keys() == found.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_task_has_the_same_gradient_in_mixed_micro_batches(name):
    """One pass over rows of three tasks, two of them of pictures with unlike numbers of patches, gives what passes apart give."""
    partners = {"theirs": "next_token", "third": "mae"}

    def made():
        model = joint_model(name)
        length = max(96, task(name, model)[0].columns if of_examples(name) else 0)
        tasks = {label: task(each, model, label, length, rows=8) for label, each in {"mine": name, **partners}.items()}
        objectives = {label: objective for label, (objective, _) in tasks.items()}
        return model, objectives, {label: wide(objective.prepare(raw, 7), length) for label, (objective, raw) in tasks.items()}

    model, objectives, batches = made()
    apart, expected = gradients(model, objectives, list(batches.values()))
    model, objectives, batches = made()
    one = Mixed({label: (each, 1.0) for label, each in objectives.items()}, trunk_streams(["patches"]))
    unit = objectives["mine"].unit
    halves = [one.join([cut(batch, 2, unit)[half] for batch in batches.values()]) for half in (0, 1)]
    together, found = gradients(model, {MIXED: one}, halves)
    assert together.terms == pytest.approx(apart.terms, rel=1e-4, abs=1e-6)
    same(found, expected)


def test_the_loss_is_the_mean_over_all_counted_tokens():
    model = joint_model("next_token")
    objective, batch = task("next_token", model)
    whole, _ = gradients(model, {"mine": objective}, cut(batch, 3))
    with torch.no_grad():
        logits = model(batch).logits()
    weights = batch.weights["next_token"]
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none").view_as(weights)
    assert whole.terms["cross_entropy"] == pytest.approx(float((nats * weights).sum() / weights.sum()), rel=1e-5)
