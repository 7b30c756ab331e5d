"""Serve a finished model over HTTP."""
