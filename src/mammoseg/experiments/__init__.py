"""Cross-validation, ablations, the published protocol, and making bundles."""
