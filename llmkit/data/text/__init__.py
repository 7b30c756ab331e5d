"""Running text: read documents, tokenize them, and pack the tokens into blocks."""
