"""Running text: documents, their tokens, and the blocks that they are packed into."""
