"""The DICOM node: receives mammograms over the network, analyses studies, and sends the results on (`mammoseg node`)."""
