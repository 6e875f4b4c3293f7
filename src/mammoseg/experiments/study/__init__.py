"""The published study (Yan et al. 2020, Sect. 4), run again from the raw data sets to a report: `mammoseg reproduce`."""
