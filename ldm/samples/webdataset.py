"""Sample sets as webdataset shards: tar files in which the files of one sample have one stem.

``00000042.png`` is the image, ``00000042.cls`` its label in decimal digits, ``00000042.txt`` the name of its class.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from ldm.files import check_new_folder, new_folder
from ldm.samples.export import checked_names, png_bytes, to_bytes
from ldm.samples.sample_set import SampleSet

SHARD = 10_000


def write_webdataset(
    samples: SampleSet, folder: Path, class_names: Sequence[str] = (), shard: int = SHARD
) -> tuple[Path, ...]:
    """Write the new ``folder`` of shards ``samples-000000.tar``, ... with ``shard`` images each; returns their paths.

    Equal samples give equal bytes, because the files in a shard have no time and no owner. Raises UserError for an
    existing folder, and for fewer class names than classes.
    """
    check_new_folder(folder, ", so that no other shard stays in it")
    names = checked_names(samples, class_names)
    images = to_bytes(samples)
    starts = range(0, max(len(images), 1), shard)
    with new_folder(folder) as staging:
        for number, start in enumerate(starts):
            with tarfile.open(staging / _name(number), "w", format=tarfile.USTAR_FORMAT) as tar:
                for index in range(start, min(start + shard, len(images))):
                    _add(tar, f"{index:08}.png", png_bytes(images[index]))
                    if samples.labels is not None:
                        label = int(samples.labels[index])
                        _add(tar, f"{index:08}.cls", str(label).encode())
                        if names:
                            _add(tar, f"{index:08}.txt", names[label].encode())
    return tuple(folder / _name(number) for number in range(len(starts)))


def _name(number: int) -> str:
    return f"samples-{number:06}.tar"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
