"""Play in the browser: an agent's dream under a person's keys, beside the real game.

A `Stage` is what can be played: an agent, the real environment, recorded starts. A `Session` is one person's play on
it: it advances `worlds` by an action at a time and answers with a `Moment`. `protocol` turns moments into bytes,
`recording` into films and data sets, and `server` decides who is let in. The page is one file, `page.html`.

A session is a function of its start, its seed and its actions: who plays the same again sees the same again.
"""
