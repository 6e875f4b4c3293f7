"""`mammoseg serve`: a REST service and a web viewer for mammograms and their findings."""
