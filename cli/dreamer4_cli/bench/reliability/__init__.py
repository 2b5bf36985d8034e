"""`dreamer4 bench reliability`.

`lab` starts, kills and compares runs; `faults`, `devices` and `endurance` are the rows that need more than that, and
`suite` runs a choice of all rows and prints the table.
"""
