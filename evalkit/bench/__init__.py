"""What updates and scores cost: time in training steps, and memory."""
