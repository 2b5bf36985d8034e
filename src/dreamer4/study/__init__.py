"""A study is data: axes over configurations, seeds, and what is measured; one row of results for each cell.

`plan` reads a study and unfolds it; `work` trains and measures, sharing every stage that cells have in common; `rows`
are what is kept, and the table and the figure drawn from them.

The work imports all of the library, so it is imported from where it is: `dreamer4.study.work`.
"""

from .plan import Cell as Cell
from .plan import Study as Study
from .plan import read_study as read_study
