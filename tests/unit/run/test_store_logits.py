"""What a teacher leaves on the disk is what it said, for every training token."""

import numpy as np
import pytest
import torch

from bessemer.core.artifact import seal
from bessemer.core.errors import ArtifactError, DataError, RecipeError
from bessemer.core.work import Work
from bessemer.data.loader import Loader
from bessemer.data.sparse_logits import IDS, SparseLogits
from bessemer.models.families.decoder import Decoder
from bessemer.models.package import Model, save_model
from bessemer.run.stages.store_logits import store_logits
from tests.folders import folder
from tests.unit.data.token_stores import small_tokens

LENGTH = 64


def teacher():
    out = folder()
    model = Decoder(small_tokens().vocabulary, 4, depth=2, width=32, heads=2, ffn=64, length=LENGTH)
    with torch.no_grad():
        model.head.weight.mul_(30.0)
    save_model(model, out)
    seal(out, "model", recipe={}, parents={}, info={})
    return Model.open(out)


def stored(model, **options):
    work = Work(folder(), name="store_logits")
    store_logits(work, small_tokens(), model, **options)
    seal(work.out, "logits", recipe={}, parents={}, info=work.info)
    return SparseLogits.open(work.out), work


def test_stored_tokens_are_the_teachers_likeliest_in_the_students_rows():
    model = teacher()
    kept, work = stored(model, keep=6)
    tokens, net = small_tokens(), model.build()
    assert work.info["tokens"] == tokens.lengths[~tokens.held_out].sum()
    loader = Loader(tokens, length=LENGTH, mix=None, logits=kept)
    whole = 0
    for start in range(0, loader.epoch, 4):
        batch = loader.batch(start, min(4, loader.epoch - start))
        with torch.no_grad():
            logs, ids = net(batch).logits().log_softmax(-1).topk(6)
        for row in range(batch.rows):
            segments = torch.ones_like(batch.tokens[row]) if batch.segments is None else batch.segments[row]
            for number in segments.unique().tolist():
                at = segments == number
                if number == 0:
                    assert torch.isinf(batch.streams["teacher_logs"][row][at]).all()
                elif batch.tokens[row][at][0] == tokens.begin:  # from the document's start, the teacher's context is the student's
                    torch.testing.assert_close(batch.streams["teacher_logs"][row][at], logs[row][at], rtol=2e-3, atol=2e-3)
                    assert (batch.streams["teacher_ids"][row][at] == ids[row][at]).float().mean() > 0.99
                    whole += 1
    assert whole > 50


def test_held_out_text_has_no_teacher():
    kept, _ = stored(teacher(), keep=2)
    tokens = small_tokens()
    for document in np.flatnonzero(tokens.held_out)[:5]:
        places = np.arange(tokens.starts[document], tokens.starts[document] + tokens.lengths[document])
        assert np.isinf(kept.take(places)[1]).all()


def test_logits_of_another_store_and_torn_files_are_refused():
    kept, work = stored(teacher(), keep=2)
    kept.store = "other"
    with pytest.raises(DataError, match="for the token store other"):
        Loader(small_tokens(), length=32, logits=kept)
    (work.out / IDS).write_bytes(b"12")
    with pytest.raises(ArtifactError, match="truncated"):
        SparseLogits.open(work.out, verify=False)


@pytest.mark.parametrize("options", [{"keep": 0}, {"keep": 10**6}, {"length": 1}])
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(RecipeError, match="store_logits"):
        stored(teacher(), **options)
