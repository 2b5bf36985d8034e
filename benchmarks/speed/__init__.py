"""`python -m benchmarks speed`.

`programs` are what is timed, `timing` times them, `floor` tells the least they could take; `start` and `data` measure
what is no compiled program. `suite` runs a choice and prints the table. `options` alone is light to import.
"""
