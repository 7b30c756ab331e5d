"""Models and tokenizers: made, loaded again, adapted, quantized and merged."""
