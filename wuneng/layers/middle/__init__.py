"""Middle heads: the contract of a kind (``base``), and one file per way of mixing attention and
state, named as ``cross_head`` names it in a configuration.
"""
