"""Imported by each interpreter that has this folder on PYTHONPATH: the ranks of a run keep what KEEP_ON_CPU names."""

import os

if os.environ.get("RANK") and os.environ.get("KEEP_ON_CPU"):
    import on_cpu

    on_cpu.keep_when_imported(*os.environ["KEEP_ON_CPU"].split(","))
