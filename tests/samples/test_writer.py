"""Sample files written batch by batch: the same file as in one go, taken up after a stop, in flat memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ldm.errors import UserError
from ldm.samples import SampleSet, SampleWriter, unfinished_folder, unfinished_meta

META = {"config": "a.yaml", "config_sha256": "ab", "seed": 3, "captions": ["a man", "a woman"] * 3}


def random_images(count: int = 6, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, 8, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labels", [torch.tensor([4, 4, 4, 0, 1, 2]), None])
@pytest.mark.parametrize("split", [[6], [1, 2, 3], [4, 2]])
def test_the_file_is_that_of_a_sample_set(
    tmp_path: Path, channels: int, labels: torch.Tensor | None, split: list[int]
) -> None:
    images = random_images(channels=channels)
    with SampleWriter(tmp_path / "a.pt", 6, labels, META) as writer:
        for part in images.split(split):
            assert not (tmp_path / "a.pt").exists()
            writer.write(part)
        writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    SampleSet(images, labels, META).save(tmp_path / "b.pt")
    for mmap in (False, True):
        one, two = (torch.load(tmp_path / name, weights_only=True, mmap=mmap) for name in ("a.pt", "b.pt"))
        assert list(one) == list(two) and one["meta"] == two["meta"]
        assert torch.equal(one["image"], two["image"]) and one["image"].dtype == torch.float32
        assert labels is None or torch.equal(one["class_label"], labels)


def test_images_are_clamped_and_brought_to_form(tmp_path: Path) -> None:
    with SampleWriter(tmp_path / "a.pt", 6) as writer:
        writer.write((random_images() * 3).double().requires_grad_())
        writer.finish()
    made = SampleSet.load(tmp_path / "a.pt").images
    assert torch.equal(made, (random_images() * 3).clamp(-1, 1))


def begin(path: Path, written: int = 2) -> None:
    with SampleWriter(path, 6, torch.arange(6), META) as writer:
        writer.write(random_images()[:written], {"cpu": torch.tensor([1, 2, 3], dtype=torch.uint8)})


def test_taken_up_with_what_was_left_for_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.pt"
    begin(path)
    assert unfinished_meta(path) == META and unfinished_meta(tmp_path / "b.pt") == {}
    with SampleWriter(path, 6, torch.arange(6), {**META, "config": "elsewhere/a.yaml"}) as writer:
        assert writer.done == 2 and writer.state["cpu"].tolist() == [1, 2, 3]
        writer.write(random_images()[2:])
        writer.finish()
    made = SampleSet.load(path)
    assert torch.equal(made.images, random_images()) and made.labels.tolist() == list(range(6))
    assert not unfinished_folder(path).exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"count": 7, "labels": torch.arange(7)}, "2 of 6 images of a run with other settings (6 images there, 7"),
        ({"labels": torch.zeros(6, dtype=torch.long)}, "other classes"),
        ({"labels": None}, "other classes"),
        ({"meta": {**META, "seed": 4}}, "seed: 3 there, 4 here"),
        ({"meta": {**META, "config_sha256": "cd"}}, "config_sha256: 'ab' there, 'cd' here"),
        ({"meta": {**META, "captions": ["a man with blond hair, smiling"] * 6}}, "other captions"),
        ({"meta": {**META, "steps": 9}}, "steps: None there, 9 here"),
    ],
)
def test_other_settings_are_named(tmp_path: Path, changes: dict, line: str) -> None:
    begin(tmp_path / "a.pt")
    given = {"count": 6, "labels": torch.arange(6), "meta": META, **changes}
    with pytest.raises(UserError) as caught:
        SampleWriter(tmp_path / "a.pt", **given)
    assert line in str(caught.value) and "\n" not in str(caught.value) and "remove it" in str(caught.value)


def test_killed_between_the_steps(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    for name in ("a.pt", "progress.pt"):  # the file is not begun; the file has got its name already
        begin(path)
        (unfinished_folder(path) / name).unlink()
        with SampleWriter(path, 6, torch.arange(6), META) as writer:
            assert writer.done == 0 and not unfinished_folder(path).exists()
            writer.write(random_images())
            writer.finish()
        assert torch.equal(SampleSet.load(path).images, random_images())
    begin(path)
    (unfinished_folder(path) / "progress.pt").write_text("not this")
    with pytest.raises(UserError, match="a.pt.unfinished: is damaged; remove it"):
        SampleWriter(path, 6, torch.arange(6), META)


def test_killed_after_the_last_image(tmp_path: Path) -> None:
    begin(tmp_path / "a.pt", written=6)
    with SampleWriter(tmp_path / "a.pt", 6, torch.arange(6), META) as writer:
        assert writer.done == 6
        writer.finish()
    assert torch.equal(SampleSet.load(tmp_path / "a.pt").images, random_images())


def test_a_finished_file_is_replaced_when_the_next_is_whole(tmp_path: Path) -> None:
    SampleSet(-random_images()).save(tmp_path / "a.pt")
    with SampleWriter(tmp_path / "a.pt", 6) as writer:
        writer.write(random_images()[:5])
        assert torch.equal(SampleSet.load(tmp_path / "a.pt").images, -random_images())
        writer.write(random_images()[5:])
        writer.finish()
    assert torch.equal(SampleSet.load(tmp_path / "a.pt").images, random_images())


def test_two_processes_do_not_write_the_same_file(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with SampleWriter(tmp_path / "a.pt", 6, torch.arange(6), META) as writer:
        writer.write(random_images()[:2])
        with pytest.raises(UserError, match="another process is writing it"):
            SampleWriter(tmp_path / "a.pt", 6, torch.arange(6), META)
        writer.write(random_images()[2:])
        writer.finish()


def test_a_process_that_has_not_written_a_batch_yet_keeps_its_file(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with SampleWriter(tmp_path / "a.pt", 6, torch.arange(6), META) as writer:
        writer._begin((1, 8, 8))  # the folder is there, and no progress
        with pytest.raises(UserError, match="another process is writing it"):
            SampleWriter(tmp_path / "a.pt", 6, torch.arange(6), META)
        assert writer.folder.is_dir()
    with SampleWriter(tmp_path / "b.pt", 6) as late, SampleWriter(tmp_path / "b.pt", 6) as first:
        first._begin((1, 8, 8))
        with pytest.raises(UserError, match="another process is writing it"):
            late.write(random_images()[:2])


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    with pytest.raises(UserError, match="5 labels for 6 images"):
        SampleWriter(path, 6, torch.arange(5))
    with pytest.raises(UserError, match=r"meta\.device is a device"):
        SampleWriter(path, 6, None, {"device": torch.device("cpu")})
    with SampleWriter(path, 6) as writer:
        with pytest.raises(UserError, match="shape"):
            writer.write(torch.zeros(2, 4, 8, 8))
        with pytest.raises(UserError, match="7 images for a file of 6"):
            writer.write(random_images(7))
        assert list(tmp_path.iterdir()) == []
        writer.write(random_images()[:2])
        with pytest.raises(UserError, match="shape"):
            writer.write(torch.zeros(2, 3, 8, 8))
        with pytest.raises(UserError, match="2 of 6 images were written"):
            writer.finish()
        with pytest.raises(UserError, match="1 of 2 images hold NaN"):
            writer.write(torch.cat([random_images(1), torch.full_like(random_images(1), float("nan"))]))
    assert list(tmp_path.iterdir()) == [], "what holds NaN is not worth keeping"
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with SampleWriter(path, 6) as writer, pytest.raises(UserError, match="6 images take 3.46e-06 GB, 1e-06 GB"):
        writer.write(random_images()[:2])
    assert list(tmp_path.iterdir()) == []


PEAK = """
import json, resource, sys
import torch
from ldm.samples.writer import SampleWriter
from ldm.samples import iter_batches
torch.set_num_threads(1)
path, count = sys.argv[1], int(sys.argv[2])
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with SampleWriter(path, count, torch.arange(count) % 10) as writer:
    for number in range(0, count, 50):
        writer.write(torch.full((50, 3, 64, 64), number / count))
    writer.finish()
written = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seen = sum(len(images) for images, labels in iter_batches(path, 50))
read = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seen": seen, "written": (written - start) / 1024, "read": (read - start) / 1024}))
"""


@pytest.mark.slow
def test_memory_stays_flat_for_ten_times_the_images(tmp_path: Path) -> None:
    """Megabytes above the start while writing and while reading: 50 MB and 500 MB of images."""
    peaks = []
    for count in (1_000, 10_000):
        words = [sys.executable, "-c", PEAK, str(tmp_path / "a.pt"), str(count)]
        result = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
        assert result.returncode == 0, result.stderr
        peaks.append(json.loads(result.stdout))
        assert peaks[-1]["seen"] == count
    print(peaks)
    assert peaks[1]["written"] < peaks[0]["written"] + 30
    assert peaks[1]["read"] < peaks[0]["read"] + 100, "what is mapped at a time is bounded"
