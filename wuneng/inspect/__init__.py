"""What a model's heads do over one text: memory, rates, states, gates, attention.

Read in this order: `quantities` (the definitions), `recording` (one forward call, watched),
`subject` (which text), `report` (record, tables, CSV), `strips`, `pictures`, `session` (all of it).
"""
