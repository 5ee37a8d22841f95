"""Temperature and weights of the loss that fit a pair of detectors."""
