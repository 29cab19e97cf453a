"""Reports: what an audit says as sections, and what prints them.

`sections` lists the sections of an audit; the first is the `answer`: a `headline`, and lines on
what was `measured` and on what `limits` that. `parts` says of what sections consist, `figures` of
the drawn ones. `terminal`, `page` (HTML) and `markdown` print sections and know nothing of audits.
`documents` reads and writes the JSON and the answers of --save-samples; `cards` writes the model
cards of what was made.
"""
