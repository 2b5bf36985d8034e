"""What came out, told with its uncertainty.

`statistics` reduces returns to a mean and an interval; `quality` says how close frames are; `media` turns frames into
pictures and films; `charts` draws; `report` lays all of it out as one HTML file for somebody who was not there.

Nothing here computes with a model. A `Report` is plain data (numbers, frames, text), so a report can be written again
from the files of a run, on a machine without an accelerator, and a test can write one from made-up data. Numbers of the
report and of `results.json` come from the same functions.
"""

from .media import gif as gif
from .media import png as png
from .media import side_by_side as side_by_side
from .media import to_rgb as to_rgb
from .quality import exact_frames as exact_frames
from .quality import matching_frames as matching_frames
from .quality import psnr as psnr
from .quality import ssim as ssim
from .report import Report as Report
from .report import write_report as write_report
from .statistics import interval as interval
from .statistics import iqm as iqm
from .statistics import mean as mean
from .statistics import paired_difference as paired_difference
from .statistics import rank_correlation as rank_correlation
from .statistics import summarise as summarise
