"""What came out, told with its uncertainty, as one HTML file for somebody who was not there.

`figures` draws charts; `report`, `comparison` and `data_page` say what stands on a page, which `blocks.html` and
`page.html` lay out. Nothing here computes with a model: a report can be written again from the files of a run.
"""

from .report import Report as Report
from .report import write_report as write_report
