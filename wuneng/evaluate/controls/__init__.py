"""Controls after training: what a model loses when its state, or one of its heads, is changed.

Read in this order: `wuneng.controls` (what there is, and how one is switched on), then `wanted` (a
list of controls for a model), `battery` (all of them on the same items), `attribution` (whose gain
it is), `report`.
"""
