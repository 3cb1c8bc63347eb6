"""`FolderSurvey`: summary of a folder of images after decoding every file once."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ldm.errors import UserError
from ldm.samples.image_files import THREADS, ImageHeader, read_header, read_image
from ldm.samples.image_folder import ImageFolderListing, list_images


@dataclass(frozen=True)
class FolderSurvey:
    """The records of a folder and the headers of their files.

    ``headers`` are those of the readable files; ``unreadable`` has one line for each of the others.
    """

    listing: ImageFolderListing
    headers: tuple[ImageHeader, ...]
    unreadable: tuple[str, ...]

    @property
    def sizes(self) -> Counter[tuple[int, int]]:
        """Number of images by (height, width)."""
        return Counter((header.height, header.width) for header in self.headers)

    @property
    def colour(self) -> int:
        """Number of colour images."""
        return sum(not header.is_grey for header in self.headers)

    @property
    def deep(self) -> int:
        """Number of images with more than 8 bits per pixel and channel."""
        return sum(header.is_deep for header in self.headers)

    def lines(self) -> list[str]:
        """The summary as lines of text, one per finding."""
        listing, sizes = self.listing, self.sizes
        lines = [f"images      {len(listing.files):,}"]
        if listing.labels is not None:
            counts = Counter(listing.labels.tolist())
            each = ", ".join(f"{name} ({counts[label]:,})" for label, name in enumerate(listing.class_names))
            lines.append(f"classes     {len(listing.class_names)}: {each}")
        shown = ", ".join(f"{height}x{width} ({count:,})" for (height, width), count in sizes.most_common(5))
        lines.append(f"sizes       {shown}{f', and {len(sizes) - 5} more' if len(sizes) > 5 else ''}")
        lines.append(f"pixels      {len(self.headers) - self.colour:,} grey, {self.colour:,} colour")
        if self.deep:
            lines.append(f"depth       {self.deep:,} with more than 8 bits; read as 8, see ldm/samples/image_files.py")
        persons = Counter(header.person for header in self.headers if header.person)
        if persons and max(persons.values()) > 1:
            most = max(persons.values())
            lines.append(
                f"persons     {len(persons):,} PatientIDs for {persons.total():,} images, {most} of one at most: "
                "keep one image of each person, because epsilon protects one image"
            )
        reasons = Counter(reason for _, reason in listing.skipped)
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        lines.append(f"left out    {left_out or 'nothing'}")
        return lines


def survey(folder: str | Path) -> FolderSurvey:
    """Open and decode every image of a folder once. Raises UserError for a folder that `list_images` refuses."""
    listing = list_images(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(_look, listing.paths)
        looked = list(tqdm(found, "looking at images", len(listing.files), leave=False, delay=5, disable=None))
    headers = tuple(item for item in looked if isinstance(item, ImageHeader))
    return FolderSurvey(listing, headers, tuple(item for item in looked if isinstance(item, str)))


def _look(path: Path) -> ImageHeader | str:
    """The header of a file if its pixels can be decoded, otherwise the error as text."""
    try:
        header = read_header(path)
        read_image(path)
        return header
    except UserError as error:
        return str(error)
