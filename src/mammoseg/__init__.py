"""mammoseg: from a native full mammogram to the contour of every mass in it. Research software, not for clinical use."""

__version__ = "0.1.0"
