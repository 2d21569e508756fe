"""Training of the shipped models; needs torch."""
