"""A whole evaluation from files to page, and comparisons of several."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import UserError
from ldm.evaluation.metrics.summary import SummaryOptions
from ldm.evaluation.result import CHANCE, PUBLIC, REAL, EvaluationResult, Steps
from ldm.privacy.card import ReleaseCard
from ldm.privacy.ledger import Ledger
from ldm.privacy.plan import PrivacyPlan
from ldm.reports.comparison import compare_evaluations, format_comparison, run_names
from ldm.reports.evaluation import Evaluation, EvaluationRequest, evaluate
from ldm.reports.evaluation_files import check_output_folder, format_result, read_result, write_evaluation
from ldm.reports.evaluation_inputs import ImageCollector
from ldm.samples import SampleSet
from tests.pages import Page, browser, rendered

HERE = __name__
CPU = torch.device("cpu")
SCHEMA = Path(__file__).parents[2] / "docs" / "evaluation.md"


class Bars:
    """Labelled bars: class 0 is upright, class 1 lies."""

    def __init__(self, size: int = 16, count: int = 80, seed: int = 0, noise: float = 0.0) -> None:
        generator = np.random.default_rng(seed)
        self.labels = np.arange(count) % 2
        self.images = -np.ones((count, size, size, 1), np.float32)
        for image, label, at in zip(self.images, self.labels, generator.integers(0, size - 3, count), strict=True):
            (image if label else image.transpose(1, 0, 2))[at : at + 3] = 1
        self.images += noise * generator.normal(size=self.images.shape).astype(np.float32)
        self.images = self.images.clip(-1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {"image": self.images[index], "class_label": int(self.labels[index])}


def bars(path: Path, labelled: bool = True, **settings: object) -> str:
    made = Bars(**settings)
    labels = torch.from_numpy(made.labels) if labelled else None
    SampleSet(torch.from_numpy(made.images).permute(0, 3, 1, 2), labels, {"seed": 7}).save(path)
    return str(path)


def card(folder: Path, steps: int = 20) -> Path:
    plan = PrivacyPlan(
        sample_rate=0.1, steps=20, noise_multiplier=1.0, max_grad_norm=0.1, delta=1e-3, expected_batch_size=10
    )
    ledger = Ledger()
    ledger.record(plan.event(), steps)
    folder.mkdir(exist_ok=True)
    ReleaseCard(plan, ledger, {"a": 12}).write(folder / "privacy.json")
    return folder


def request(folder: Path, **changes: object) -> EvaluationRequest:
    given = {
        "samples": bars(folder / "samples.pt", seed=1),
        "real": f"{HERE}.Bars",
        "suite": "all",
        "extractor": "pixels",
        "summary": SummaryOptions(quantize=True, subset=60),
        **changes,
    }
    return EvaluationRequest(**given)


def evaluated(folder: Path, **changes: object) -> Evaluation:
    return evaluate(request(folder, **changes), CPU)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation with everything in it."""
    from ldm.config import ALLOWED_PREFIXES

    before = set(ALLOWED_PREFIXES)
    folder = tmp_path_factory.mktemp("full")
    words = {"test": f"{HERE}.Bars", "test_args": ["seed:5"], "classifiers": ["logreg"], "epochs": 2, "seeds": 2}
    evaluation = evaluated(folder, privacy=str(card(folder / "run")), show_real=True, **words)
    write_evaluation(evaluation.result, evaluation.images, folder / "report")
    ALLOWED_PREFIXES.clear()
    ALLOWED_PREFIXES.update(before)
    return folder / "report"


def test_everything_is_in_the_file(full: Path) -> None:
    assert sorted(path.name for path in full.iterdir()) == ["evaluation.json", "report.html", "samples.png"]
    found = read_result(full)
    assert {"frechet", "kid", "precision", "recall", "density", "coverage", "frechet_class_mean"} == set(found.scores)
    assert found.samples.count == found.real.count == 80 and found.samples.size == "16x16"
    assert found.samples.classes == {"0": 40, "1": 40} and found.samples.meta == {"seed": 7}
    assert found.real.source.endswith("Bars size:16")  # the samples' size went to the class
    assert [row.samples for row in found.per_class] == [40, 40]
    assert found.downstream is not None and found.privacy is not None
    (logreg,) = found.downstream.results
    assert logreg.model == "logreg" and len(logreg.results) == 2 and 0 <= logreg.mean <= 1
    assert logreg.levels == {CHANCE: 0.5} and logreg.results[1].seed == 1
    assert found.privacy.private and found.privacy.steps == Steps(20, 20)
    steps, epsilons = zip(*found.privacy.curve, strict=True)
    assert steps == tuple(range(21)) and len(set(epsilons)) == 21, "every step shown is computed"
    assert epsilons[-1] == pytest.approx(found.privacy.epsilon["pld"], rel=2e-3) and found.protocol.quantize is True
    assert found.not_measured == {"inception_score": "the extractor pixels names no classes"}


#: The keys of evaluation.json, version 1, that other programs read; a change of any of them needs a new version.
TOP = (
    "format version title created samples real protocol scores per_class downstream privacy memorisation not_measured "
    "from_real_images levels sha256"
)
KEYS = {
    ".": TOP,
    "samples": "source count size classes meta",
    "real": "source count size classes",
    "protocol": "suite policy forced extractor weights resize quantize size subset options device versions",
    "protocol.subset": "limit seed samples real",
    "scores.frechet": "value label better deviation note levels",
    "per_class.0": "label name frechet samples real",
    "downstream": "test test_count test_from_training_files protocol settings results",
    "downstream.results.0": "name model mean deviation results note protocol selection honest levels",
    "downstream.results.0.results.0": (
        "model accuracy validation_accuracy best_epoch epochs seed curve protocol selection honest average_accuracy "
        "average_epoch"
    ),
    "downstream.results.0.results.0.curve.0": (
        "loss validation_accuracy validation_loss average_accuracy average_loss"
    ),
    "privacy": (
        "statement private epsilon delta relation record rng steps covered not_covered public_data plan "
        "trained_coordinates curve"
    ),
}


def test_the_file_has_exactly_the_keys_of_its_version(full: Path) -> None:
    content = json.loads((full / "evaluation.json").read_text(encoding="utf-8"))
    for path, names in KEYS.items():
        place = content
        for step in path.split(".") if path != "." else ():
            place = place[int(step)] if step.isdigit() else place[step]
        assert set(place) == set(names.split()), path
    honest = content["downstream"]["results"][0]["honest"], content["downstream"]["settings"]["honest"]
    assert honest == (True, True) and content["version"] == 1


def test_a_result_survives_its_file_and_old_names_are_read(full: Path) -> None:
    content = json.loads((full / "evaluation.json").read_text(encoding="utf-8"))
    assert len(content.pop("sha256")) == 64
    found = EvaluationResult.from_dict(content)
    assert json.loads(json.dumps(found.to_dict())) == content
    assert found.downstream is not None and not found.downstream.results[0].uses_test_for_selection
    content["from_real_pictures"] = content.pop("from_real_images")[:1]  # as before a rename
    content["downstream"]["results"][0]["honest"] = False
    for old in (content["scores"]["kid"], content["downstream"]["results"][0], content):
        old.pop("levels")
    older = EvaluationResult.from_dict(content)
    assert older.from_real_images == ("scores",) and older.levels == {} and older.scores["kid"].levels == {}
    assert older.downstream is not None and older.downstream.results[0].uses_test_for_selection


def test_a_damaged_file_names_the_missing_key(full: Path) -> None:
    content = json.loads((full / "evaluation.json").read_text(encoding="utf-8"))
    del content["scores"]["kid"]["better"]
    with pytest.raises(UserError, match="x.json, scores, kid: has no better"):
        EvaluationResult.from_dict(content, "x.json")
    content["scores"]["kid"] = 3
    with pytest.raises(UserError, match="scores, kid: 3 stands where an object"):
        EvaluationResult.from_dict(content, "x.json")


def test_schema_document_names_every_key() -> None:
    text = SCHEMA.read_text(encoding="utf-8")
    for path, names in KEYS.items():
        for key in names.split():
            assert f"`{key}`" in text, f"docs/evaluation.md does not name {key} of {path}"


def test_levels_are_measured_as_the_samples_are(tmp_path: Path) -> None:
    """Held-out images of the same kind stand for real ones, bars in much noise for the public model."""
    public = bars(tmp_path / "public.pt", seed=4, noise=1.0)
    samples = bars(tmp_path / "own.pt", seed=1, noise=0.3)
    words = {"test": f"{HERE}.Bars", "test_args": ["seed:5"], "classifiers": ["logreg"], "epochs": 2}
    found = evaluated(tmp_path, samples=samples, public=public, real_level=True, **words).result
    frechet = found.scores["frechet"]
    assert frechet.levels[REAL] < frechet.value < frechet.levels[PUBLIC]
    assert found.levels[PUBLIC].source == public and found.levels[REAL].count == 80
    assert found.downstream is not None
    assert set(found.downstream.results[0].levels) == {CHANCE, REAL, PUBLIC}
    alone = evaluated(tmp_path, samples=public).result.scores["frechet"]
    assert frechet.levels[PUBLIC] == pytest.approx(alone.value)  # what the public samples score by themselves
    assert "of the way from the public model" in format_result(found)
    with pytest.raises(UserError, match="--real_level measures held-out real images; name them with --test"):
        evaluated(tmp_path, real_level=True)


def test_page_stands_alone(full: Path) -> None:
    found = Page((full / "report.html").read_text(encoding="utf-8"))
    assert found.faults == [] and len(found.images) == 4
    assert "must not be published" in found.text and "Logistic regression" in found.text


@pytest.mark.parametrize("width", [1000, 400])
def test_page_in_a_browser(full: Path, tmp_path: Path, width: int) -> None:
    if browser() is None:
        pytest.skip("no Chromium on the path; the twin above parses the page")
    found = rendered(full / "report.html", tmp_path, width)
    assert found == {"faults": [], "images": 4, "broken": 0, "wide": False, "loaded": []}


def test_real_images_are_shown_only_when_asked(tmp_path: Path) -> None:
    evaluation = evaluated(tmp_path)
    assert evaluation.images.real == {} and set(evaluation.images.samples) == {"0", "1"}
    assert "show_real" not in evaluation.result.to_dict()["protocol"]


def test_sheet_of_samples_holds_samples_only(full: Path) -> None:
    sheet = Image.open(full / "samples.png")
    assert sheet.mode == "L" and sheet.width == 10 * 18 + 2


def test_unlabelled_samples_and_folders(tmp_path: Path) -> None:
    for at, image in enumerate(Bars(seed=3).images):
        (tmp_path / "real").mkdir(exist_ok=True)
        Image.fromarray(((image[..., 0] + 1) * 127.5).astype(np.uint8)).save(tmp_path / "real" / f"{at:02}.png")
    samples = bars(tmp_path / "plain.pt", labelled=False)
    evaluation = evaluated(tmp_path, samples=samples, real=str(tmp_path / "real"), test=f"{HERE}.Bars")
    found = evaluation.result
    assert found.not_measured["downstream"] == "the samples have no labels"
    assert "no labels" in found.not_measured["per_class"] and found.per_class == ()
    assert set(evaluation.images.samples) == {""} and len(evaluation.images.samples[""]) == 60
    write_evaluation(found, evaluation.images, tmp_path / "report")
    assert Page((tmp_path / "report" / "report.html").read_text()).faults == []
    assert "not measured: the samples have no labels" in format_result(found)


def test_an_evaluation_that_was_cut_short_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full before the page leaves no evaluation.json that a comparison or a release would take."""
    evaluation = evaluated(tmp_path, samples=bars(tmp_path / "samples.pt"))

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("ldm.reports.evaluation_files.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_evaluation(evaluation.result, evaluation.images, tmp_path / "report")
    with pytest.raises(UserError, match="no such file|no evaluation"):
        read_result(tmp_path / "report")


def test_noise_is_seen(tmp_path: Path) -> None:
    values = [
        evaluated(tmp_path, samples=bars(tmp_path / f"{at}.pt", noise=noise)).result.scores["frechet"].value
        for at, noise in enumerate((0.0, 0.4, 1.5))
    ]
    assert values[0] < 1e-6 and values == sorted(values) and values[2] > values[1] > 0


def test_mistakes_come_before_the_work(tmp_path: Path) -> None:
    for changes, words in (
        ({"suite": "minst"}, "did you mean 'mnist'"),
        ({"classifiers": ["cnm"]}, "unknown classifier 'cnm'"),
        ({"protocol": "none"}, "unknown protocol"),
        ({"seeds": 0}, "--seeds 0"),
        ({"privacy": str(tmp_path)}, "no privacy card here"),
        ({"samples": str(tmp_path / "none.pt")}, "no such file"),
        ({"extractor": "none"}, "unknown extractor"),
        ({"real_args": ["size:8"]}, "different sizes"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            evaluated(tmp_path, **changes)
        assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name a folder"):
        check_output_folder(tmp_path / "file")


def test_collector_keeps_the_first_of_each_class() -> None:
    collector = ImageCollector(classes=2)
    images = torch.arange(40.0).view(40, 1, 1, 1)
    labels = torch.tensor([1, 0, 2] * 13 + [1])
    passed = list(collector.watch(iter([(images[:20], labels[:20]), (images[20:], labels[20:])])))
    assert torch.equal(torch.cat([part for part, _ in passed]), images)
    assert list(collector.kept) == [0, 1] and [len(found) for found in collector.kept.values()] == [10, 10]
    assert [int(image) for image in collector.kept[0]][:3] == [1, 4, 7]


def test_copies_are_found_and_membership_results_are_shown(tmp_path: Path) -> None:
    membership = tmp_path / "membership.json"
    membership.write_text(json.dumps([{"attack": "loss threshold", "auc": 0.53, "curve": [[0, 0], [1, 1]]}]))
    words = {"test": f"{HERE}.Bars", "test_args": ["seed:9", "noise:0.3"], "classifiers": ["logreg"], "epochs": 1}
    copied = bars(tmp_path / "copies.pt", seed=0)  # the very images of --real
    found = evaluated(tmp_path, samples=copied, memorisation=[str(membership)], **words)
    memory = found.result.memorisation
    assert memory is not None
    assert memory["Near-copies: pixels, root mean square"]["copying"] is True
    assert "Near-copies: pixels features" in memory and memory["Membership inference: loss threshold"]["auc"] == 0.53
    write_evaluation(found.result, found.images, tmp_path / "report")
    page = Page((tmp_path / "report" / "report.html").read_text(encoding="utf-8"))
    assert page.faults == [] and "computed from the private images" in page.text and "0.53" in page.text
    without = evaluated(tmp_path, memorisation=[]).result
    assert without.memorisation is None and "--test" in without.not_measured["near_copies"]
    membership.write_text("{}")
    with pytest.raises(UserError, match=r"membership\.json: not a result of scripts/membership\.py"):
        evaluated(tmp_path, memorisation=[str(membership)])


# comparisons


def test_comparison_from_folders_and_files(full: Path, tmp_path: Path) -> None:
    noisy = evaluated(tmp_path, samples=bars(tmp_path / "noisy.pt", noise=1.0), title="noisy")
    write_evaluation(noisy.result, noisy.images, tmp_path / "noisy")
    output = tmp_path / "both"
    found = compare_evaluations([str(full), str(tmp_path / "noisy" / "evaluation.json")], None, output)
    assert found.scores["frechet"].best == "report" and list(found.runs) == ["report", "noisy"]
    assert json.loads((output / "comparison.json").read_text()) == json.loads(json.dumps(found.to_dict()))
    parsed = Page((output / "comparison.html").read_text())
    assert parsed.faults == [] and len(parsed.images) == 2
    frechet = next(line for line in format_comparison(found).splitlines() if line.startswith("Fr"))
    assert frechet.split()[-2].endswith("*") and not frechet.endswith("*")
    if browser() is not None:
        assert rendered(output / "comparison.html", tmp_path)["broken"] == 0


def test_a_run_beside_itself_is_level_everywhere(full: Path, tmp_path: Path) -> None:
    found = compare_evaluations([str(full), str(full)], None, tmp_path)
    assert {score.best for score in found.scores.values()} == {None}
    assert {score.tied for score in found.scores.values()} == {("report", "report (2)")}
    assert "= level" in format_comparison(found)


def test_given_names_of_runs(full: Path, tmp_path: Path) -> None:
    runs = [str(full), str(full)]
    assert list(compare_evaluations(runs, ["a", "b"], tmp_path).runs) == ["a", "b"]
    with pytest.raises(UserError, match="1 names for 2 runs"):
        compare_evaluations(runs, ["a"], tmp_path)


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (("a/eps1", "a/eps10"), ["eps1", "eps10"]),
        (("a/eps1/report", "a/eps10/report"), ["eps1", "eps10"]),
        (("a/x/best", "b/x/best"), ["a", "b"]),
        (("a/one", "b/one", "b/two"), ["a/one", "b/one", "b/two"]),
        (("a/one", "a/one"), ["one", "one (2)"]),
    ],
)
def test_runs_are_called_by_their_folders(tmp_path: Path, folders: tuple[str, ...], names: list[str]) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    assert run_names([str(tmp_path / folder) for folder in folders]) == names
    files = [str(tmp_path / folder / "evaluation.json") for folder in folders]
    assert run_names(files) == names


def test_a_changed_score_is_noticed(full: Path, tmp_path: Path) -> None:
    content = json.loads((full / "evaluation.json").read_text(encoding="utf-8"))
    (tmp_path / "same.json").write_text(json.dumps(content))
    read_result(tmp_path / "same.json")  # the layout may change
    content["scores"]["frechet"]["value"] += 1
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="was changed after it was written"):
        read_result(tmp_path / "other.json")


def test_what_is_no_evaluation_is_one_line(full: Path, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("{")
    (tmp_path / "other.json").write_text("{}")
    newer = re.sub(r'"version": 1', '"version": 9', (full / "evaluation.json").read_text(), count=1)
    (tmp_path / "newer.json").write_text(newer)
    for name, words in (
        ("text.json", "not readable JSON"),
        ("other.json", "not an evaluation"),
        ("newer.json", "version 9"),
        ("none.json", "no such file"),
        (".", "no evaluation.json here"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            read_result(tmp_path / name)
        assert "\n" not in str(caught.value)
