"""Controls after training: what a model loses when its state, or one of its heads, is changed.

Read in this order: `names` (what there is, and how it is written), `switch` (one control, switched
on for a block of code), `recurrences` (those that change what becomes of the state itself),
`wanted` (a list of controls for a model), `battery` (all of them on the same items), `attribution`
(whose gain it is), `report`.
"""
