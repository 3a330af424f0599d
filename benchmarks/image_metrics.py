"""What the figures of images read where nothing is wrong: two disjoint halves of the same real images, by their number.

    python benchmarks/image_metrics.py PATH [--features efficientnet-lite0:64] [--numbers 1500 2500 5000 10000]

PATH is what `flowmaps.data.open_data` takes, such as a folder of images. A table in Markdown is printed: images in
each half, Fréchet distance, that times the images (a constant, where the bias is one over them), kernel distance,
precision and recall (of 5,000 at most); then the same for halves of which the second is blurred over squares of three
pixels, for scale.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from flowmaps.data import Images, open_data
from flowmaps.metrics.features import Features, extract, open_features
from flowmaps.metrics.images import Statistics, frechet_distance, kernel_distance, precision_recall

_NEIGHBOURS = 5000  # rows at most for precision and recall


def blurred(images: Tensor) -> Tensor:
    """The mean over squares of three pixels."""
    return F.avg_pool2d(images.float(), 3, 1, 1, count_include_pad=False).round().byte()


def show(title: str, share: float) -> None:
    """A line of progress on the terminal."""
    print(f"\r{title:<50} {share:4.0%}", end="" if share < 1 else "\n", file=sys.stderr, flush=True)


def line(real: Tensor, other: Tensor, name: str) -> str:
    """A row of the table."""
    number = len(real)
    distance = frechet_distance(Statistics.of(real, name), Statistics.of(other, name))
    kernel, deviation = kernel_distance(real, other, subsets=50, watch=show)
    precision, recall = precision_recall(real[:_NEIGHBOURS], other[:_NEIGHBOURS], watch=show)
    head = f"| {number:,} | {distance:.1f} | {number * distance / 1000:,.0f} | {kernel:.4f} ± {deviation:.4f} |"
    return f"{head} {precision:.3f} | {recall:.3f} |"


def tables(images: Tensor, features: Features, numbers: list[int]) -> None:
    """Both tables of one network."""
    most = max(numbers)
    first, second = images[:most], images[most : 2 * most]
    start = time.perf_counter()
    real, other = (extract(features, part, watch=show) for part in (first, second))
    rate = 2 * most / (time.perf_counter() - start)
    print(f"\n{features.name}, {rate:,.0f} images a second on {torch.get_num_threads()} thread(s)")
    for title, rows in (("real", other), ("blurred", extract(features, blurred(second), watch=show))):
        print(f"\n| images, real and {title} | FD | thousands of FD x images | KD | precision | recall |")
        print("|---|---|---|---|---|---|")
        for number in numbers:
            print(line(real[:number], rows[:number], features.name), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--features", nargs="+", default=["efficientnet-lite0:64"])
    parser.add_argument("--numbers", nargs="+", type=int, default=[1500, 2500, 5000, 10_000])
    options = parser.parse_args()
    source = open_data(options.data, watch=show)
    if not isinstance(source, Images) or len(source.pixels) < 2 * max(options.numbers):
        parser.error(f"{options.data} has not {2 * max(options.numbers):,} images: give smaller --numbers.")
    order = torch.randperm(len(source.pixels), generator=torch.Generator().manual_seed(0))
    images = source.pixels[order[: 2 * max(options.numbers)]]
    for spec in options.features:
        tables(images, open_features(spec), options.numbers)


if __name__ == "__main__":
    main()
