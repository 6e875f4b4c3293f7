"""The coded terms that the results use: DICOM's own (DCM), SNOMED CT (SCT), units (UCUM), language (RFC5646)."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code


def item(code: Code) -> Dataset:
    """The term as an item of a code sequence (PS3.3 8)."""
    ds = Dataset()
    ds.CodeValue, ds.CodingSchemeDesignator, ds.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return ds


def _dcm(value: str, meaning: str) -> Code:
    return Code(value, "DCM", meaning)


def _sct(value: str, meaning: str) -> Code:
    return Code(value, "SCT", meaning)


# What is found. A finding on one image is a "density" in CID 6014; the standard has "mass" for several views together.
MAMMOGRAPHIC_DENSITY = _sct("129793001", "Mammography breast density")
MASS = _sct("4147007", "Mass")
ABNORMAL_STRUCTURE = _sct("49755003", "Morphologically Abnormal Structure")
BREAST = _sct("76752008", "Breast")
SIDE = {"L": _sct("7771000", "Left"), "R": _sct("24028007", "Right")}
BREAST_OF_SIDE = {"L": _sct("80248007", "Left breast"), "R": _sct("73056007", "Right breast")}
VIEWS = {  # CID 4014
    "ML": _sct("399260004", "medio-lateral"),
    "MLO": _sct("399368009", "medio-lateral oblique"),
    "LM": _sct("399352003", "latero-medial"),
    "LMO": _sct("399099002", "latero-medial oblique"),
    "CC": _sct("399162004", "cranio-caudal"),
    "FB": _sct("399196006", "caudo-cranial (from below)"),
    "SIO": _sct("399188001", "superolateral to inferomedial oblique"),
    "ISO": _sct("441555000", "inferomedial to superolateral oblique"),
    "XCCL": _sct("399192008", "cranio-caudal exaggerated laterally"),
    "XCCM": _sct("399101009", "cranio-caudal exaggerated medially"),
}
IMAGING_PROCEDURE = _sct("363679005", "Imaging procedure")  # CID 100 has no mammography; the library names the modality
MODALITIES = {  # CID 29
    "MG": _dcm("MG", "Mammography"),
    "CR": _dcm("CR", "Computed Radiography"),
    "DX": _dcm("DX", "Digital Radiography"),
}

# Documents and their parts.
MAMMOGRAPHY_CAD_REPORT = _dcm("111036", "Mammography CAD Report")
IMAGING_MEASUREMENT_REPORT = _dcm("126000", "Imaging Measurement Report")
IMAGE_LIBRARY = _dcm("111028", "Image Library")
IMAGE_LIBRARY_GROUP = _dcm("126200", "Image Library Group")
IMAGING_MEASUREMENTS = _dcm("126010", "Imaging Measurements")
MEASUREMENT_GROUP = _dcm("125007", "Measurement Group")
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
CAD_SUMMARY = _dcm("111017", "CAD Processing and Findings Summary")
INDIVIDUAL_IMPRESSION = _dcm("111034", "Individual Impression/Recommendation")
IMPRESSION_DESCRIPTION = _dcm("111033", "Impression Description")
SINGLE_IMAGE_FINDING = _dcm("111059", "Single Image Finding")
SUMMARY_OF_DETECTIONS = _dcm("111064", "Summary of Detections")
SUMMARY_OF_ANALYSES = _dcm("111065", "Summary of Analyses")
SUCCESSFUL_DETECTIONS = _dcm("111063", "Successful Detections")
FAILED_DETECTIONS = _dcm("111025", "Failed Detections")
DETECTION_PERFORMED = _dcm("111022", "Detection Performed")

# Names of content items.
LANGUAGE = _dcm("121049", "Language of Content Item and Descendants")
ENGLISH = Code("en-US", "RFC5646", "English (United States)")
RENDERING_INTENT = _dcm("111056", "Rendering Intent")
CERTAINTY_OF_FINDING = _dcm("111012", "Certainty of Finding")
CENTER = _dcm("111010", "Center")
OUTLINE = _dcm("111041", "Outline")
ALGORITHM_NAME = _dcm("111001", "Algorithm Name")
ALGORITHM_VERSION = _dcm("111003", "Algorithm Version")
ALGORITHM_PARAMETERS = _dcm("111002", "Algorithm Parameters")
ARTIFICIAL_INTELLIGENCE = _dcm("123110", "Artificial Intelligence")
TRACKING_IDENTIFIER = _dcm("112039", "Tracking Identifier")
TRACKING_UID = _dcm("112040", "Tracking Unique Identifier")
IMAGE_LATERALITY = _dcm("111027", "Image Laterality")
IMAGE_VIEW = _dcm("111031", "Image View")
ORIENTATION_ROW = _dcm("111044", "Patient Orientation Row")
ORIENTATION_COLUMN = _dcm("111043", "Patient Orientation Column")
STUDY_DATE = _dcm("111060", "Study Date")
STUDY_TIME = _dcm("111061", "Study Time")
HORIZONTAL_SPACING = _dcm("111026", "Horizontal Pixel Spacing")
VERTICAL_SPACING = _dcm("111066", "Vertical Pixel Spacing")
PIXEL_ROWS = _dcm("110910", "Pixel Data Rows")
PIXEL_COLUMNS = _dcm("110911", "Pixel Data Columns")
MODALITY = _dcm("121139", "Modality")
TARGET_REGION = _dcm("123014", "Target Region")
OBSERVER_TYPE = _dcm("121005", "Observer Type")
DEVICE = _dcm("121007", "Device")
DEVICE_UID = _dcm("121012", "Device Observer UID")
DEVICE_NAME = _dcm("121013", "Device Observer Name")
DEVICE_MANUFACTURER = _dcm("121014", "Device Observer Manufacturer")
DEVICE_MODEL = _dcm("121015", "Device Observer Model Name")
DEVICE_SERIAL = _dcm("121016", "Device Observer Serial Number")
PROCEDURE_REPORTED = _dcm("121058", "Procedure reported")
FINDING = _dcm("121071", "Finding")
FINDING_SITE = _sct("363698007", "Finding Site")
LATERALITY = _sct("272741003", "Laterality")
IMAGE_REGION = _dcm("111030", "Image Region")
COMMENT = _dcm("121106", "Comment")
LONG_AXIS = _sct("103339001", "Long Axis")
SHORT_AXIS = _sct("103340004", "Short Axis")
AREA = _sct("42798000", "Area")

# Values of content items.
PRESENTATION_REQUIRED = _dcm("111150", "Presentation Required: Rendering device is expected to present")
SUCCEEDED = _dcm("111222", "Succeeded")
PARTIALLY_SUCCEEDED = _dcm("111223", "Partially Succeeded")
FAILED = _dcm("111224", "Failed")
NOT_ATTEMPTED = _dcm("111225", "Not Attempted")
ALL_WITHOUT_FINDINGS = _dcm("111241", "All algorithms succeeded; without findings")
ALL_WITH_FINDINGS = _dcm("111242", "All algorithms succeeded; with findings")
NOT_ALL_WITHOUT_FINDINGS = _dcm("111243", "Not all algorithms succeeded; without findings")
NOT_ALL_WITH_FINDINGS = _dcm("111244", "Not all algorithms succeeded; with findings")
NONE_SUCCEEDED = _dcm("111245", "No algorithms succeeded; without findings")
SOURCE_IMAGE = _dcm("121322", "Source image for image processing operation")
SEGMENTATION = _dcm("113076", "Segmentation")

# Units.
PERCENT = Code("%", "UCUM", "Percent")
MILLIMETER = Code("mm", "UCUM", "millimeter")
SQUARE_MILLIMETER = Code("mm2", "UCUM", "square millimeter")
PIXELS = Code("{pixels}", "UCUM", "pixels")
