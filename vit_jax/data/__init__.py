"""Examples in, fixed uint8 batches out: random-access sources, host decoding, a stateless loader."""
