"""Evaluation: harness tasks and held-out text, two models on the same items, paired statistics.

Read in this order: `tasks` (names), `local_formats` and `local_data` (``--data-dir``),
`task_loading`, `loading` (models), `harness_model`, `harness`, `perplexity`, `controls`, then
`outcomes`, `comparison`, `results`; `job` has what is asked of every model, `session` joins them.
"""
