"""Controls: a model whose state, or one of whose heads, is changed for as long as a block runs.

Read in this order: `names` (what there is, and how it is written), `switch` (one control, switched
on for a block of code), `recurrences` (those that change what becomes of the state itself),
`company` (batches of two rows at least). Training switches one on for an arm that is a control,
`wuneng.evaluate.controls` one after the other for a model that is trained.
"""
