"""Create, load, adapt, quantize and merge models; load, train and extend tokenizers."""
