"""State heads: the contract of a kind (``base``), and one file per kind, named as it is.

``rwkv7`` is RWKV-7's generalised delta rule, ``gated_delta`` Gated DeltaNet's, ``kda`` Kimi Delta
Attention's. What is in a file whose name begins with an underscore belongs to a kind.
"""
