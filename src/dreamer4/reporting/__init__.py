"""What came out, told with its uncertainty.

`media` turns frames into pictures and films; `figures` draws charts; `report`, `comparison` and `data_page` say what
stands on a page, and the template `page.html` lays out all of them as one HTML file for somebody who was not there.

Nothing here computes with a model. A `Report` is plain data (numbers, frames, text), so a report can be written again
from the files of a run, on a machine without an accelerator, and a test can write one from made-up data. Numbers of the
report and of `results.json` come from the same functions.
"""

from .media import gif as gif
from .media import png as png
from .media import side_by_side as side_by_side
from .media import to_rgb as to_rgb
from .report import Report as Report
from .report import write_report as write_report
