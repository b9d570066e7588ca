"""Opening a model with its tokenizer from whatever folder holds one."""

import pytest

from bessemer.core.artifact import seal
from bessemer.core.errors import ArtifactError, BessemerError, DataError
from bessemer.models.package import save_model
from bessemer.serve.generate import generate
from bessemer.serve.open import open_model
from tests.unit.serve.toy import tiny


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "train"
    model = tiny(tokenizer.vocabulary_size)
    info = save_model(model, folder, tokenizer=tokenizer)
    seal(folder, "model", recipe={}, parents={}, info=info)
    return folder, model


def test_opens_a_models_folder_and_a_runs(saved, tokenizer):
    folder, model = saved
    wanted = generate(model, tokenizer, ["the cat"], max_tokens=10)
    for place in (folder, folder.parent):
        assert generate(*open_model(place), ["the cat"], max_tokens=10) == wanted


def test_opens_a_hugging_face_folder(saved, tokenizer, tmp_path):
    from bessemer.models.hugging_face import package_to
    from bessemer.models.package import Model

    folder, model = saved
    (tmp_path / "export").mkdir()
    package_to(Model.open(folder), tmp_path / "export")
    wanted = generate(model, tokenizer, ["the cat"], max_tokens=10, temperature=0)
    assert generate(*open_model(tmp_path / "export"), ["the cat"], max_tokens=10, temperature=0) == wanted


def test_a_missing_folder_an_empty_one_and_one_without_tokenizer_are_refused(tokenizer, tmp_path):
    with pytest.raises(ArtifactError, match="no such folder"):
        open_model(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="holds no model"):
        open_model(tmp_path)
    save_model(tiny(50), tmp_path / "bare")
    with pytest.raises(ArtifactError, match="no tokenizer beside"):
        open_model(tmp_path / "bare")
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        open_model(tmp_path / "bare", tmp_path)
    with pytest.raises(BessemerError, match="and the model 50"):
        open_model(tmp_path / "bare", tokenizer.folder)
