"""Secondary Capture: the overlay picture, for viewers that know none of the other objects."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset

from mammoseg.io import dicom_attributes as attributes
from mammoseg.io.dicom_results import codes
from mammoseg.io.dicom_results.maker import NOTICE, maker_of
from mammoseg.io.dicom_results.objects import KINDS, complete
from mammoseg.io.dicom_results.source import SourceImage
from mammoseg.io.pictures import overlay
from mammoseg.types import Findings, Mammogram

_LOSSY = ("LossyImageCompressionRatio", "LossyImageCompressionMethod")


def secondary_capture(source: SourceImage, findings: Findings, mammogram: Mammogram) -> Dataset:
    """The picture of `overlay.png` as an RGB image of 8 bits. Modality OT: a picture is no mammogram."""
    picture = np.ascontiguousarray(overlay(mammogram, findings)[..., ::-1])
    ds = Dataset()
    complete(ds, KINDS["sc"], source, maker_of(findings))
    ds.ConversionType = "WSD"
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.DerivationDescription = f"Picture of the image with the outlines of masses. {NOTICE}"
    origin = source.reference
    origin.PurposeOfReferenceCodeSequence = [codes.item(codes.SOURCE_IMAGE)]
    ds.SourceImageSequence = [origin]
    ds.PatientOrientation = list(source.orientation or ()) or None
    ds.Laterality = source.laterality
    burned = attributes.text(source.header, "BurnedInAnnotation")
    if burned in ("YES", "NO"):  # ours do not name the patient, the source's may
        ds.BurnedInAnnotation = burned
    _lossy(ds, source)
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.Rows, ds.Columns = picture.shape[:2]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    data = picture.tobytes()
    ds.add_new("PixelData", "OB", data + b"\0" * (len(data) % 2))
    return ds


def _lossy(ds: Dataset, source: SourceImage) -> None:
    """Once lossy, always lossy (PS3.3 C.7.6.1.1.5)."""
    if attributes.text(source.header, "LossyImageCompression") != "01":
        return
    ds.LossyImageCompression = "01"
    ratios, methods = (attributes.value(source.header, k) for k in _LOSSY)
    if ratios is not None:
        ds.LossyImageCompressionRatio = ratios
    if methods is not None:
        ds.LossyImageCompressionMethod = methods
