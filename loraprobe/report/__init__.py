"""Reports: what an audit says as sections, and what prints them.

`sections` lists the sections of an audit; the first is the `answer`: a `headline`, and lines on
what was `measured` and on what `limits` that. `parts` says of what sections consist. `terminal`
prints them and knows nothing of audits; extensions write them in other forms. `documents` reads and
writes the JSON; `cards` writes the model cards of what was made, in the templates that `markdown`
fills in.
"""
