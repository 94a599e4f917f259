"""English spelling to phonemes: an encoder that reads both ways, and a decoder that attends to it."""
