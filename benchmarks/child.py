"""What is measured in a process of its own: `python -m benchmarks.child BUNDLE FILE IMAGES`."""

from __future__ import annotations

import sys
from pathlib import Path

import mammoseg
from benchmarks.inputs import TwoMasses
from mammoseg.io.load import load_mammogram
from mammoseg.io.pictures import label_image
from mammoseg.types import Detections


def main(bundle: str, file: str, images: str) -> None:
    """Decodes and analyses one file some times: detection at all scales, and the two masses delineated."""
    import numpy as np

    pipeline = mammoseg.load(bundle)
    for _ in range(int(images)):
        mammogram = load_mammogram(Path(file))
        pipeline.analyze(mammogram)
        boxes = Detections(TwoMasses().in_image(mammogram.size), np.array([0.9, 0.8]), mammogram.size)
        label_image(pipeline.analyze(mammogram, boxes))


if __name__ == "__main__":
    main(*sys.argv[1:])
