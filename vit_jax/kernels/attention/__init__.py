"""Self-attention of the product that holds queries, keys and values of all heads, without taking it apart.

``qkv [B, N, K * 3 * E]`` is ordered (heads, 3, head_dim), as :class:`vit_jax.layers.attention.MultiHeadAttention` has
it. XLA would copy it three times to bring heads before tokens, and write probabilities ``[B, K, N, N]`` to memory.

A Monarch map leaves it in interleaved blocks, (blocks, heads, 3, head_dim / blocks), and takes the output so.
"""
