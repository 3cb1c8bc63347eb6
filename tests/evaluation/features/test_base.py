"""Extractors: shapes, grey and colour, and clear words when weights cannot be had."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from ldm.errors import UserError
from ldm.evaluation.features import make_extractor, weights_digest
from ldm.evaluation.inputs.images import quantize, resize, to_grey, to_rgb


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_grey_and_colour_conversions() -> None:
    grey = noise(2, 1, 4, 4)
    assert torch.equal(to_rgb(grey)[:, 2:], grey)
    assert torch.allclose(to_grey(to_rgb(grey)), grey, atol=1e-6)
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1)
    assert to_grey(red).item() == pytest.approx(2 * 0.299 - 1)
    with pytest.raises(UserError, match="1 or 3"):
        to_rgb(noise(1, 4, 4, 4))


def test_quantize_and_resize() -> None:
    assert torch.equal(quantize(quantize(noise(2, 3, 4, 4))), quantize(noise(2, 3, 4, 4)))
    assert (quantize(noise(2, 3, 4, 4)) - noise(2, 3, 4, 4)).abs().max() <= 1 / 255 + 1e-6
    image = noise(1, 1, 8, 8)
    assert resize(image, 8) is image
    assert resize(image, 4).shape == (1, 1, 4, 4)
    checker = torch.ones(1, 1, 16, 16)
    checker[..., ::2, 1::2] = checker[..., 1::2, ::2] = -1
    assert resize(checker, 4)[..., 1:-1, 1:-1].abs().max() < 0.1  # anti-aliased: averages, does not pick


def test_pixels_are_area_means() -> None:
    extractor = make_extractor("pixels")
    features = extractor(noise(3, 3, 32, 32))
    assert features.shape == (3, extractor.dim) and features.dtype == torch.float32
    assert features[1, 9].item() == pytest.approx(to_grey(noise(3, 3, 32, 32))[1, 0, 4:8, 4:8].mean().item(), abs=1e-6)


def test_names_and_weights_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'inception'"):
        make_extractor("inceptoin")
    with pytest.raises(UserError, match="no weights"):
        make_extractor("pixels", weights="a.pth")
    with pytest.raises(UserError, match="train_digits_cnn"):
        make_extractor("digits-cnn")


def test_weights_digest_sees_values_and_names() -> None:
    base = {"a": torch.zeros(2), "b": torch.ones(2)}
    assert weights_digest(base) == weights_digest(dict(reversed(base.items())))
    assert len({weights_digest(state) for state in (base, {**base, "b": torch.zeros(2)}, {"a": base["a"]})}) == 3


# Inception


class NoInception:
    """In place of torch-fidelity's class: fails as it does without a network."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise URLError("no route to host")


def test_without_a_network_the_stand_ins_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3", NoInception)
    with pytest.raises(UserError, match=r"could not be downloaded.*no route.*--weights.*digits-cnn.*not FID") as caught:
        make_extractor("inception")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["missing", "text", "other", "pickle"])
def test_wrong_inception_weights_are_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "w.pth"
    if kind == "text":
        path.write_text("hello")
    elif kind == "other":
        torch.save({"a": torch.zeros(3)}, path)
    elif kind == "pickle":
        torch.save({"a": torch.nn.Linear(2, 2)}, path)
    with pytest.raises(UserError, match=r"w\.pth") as caught:
        make_extractor("inception", weights=path)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file of the right form with random values: the arithmetic can be checked without the real ones."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    path = tmp_path_factory.mktemp("weights") / "random.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        torch.save(module.FeatureExtractorInceptionV3("x", ["2048"]).state_dict(), path)
    return path


@pytest.mark.slow
def test_inception_equals_torch_fidelity_where_no_resize_is_needed(random_inception: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    extractor = make_extractor("inception", weights=random_inception)
    layers = ["2048", "logits_unbiased"]
    theirs = FeatureExtractorInceptionV3("x", layers, feature_extractor_weights_path=str(random_inception))
    bytes_ = torch.randint(0, 256, (2, 3, 299, 299), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = (bytes_.float() - 128) / 128
    before = images.clone()
    with torch.inference_mode():
        ours = extractor(images)
        expected, logits = theirs(bytes_)
        assert torch.allclose(extractor.logits(ours), logits, rtol=1e-3, atol=1e-5)
    assert ours.shape == (2, 2048) and torch.allclose(ours, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(images, before)
    assert ours.std() > 0


@pytest.mark.slow
def test_inception_takes_small_grey_images_and_finds_cached_weights(
    random_inception: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth").symlink_to(random_inception)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    extractor = make_extractor("inception")
    assert extractor.weights == make_extractor("inception", weights=random_inception).weights
    grey = noise(2, 1, 28, 28)
    with torch.inference_mode():
        assert torch.allclose(extractor(grey), extractor(to_rgb(grey)))
