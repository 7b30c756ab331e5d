"""A finished run to look at: `report.html`, one file without a script or a reference, and `loss.svg`."""
