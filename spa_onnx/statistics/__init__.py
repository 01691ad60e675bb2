"""What the inputs of products look like on samples: moments within a budget of memory."""
