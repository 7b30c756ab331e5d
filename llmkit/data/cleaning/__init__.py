"""What is done to text before a model learns from it, one kind of step a file; clean.py is the road through them."""
