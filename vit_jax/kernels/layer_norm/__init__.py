"""Layer norm that reads its input once, where XLA reads it for the mean, for the variance and for the result."""
