"""The parts of a block: attention, state heads, cross-head interaction, feed-forward, norms."""
