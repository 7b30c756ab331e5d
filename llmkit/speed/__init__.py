"""What makes training and generation faster, a file for each key of [speed]; each can be deleted alone."""
