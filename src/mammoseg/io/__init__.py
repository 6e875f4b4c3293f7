"""Files in and out: DICOM and raster images to `Mammogram`, `Findings` to JSON and pictures. Never imports torch."""
